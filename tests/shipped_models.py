"""A real int8 network, exported, logged and registered: for the tests of what becomes of it elsewhere."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import torch

from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.flows import eager as quantization
from pipeline.flows.eager import twins
from pipeline.runtimes import registry
from pipeline.settings.config import RegisterConfig, TrackingConfig
from pipeline.tracking import RunRecord, open_run
from pipeline.tracking.champion import Contender
from pipeline.tracking.models import ModelRecord, log_model, register

_SIZE = 32


@dataclass(frozen=True)
class Shipped:
    """A registered model, the store it is in, and what its exported file gives for some images."""

    store: str
    uri: str
    file: Path
    images: np.ndarray
    outputs: np.ndarray

    @property
    def elsewhere(self) -> dict[str, str]:
        """The variables of a process that knows the store and nothing of this project."""
        known = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/"), "OMP_NUM_THREADS": "1"}
        return {**known, "MLFLOW_TRACKING_URI": self.store}


def export_int8(runtime: str, folder: Path, seed: int = 0) -> Path:
    """The default network in int8, calibrated on noise and not trained, as a file of a runtime."""
    quantization.silence_known_warnings()
    config = compose_request([]).config
    torch.manual_seed(seed)
    twin = twins.build(config.model, catalogue.info(config.dataset))
    prepared = quantization.prepare_ptq(twin, config.backend, "min_max")
    with torch.inference_mode():
        prepared(torch.randn(8, 1, _SIZE, _SIZE))
    int8 = quantization.convert(prepared, config.backend)
    registry()[runtime].export(int8, torch.zeros(1, 1, _SIZE, _SIZE), folder)
    catalogue.preprocessing(config.dataset).write(folder)
    return folder / registry()[runtime].file


def ship(runtime: str, folder: Path, takes: str = "array", seed: int = 0) -> Shipped:
    """Export a model for a runtime and make it the champion of a store in a folder, that of another seed before it."""
    outputs, exported = folder / "outputs", folder / f"exported_{seed}"
    exported.mkdir()
    record = ModelRecord(runtime, export_int8(runtime, exported, seed), 1, "fbgemm", takes)
    run = RunRecord("test", {}, {}, "", ("digits", "0", "nowhere"))
    with open_run(TrackingConfig(), outputs, run) as tracker, mlflow.start_run(run_id=tracker.run_id):
        contender = Contender(0.0, 90.0, 20.0, 1 / (1 + seed), True, "1 thread")
        done = register(RegisterConfig("digits"), outputs, record, log_model(record), contender)
    assert done.verdict.wins
    images = np.random.default_rng(0).normal(size=(5, 1, _SIZE, _SIZE)).astype(np.float32)
    expected = registry()[runtime].load(exported, 1)(images)
    store = f"sqlite:///{outputs / 'mlflow.db'}"
    return Shipped(store, "models:/digits@champion", record.file, images, expected)
