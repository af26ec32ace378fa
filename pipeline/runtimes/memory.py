"""`python -m pipeline.runtimes.memory RUNTIME FOLDER THREADS BATCH`: the peak memory of predicting with a model.

In a process of its own, because a process that has loaded several models cannot tell whose memory is whose. It
includes the runtime's libraries: what a program that uses them takes.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

from pipeline.host.errors import UserError
from pipeline.host.files import PROJECT_ROOT

_PREDICTIONS = 3


def peak_memory_mb(runtime: str, folder: Path, threads: int, batch_size: int) -> float:
    """The peak resident memory, in 10^6 bytes, of a fresh process that loads a model and predicts a few times.

    Args:
        runtime: as `runtime.names` has it.

    Raises:
        UserError: when that process fails.
    """
    command = [sys.executable, "-m", "pipeline.runtimes.memory", runtime, str(folder), str(threads), str(batch_size)]
    # A runtime of the user's own is found where this process has found it.
    found_in = {"PYTHONPATH": os.pathsep.join(os.path.abspath(path) for path in sys.path)}
    done = subprocess.run(command, cwd=PROJECT_ROOT, env=os.environ | found_in, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1]
        raise UserError(f"{folder}: its memory cannot be measured: {reason}")
    return float(done.stdout)


def main() -> None:
    """Predict on images of noise, and print the peak."""
    from pipeline.runtimes import exported

    runtime, folder, threads, batch_size = sys.argv[1:]
    model = exported.load(Path(folder), int(threads), runtime)
    images = model.preprocessing.example(int(batch_size))
    for _ in range(_PREDICTIONS):
        model.predictor(images)
    print(_own_peak_bytes() / 1e6)


def _own_peak_bytes() -> int:
    status = Path("/proc/self/status")
    if status.exists():  # Linux's ru_maxrss begins with what the process that started this one had
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return 1024 * int(line.split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    main()
