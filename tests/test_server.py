"""What a run says to a server that comes and goes: a real MLflow server behind a gate, asked what it has."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipeline.commands.composition import compose_request
from pipeline.host.errors import UserError
from pipeline.host.files import PROJECT_ROOT
from pipeline.settings.config import RegisterConfig, TrackingConfig
from pipeline.sweeps.jobs import run_job, sweep_session
from pipeline.sweeps.states import RUNNING, JobRecord
from pipeline.tracking import RunRecord, Tracker, find_earlier, open_run, parents
from pipeline.tracking.champion import Contender
from pipeline.tracking.leftovers import send_leftovers
from pipeline.tracking.models import ModelRecord
from pipeline.tracking.outbox import Address, Outbox, lock_of
from pipeline.tracking.store import configured_server
from tests import forked
from tests.conftest import SMALL
from tests.tracking_server import Gate, free_port, mlflow_server

pytestmark = pytest.mark.operations

RECORD = RunRecord("a run", {"qat.epochs": 2}, {"backend": "fbgemm"}, "seed: 0\n", ("digits", "0123", "nowhere"))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run sets for the rest of its process, undone after each test."""
    for variable, value in {"MAX_RETRIES": "0", "TIMEOUT": "30"}.items():
        monkeypatch.setenv(f"MLFLOW_HTTP_REQUEST_{variable}", value)
    monkeypatch.setenv("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")


@pytest.fixture(scope="module")
def server_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("server")


@pytest.fixture(scope="module")
def server(server_folder: Path) -> Iterator[int]:
    port = free_port()
    with mlflow_server(server_folder, port):
        yield port


@pytest.fixture
def gate(server: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gate.address)
    yield gate
    gate.shut()


@pytest.fixture
def config(gate: Gate) -> TrackingConfig:
    return TrackingConfig(uri=gate.address, patience_s=30)


@pytest.fixture
def client(server: int) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"http://127.0.0.1:{server}")


def points(client: mlflow.MlflowClient, run_id: str, name: str) -> list[tuple[int, float]]:
    return sorted((point.step, point.value) for point in client.get_metric_history(run_id, name))


def artifact(client: mlflow.MlflowClient, run_id: str, name: str, folder: Path) -> str:
    return Path(client.download_artifacts(run_id, name, str(folder))).read_text()


def say_epochs(tracker: Tracker, epochs: range) -> None:
    for epoch in epochs:
        tracker.metric("train/loss", 1 / (epoch + 1), epoch)


def assert_whole(client: mlflow.MlflowClient, run_id: str, tmp_path: Path) -> Any:
    """All that `RECORD` and six epochs, a file and a description come to."""
    run = client.get_run(run_id)
    assert points(client, run_id, "train/loss") == [(epoch, 1 / (epoch + 1)) for epoch in range(6)]
    assert run.data.params == {"qat.epochs": "2"}
    assert run.data.tags.items() >= {"backend": "fbgemm", "mlflow.note.content": "the table"}.items()
    assert [given.dataset.name for given in run.inputs.dataset_inputs] == ["digits"]
    assert artifact(client, run_id, "config.yaml", tmp_path) == "seed: 0\n"
    assert artifact(client, run_id, "result.txt", tmp_path) == "as it was said"
    return run


def say_rest(tracker: Tracker, tmp_path: Path) -> None:
    file = tmp_path / "said" / "result.txt"
    file.parent.mkdir(exist_ok=True)
    file.write_text("as it was said")
    tracker.file(file)
    file.write_text("as it became")
    tracker.describe("the table")


def test_run_goes_on_and_nothing_is_missing_when_the_server_is_away_for_a_while(
    gate: Gate,
    config: TrackingConfig,
    client: mlflow.MlflowClient,
    outputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open_run(config, outputs, RECORD) as tracker:
        say_epochs(tracker, range(2))
        time.sleep(0.5)
        gate.shut()
        before = time.monotonic()
        say_epochs(tracker, range(2, 5))
        say_rest(tracker, tmp_path)
        assert time.monotonic() - before < 1  # nobody waits for the server
        time.sleep(1.5)
        said_at = time.time()
        gate.open()
        say_epochs(tracker, range(5, 6))
    said = capsys.readouterr()
    assert tracker.run_id is not None
    run = assert_whole(client, tracker.run_id, tmp_path)
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(tracker.run_id, "train/loss")
    assert max(point.timestamp for point in history if point.step < 5) < 1000 * said_at  # said, not sent
    assert not (outputs / "outbox" / tracker.run_id).exists()
    (warning,) = said.err.splitlines()
    assert warning.startswith(f"warning: the tracking server {gate.address} is away: the run goes on, and what it says")
    assert "is back" in said.out


def test_command_sends_all_when_the_server_stayed_away_until_the_end(
    gate: Gate,
    config: TrackingConfig,
    client: mlflow.MlflowClient,
    outputs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with open_run(replace(config, patience_s=0.5), outputs, RECORD) as tracker:
        gate.shut()
        say_epochs(tracker, range(6))
        say_rest(tracker, tmp_path)
    ended = 1000 * time.time()
    run_id = tracker.run_id
    assert run_id is not None
    assert f"python -m pipeline.outbox --outputs {outputs}" in capsys.readouterr().err
    assert parents.is_finished(config, outputs, run_id)  # and is not repeated
    gate.open()
    command = [sys.executable, "-m", "pipeline.outbox", "--outputs", str(outputs)]
    done = forked.run(command, check=True)
    assert done.stdout.endswith("0 left, 0 refused, FINISHED\n"), done.stdout
    run = assert_whole(client, run_id, tmp_path)
    assert run.info.status == "FINISHED"
    assert run.info.end_time <= ended
    assert list((outputs / "outbox").iterdir()) == []
    assert send_leftovers(outputs) == []


@pytest.mark.operations
def test_killed_process_leaves_what_it_said_and_its_run_becomes_killed(
    gate: Gate, config: TrackingConfig, client: mlflow.MlflowClient, outputs: Path
) -> None:
    program = (
        "import sys, time; from pathlib import Path; from tests.test_server import *\n"
        "with open_run(TrackingConfig(uri=sys.argv[1]), Path(sys.argv[2]), RECORD) as tracker:\n"
        "    say_epochs(tracker, range(3)); print(tracker.run_id, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", program, gate.address, str(outputs)]
    with subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        run_id = process.stdout.readline().strip()
        gate.shut()
        (alive,) = send_leftovers(outputs)
        assert "its own run" in alive.in_the_way
        process.send_signal(signal.SIGKILL)
    with (outputs / "outbox" / run_id / "things.jsonl").open("a") as stream:
        stream.write('{"kind": "metric", "name": "cut o')
    gate.open()
    (done,) = send_leftovers(outputs)
    assert (done.left, done.refused, done.status) == (0, 0, "KILLED")
    assert client.get_run(run_id).info.status == "KILLED"
    assert points(client, run_id, "train/loss") == [(epoch, 1 / (epoch + 1)) for epoch in range(3)]
    assert not (outputs / "outbox" / run_id).exists()


def test_refused_thing_is_kept_aside_and_the_others_are_sent(
    config: TrackingConfig, client: mlflow.MlflowClient, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run(config, outputs, RECORD) as tracker:
        say_epochs(tracker, range(2))
        tracker.metric("not/a name: *", 1.0, 0)
        say_epochs(tracker, range(2, 4))
    run_id = tracker.run_id
    assert run_id is not None
    assert client.get_run(run_id).info.status == "FINISHED"
    assert points(client, run_id, "train/loss") == [(epoch, 1 / (epoch + 1)) for epoch in range(4)]
    (refused,) = (outputs / "outbox" / run_id / "refused.jsonl").read_text().splitlines()
    assert json.loads(json.loads(refused)["line"])["name"] == "not/a name: *"
    assert "refuses 'not/a name: *'" in capsys.readouterr().err


def left_behind(gate: Gate, config: TrackingConfig, outputs: Path) -> Path:
    """The outbox of a run during which the server went away."""
    with open_run(replace(config, patience_s=0.2), outputs, RECORD) as tracker:
        gate.shut()
        say_epochs(tracker, range(2))
    assert tracker.run_id is not None
    time.sleep(1)  # until the run's own sender has let go
    gate.open()
    return outputs / "outbox" / tracker.run_id


def say_line(folder: Path, line: bytes) -> None:
    with (folder / "things.jsonl").open("ab") as stream:
        stream.write(line + b"\n")


def said_line(kind: str, **content: Any) -> bytes:
    return json.dumps({"kind": kind, "at": 1, **content}).encode()


DAMAGED = {
    "cut off": b'{"kind": "metric", "at": 1',
    "no UTF-8": b'{"kind": "text", "at": 1, "name": "\xff\xfe", "content": ""}',
    "NULs": bytes(100),
    "list": b"[]",
    "kind alone": b'{"kind": "status"}',
    "unknown kind": said_line("order", status="FINISHED"),
    "its file is gone": said_line("file", path="files/gone/a.txt"),
}


def test_line_that_cannot_be_read_is_kept_as_it_is_and_the_others_are_sent(
    gate: Gate,
    config: TrackingConfig,
    client: mlflow.MlflowClient,
    outputs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = left_behind(gate, config, outputs)
    for line in DAMAGED.values():
        say_line(folder, line)
    say_line(folder, said_line("metric", name="train/loss", value=0.5, step=7))
    say_line(folder, said_line("metric", name="not/a name: *", value=0.5, step=7))
    capsys.readouterr()
    for _ in range(2):
        (done,) = send_leftovers(outputs)
        assert (done.left, done.refused, done.status) == (0, len(DAMAGED) + 1, "FINISHED")
        *damaged, refused = (json.loads(line) for line in (folder / "refused.jsonl").read_bytes().splitlines())
        assert [one["line"].encode(errors="surrogateescape") for one in damaged] == list(DAMAGED.values())
        assert damaged[0]["refused"] == "the line is damaged"
        assert json.loads(refused["line"])["name"] == "not/a name: *"
        (warning,) = capsys.readouterr().err.splitlines()
        assert warning.startswith(f"warning: run {RECORD.name}: the tracking server refuses 'a line that is damaged': ")
        assert warning.endswith(f": what is not sent is kept in {folder}/refused.jsonl")
    assert client.get_run(folder.name).info.status == "FINISHED"
    assert points(client, folder.name, "train/loss") == [(0, 1.0), (1, 0.5), (7, 0.5)]


def test_outbox_that_cannot_be_sent_holds_up_no_other(
    gate: Gate, config: TrackingConfig, client: mlflow.MlflowClient, outputs: Path
) -> None:
    damaged, unknown, whole = (left_behind(gate, config, outputs) for _ in range(3))
    (damaged / "things.jsonl").unlink()
    (damaged / "things.jsonl").mkdir()
    (unknown / "run.json").write_text('{"uri": ')
    done = {one.run_id: one for one in send_leftovers(outputs)}
    assert "things.jsonl" in done[damaged.name].in_the_way
    assert "run.json cannot be read" in done[unknown.name].in_the_way
    assert (done[whole.name].left, done[whole.name].in_the_way) == (0, "")
    assert client.get_run(whole.name).info.status == "FINISHED"


@pytest.fixture
def eavesdropper() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a server that is somebody else's, and what it was told."""
    heard: list[bytes] = []

    def listen(listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                heard.append(connection.recv(65536))
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=listen, args=(listener,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", heard
        listener.shutdown(socket.SHUT_RDWR)


def test_password_goes_to_no_server_but_the_configured_one_or_one_that_is_typed(
    gate: Gate,
    config: TrackingConfig,
    client: mlflow.MlflowClient,
    outputs: Path,
    eavesdropper: tuple[str, list[bytes]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hunter2hunter2")
    address, heard = eavesdropper
    whole, forged = (left_behind(gate, config, outputs) for _ in range(2))
    kept = json.loads((forged / "run.json").read_text())
    (forged / "run.json").write_text(json.dumps({**kept, "uri": address}))
    command = [sys.executable, "-m", "pipeline.outbox", "--outputs", str(outputs)]
    done = forked.run(command)
    assert (done.returncode, heard) == (1, [])
    assert re.search(rf"{whole.name}\): \d+ sent, 0 left, 0 refused, FINISHED\n", done.stdout)
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {RECORD.name}: not sent: it was for {address}, which is not the configured server")
    typed = f"python -m pipeline.outbox --outputs {outputs} --tracking-uri {address}"
    assert line.endswith(f": {typed}")
    # A sweep that goes on sends what its children left to its own server.
    with open_run(config, outputs, RECORD) as parent:
        assert parent.run_id is not None
        client.set_tag(forged.name, "mlflow.parentRunId", parent.run_id)
        client.update_run(forged.name, status="RUNNING")
        assert parents.mark_killed(config, outputs, parent.run_id, lambda job: True) == 0  # it had ended
    assert client.get_run(forged.name).info.status == "FINISHED"
    assert heard == []
    left_behind(gate, config, outputs)
    done = forked.run([sys.executable, *typed.split()[1:]])
    assert done.returncode == 1
    assert heard[0].startswith(b"GET /api/2.0/mlflow/runs/get")


def test_server_stays_the_one_of_the_environment_when_a_run_has_gone_to_another_store(
    outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with open_run(TrackingConfig(), outputs, RECORD):
        pass
    assert compose_request(["tracking=server"]).config.tracking.uri == configured_server() == "http://127.0.0.1:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:7")
    with open_run(TrackingConfig(), outputs, RECORD):
        pass
    assert compose_request(["tracking=server"]).config.tracking.uri == configured_server() == "http://127.0.0.1:7"


def test_folder_is_refused_in_one_line_when_it_is_not_there(tmp_path: Path) -> None:
    missing = tmp_path / "outptus"
    command = [sys.executable, "-m", "pipeline.outbox", "--outputs", str(missing)]
    done = forked.run(command)
    line = f"error: --outputs={missing}: {missing} is no folder; allowed: a folder of runs\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)


@pytest.mark.parametrize(
    "address",
    ["foo", "", "sqlite:///x.db", "databricks", "http://me:hunter2@127.0.0.1:5000"],
)
def test_address_is_refused_in_one_line_when_it_is_no_server_or_has_a_password(address: str, outputs: Path) -> None:
    outputs.mkdir()
    command = [sys.executable, "-m", "pipeline.outbox", "--outputs", str(outputs), "--tracking-uri", address]
    done = forked.run(command)
    (line,) = done.stderr.splitlines()
    assert done.returncode == 2
    assert line.startswith("error: --tracking-uri")
    assert "allowed: " in line
    assert "hunter2" not in line


def test_password_in_the_servers_variable_is_refused_before_anything_is_sent(
    gate: Gate, config: TrackingConfig, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(gate, config, outputs)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", gate.address.replace("://", "://me:hunter2@"))
    with pytest.raises(UserError, match=r"MLFLOW_TRACKING_URI=http://\*\*\*@127.0.0.1"):
        send_leftovers(outputs)


def test_outbox_is_sent_when_the_address_differs_by_a_slash_alone(
    gate: Gate, config: TrackingConfig, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left_behind(gate, config, outputs)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{gate.address}/")
    (done,) = send_leftovers(outputs)
    assert (done.left, done.in_the_way) == (0, "")


@pytest.mark.parametrize("position", ["1000000000", "", "here"])
def test_all_is_said_once_more_when_it_is_not_known_how_much_was(
    gate: Gate, config: TrackingConfig, client: mlflow.MlflowClient, outputs: Path, position: str
) -> None:
    folder = left_behind(gate, config, outputs)
    (folder / "sent").write_text(position)
    (done,) = send_leftovers(outputs)
    assert (done.left, done.in_the_way, done.status) == (0, "", "FINISHED")
    assert points(client, folder.name, "train/loss") == [(0, 1.0), (1, 0.5)]
    assert client.get_run(folder.name).info.status == "FINISHED"


@pytest.mark.parametrize("status", ["KILLED", "FINISHED"])
def test_run_keeps_its_end_when_a_model_that_was_refused_is_tried_again(
    gate: Gate, config: TrackingConfig, client: mlflow.MlflowClient, outputs: Path, status: str
) -> None:
    folder = left_behind(gate, config, outputs)
    (folder / "files" / "7").mkdir(parents=True)
    (folder / "files" / "7" / "model.onnx").write_text("no model")
    how = {"runtime": "onnxruntime", "threads": 1, "engine": "fbgemm", "outputs": str(outputs)}
    say_line(folder, said_line("model", path="files/7/model.onnx", **how, register=None, candidate=None))
    say_line(folder, json.dumps({"kind": "status", "at": 1000, "status": status}).encode())
    for _ in range(2):
        (done,) = send_leftovers(outputs)
        assert (done.left, done.refused, done.status) == (0, 1, status)
        info = client.get_run(folder.name).info
        assert (info.status, info.end_time) == (status, 1000)


@pytest.mark.parametrize("is_whole", [True, False])
def test_summary_of_a_sweep_arrives_when_another_process_sends_what_its_run_left_before(
    gate: Gate, config: TrackingConfig, client: mlflow.MlflowClient, outputs: Path, tmp_path: Path, is_whole: bool
) -> None:
    with open_run(replace(config, patience_s=0.2), outputs, RECORD) as tracker:
        gate.shut()
        say_rest(tracker, tmp_path)
    assert tracker.run_id is not None
    folder = outputs / "outbox" / tracker.run_id
    time.sleep(1)  # until the run's own sender has let go
    gate.open()
    if not is_whole:
        say_line(folder, b"damaged")  # for which the folder stays
    closing = threading.Thread(
        target=parents.close_parent,
        args=(config, outputs, tracker.run_id, "sweep", "FINISHED", parents.Summary("the comparison")),
    )
    with lock_of(folder):
        closing.start()
        time.sleep(1)
        left = Outbox(folder)
        left.send(mlflow.MlflowClient(gate.address))
        left.delete_when_said()
        assert folder.exists() != is_whole
    closing.join(60)
    assert client.get_run(tracker.run_id).data.tags["mlflow.note.content"] == "the comparison"
    assert folder.exists() != is_whole
    if not is_whole:
        assert json.loads((folder / "refused.jsonl").read_bytes())["line"] == "damaged"


def test_finished_run_is_known_to_be_when_its_outbox_is_sent_in_that_moment(
    gate: Gate, config: TrackingConfig, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = left_behind(gate, config, outputs)
    asked = Outbox.last_status

    def sent_meanwhile(outbox: Outbox) -> str | None:
        monkeypatch.setattr(Outbox, "last_status", asked)
        send_leftovers(outputs)
        return asked(outbox)

    monkeypatch.setattr(Outbox, "last_status", sent_meanwhile)
    assert parents.is_finished(config, outputs, folder.name)


def test_run_is_said_to_be_left_when_a_sweep_that_goes_on_cannot_send_it(
    gate: Gate,
    config: TrackingConfig,
    client: mlflow.MlflowClient,
    outputs: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = left_behind(gate, config, outputs)
    with open_run(config, outputs, RECORD) as parent:
        assert parent.run_id is not None
        client.set_tag(folder.name, "mlflow.parentRunId", parent.run_id)
        capsys.readouterr()
        with lock_of(folder):
            parents.mark_killed(config, outputs, parent.run_id, lambda job: True)
    assert "its own run, or another process, is sending it" in capsys.readouterr().err


def test_nothing_is_put_aside_when_another_server_does_not_know_the_run(
    gate: Gate, config: TrackingConfig, outputs: Path, tmp_path: Path
) -> None:
    folder = left_behind(gate, config, outputs)
    port = free_port()
    with mlflow_server(tmp_path / "other", port) as other:
        (done,) = send_leftovers(outputs, uri=other)
        (unchanged,) = send_leftovers(outputs, uri=other)
    assert done.in_the_way.startswith(f"{other} does not know this run, which was for {gate.address}; to forget it,")
    assert unchanged == done
    (away,) = send_leftovers(outputs, uri=other)
    assert away.in_the_way.startswith(f"the tracking server {other} is away")
    assert (done.left > 0, done.refused) == (True, 0)
    (done,) = send_leftovers(outputs)
    assert (done.in_the_way, done.left, done.refused, folder.exists()) == ("", 0, 0, False)


def test_run_that_was_deleted_holds_nobody_up_and_is_whole_once_it_is_restored(
    config: TrackingConfig, client: mlflow.MlflowClient, outputs: Path, tmp_path: Path
) -> None:
    with open_run(config, outputs, RECORD) as tracker:
        assert tracker.run_id is not None
        client.delete_run(tracker.run_id)
        say_epochs(tracker, range(6))
        say_rest(tracker, tmp_path)
    (refused,) = send_leftovers(outputs)
    assert refused.left == 0 < refused.refused
    client.restore_run(tracker.run_id)
    (done,) = send_leftovers(outputs)
    assert (done.left, done.refused, done.status) == (0, 0, "FINISHED")
    assert_whole(client, tracker.run_id, tmp_path)


def test_model_is_logged_and_registered_once_when_it_is_sent_later_and_twice(
    gate: Gate, config: TrackingConfig, client: mlflow.MlflowClient, outputs: Path, tmp_path: Path
) -> None:
    pytest.importorskip("onnxruntime")
    from tests.onnx_models import write_brightness_model

    file = write_brightness_model(tmp_path / "int8") / "model.onnx"
    with open_run(replace(config, patience_s=0.2), outputs, RECORD) as tracker:
        gate.shut()
        contender = Contender(0.0, 90.0, 20.0, 1.0, True, "1 thread")
        tracker.model(ModelRecord("onnxruntime", file, 1, "fbgemm"), outputs, RegisterConfig("digits"), contender)
    file.unlink()
    assert tracker.run_id is not None
    again = outputs / "outbox" / "again"
    time.sleep(1)  # until the run's own sender has let go
    shutil.copytree(outputs / "outbox" / tracker.run_id, again)
    gate.open()
    for run_id in (tracker.run_id, "again"):
        (done,) = send_leftovers(outputs, [run_id])
        assert (done.left, done.refused, done.status) == (0, 0, "FINISHED")
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FINISHED"
    assert len(run.outputs.model_outputs) == 1
    (version,) = client.search_model_versions("name='digits'")
    assert client.get_registered_model("digits").aliases == {"champion": version.version}


def test_saying_everything_twice_changes_nothing(
    gate: Gate, config: TrackingConfig, client: mlflow.MlflowClient, outputs: Path, tmp_path: Path
) -> None:
    with open_run(replace(config, patience_s=0.2), outputs, RECORD) as tracker:
        gate.shut()
        say_epochs(tracker, range(6))
        say_rest(tracker, tmp_path)
    assert tracker.run_id is not None
    folder = outputs / "outbox" / tracker.run_id
    again = folder.with_name("again")
    time.sleep(1)  # until the run's own sender has let go
    shutil.copytree(folder, again)
    gate.open()
    send_leftovers(outputs, [tracker.run_id])
    assert Outbox(again).count_left() > 5
    (again / "sent").unlink(missing_ok=True)
    send_leftovers(outputs, ["again"])
    assert_whole(client, tracker.run_id, tmp_path)


def test_finished_run_with_the_same_artifacts_is_found_on_the_server_with_its_page(
    config: TrackingConfig, outputs: Path
) -> None:
    record = replace(RECORD, tags={**RECORD.tags, "artifact.train": f"train-{uuid.uuid4().hex}"})
    assert find_earlier(config, outputs, record) is None
    with open_run(config, outputs, record) as tracker:
        assert find_earlier(config, outputs, record) is None  # it has not finished
    earlier = find_earlier(config, outputs, record)
    assert earlier is not None
    assert earlier.run_id == tracker.run_id
    assert earlier.page.startswith(
        f"{config.uri}/#/experiments/{earlier.experiment}/runs/{tracker.run_id}?workflowType="
    )
    assert tracker.way_to_runs.startswith(f"open {config.uri}/#/experiments/{earlier.experiment}/runs?workflowType=")
    assert find_earlier(config, outputs, replace(record, parameters={"qat.epochs": 3})) is None


def test_start_is_refused_in_one_line_when_the_server_is_not_there(gate: Gate, outputs: Path) -> None:
    gate.shut()
    before = time.monotonic()
    with (
        pytest.raises(UserError, match="the server is away") as refusal,
        open_run(TrackingConfig(uri=gate.address), outputs, RECORD),
    ):
        pass
    assert time.monotonic() - before < 15
    assert len(str(refusal.value).splitlines()) == 1


def test_run_is_there_once_when_the_answer_to_its_creation_is_lost(
    gate: Gate, config: TrackingConfig, client: mlflow.MlflowClient, outputs: Path
) -> None:
    gate.unheard = b"/runs/create"
    long = replace(RECORD, name="qat.epochs=1 " * 30)  # longer than PostgreSQL takes
    with open_run(replace(config, experiment="once"), outputs, long) as tracker:
        pass
    assert gate.unheard == b""
    experiment = client.get_experiment_by_name("once")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_id, run.info.status) == (tracker.run_id, "FINISHED")
    assert len(run.info.run_name) == 250


def test_job_of_a_sweep_waits_for_the_server(
    gate: Gate, config: TrackingConfig, client: mlflow.MlflowClient, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run(config, outputs, RECORD) as parent:
        gate.shut()
        threading.Timer(1, gate.open).start()
        with open_run(config, outputs, replace(RECORD, parent_run_id=parent.run_id)) as tracker:
            pass
    assert tracker.run_id is not None
    assert client.get_run(tracker.run_id).info.status == "FINISHED"
    assert "waits for it" in capsys.readouterr().err


@pytest.mark.parametrize("comes_back", [True, False])
def test_job_that_is_run_again_waits_for_the_server_and_is_noted_when_that_stays_away(
    gate: Gate, outputs: Path, capsys: pytest.CaptureFixture[str], comes_back: bool
) -> None:
    typed = [*SMALL, "stages=[train]", "tracking=server", "tracking.experiment=again", f"outputs={outputs}", "seed=1"]
    typed.append(f"tracking.patience_s={30 if comes_back else 1}")
    request = compose_request(typed)
    with contextlib.suppress(SystemExit), sweep_session([*typed, "qat.epochs=1,2"], [typed], request.config) as sweep:
        job = sweep.job(typed)
        job.write(JobRecord("seed=1", typed, RUNNING))  # and its node is lost
        gate.shut()
        if comes_back:
            threading.Timer(2, gate.open).start()
            run_job(request, sweep.folder, 1)
        else:
            with pytest.raises(UserError, match="the server is away"):
                run_job(request, sweep.folder, 1)
            gate.open()
    assert "waits for it" in capsys.readouterr().err
    record = job.read()
    assert record.state == ("finished" if comes_back else "failed")
    assert ("the server is away" in record.reason) != comes_back


@pytest.mark.parametrize("variable", ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"])
def test_credentials_are_refused_before_any_run_when_the_server_would_refuse_files_because_of_them(
    config: TrackingConfig, outputs: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "hünter2")
    with pytest.raises(UserError, match=f"^{variable}: allowed: printable characters of ASCII") as refused:
        open_run(config, outputs, RECORD).__enter__()
    assert "nter2" not in str(refused.value)
    assert not (outputs / "outbox").exists()


def test_nothing_is_written_elsewhere_when_a_server_names_a_run_by_a_path(outputs: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.mkdir()
    for run_id in ("../../victim", str(victim), "..", "", "a/b"):
        with pytest.raises(UserError, match=r"server names a run '.*'; allowed: letters, digits, _ and -"):
            Outbox.create(outputs, Address("http://127.0.0.1:9", run_id, "a run"))
    assert list(victim.iterdir()) == []
    assert not outputs.exists()


def test_password_in_the_text_of_an_error_reaches_neither_a_file_nor_the_server(
    config: TrackingConfig, client: mlflow.MlflowClient, outputs: Path, server_folder: Path
) -> None:
    record = replace(RECORD, name="http://me:hunter2hunter2@host/x")
    with pytest.raises(RuntimeError), open_run(config, outputs, record) as tracker:
        raise RuntimeError("https://me:hunter2hunter2@host/archive.gz: api_key='hunter2hunter2' is not known")
    assert tracker.run_id is not None
    run = client.get_run(tracker.run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags["error"] == "RuntimeError: https://***@host/archive.gz: api_key=*** is not known"
    files = [path for folder in (outputs, server_folder) for path in folder.rglob("*") if path.is_file()]
    assert server_folder / "server.db" in files
    assert [path for path in files if b"hunter2" in path.read_bytes()] == []
