"""The walk over the steps of a plan: each from the store, or by making it."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Any

from pipeline.datasets import catalogue
from pipeline.flows.catalogue import find as find_flow
from pipeline.host import environment, terminal
from pipeline.host.world import SOLO, World
from pipeline.run.artifact_store import Artifact, Store
from pipeline.run.followers import announce
from pipeline.run.plan import Step, input_hashes, is_current, visible_config
from pipeline.run.remade import what_changed
from pipeline.settings.config import Config
from pipeline.tracking import Tracker
from pipeline.training.context import Context


def _undeclared_part() -> Any:
    raise AssertionError("this stage reads a part of the data that its declaration does not name")


class Walk:
    """A walk over the steps: the artifacts so far, and the metrics of the whole run."""

    def __init__(self, config: Config, store: Store, tracker: Tracker, done: dict[str, Artifact], world: World) -> None:
        self.config, self.store, self.tracker, self.done, self.world = config, store, tracker, done, world
        self.metrics: dict[str, float] = {}
        self.machine = store.machine()
        self.device = environment.resolve_device(config.device)
        self.load_training = functools.cache(lambda: catalogue.load_training(config.dataset, self.machine))
        self.load_test = functools.cache(lambda: catalogue.load_test(config.dataset, self.machine))

    def folder_of(self, stage: str) -> Path | None:
        """The folder of a stage's result, or None where the walk has not been there."""
        return next((artifact.folder for name, artifact in self.done.items() if name.startswith(f"{stage}-")), None)

    def _is_current(self, step: Step, artifact: Artifact) -> bool:
        current = is_current(step, artifact, self.done)
        if not current:
            terminal.warn(f"{step.artifact} was made from another result than is there now, and will be made again")
        return current

    def take(self, step: Step, forced: bool) -> None:
        """Replay a step that is done already, or make it."""
        artifact = self.done.get(step.artifact)
        if artifact is None or not self._is_current(step, artifact):
            with self.store.making(step.artifact):
                # Another process may have made it since the plan was drawn.
                artifact = None if forced else self.store.find(step.artifact)
                if artifact is None or not self._is_current(step, artifact):
                    artifact = self._make(step, forced)
                else:
                    self._replay(step, artifact)
        else:
            self._replay(step, artifact)
        self.done[step.artifact] = artifact
        for path in artifact.attachments:
            self.tracker.file(path)

    def _replay(self, step: Step, artifact: Artifact) -> None:
        terminal.say(f"{step.stage.name:9} cached   {step.artifact}")
        for metric in artifact.metrics:
            self._on_metric(*metric)

    def _make(self, step: Step, forced: bool) -> Artifact:
        started = time.perf_counter()
        contents = input_hashes(step, self.done)
        reason = None if forced else what_changed(step, self.store)
        if reason is not None:
            terminal.say(f"{step.stage.name:9} made again: {reason}")
        folder = self.store.partial_folder(step.artifact, contents, afresh=forced)
        open_ended = step.stage.extends is not None and step.stage.is_open_ended(self.config)
        if step.stage.extends is not None and open_ended and not forced:
            shorter = self.store.start_from_shorter(step.artifact, step.hashed, contents, step.stage.extends)
            if shorter is not None:
                terminal.say(f"  goes on from {shorter}")
        context = Context(
            folder=folder,
            device=self.device,
            info=catalogue.info(self.config.dataset),
            flow=find_flow(self.config.backend),
            load_training=self.load_training if "train" in step.stage.parts else _undeclared_part,
            load_test=self.load_test if "test" in step.stage.parts else _undeclared_part,
            machine=self.machine,
            world=self.world if step.stage.trains else SOLO,
            on_metric=self._on_metric,
        )
        inputs = {form: self.done[name].product for form, name in step.consumes.items()}
        if step.stage.trains:
            announce(self.world, step, inputs, folder)
        step.stage.run(visible_config(step.stage, self.config), inputs, context)
        seconds = time.perf_counter() - started
        record = {
            "hashed": step.hashed,
            "inputs": contents,
            "seconds": seconds,
            "device": str(self.device),
            "processes": self.world.size if step.stage.trains else 1,
            "machine": environment.machine(),
            "commit": environment.git_commit(),
        }
        artifact = self.store.complete(step.artifact, context.history, context.attachments, record, open_ended)
        terminal.say(f"{step.stage.name:9} done     {step.artifact}  {seconds:.1f} s")
        return artifact

    def _on_metric(self, name: str, value: float, step: int | None) -> None:
        if step is None:
            self.metrics[name] = value
        self.tracker.metric(name, value, step)
