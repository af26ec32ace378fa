"""Where results go: MLflow, or nowhere. The only package that imports mlflow; `reading.py` reads runs back.

The run takes its status from how the block ends: FINISHED, FAILED with the error as a tag, or KILLED
for an interruption. The default store is SQLite under `outputs`; its schema and its experiment are
created under a lock, because processes that do so at the same time destroy it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pipeline.config import TrackingConfig
from pipeline.tracking.store import connect

_MAX_PARAM_LENGTH = 6000


@dataclass(frozen=True)
class RunRecord:
    """What is known of a run before it starts.

    Attributes:
        name: the run's name.
        parameters: the flattened configuration.
        tags: commit, versions, machine, backend and the like.
        config_yaml: the composed configuration.
        dataset: name, digest and origin of the data.
        parent_run_id: the run of the sweep that this one belongs to.
    """

    name: str
    parameters: Mapping[str, Any]
    tags: Mapping[str, str]
    config_yaml: str
    dataset: tuple[str, str, str]
    parent_run_id: str | None = None


class Tracker(Protocol):
    """Takes what a run has to say.

    Attributes:
        run_id: the run's id in the store, or None where nothing is tracked.
    """

    run_id: str | None

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """A number; `step` is the epoch of a curve's point."""

    def file(self, path: Path) -> None:
        """A file to keep with the run."""

    def text(self, content: str, name: str) -> None:
        """A small file to keep with the run, by its content."""

    def describe(self, markdown: str) -> None:
        """The run's description."""


class _Silent:
    run_id: str | None = None

    def metric(self, name: str, value: float, step: int | None = None) -> None: ...
    def file(self, path: Path) -> None: ...
    def text(self, content: str, name: str) -> None: ...
    def describe(self, markdown: str) -> None: ...


class _Mlflow:
    def __init__(self, mlflow: Any, run_id: str) -> None:
        self._mlflow = mlflow
        self.run_id: str | None = run_id

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        self._mlflow.log_metric(name, value, step=step)

    def file(self, path: Path) -> None:
        self._mlflow.log_artifact(str(path))

    def text(self, content: str, name: str) -> None:
        self._mlflow.log_text(content, name)

    def describe(self, markdown: str) -> None:
        self._mlflow.set_tag("mlflow.note.content", markdown)


@contextmanager
def open_run(config: TrackingConfig, outputs: Path, record: RunRecord) -> Iterator[Tracker]:
    """Start a run and end it with the status that the block deserves.

    Raises:
        UserError: when the tracking store cannot be opened.
    """
    if not config.enabled:
        yield _Silent()
        return
    import mlflow

    experiment = connect(mlflow, config, outputs)
    started = mlflow.start_run(
        experiment_id=experiment,
        run_name=config.run_name or record.name,
        tags=dict(record.tags),
        parent_run_id=record.parent_run_id,
    )
    try:
        mlflow.log_params({key: str(value)[:_MAX_PARAM_LENGTH] for key, value in record.parameters.items()})
        _log_dataset(mlflow, *record.dataset)
        mlflow.log_text(record.config_yaml, "config.yaml")
        yield _Mlflow(mlflow, started.info.run_id)
    except KeyboardInterrupt:
        mlflow.end_run("KILLED")
        raise
    except BaseException as error:
        try:
            mlflow.set_tag("error", f"{type(error).__name__}: {error}"[:_MAX_PARAM_LENGTH])
        finally:  # a full disk takes no tag; a run that stayed open would be FINISHED when the process ends
            mlflow.end_run("FAILED")
        raise
    else:
        mlflow.end_run("FINISHED")


def _log_dataset(mlflow: Any, name: str, digest: str, origin: str) -> None:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset

    source = CodeDatasetSource(tags={"origin": origin})
    dataset = MetaDataset(source, name=name, digest=digest)  # type: ignore[abstract]
    mlflow.log_input(dataset, context="training")
