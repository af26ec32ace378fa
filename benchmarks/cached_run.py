"""What a run costs that makes nothing: on bundled digits, and on a folder of 50,000 small images.

    python -m benchmarks.cached_run [FOLDER]

Makes both once in FOLDER (a temporary one), then repeats them turn by turn, each in a process of its own, and prints
the medians of their seconds and of their processor's, and what the code's part of the keys takes. Beside them stands a
process that only imports torch and mlflow: no run is faster, and machines differ in it threefold.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from tabulate import tabulate

from pipeline import stages
from pipeline.host.files import PROJECT_ROOT

_IMAGES, _CLASSES, _PIXELS = 50_000, 10, 16
_REPEATS = 7
_SHORT = ("model.stem=small", "dataset.max_train_samples=200", "dataset.max_test_samples=60", "train.epochs=1")
_IMPORTS = (sys.executable, "-c", "import torch, mlflow")
_ALSO = ("qat.epochs=1", "evaluate.warmup=1", "evaluate.repeats=3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    asked = parser.parse_args().folder
    with tempfile.TemporaryDirectory() as temporary:
        _measure((asked or Path(temporary)).resolve())


def _measure(folder: Path) -> None:
    _write_images(folder / "images")
    of_images = ("dataset=image_folder", f"dataset.root={folder / 'images'}", f"dataset.image_size={_PIXELS}")
    run, outputs = (sys.executable, "-m", "pipeline", *_SHORT, *_ALSO), f"outputs={folder / 'outputs'}"
    runs = {
        "import torch, mlflow": _IMPORTS,
        "digits": (*run, outputs),
        f"{_IMAGES:,} images": (*run, *of_images, outputs),
    }
    for name, command in runs.items():
        print(f"{name}: first in {_take(command)[0]:.0f} s", flush=True)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(_REPEATS):
        for name, command in runs.items():
            taken[name].append(_take(command))
    least = next(iter(taken.values()))
    rows = [
        [
            name,
            *(f"{statistics.median(column):.2f}" for column in zip(*of, strict=True)),
            f"{statistics.median(one[0] / other[0] for one, other in zip(of, least, strict=True)):.2f}",
        ]
        for name, of in taken.items()
    ]
    print(tabulate(rows, ["cached run", "seconds", "processor's seconds", "times the imports"], disable_numparse=True))
    print(f"the code in the keys of all stages: {1000 * _seconds_of_code(folder):.0f} ms, median of {_REPEATS}")


def _take(command: tuple[str, ...]) -> tuple[float, float]:
    """The seconds of a command, and those of its processors."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, cwd=PROJECT_ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    seconds, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _seconds_of_code(folder: Path) -> float:
    """In a process for each, as a run does it: nothing is known but what the store remembers."""
    roots = [[stage.run.__module__, "pipeline.models.resnet"] for stage in stages.registry().values()]
    memory = folder / "outputs" / "artifacts" / ".seen" / "sources.json"
    program = (
        "import time; from pathlib import Path; from pipeline.run.sources import code_of; begun = time.perf_counter(); "
        f"[code_of(root, Path({str(memory)!r})) for root in {roots!r}]; print(time.perf_counter() - begun)"
    )
    found = [
        float(subprocess.run([sys.executable, "-c", program], cwd=PROJECT_ROOT, check=True, capture_output=True).stdout)
        for _ in range(_REPEATS)
    ]
    return statistics.median(found)


def _write_images(root: Path) -> None:
    """Small images of noise, all different, in train/ and test/; those that are there stay."""
    noise = np.random.default_rng(0)
    for index in range(_IMAGES):
        part, label = "test" if index % 6 == 5 else "train", index % _CLASSES
        path = root / part / f"class{label}" / f"{index:05}.png"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (_PIXELS, _PIXELS, 3), dtype=np.uint8)).save(path)


if __name__ == "__main__":
    main()
