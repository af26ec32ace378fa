"""Commands in processes of their own which need not import torch and MLflow first: they are forked from one that has.

Such a process is a real one: its own memory, signals, exit status and output. Only its start is not that of a user's
(tests/test_end_to_end.py has those).
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.host.files import PROJECT_ROOT

# No command of a test takes so long, on the busiest machine.
_LIMIT_S = 900
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.preloaded"])


def run(
    command: Sequence[str], cwd: Path = PROJECT_ROOT, env: Mapping[str, str] | None = None, check: bool = False
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run(command, …, capture_output=True, text=True)`, of `python -m module …`."""
    assert command[:2] == [sys.executable, "-m"], command
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        arguments = (list(command[2:]), str(cwd), dict(os.environ if env is None else env), str(out), str(err))
        process = _CONTEXT.Process(target=_run, args=arguments)
        process.start()
        process.join(_LIMIT_S)
        if process.is_alive():
            process.kill()
            process.join()
        assert process.exitcode is not None
        done = subprocess.CompletedProcess(command, process.exitcode, out.read_text(), err.read_text())
        assert not (check and done.returncode), done.stderr
        return done


def _run(arguments: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    for path, descriptor in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.path.insert(0, cwd)  # as -m does
    module, *sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)
