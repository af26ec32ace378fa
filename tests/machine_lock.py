"""The machine's lock, seen from another process: one that measures, or asks whether it could."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import ReadWriteLock, Timeout

from pipeline.host.files import PROJECT_ROOT

_MEASURE = """
import sys
from pathlib import Path
from pipeline.host.machine import Machine

with Machine(Path(sys.argv[1])).measuring():
    print("measuring", flush=True)
    sys.stdin.read()
"""


@contextmanager
def measuring_elsewhere(folder: Path) -> Iterator[None]:
    """Another process measures within the block, on the machine whose lock is in `folder`."""
    command = [sys.executable, "-c", _MEASURE, str(folder)]
    process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "measuring\n"
        yield
    finally:
        process.communicate("")


def could_measure(folder: Path) -> bool:
    """Whether another process could measure now, with the lock in `folder`."""
    databases = list(folder.glob("machine-*.db"))
    if not databases:  # nobody has used the lock yet
        return True
    (database,) = databases
    with contextlib.closing(ReadWriteLock(str(database), is_singleton=False)) as lock:
        try:
            with lock.write_lock(blocking=False):
                return True
        except Timeout:
            return False
