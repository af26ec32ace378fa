"""The real configuration, shrunk: a tiny network, 200 digits, one epoch, a few latency repeats."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.commands.composition import CONFIG_FOLDER, compose_request
from pipeline.run.request import Request
from tests import migrated_store

# The backends of the eager flow; tests/test_export_flow.py has the others.
EAGER_BACKENDS = sorted(
    path.stem for path in (CONFIG_FOLDER / "backend").glob("*.yaml") if "flow: export" not in path.read_text()
)
BRIEF = [
    "dataset.max_train_samples=200",
    "dataset.max_test_samples=60",
    "train.epochs=1",
    "qat.epochs=1",
    "evaluate.warmup=1",
    "evaluate.repeats=3",
]
TINY = ["model=own", "model.target=tests.tiny:Tiny", "model.quantizable_target=tests.tiny_twin:QuantizableTiny"]
SMALL = [*BRIEF, *TINY]


def shrunk(*overrides: str) -> list[str]:
    """The overrides with those before them that make a run small; its network is tiny where none of them names one."""
    named = any(text.startswith("model") for text in overrides)
    return [*(BRIEF if named else SMALL), *overrides]


# Trained so far that most classes are clear. Of 60 images, six that rounding changes are allowed.
LEARNED = ["dataset.max_train_samples=400", "train.epochs=6", "train.batch_size=20", "train.learning_rate=0.01"]
TRAINED = [*LEARNED, "export.min_agreement=90"]


# The files that take longest, the longest first: begun last, they would leave one of two workers without work.
_LONG = (
    *("sweeps", "runtimes", "streaming", "tracking", "runner", "planted", "bad_input", "qat", "export_flow"),
    *("end_to_end", "search", "own_dataset"),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(_LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(_LONG)))


@pytest.fixture(autouse=True)
def known_warnings() -> None:
    """The program's own filter: any other warning still shows in pytest's summary."""
    from pipeline.flows.eager import silence_known_warnings

    silence_known_warnings()


@pytest.fixture(scope="session", autouse=True)
def migrated(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Every empty store of MLflow's that a test of this process opens gets its tables as a copy."""
    folder = tmp_path_factory.getbasetemp()
    # The processes of pytest-xdist have a folder each in that of the session.
    migrated_store.make((folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "migrated.db")
    migrated_store.copy_from_now_on()
    # What is imported stays: to look through it for garbage again and again takes a quarter of a composition's time.
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def small_request(outputs: Path) -> Callable[..., Request]:
    """Compose the real default run with extra overrides, shrunk, into an empty outputs folder; a model may be named."""

    def compose(*overrides: str) -> Request:
        return compose_request([f"outputs={outputs}", *shrunk(*overrides)])

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
