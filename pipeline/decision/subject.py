"""Which model is meant: a tracked run's, a registered one, or a file; what is recorded of it, and its file."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.host.errors import UserError
from pipeline.runtimes import exported, registry

if TYPE_CHECKING:
    from pipeline.reports.tracked_run import TrackedRun

REGISTERED = "models:/"


@dataclass(frozen=True)
class Subject:
    """A model that is judged, or that another is held against.

    Attributes:
        told: how an error's line begins that is about it: the argument and its value.
        run: its numbers; None of a file, and of a registered model whose run is not there.
        model: as it was exported; None of a run that has logged none, or where numbers alone are asked for.
    """

    told: str
    run: TrackedRun | None
    model: exported.ExportedModel | None


def find(key: str, typed: str, outputs: Path, tracking_uri: str | None, with_model: bool) -> Subject:
    """The model that was typed as the argument `key`.

    Args:
        with_model: whether a run's exported model is of use, and not its numbers alone.

    Raises:
        UserError: when it is not there, is more than one, or cannot be loaded.
    """
    told = f"{key} {typed}"
    if not typed.startswith(REGISTERED) and (os.path.exists(typed) or _is_path(typed)):
        return Subject(told, None, exported.load(exported.locate(typed, str(outputs), key=key), key=key))
    # They import mlflow, which takes seconds.
    from pipeline.settings.config import TrackingConfig
    from pipeline.tracking.reading import read_runs
    from pipeline.tracking.registry import find_logged, find_registered, source_run
    from pipeline.tracking.store import tell_unused_store

    config = TrackingConfig(uri=tracking_uri)
    if typed.startswith(REGISTERED):
        place, source = find_registered(typed, config, outputs, key), source_run(typed, config, outputs, key)
        runs: list[TrackedRun] = []
        if source is not None:
            with contextlib.suppress(UserError):  # it was deleted, and the model was not
                runs = read_runs(config, outputs, source)
        return Subject(told, runs[0] if runs else None, exported.load(place, key=key))
    tell_unused_store(config, outputs, "--tracking-uri=$MLFLOW_TRACKING_URI")
    runs = read_runs(config, outputs, typed, key=key)
    if len(runs) != 1:
        ids = ", ".join(run.run_id for run in runs) or "those that python -m pipeline prints"
        raise UserError(f"{told}: {len(runs)} runs are meant by it; allowed: one id, such as {ids}")
    (run,) = runs
    if run.status != "FINISHED":
        raise UserError(f"{told}: the run is {run.status}; allowed: one that is FINISHED")
    logged = find_logged(run.run_id, config, outputs) if with_model else None
    return Subject(told, run, exported.load(logged, key=key) if logged is not None else None)


def _is_path(typed: str) -> bool:
    """Whether what is not there was meant as a path: settings in a run's name may hold a slash too."""
    suffixes = tuple(Path(runtime.file).suffix for runtime in registry().values())
    return typed.startswith(("/", ".", "~")) or typed.endswith(suffixes)
