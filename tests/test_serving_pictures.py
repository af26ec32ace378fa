"""`mlflow models serve` with a model that answers to pictures: real servers, many clients, bodies of every kind."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pipeline.runtimes import exported
from tests.shipped_models import Shipped, ship
from tests.test_serving import post, serving

pytestmark = pytest.mark.operations

pytest.importorskip("onnxruntime")

CLIENTS, EACH = 16, 12


def encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def saved(pixels: np.ndarray, kind: str, **how: Any) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(pixels)
    (image.convert(how.pop("mode")) if "mode" in how else image).save(stream, kind, **how)
    return stream.getvalue()


def pictures() -> list[bytes]:
    """Of every mode that PNG and JPEG have, and of several sizes."""
    rng = np.random.default_rng(0)
    colour, grey = rng.integers(0, 256, (90, 70, 3), np.uint8), rng.integers(0, 256, (20, 41), np.uint8)
    turned = Image.Exif()
    turned[0x0112] = 6
    return [
        saved(colour, "PNG"),
        saved(grey, "PNG"),
        saved(grey.astype(np.uint16) * 257, "PNG"),
        saved(colour, "PNG", mode="RGBA"),
        saved(colour, "PNG", mode="P"),
        saved(colour, "JPEG"),
        saved(colour, "JPEG", mode="CMYK"),
        saved(colour, "JPEG", exif=turned),
        saved(grey, "JPEG"),
    ]


def body_of(some: list[bytes]) -> bytes:
    return json.dumps({"inputs": [encoded(content) for content in some]}).encode()


def answers(shipped: Shipped, folder: Path) -> list[dict[str, float]]:
    """What `predict` answers to `pictures`."""
    model, found = exported.load(shipped.file), []
    for place, content in enumerate(pictures()):
        path = folder / f"{place}.image"
        path.write_bytes(content)
        probabilities = model.probabilities(model.preprocessing.apply(path)).tolist()
        found.append(dict(zip(model.preprocessing.class_names, probabilities, strict=True)))
    return found


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shipped")


@pytest.fixture(scope="module")
def shipped(store: Path) -> Shipped:
    return ship("onnxruntime", store, "picture")


@pytest.fixture(scope="module")
def server(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Any:
    with serving(shipped, tmp_path_factory.mktemp("server")) as address:
        yield address


@pytest.fixture(scope="module")
def expected(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    return answers(shipped, tmp_path_factory.mktemp("pictures"))


def test_server_answers_as_predict_does_when_it_gets_pictures(server: str, expected: list[dict[str, float]]) -> None:
    status, answer = post(server, body_of(pictures()))
    assert (status, answer) == (200, {"predictions": expected})
    records = [{"image": encoded(content)} for content in pictures()]
    assert post(server, json.dumps({"dataframe_records": records}).encode()) == (status, answer)


def huge() -> bytes:
    """A PNG of a few bytes that promises 900 megapixels."""
    content = bytearray(pictures()[1])
    content[16:24] = (30_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    return bytes(content)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(b"", "", id="empty"),
        pytest.param(b"{not json", "", id="no JSON"),
        pytest.param(b'{"pictures": []}', "inputs", id="another key"),
        pytest.param(b'{"inputs": ["%%%"]}', "image 0: is no base64", id="no base64"),
        pytest.param(b'{"inputs": "%%%"}', "image", id="no list"),
        pytest.param(b'{"inputs": [[[0.5]]]}', "image", id="numbers"),
        pytest.param(b'{"inputs": [null]}', "image", id="null"),
        pytest.param(body_of([b""]), "image 0: cannot be read as an image: it is empty", id="empty picture"),
        pytest.param(body_of([b"no picture"]), "in no format that is read here: PNG, JPEG", id="text"),
        pytest.param(body_of([pictures()[0][:900]]), "image 0: cannot be read as an image", id="cut off"),
        pytest.param(body_of([saved(np.eye(9) > 0, "GIF")]), "in no format that is read here", id="GIF"),
        pytest.param(body_of([b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"]), "in no format", id="EPS"),
        pytest.param(body_of([pictures()[0], huge()]), "image 1: .*900.0 megapixels; allowed", id="huge"),
    ],
)
def test_server_refuses_and_serves_on_when_the_body_holds_no_picture(
    server: str, expected: list[dict[str, float]], body: bytes, words: str
) -> None:
    status, said = post(server, body)
    assert status == 400
    assert re.search(words, said), said
    assert post(server, body_of(pictures()[:1])) == (200, {"predictions": expected[:1]})


def test_server_refuses_and_serves_on_when_the_body_is_oversized_or_of_another_type(
    server: str, expected: list[dict[str, float]]
) -> None:
    assert post(server, pictures()[0], "image/png")[0] == 415
    status, _ = post(server, body_of([b"x" * 30_000_000]))
    assert status == 400
    assert post(server, body_of(pictures()[:1])) == (200, {"predictions": expected[:1]})


def test_model_brings_what_it_needs_of_this_project_and_no_more(shipped: Shipped, tmp_path: Path) -> None:
    probe = (
        "import sys, mlflow, pandas\n"
        f"model = mlflow.pyfunc.load_model({shipped.uri!r})\n"
        f"print(model.predict(pandas.DataFrame({{'image': [{encoded(pictures()[0])!r}]}})))\n"
        "ours = {name: module.__file__ for name, module in sys.modules.items() if name.split('.')[0] == 'pipeline'}\n"
        "assert all('/code/pipeline/' in file for file in ours.values()), ours\n"
        "assert not {'torch', 'hydra', 'onnx'} & set(sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", probe], cwd=tmp_path, env=shipped.elsewhere, capture_output=True, text=True
    )
    assert (done.returncode, "Warning" in done.stderr) == (0, False), done.stderr


PICTURES = pictures()


class Load:
    """Clients that ask at once, again and again, each for one to three pictures, and hold every answer against ours."""

    def __init__(self, ask: Callable[[bytes], tuple[Any, list[dict[str, float]]]]) -> None:
        self.ask, self.seconds, self.wrong = ask, list[float](), list[str]()

    def run(self, client: int, until: Callable[[int], bool]) -> None:
        rng, turn = np.random.default_rng(client), 0
        while not until(turn):
            turn += 1
            chosen = rng.integers(len(pictures()), size=rng.integers(1, 4)).tolist()
            started = time.perf_counter()
            (status, answer), right = self.ask(body_of([PICTURES[place] for place in chosen]))
            self.seconds.append(time.perf_counter() - started)
            if (status, answer) != (200, {"predictions": [right[place] for place in chosen]}):
                self.wrong.append(f"{status}: {answer}")


def test_every_answer_is_right_when_16_clients_ask_at_once(server: str, expected: list[dict[str, float]]) -> None:
    load = Load(lambda body: (post(server, body), expected))
    started = time.perf_counter()
    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(lambda client: load.run(client, lambda turn: turn == EACH), range(CLIENTS)))
    total = time.perf_counter() - started
    assert load.wrong == []
    assert len(load.seconds) == CLIENTS * EACH
    milliseconds = 1000 * np.percentile(load.seconds, [50, 99])
    print(
        f"{CLIENTS} clients, 1 to 3 pictures a request: {len(load.seconds) / total:.0f} requests a second, "
        f"median {milliseconds[0]:.0f} ms, 99th percentile {milliseconds[1]:.0f} ms"
    )


def test_every_answer_is_right_when_the_champion_changes_under_load(
    shipped: Shipped, store: Path, expected: list[dict[str, float]], tmp_path: Path
) -> None:
    """A new server is started for the new champion, the clients go there, and the old one is ended."""
    over = threading.Event()
    for name in ("old", "new", "pictures"):
        (tmp_path / name).mkdir()
    with ThreadPoolExecutor(CLIENTS) as pool, serving(shipped, tmp_path / "old") as old:
        now = [(old, expected)]
        load = Load(lambda body: (post((current := now[0])[0], body), current[1]))
        clients = [pool.submit(load.run, client, lambda turn: over.is_set()) for client in range(CLIENTS)]
        try:
            newer = ship("onnxruntime", store, "picture", seed=1)
            other = answers(newer, tmp_path / "pictures")
            assert other != expected
            with serving(newer, tmp_path / "new") as new:
                now[0] = (new, other)
                asked = len(load.seconds)
                while len(load.seconds) < asked + 4 * CLIENTS and not all(client.done() for client in clients):
                    time.sleep(0.1)
                over.set()
                for client in clients:
                    client.result(60)
        finally:
            over.set()
    assert load.wrong == []
    assert len(load.seconds) > asked > 0
