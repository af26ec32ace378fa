"""From a configuration to steps: the wiring of the stages, and the key of each one's result.

A key hashes everything that the result depends on: the stage's name, the settings it reads, the content of the data
and weights it reads, the code and the libraries that compute it, and the keys of the stages before it. It says what
is asked for before anything is made; which content of the stages before it was used stands in the artifact.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline import models, runtimes, stages
from pipeline.datasets import catalogue
from pipeline.flows.catalogue import find as find_flow
from pipeline.host import environment
from pipeline.host.errors import UserError, suggestion
from pipeline.host.files import in_project
from pipeline.models import weights
from pipeline.run.artifact_store import Artifact, seen_folder
from pipeline.run.sources import code_of
from pipeline.settings.config import Config
from pipeline.stages.contract import Product, Stage

_KEY_LENGTH = 16
# Stages that read one of these go by the backend's flow; `fuse` reads no other setting of the backend.
_FLOWING = {"fuse", "backend"}


@dataclass(frozen=True)
class Step:
    """A stage with the key of its result, what was hashed to it, and the artifacts that it consumes."""

    stage: Stage
    key: str
    hashed: dict[str, Any]
    consumes: dict[Product, str]

    @property
    def artifact(self) -> str:
        return f"{self.stage.name}-{self.key}"


@dataclass(frozen=True)
class Plan:
    """The steps to walk, and those that an earlier run must have walked, by name of their artifact."""

    steps: tuple[Step, ...]
    earlier: tuple[Step, ...]


def make_plan(config: Config) -> Plan:
    """Check the wiring of `config.stages` and key each of them.

    Raises:
        UserError: for a stage that does not exist or that stands before one it needs.
    """
    catalogue.look_again()
    declared = stages.registry()
    for name in config.stages:
        if name not in declared:
            raise UserError(f"stages=[{','.join(config.stages)}]: no stage '{name}'; {suggestion(name, declared)}")
    if len(set(config.stages)) < len(config.stages):
        raise UserError(f"stages=[{','.join(config.stages)}]: allowed: each stage once")
    producers = _producers(declared)
    for position, name in enumerate(config.stages):
        for form in declared[name].inputs(config):
            producer = producers[form].name
            if producer in config.stages[position:]:
                raise UserError(
                    f"stages=[{','.join(config.stages)}]: {name} needs {form}, which {producer} makes only "
                    f"after it; allowed: {producer} before {name}"
                )
    steps: dict[str, Step] = {}
    for name in config.stages:
        _add_step(declared[name], producers, config, steps)
    return Plan(
        steps=tuple(steps[name] for name in config.stages),
        earlier=tuple(step for name, step in steps.items() if name not in config.stages),
    )


def _producers(declared: Mapping[str, Stage]) -> dict[Product, Stage]:
    """The one stage that makes each form."""
    producers: dict[Product, Stage] = {}
    for stage in declared.values():
        if stage.produces is None:
            continue
        other = producers.setdefault(stage.produces, stage)
        if other is not stage:
            raise UserError(
                f"stages {other.name} and {stage.name} both declare that they make {stage.produces}: allowed: one "
                "stage for each form"
            )
    return producers


def _add_step(stage: Stage, producers: dict[Product, Stage], config: Config, steps: dict[str, Step]) -> Step:
    """Key a stage, those before it first; every step once."""
    if stage.name not in steps:
        parents = {form: _add_step(producers[form], producers, config, steps) for form in stage.inputs(config)}
        hashed = _hashed(stage, config) | {"parents": [parent.key for parent in parents.values()]}
        text = json.dumps(hashed, sort_keys=True)
        key = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:_KEY_LENGTH]
        consumes = {form: parent.artifact for form, parent in parents.items()}
        steps[stage.name] = Step(stage, key, hashed, consumes)
    return steps[stage.name]


def _hashed(stage: Stage, config: Config) -> dict[str, Any]:
    seen = seen_folder(in_project(config.outputs))
    # Before the data, which may take minutes: this process has loaded its modules already.
    code = code_of(_modules(stage, config), seen / "sources.json")
    # What a runtime needs it may import out of sight, as torch.onnx does.
    libraries = code.libraries | (runtimes.versions(config.runtime.names) if "runtime" in stage.sections else {})
    hashed: dict[str, Any] = {"stage": stage.name, "sources": code.files, "libraries": libraries}
    for section in stage.reads(config):
        hashed[section] = _settings(section, getattr(config, section), stage.ignores)
    if _FLOWING & set(stage.reads(config)):
        hashed["flow"] = config.backend.flow
    if "model" in stage.sections:
        hashed["weights"] = weights.fingerprint(config.model)
    hashed["data"] = {part: catalogue.fingerprint(config.dataset, part, seen) for part in stage.parts}
    if stage.measures_machine:
        hashed["machine"] = environment.machine()
    return hashed


def _modules(stage: Stage, config: Config) -> list[str]:
    """The modules that a stage runs: its own, and those that are chosen by name."""
    chosen = [models.module_of(config.model)] if "model" in stage.sections else []
    if _FLOWING & set(stage.reads(config)):
        chosen += find_flow(config.backend).modules_of(config)
    if stage.parts:  # which are loaded outside the stage
        chosen += [catalogue.__name__, catalogue.module_of(config.dataset)]
    return [stage.run.__module__, *chosen]


def _settings(section: str, value: Any, ignores: tuple[str, ...]) -> Any:
    if section == "device":
        return environment.resolve_device(value).type  # its arithmetic; auto and cpu are the same where there is no GPU
    if not dataclasses.is_dataclass(value):
        return value
    return {
        spec.name: getattr(value, spec.name)
        for spec in dataclasses.fields(value)
        if spec.metadata.get("in_key", True) and f"{section}.{spec.name}" not in ignores
    }


def input_hashes(step: Step, done: Mapping[str, Artifact]) -> dict[str, str | None]:
    """Which results a step is made from, by their content."""
    return {name: done[name].content_hash for name in step.consumes.values() if name in done}


def is_current(step: Step, artifact: Artifact, done: Mapping[str, Artifact]) -> bool:
    """Whether an artifact was made from the very results that are there now."""
    return all(artifact.inputs.get(name) == digest for name, digest in input_hashes(step, done).items())


def is_replay(plan: Plan, done: Mapping[str, Artifact]) -> bool:
    """Whether the result of every step is there and current, so that a walk makes nothing."""
    found = [(step, done.get(step.artifact)) for step in plan.steps]
    return bool(found) and all(artifact is not None and is_current(step, artifact, done) for step, artifact in found)


class _Undeclared:
    """Stands for a section that a stage did not declare: reading it would make its key untrue."""

    def __init__(self, stage: str, section: str) -> None:
        self._what = f"stage {stage} reads config.{section}, which its declaration does not name"

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(self._what)


def visible_config(stage: Stage, config: Config) -> Config:
    """The configuration as a stage sees it: the sections that make its key, and no others."""
    hidden = {spec.name for spec in dataclasses.fields(config)} - set(stage.reads(config))
    return dataclasses.replace(config, **{name: _Undeclared(stage.name, name) for name in hidden})  # type: ignore[arg-type]
