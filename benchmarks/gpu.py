"""Every path of a GPU once, in at most 8 minutes: one table of what ran, how long it took and what came of it.

    python -m benchmarks.gpu [FOLDER] [--minutes 8] [--device cuda]

Training in fp32, in bf16 and compiled, QAT by both flows, two processes where there are two GPUs, and the original
post's experiment at 224 px as far as the time goes, on MNIST. Each row is a run like others, in FOLDER (a temporary
one). A row for which no time or no second GPU is left says 'not run'. `--device cpu` tries the script itself.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from tabulate import tabulate

from pipeline.commands.command_line import Parser, run_command
from pipeline.host.errors import UserError
from pipeline.host.files import PROJECT_ROOT
from pipeline.settings.config import TrackingConfig
from pipeline.tracking.reading import read_runs

_SMALL = ("+experiment=resnet18_mnist", "dataset.max_train_samples=10000", "train.epochs=1", "train.batch_size=256")
_FLOAT = "stages=[train]"
_SHIPPED = "stages=[train,fuse,qat,convert,evaluate]"
# The least that a row gets.
_LEAST_S = 20


@dataclass(frozen=True)
class _Row:
    """A run: what it shows, its overrides, and on how many GPUs."""

    name: str
    overrides: tuple[str, ...]
    processes: int = 1


_ROWS = (
    _Row("train fp32", (*_SMALL, _FLOAT, "train.precision=fp32")),
    _Row("train bf16", (*_SMALL, _FLOAT, "train.precision=bf16")),
    _Row("train bf16 compiled", (*_SMALL, _FLOAT, "train.precision=bf16", "train.compile=true")),
    _Row("train bf16 two processes", (*_SMALL, _FLOAT, "train.precision=bf16"), processes=2),
    _Row("qat eager flow", (*_SMALL, _SHIPPED, "backend=fbgemm")),
    _Row("qat export flow", (*_SMALL, _SHIPPED, "backend=openvino")),
    _Row("qat two processes", (*_SMALL, _SHIPPED, "qat.seed=1"), processes=2),
    _Row("post 224 px", ("+experiment=resnet18_mnist_224", _SHIPPED, "train.epochs=2", "qat.epochs=1")),
)


def main() -> None:
    run_command(_run)


def _run() -> None:
    parser = Parser("python -m benchmarks.gpu", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--minutes", type=float, default=8)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no GPU here: not run")
    ends = time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        cells = [_made(row, folder, arguments.device, ends) for row in _ROWS]
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    print(f"\ntorch {torch.__version__}, {name}\n")
    print(tabulate(cells, ["run", "seconds", "epoch s", "fp32 %", "int8 %", "outcome"], "github", floatfmt=".2f"))


def _made(row: _Row, folder: Path, device: str, ends: float) -> list[object]:
    """Run a row to its end, or until the time is over, and give the cells of the table."""
    available = torch.cuda.device_count() if device == "cuda" else 2
    left = ends - time.monotonic()
    if row.processes > available or left < _LEAST_S:
        return [row.name, None, None, None, None, "not run: " + ("one GPU" if row.processes > available else "no time")]
    experiment = row.name.replace(" ", "_")
    # Each from nothing: what another row has trained is not taken.
    where = (f"outputs={folder / experiment}", f"tracking.experiment={experiment}", f"device={device}")
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={row.processes}", "-m"]
    command = [sys.executable, "-m", *(launcher if row.processes > 1 else []), "pipeline", *row.overrides, *where]
    started = time.monotonic()
    print(f"{row.name}: {' '.join(row.overrides)}", flush=True)
    try:
        status = subprocess.run(command, cwd=PROJECT_ROOT, timeout=left).returncode
    except subprocess.TimeoutExpired:
        outcome = "no time for all of it"
    else:
        outcome = "ended" if status == 0 else f"exit status {status}"
    seconds = time.monotonic() - started
    store = folder / experiment
    runs = read_runs(TrackingConfig(), store, None, experiment) if (store / "mlflow.db").exists() else []
    metrics = runs[0].metrics if runs else {}
    kept = ("train/seconds", "fp32/accuracy_pct", "int8/accuracy_pct")
    return [row.name, seconds, *(metrics.get(name) for name in kept), outcome]


if __name__ == "__main__":
    main()
