"""Images decoded batch by batch: the same bits as in memory, by threads that neither hang nor stay behind."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.datasets.loader import evaluation_batches, training_batches
from pipeline.host.errors import UserError
from pipeline.host.files import PROJECT_ROOT, sha256
from pipeline.run.request import Request
from pipeline.run.runner import run
from pipeline.settings.config import DatasetConfig

CPU = torch.device("cpu")
# A folder of so many images, of 16 px.
CLASSES, TRAIN, TEST = ("cat", "cow", "dog"), 14, 5


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random JPEGs and PNGs of different shapes; train and test parts."""
    root, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for part, count in (("train", TRAIN), ("test", TEST)):
        for label, name in enumerate(CLASSES):
            (root / part / name).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(0, 256, (18 + index, 33 - index, 3), dtype=np.uint8)
                pixels[..., label] //= 4
                suffix = "png" if index % 3 else "jpg"
                Image.fromarray(pixels).save(root / part / name / f"{index:02}.{suffix}")
    return root


def settings(root: Path, **changes: object) -> DatasetConfig:
    return dataclasses.replace(composed(), root=str(root), **changes)


@functools.cache
def composed() -> DatasetConfig:
    overrides = ["dataset=image_folder", "dataset.root=anywhere", "dataset.image_size=16", "dataset.crop_padding=2"]
    return compose_request([*overrides, "dataset.workers=2"]).config.dataset


def epoch(config: DatasetConfig, batch_size: int) -> list[torch.Tensor]:
    """Everything that comes of a folder with these settings: a training epoch, the validation and the test part."""
    training, validation = catalogue.load_training(config)
    generator = torch.Generator().manual_seed(3)
    batches = list(training_batches(training, config, batch_size, CPU, generator))
    for part in (validation, catalogue.load_test(config), training.select(np.array([5, 0, 5]))):
        batches += evaluation_batches(part, config, batch_size, CPU)
    return [tensor for batch in batches for tensor in batch]


@pytest.mark.parametrize(
    "changes", [{}, {"mean": [0.5], "std": [0.5]}, {"max_train_samples": 34, "max_test_samples": 7}]
)
def test_streamed_batches_are_those_of_memory_bit_for_bit(changes: dict[str, object], pictures: Path) -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    streamed = epoch(settings(pictures, loading="stream", **changes), 4)
    assert torch.equal(torch.get_rng_state(), before)  # dropout draws from it
    in_memory = epoch(settings(pictures, loading="memory", **changes), 4)
    assert len(streamed) == len(in_memory)
    assert all(torch.equal(one, other) for one, other in zip(streamed, in_memory, strict=True))


def test_run_ends_in_the_same_artifacts_when_it_is_streamed(pictures: Path, tmp_path: Path) -> None:
    def hashes(loading: str) -> dict[str, str]:
        outputs = tmp_path / loading
        overrides = [
            *("dataset=image_folder", f"dataset.root={pictures}", "dataset.image_size=32", "dataset.workers=2"),
            *(
                "train.epochs=1",
                "train.batch_size=16",
                "ptq.batch_size=20",
                "ptq.observer=min_max",
                "stages=[train,ptq]",
                "tracking=off",
            ),
            "model=mobilenet_v2",  # draws from torch's own generator, for dropout
        ]
        run(compose_request([*overrides, f"dataset.loading={loading}", f"outputs={outputs}"]))
        return {path.parent.name: sha256(path) for path in outputs.glob("artifacts/*/model.pt")}

    in_memory = hashes("memory")
    assert len(in_memory) == 2
    assert hashes("stream") == in_memory


def test_way_to_load_is_chosen_by_size_and_said(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = len(CLASSES) * (TRAIN + TEST)
    start = f"image_folder: {images} images of 16 px are {images * 3 * 16 * 16 / 1000:.1f} kB decoded, "
    for changes, line in (
        ({}, "at most dataset.max_memory_gb=4: decoded once, into memory, by 2 threads"),
        ({"max_memory_gb": 1e-5}, "more than dataset.max_memory_gb=1e-05: decoded batch by batch, by 2 threads"),
        ({"loading": "stream", "workers": 1}, "dataset.loading=stream: decoded batch by batch, by 1 thread"),
    ):
        config = settings(pictures, **changes)
        part = catalogue.load_test(config)
        assert capsys.readouterr().out == f"{start}{line}\n"
        assert isinstance(part.pixels, torch.Tensor) == ("into memory" in line)
        catalogue.load_training(config)
        assert capsys.readouterr().out == ""  # once is enough


def test_streaming_is_refused_when_the_data_set_has_no_files(small_request: Callable[..., Request]) -> None:
    for override, line in (
        ("loading=stream", "dataset.loading=stream: digits is read as a whole; allowed with it: auto, memory"),
        ("unreadable=skip", "dataset.unreadable=skip: digits has no image files; allowed with it: refuse"),
        ("white_level=255", "dataset.white_level=255: digits has no image files; allowed: null"),
    ):
        with pytest.raises(UserError) as refused:
            run(small_request(f"dataset.{override}"))
        assert str(refused.value) == line


def test_threads_end_when_the_epoch_is_left_in_the_middle(pictures: Path) -> None:
    config, before = settings(pictures, loading="stream"), threading.active_count()
    training, _ = catalogue.load_training(config)
    batches = training_batches(training, config, 2, CPU, torch.Generator())
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before


STREAM = """
import sys
import torch
from pipeline.datasets import catalogue
from pipeline.host import terminal
from pipeline.settings.config import DatasetConfig
from pipeline.commands.command_line import run_command
from pipeline.datasets.loader import evaluation_batches
from pipeline.host.interruption import termination_as_interrupt

def stream():
    config = DatasetConfig(
        name="image_folder", root=sys.argv[1], image_size=1024, mean=[0.5] * 3, std=[0.5] * 3,
        loading="stream", workers=2,
    )
    test = catalogue.load_test(config)
    with termination_as_interrupt():
        while True:
            for batch in evaluation_batches(test, config, 2, torch.device("cpu")):
                terminal.say("batch")

run_command(stream)
"""


@pytest.mark.operations
def test_streaming_ends_in_one_line_when_it_is_interrupted_in_the_middle(pictures: Path) -> None:
    command = [sys.executable, "-c", STREAM, str(pictures)]
    process = subprocess.Popen(command, cwd=PROJECT_ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line == "batch\n":
            break
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr) == (130, "error: interrupted\n")
