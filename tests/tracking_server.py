"""A real MLflow server for tests, and a gate before it that can be shut as if the server were away."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    """MLflow's own server over SQLite in `folder`, with one worker; gives its address."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--serve-artifacts", "--artifacts-destination", str(folder / "artifacts")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder, env=environment, start_new_session=True)
    try:
        wait_until_healthy(f"http://127.0.0.1:{port}", process)
        yield f"http://127.0.0.1:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)  # the workers too
        process.wait()


def wait_until_healthy(address: str, process: subprocess.Popen[bytes] | None = None, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process is None or process.poll() is None, "the server ended before it answered"
        with contextlib.suppress(OSError, urllib.error.URLError):
            urllib.request.urlopen(f"{address}/health", timeout=5)
            return
        time.sleep(0.1)
    raise AssertionError(f"{address} does not answer")


class Gate:
    """Forwards connections to the server while it is open; shut, it refuses them and cuts those that there are.

    Attributes:
        unheard: the answer to the next request that holds these bytes is lost.
    """

    def __init__(self, port: int) -> None:
        self._target, self.port = port, free_port()
        self.address = f"http://127.0.0.1:{self.port}"
        self._listener: socket.socket | None = None
        self._open: list[socket.socket] = []
        self.unheard = b""
        self.open()

    def open(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def shut(self) -> None:
        for one in [*([self._listener] if self._listener else []), *self._open]:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._listener, self._open = None, []

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                deaf = threading.Event()
                for source, sink, is_answer in ((near, far, False), (far, near, True)):
                    threading.Thread(target=self._copy, args=(source, sink, is_answer, deaf), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, is_answer: bool, deaf: threading.Event) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if not is_answer and self.unheard and self.unheard in data:
                    self.unheard = b""
                    deaf.set()
                if is_answer and deaf.is_set():
                    break
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
