"""After the last stage: the exported int8 model goes to the tracking store, and into its registry where asked for.

This is no stage: stages know nothing of MLflow, and what registering does depends on a store that other runs change
too, so there is no result to keep under a key.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline import runtimes
from pipeline.datasets import catalogue
from pipeline.datasets.preprocessing import OWN_PREPROCESSING
from pipeline.host import environment, terminal
from pipeline.host.errors import UserError
from pipeline.host.files import resolved
from pipeline.settings.config import Config
from pipeline.tasks.catalogue import find as find_task
from pipeline.tracking import Tracker
from pipeline.tracking.champion import Contender
from pipeline.tracking.models import ModelRecord

# The runtimes whose files MLflow can serve, the preferred one first, which alone is served with pictures.
SERVED = ("onnxruntime", "torchscript")
# What the champion's rule reads is theirs: the model, and what it is worth and its latency beside fp32.
_NEEDED = ("export", "evaluate")


def check_registration(config: Config) -> None:
    """Refuse `register.name` where a run could not fill it.

    Raises:
        UserError: saying what is missing.
    """
    if config.register.name is None:
        if config.register.input != "array":
            raise UserError(f"register.input={config.register.input}: allowed: with register.name")
        return
    key = f"register.name={config.register.name}"
    if not re.fullmatch(r"\w[\w .-]*", config.register.name):
        raise UserError(
            f"{key}: allowed: a name of letters, digits, spaces and _ . - that begins with a letter or digit"
        )
    if not config.tracking.enabled:
        raise UserError(f"{key}: allowed: with tracking.enabled=true")
    if catalogue.preprocessing(config.dataset) is None:
        raise UserError(f"{key}: {OWN_PREPROCESSING}; allowed: null")
    for stage in _NEEDED:
        if stage not in config.stages:
            raise UserError(f"{key}: allowed: with {stage} among stages=[{','.join(config.stages)}]")
    if not set(_served(config)) & set(config.runtime.names):
        given = ",".join(config.runtime.names)
        raise UserError(f"{key}: runtime.names=[{given}]: allowed: with {' or '.join(_served(config))} among them")


def _served(config: Config) -> tuple[str, ...]:
    return SERVED if config.register.input == "array" else SERVED[:1]


def keep_model(config: Config, exports: Path | None, metrics: Mapping[str, float], tracker: Tracker) -> None:
    """Log the exported int8 model to the run, and register it under `register.name`.

    Args:
        exports: the folder of the stage `export`, or None where the run has none.
        metrics: of the whole run.
        tracker: of the run.
    """
    if exports is None or not config.tracking.enabled:
        return
    passed = [name for name in _served(config) if metrics.get(f"{name}/int8/parity")]
    if not passed:
        if config.register.name is not None:
            terminal.warn(f"register.name={config.register.name}: nothing is registered: no exported model has parity")
        return
    if catalogue.preprocessing(config.dataset) is None:
        terminal.warn(f"the exported model is not logged to MLflow: {OWN_PREPROCESSING}")
        return
    runtime = passed[0]
    file = exports / "int8" / runtime / runtimes.registry()[runtime].file
    takes = config.register.input
    record = ModelRecord(runtime, file, config.evaluate.threads, config.backend.engine, takes)
    outputs = resolved(config.outputs)
    if config.register.name is None:
        tracker.model(record, outputs, None, None)
    else:
        tracker.model(record, outputs, config.register, _contender(config, runtime, metrics))


def _contender(config: Config, runtime: str, metrics: Mapping[str, float]) -> Contender:
    metric = find_task(config.task).primary
    latency = next(name for name in (f"{runtime}/int8/latency_ms", "int8/latency_ms") if name in metrics)
    # The stage benchmark's headline is that of 1 thread.
    how, threads = ("eager", config.evaluate.threads) if latency == "int8/latency_ms" else ("exported", 1)
    return Contender(
        # Of torch's int8: parity says that the file decides the same.
        drop=metrics[f"val/{metric.of('drop')}"],
        value=metrics[f"val/int8_{metric.name}"],
        floor=metrics.get("val/largest_class_pct"),
        latency_ms=metrics[latency],
        parity=bool(metrics[f"{runtime}/int8/parity"]),
        metric=metric,
        conditions=", ".join(
            [
                f"{how}, {threads} thread{'s' if threads > 1 else ''}",
                environment.cpu_name(),
                f"{config.dataset.name} at {config.dataset.image_size} px",
                f"torch {torch.__version__}",
                *(f"{module} {version}" for module, version in runtimes.versions([runtime]).items()),
            ]
        ),
    )
