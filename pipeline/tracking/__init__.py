"""Where results go: MLflow, or nowhere. The only package that imports mlflow; `reading.py` reads runs back.

The run takes its status from how the block ends: FINISHED, FAILED with the error as a tag, or KILLED
for an interruption; SystemExit is one, as submitit raises it to end a job that is queued again. The
default store is SQLite under `outputs`. What a run says to a server goes through an outbox
(`outbox.py`, `channels.py`): a server that goes away in mid-run does not end it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipeline.host import terminal
from pipeline.host.interruption import INTERRUPTIONS, undisturbed
from pipeline.host.redaction import mask_text
from pipeline.settings.config import RegisterConfig, TrackingConfig
from pipeline.tracking.champion import Contender
from pipeline.tracking.channels import Channel
from pipeline.tracking.delivery import thing
from pipeline.tracking.models import ModelRecord
from pipeline.tracking.pages import way_to_view
from pipeline.tracking.starting import Earlier, RunRecord, find_earlier, start
from pipeline.tracking.store import tell_unused_store
from pipeline.tracking.views import RESULTS

__all__ = ["RunRecord", "Tracker", "find_earlier", "open_run"]

_MAX_ERROR_LENGTH = 6000


class Tracker:
    """Takes what a run has to say, and says it to the store where there is a channel to it.

    Attributes:
        run_id: the run's id in the store, or None where nothing is tracked.
        way_to_runs: what to type and open to see it among all runs; empty where no browser shows them.
    """

    def __init__(self, channel: Channel | None, run_id: str | None = None, way_to_runs: str = "") -> None:
        self._channel, self.run_id, self.way_to_runs = channel, run_id, way_to_runs

    def _put(self, kind: str, **content: Any) -> None:
        if self._channel is not None:
            self._channel.put(thing(kind, **content))

    def metric(self, name: str, value: float, step: int | None = None) -> None:
        """A number; `step` is the epoch of a curve's point."""
        self._put("metric", name=name, value=float(value), step=step)

    def file(self, path: Path) -> None:
        """A file to keep with the run."""
        self._put("file", path=str(path))

    def text(self, content: str, name: str) -> None:
        """A small file to keep with the run, by its content."""
        self._put("text", content=content, name=name)

    def describe(self, markdown: str) -> None:
        """The run's description."""
        self._put("tags", values={"mlflow.note.content": markdown})

    def model(
        self, record: ModelRecord, outputs: Path, register: RegisterConfig | None, candidate: Contender | None
    ) -> None:
        """The exported int8 model; with `register`, to be registered under the name there as `candidate`."""
        self._put(
            "model",
            path=str(record.file),
            runtime=record.runtime,
            threads=record.threads,
            engine=record.engine,
            input=record.input,
            outputs=str(outputs),
            register=asdict(register) if register is not None else None,
            candidate=asdict(candidate) if candidate is not None else None,
        )


@contextmanager
def open_run(
    config: TrackingConfig, outputs: Path, record: RunRecord, earlier: Earlier | None = None
) -> Iterator[Tracker]:
    """Start a run and end it with the status that the block deserves; with an `earlier` one, point to that instead.

    Raises:
        UserError: when the tracking store cannot be opened. The job of a sweep waits for a server that is away.
    """
    if not config.enabled:
        yield Tracker(None)
        return
    if record.parent_run_id is None:  # of a job, its sweep has said so
        tell_unused_store(config, outputs)
    if earlier is not None:
        yield Tracker(None, earlier.run_id, way_to_view(config, outputs, earlier.experiment, RESULTS))
        terminal.say(
            f"nothing new: in MLflow this is run '{earlier.name}', {earlier.page or earlier.run_id}\n"
            "  tracking.run_name=… logs it once more under that name, force=true makes it again"
        )
        return
    channel, experiment = start(config, outputs, record)
    status = "KILLED"
    try:
        channel.put(thing("params", values=record.logged_parameters()))
        name, digest, origin = record.dataset
        channel.put(thing("dataset", name=name, digest=digest, origin=origin))
        channel.put(thing("text", content=record.config_yaml, name="config.yaml"))
        yield Tracker(channel, channel.run_id, way_to_view(config, outputs, experiment, RESULTS))
        status = "FINISHED"
    except INTERRUPTIONS:
        raise
    except BaseException as error:
        status = "FAILED"
        text = mask_text(f"{type(error).__name__}: {error}")
        channel.put(thing("tags", values={"error": text[:_MAX_ERROR_LENGTH]}))
        raise
    finally:
        with undisturbed() if status == "KILLED" else nullcontext():
            channel.close(status, config.patience_s)
