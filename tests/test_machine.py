"""One measures alone: with real locks, and processes that hold them."""

from __future__ import annotations

import dataclasses
import functools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue, decoding
from pipeline.datasets.loader import evaluation_batches
from pipeline.datasets.pictures import Reading
from pipeline.datasets.spec import Part
from pipeline.flows import forms
from pipeline.flows.eager import flow
from pipeline.host.machine import Machine
from pipeline.run.request import Request
from pipeline.run.runner import run
from pipeline.runtimes import parity
from pipeline.settings.config import DatasetConfig
from tests.machine_lock import could_measure, measuring_elsewhere

CPU = torch.device("cpu")
COUNT = 12


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "locks"


@pytest.fixture
def machine(folder: Path) -> Machine:
    return Machine(folder)


@pytest.fixture
def pictures(tmp_path: Path) -> DatasetConfig:
    """A folder of small images."""
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            (tmp_path / part / label).mkdir(parents=True)
            for index in range(COUNT // 2):
                Image.fromarray(np.full((8, 8, 3), 20 * index, np.uint8)).save(tmp_path / part / label / f"{index}.png")
    return dataclasses.replace(composed(), root=str(tmp_path))


@functools.cache
def composed() -> DatasetConfig:
    overrides = ["dataset=image_folder", "dataset.root=anywhere", "dataset.image_size=8", "dataset.workers=2"]
    return compose_request(overrides).config.dataset


class Work:
    """Something that is done in another thread, and whether it is done."""

    def __init__(self, work: Callable[[], object]) -> None:
        self.result: object = None

        def run() -> None:
            self.result = work()

        self._thread = threading.Thread(target=run, daemon=True)
        self._thread.start()

    def ends_within(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()


def test_measurement_waits_for_what_computes_and_what_computes_for_it(machine: Machine, folder: Path) -> None:
    assert could_measure(folder)
    with machine.computing():
        assert not could_measure(folder)
        with machine.computing():  # of what it calls
            pass
        assert not could_measure(folder)
    assert could_measure(folder)


def test_decoding_into_memory_waits_when_another_process_measures(
    pictures: DatasetConfig, machine: Machine, folder: Path
) -> None:
    with measuring_elsewhere(folder):
        loading = Work(lambda: catalogue.load_test(pictures, machine))
        assert not loading.ends_within(1)
    assert loading.ends_within(60)
    assert isinstance(loading.result, Part)
    assert len(loading.result) == COUNT


@pytest.mark.parametrize("changes", [{}, {"loading": "stream", "unreadable": "skip"}])
def test_every_file_is_decoded_while_nobody_can_measure_and_between_the_slices_one_can(
    changes: dict[str, str], pictures: DatasetConfig, machine: Machine, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, free, between = decoding.read_image, [], []

    def watched(path: Path, reading: Reading) -> Image.Image:
        free.append(could_measure(folder))
        return read(path, reading)

    computing = Machine.computing

    def counted(machine: Machine) -> object:
        between.append(could_measure(folder))
        return computing(machine)

    monkeypatch.setattr(decoding, "read_image", watched)
    monkeypatch.setattr(decoding, "_CHUNK", 5)
    monkeypatch.setattr(Machine, "computing", counted)
    config = dataclasses.replace(pictures, **changes)
    part = catalogue.load_test(config, machine)
    assert free == [False] * COUNT
    assert between[:3] == [True] * 3
    list(evaluation_batches(part.select(np.arange(3)), config, 3, CPU))  # a single batch is decoded in this process
    assert not any(free)
    assert len(free) == COUNT + (3 if changes else 0)


def test_streaming_decodes_no_further_while_another_process_measures(
    pictures: DatasetConfig, machine: Machine, folder: Path
) -> None:
    config = dataclasses.replace(pictures, loading="stream")
    batches = evaluation_batches(catalogue.load_test(config, machine), config, 1, CPU)
    first = next(batches)  # of 12 batches one more is under way
    with measuring_elsewhere(folder):
        rest = Work(lambda: list(batches))
        assert not rest.ends_within(2)
    assert rest.ends_within(60)
    assert isinstance(rest.result, list)
    in_memory = evaluation_batches(catalogue.load_test(pictures), pictures, 1, CPU)
    for (images, labels), (same, alike) in zip([first, *rest.result], in_memory, strict=True):
        assert torch.equal(images, same)
        assert torch.equal(labels, alike)


def test_logits_are_computed_while_nobody_can_measure(pictures: DatasetConfig, machine: Machine, folder: Path) -> None:
    free = []

    def predict(images: np.ndarray) -> np.ndarray:
        free.append(could_measure(folder))
        return images.mean((2, 3))

    part = catalogue.load_test(pictures, machine)
    assert parity.outputs(predict, part, pictures, 5, "", machine).shape == (COUNT, 3)
    assert free == [False] * 3
    assert could_measure(folder)


def test_stages_that_prepare_a_model_hold_the_lock(
    small_request: Callable[..., Request], outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free: list[bool] = []

    def watch(module: Any, name: str) -> None:
        real = getattr(module, name)

        def call(*args: Any) -> Any:
            free.append(could_measure(outputs / "artifacts" / ".locks"))
            return real(*args)

        monkeypatch.setattr(module, name, call)

    watch(forms, "load")
    for name in ("fuse", "prepare_ptq", "prepare_simulation", "convert"):
        watch(flow, name)
    few = ["sensitivity.samples=20", "ptq.calibration_samples=20"]
    run(small_request("tracking=off", "stages=[train,fuse,ptq,sensitivity]", *few))
    assert free == [False] * 7
