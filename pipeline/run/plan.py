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
from pipeline.host.files import resolved
from pipeline.models import weights
from pipeline.run.artifact_store import Artifact, Store, seen_folder
from pipeline.run.sources import code_of
from pipeline.settings.config import Config
from pipeline.stages.contract import Product, Stage
from pipeline.tasks.catalogue import find as find_task
from pipeline.tasks.catalogue import module_of as task_module
from pipeline.tasks.contract import Task

_KEY_LENGTH = 16
# What a key holds besides settings.
_NOT_ASKED_FOR = {"sources", "libraries", "data", "weights", "parents", "machine"}
# Of the files that changed, so many are named.
_NAMED = 3


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


def wire(config: Config) -> dict[str, dict[Product, Stage]]:
    """The stages of `config.stages` and those before them, each after what it needs, and who makes it what.

    Raises:
        UserError: for a stage that does not exist or that stands before one it needs.
    """
    declared = stages.registry()
    for name in config.stages:
        if name not in declared:
            raise UserError(f"stages=[{','.join(config.stages)}]: no stage '{name}'; {suggestion(name, declared)}")
    if len(set(config.stages)) < len(config.stages):
        raise UserError(f"stages=[{','.join(config.stages)}]: allowed: each stage once")
    producers: dict[Product, Stage] = {}
    for stage in declared.values():
        if stage.produces is not None and producers.setdefault(stage.produces, stage) is not stage:
            raise UserError(
                f"stages {producers[stage.produces].name} and {stage.name} both declare that they make "
                f"{stage.produces}: allowed: one stage for each form"
            )
    if config.method == "ptq":
        producers["int8"] = producers["ptq_int8"]
    for position, name in enumerate(config.stages):
        for form in declared[name].inputs(config):
            producer = producers[form].name
            if producer in config.stages[position:]:
                raise UserError(
                    f"stages=[{','.join(config.stages)}]: {name} needs {form}, which {producer} makes only "
                    f"after it; allowed: {producer} before {name}"
                )
    wired: dict[str, dict[Product, Stage]] = {}

    def add(stage: Stage) -> None:
        if stage.name not in wired:
            needs = {form: producers[form] for form in stage.inputs(config)}
            for producer in needs.values():
                add(producer)
            wired[stage.name] = needs

    for name in config.stages:
        add(declared[name])
    return wired


def make_plan(config: Config) -> Plan:
    """Wire the stages, and key each of them.

    Raises:
        UserError: as `wire`.
    """
    catalogue.look_again()
    declared = stages.registry()
    steps: dict[str, Step] = {}
    for name, needs in wire(config).items():
        parents = {form: steps[producer.name] for form, producer in needs.items()}
        hashed = _hashed(declared[name], config) | {"parents": [parent.key for parent in parents.values()]}
        text = json.dumps(hashed, sort_keys=True)
        key = hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:_KEY_LENGTH]
        steps[name] = Step(declared[name], key, hashed, {form: parent.artifact for form, parent in parents.items()})
    return Plan(
        steps=tuple(steps[name] for name in config.stages),
        earlier=tuple(step for name, step in steps.items() if name not in config.stages),
    )


def goes_by_flow(stage: Stage, config: Config) -> bool:
    """Whether what a stage does is the backend's flow's; `fuse` reads no other setting of the backend."""
    return bool({"fuse", "backend"} & set(stage.reads(config)))


def _hashed(stage: Stage, config: Config) -> dict[str, Any]:
    seen = seen_folder(resolved(config.outputs))
    # The modules that it runs: its own, and those that are chosen by name.
    modules = [stage.run.__module__]
    if "model" in stage.sections:
        modules.append(models.module_of(config.model))
    if "task" in stage.sections:
        modules.append(task_module(config.task))
    if "runtime" in stage.sections:
        modules += runtimes.modules_of(config.runtime.names)
    if goes_by_flow(stage, config):
        modules += find_flow(config.backend).modules_of(config)
    if stage.parts:  # which are loaded outside the stage
        modules += catalogue.loading_modules(config.dataset)
    # Before the data, which may take minutes: this process has loaded its modules already.
    code = code_of(modules, seen / "sources.json")
    # What a runtime needs it may import out of sight, as torch.onnx does.
    names = list(config.runtime.names) if "runtime" in stage.sections else []
    if stage.measures_machine and (target := find_flow(config.backend).runtime(config)) is not None:
        names.append(target)
    libraries = code.libraries | runtimes.versions(names)
    hashed: dict[str, Any] = {"stage": stage.name, "sources": code.files, "libraries": libraries}
    for section in stage.reads(config):
        hashed[section] = _settings(section, getattr(config, section), stage.ignores)
    if goes_by_flow(stage, config):
        hashed["flow"] = config.backend.flow
        if "backend" in stage.reads(config):  # null may mean another thing on another processor
            hashed["levels"] = find_flow(config.backend).describe(config, "qat")
    if "model" in stage.sections:
        hashed["weights"] = weights.fingerprint(config.model)
    hashed["data"] = {part: catalogue.fingerprint(config.dataset, part, seen) for part in stage.parts}
    if stage.measures_machine:
        hashed["machine"] = environment.machine()
    return hashed


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


def is_current(step: Step, artifact: Artifact | None, done: Mapping[str, Artifact]) -> bool:
    """Whether an artifact is there, and was made from the very results that are there now."""
    return artifact is not None and input_hashes(step, done).items() <= artifact.inputs.items()


def what_changed(step: Step, store: Store) -> str | None:
    """In words, what differs from the newest other artifact of the same stage and settings; None: there is none."""
    now = json.loads(json.dumps(step.hashed))
    for folder, manifest in store.manifests(step.stage.name):
        before = manifest.get("hashed", {})
        if folder.name == step.artifact or set(_changed(now, before)) - _NOT_ASKED_FOR:
            continue
        said = []
        files = _changed(now["sources"], before["sources"])
        if files:
            more = f" and {len(files) - _NAMED} more files" if len(files) > _NAMED else ""
            said.append(f"{', '.join(files[:_NAMED])}{more} changed")
        for name in _changed(now["libraries"], before["libraries"]):
            was, there = (versions.get(name, "absent") for versions in (before["libraries"], now["libraries"]))
            said.append(f"{name} was {was} and is {there}")
        said += [f"the {part} images changed" for part in _changed(now["data"], before["data"])]
        if now.get("weights") != before.get("weights"):
            said.append("the file model.weights changed")
        changed = _changed(now.get("machine", {}), before.get("machine", {}))
        said += [f"the machine's {name} is another" for name in changed]
        parents = [name.rpartition("-")[0] for name in step.consumes.values() if name not in manifest["inputs"]]
        if parents:
            said.append(f"{' and '.join(parents)} changed")
        return "; ".join(said) or None
    return None


def _changed(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))


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


def visible_task(stage: Stage, config: Config) -> Task:
    """The task as a stage sees it: it too has to stand in its declaration."""
    if "task" in stage.sections:
        return find_task(config.task)
    return _Undeclared(stage.name, "task")  # type: ignore[return-value]
