"""The real configuration, shrunk: 200 digits, one epoch, a few latency repeats."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.commands.composition import compose_request
from pipeline.run.request import Request

SMALL = [
    "dataset.max_train_samples=200",
    "dataset.max_test_samples=60",
    "train.epochs=1",
    "qat.epochs=1",
    "evaluate.warmup=1",
    "evaluate.repeats=3",
]

# Trained so far that most classes are clear. Of 60 images, one that rounding changes is allowed.
TRAINED = ["dataset.max_train_samples=400", "train.epochs=4", "train.batch_size=20", "export.min_agreement=98"]


# The files that take longest, the longest first: begun last, they would leave one of two workers without work.
_LONG = ("sweeps", "processes", "runtimes", "streaming", "end_to_end", "tracking", "runner")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(_LONG)))


@pytest.fixture(autouse=True)
def known_warnings() -> None:
    """The program's own filter: any other warning still shows in pytest's summary."""
    from pipeline.flows.eager import silence_known_warnings

    silence_known_warnings()


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def small_request(outputs: Path) -> Callable[..., Request]:
    """Compose the real default run with extra overrides, shrunk, into an empty outputs folder."""

    def compose(*overrides: str) -> Request:
        return compose_request([*SMALL, f"outputs={outputs}", *overrides])

    return compose


@pytest.fixture(scope="session")
def finished_outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of one finished small run, tracked in MLflow. Read it; do not write to it."""
    from pipeline.run.runner import run

    outputs = tmp_path_factory.mktemp("finished") / "outputs"
    run(compose_request([*SMALL, f"outputs={outputs}"]))
    return outputs


@pytest.fixture(scope="session")
def mnist_mirror() -> Path:
    """The folder with the official MNIST archives; the test is skipped where there is none."""
    configured = os.environ.get("DATASET_MIRROR")
    mirror = Path(configured) if configured else None
    if mirror is None or not (mirror / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip("no real MNIST: set DATASET_MIRROR to a folder with the four official archives")
    return mirror
