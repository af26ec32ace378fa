"""`mlflow models serve` with the registered champion: a real server, real requests."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.host.files import PROJECT_ROOT
from tests.shipped_models import Shipped, ship

pytestmark = pytest.mark.operations

pytest.importorskip("onnxruntime")

# Where nginx buffers, by the names of its settings; its defaults lie where only root may write.
NGINX_FOLDERS = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@pytest.fixture(scope="module")
def shipped(tmp_path_factory: pytest.TempPathFactory) -> Shipped:
    return ship("onnxruntime", tmp_path_factory.mktemp("shipped"))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def server(shipped: Shipped, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(shipped, tmp_path_factory.mktemp("server")) as address:
        yield address


@contextmanager
def serving(shipped: Shipped, folder: Path) -> Iterator[str]:
    """`mlflow models serve` on a free port, its log in `folder`; gives the address to post to."""
    port = free_port()
    scripts = sysconfig.get_path("scripts")
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", shipped.uri, "--env-manager", "local"]
    variables = shipped.elsewhere | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    with (folder / "log").open("w") as log:
        # A process group of its own: mlflow starts uvicorn, which would outlive it.
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            cwd=folder,
            env=variables,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait_until_up(f"http://127.0.0.1:{port}/ping", process, folder / "log")
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def _wait_until_up(address: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(600):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except urllib.error.HTTPError:  # it answers
            return
        except OSError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    raise AssertionError(log.read_text())


def post(address: str, body: bytes, content_type: str = "application/json") -> tuple[int, Any]:
    """Status and content of the answer."""
    request = urllib.request.Request(address, body, {"Content-Type": content_type})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def predictions(answer: Any) -> np.ndarray:
    found = answer["predictions"]
    return np.asarray(found["logits"] if isinstance(found, dict) else found, np.float32)


def test_server_gives_the_same_bits_when_the_body_is_good(server: str, shipped: Shipped) -> None:
    status, answer = post(server, json.dumps({"inputs": shipped.images.tolist()}).encode())
    assert status == 200
    np.testing.assert_array_equal(predictions(answer), shipped.outputs)


@pytest.mark.parametrize(
    ("body", "content_type", "status"),
    [
        pytest.param(b"", "application/json", 400, id="empty"),
        pytest.param(b"{not json", "application/json", 400, id="no JSON"),
        pytest.param(b"{}", "application/json", 400, id="no inputs"),
        pytest.param(json.dumps({"inputs": [[[[0.0] * 8] * 8]]}).encode(), "application/json", 400, id="another size"),
        pytest.param(json.dumps({"inputs": [[[["x"] * 32] * 32]]}).encode(), "application/json", 400, id="text"),
        pytest.param(json.dumps({"inputs": [[1.0, 2.0], [3.0]]}).encode(), "application/json", 400, id="ragged"),
        pytest.param(b"\x89PNG", "image/png", 415, id="an image file"),
    ],
)
def test_server_refuses_and_serves_on_when_the_body_is_malformed(
    server: str, shipped: Shipped, body: bytes, content_type: str, status: int
) -> None:
    refused, words = post(server, body, content_type)
    assert refused == status
    assert words
    assert post(server, json.dumps({"inputs": shipped.images.tolist()}).encode())[0] == 200


def test_server_refuses_and_serves_on_when_the_body_is_oversized(server: str, shipped: Shipped) -> None:
    """MLflow's server has no bound of its own (docs/serving.md): it reads all of it, then refuses its shape."""
    values = 2_000_000
    status, words = post(server, b'{"inputs": [' + b"0," * (values - 1) + b"0]}")
    assert status == 400
    assert f"({values},)" in words
    assert post(server, json.dumps({"inputs": shipped.images.tolist()}).encode())[0] == 200


@pytest.fixture
def proxy(server: str, tmp_path: Path) -> Iterator[str]:
    """The proxy of docs/serving.md in front of the server; gives the address to post to."""
    nginx = shutil.which("nginx")
    if nginx is None:
        pytest.skip("no nginx in PATH")
    (written,) = re.findall(r"```nginx\n(.*?)```", (PROJECT_ROOT / "docs" / "serving.md").read_text(), re.DOTALL)
    port = free_port()
    written = written.replace("http://127.0.0.1:5001", server.removesuffix("/invocations"))
    folders = "".join(f" {name}_temp_path {tmp_path}/{name};" for name in NGINX_FOLDERS)
    settings = written.replace(":8080", f":{port}").replace("http {", f"http {{ access_log off;{folders}", 1)
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid;\n{settings}")
    command = [nginx, "-e", "stderr", "-p", str(tmp_path), "-c", "nginx.conf", "-g", "daemon off; master_process off;"]
    with (tmp_path / "error.log").open("w") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        _wait_until_up(f"http://127.0.0.1:{port}/", process, tmp_path / "error.log")
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        process.terminate()
        process.wait(30)


def test_proxy_passes_good_bodies_and_refuses_oversized_ones(proxy: str, shipped: Shipped) -> None:
    status, answer = post(proxy, json.dumps({"inputs": shipped.images.tolist()}).encode())
    assert status == 200
    np.testing.assert_array_equal(predictions(answer), shipped.outputs)
    assert post(proxy, b'{"inputs": [' + b"0," * 2_500_000 + b"0]}")[0] == 413
    assert post(proxy, json.dumps({"inputs": shipped.images.tolist()}).encode())[0] == 200
