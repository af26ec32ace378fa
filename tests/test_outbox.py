"""The outbox of a run, without a server: what an earlier version left, what is damaged, and what is forged."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.tracking.delivery import thing
from pipeline.tracking.outbox import Address, Outbox


class Client:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def log_artifact(self, run_id: str, path: str) -> None:
        self.told.append(Path(path).read_text())

    def set_terminated(self, run_id: str, status: str, at: int) -> None:
        self.told.append(status)


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox.create(tmp_path, Address("http://127.0.0.1:9", "a1", "a run"))


def test_outbox_of_an_earlier_version_is_sent(outbox: Outbox) -> None:
    address = outbox.address()
    file = outbox.folder / "run.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "page": "http://127.0.0.1:9/#/"}))
    assert outbox.address() == address
    line = json.dumps({**thing("status", status="FINISHED"), "refused": "HTTP 400"})
    (outbox.folder / "refused.jsonl").write_text(f"{line}\n")
    outbox.retry_refused()
    client = Client()
    outbox.send(client)
    assert client.told == ["FINISHED"]
    assert (outbox.count_left(), outbox.count_refused()) == (0, 0)


def test_damaged_line_among_the_refused_holds_up_nothing(outbox: Outbox) -> None:
    (outbox.folder / "refused.jsonl").write_text("damaged\n")
    outbox.retry_refused()
    outbox.append(thing("status", status="FINISHED"))
    client = Client()
    outbox.send(client)
    assert client.told == ["FINISHED"]
    assert json.loads((outbox.folder / "refused.jsonl").read_text())["line"] == "damaged"


@pytest.mark.parametrize("path", ["../../secret", "{absolute}", "files/../../../secret", 3])
def test_file_beside_the_outbox_is_not_sent_when_a_line_is_forged(
    outbox: Outbox, tmp_path: Path, path: str | int
) -> None:
    secret, mine = tmp_path / "secret", tmp_path / "mine"
    secret.write_text("secret")
    mine.write_text("mine")
    outbox.append(thing("file", path=str(mine)))
    forged = path.format(absolute=secret) if isinstance(path, str) else path
    with (outbox.folder / "things.jsonl").open("a") as stream:
        stream.write(json.dumps(thing("file", path=forged)) + "\n")
    client = Client()
    outbox.send(client)
    assert client.told == ["mine"]
    assert (outbox.count_left(), outbox.count_refused()) == (0, 1)
