"""A run as it was asked for, and what the tracker is told of it before it starts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from pipeline import runtimes
from pipeline.datasets import catalogue
from pipeline.flows.catalogue import find as find_flow
from pipeline.host import environment, terminal, torchrun
from pipeline.host.files import resolved
from pipeline.host.machine import Machine
from pipeline.host.redaction import mask_text
from pipeline.reports.tracked_run import METRIC_TAG
from pipeline.run.artifact_store import seen_folder
from pipeline.run.plan import Plan
from pipeline.settings.config import Config
from pipeline.settings.schema import flatten
from pipeline.settings.typed import command, is_for_hydra
from pipeline.tasks.catalogue import find as find_task
from pipeline.tracking import RunRecord
from pipeline.tracking.parents import JOB_TAG

# MLflow keeps no longer tags than 8,000 characters.
_MAX_COMMAND = 5000


@dataclass(frozen=True)
class Request:
    """The configuration, typed and as it was composed, and the overrides that were typed.

    For a job of a sweep also its name among the jobs, the sweep's run and the job's own mark.
    """

    config: Config
    composed: dict[Any, Any]
    overrides: list[str]
    name: str | None = None
    parent_run_id: str | None = None
    job: str | None = None

    @property
    def yaml(self) -> str:
        return OmegaConf.to_yaml(self.composed)

    @property
    def parameters(self) -> dict[str, Any]:
        """Each setting by its whole name."""
        return dict(flatten(self.composed))


def qconfigs(config: Config, plan: Plan) -> dict[str, dict[str, str]]:
    """What is resolved of the qconfigs that the plan's stages use: `qconfig` of QAT, `ptq_qconfig` of PTQ."""
    steps = [step.stage for step in (*plan.earlier, *plan.steps)]
    resolved = {}
    if any(stage.name == "qat" for stage in steps):
        resolved["qconfig"] = find_flow(config.backend).describe(config, "qat")
    if any("ptq" in stage.sections for stage in steps):
        resolved["ptq_qconfig"] = find_flow(config.backend).describe(config, "ptq")
    return resolved


def tell_qconfigs(config: Config, plan: Plan) -> None:
    """Say what the qconfigs of this run came to, and when this processor cannot compute them faithfully."""
    resolved = qconfigs(config, plan)
    for name, qconfig in resolved.items():
        terminal.say(f"{name}: activation {qconfig['activation']}, weight {qconfig['weight']}")
    warning = find_flow(config.backend).warning(config) if resolved else None
    if warning:
        terminal.warn(warning)


def tell_data(config: Config, outputs: Path, machine: Machine) -> dict[str, str]:
    """Say what is odd about the data, in a line each, and give the lines by their names."""
    found = catalogue.inspect(config.dataset, seen_folder(outputs), machine)
    order = catalogue.class_order(config.dataset) if config.model.weights is not None else None
    if order is not None:
        found["class_order"] = f"model.weights={config.model.weights}: has to have its classes in this order: {order}"
    for line in found.values():
        terminal.warn(line)
    return found


def describe(request: Request, plan: Plan, warnings: Mapping[str, str] = {}) -> RunRecord:
    """Name, parameters, tags and data set of the run; `warnings` become tags."""
    config = request.config
    uses_runtimes = any("runtime" in step.stage.sections for step in plan.steps)
    versions = runtimes.versions(config.runtime.names) if uses_runtimes else {}
    tags = {
        "git_commit": environment.git_commit(),
        "torch_version": torch.__version__,
        "cpu": environment.cpu_name(),
        **environment.hardware(),
        "device": str(environment.resolve_device(config.device)),
        "threads": str(torch.get_num_threads()),
        "processes": str(torchrun.world_size()),
        "latency_threads": str(config.evaluate.threads),
        **{f"{name}_version": version for name, version in versions.items()},
        "backend": config.backend.name,
        "command": mask_text(command(request.overrides))[:_MAX_COMMAND],
        METRIC_TAG: json.dumps(asdict(find_task(config.task).primary)),
        **{f"{name}.{role}": text for name, found in qconfigs(config, plan).items() for role, text in found.items()},
        **{f"warning.{name}": line for name, line in warnings.items()},
        **{f"artifact.{step.stage.name}": step.artifact for step in (*plan.earlier, *plan.steps)},
    }
    if request.job is not None:
        tags[JOB_TAG] = request.job
    name = (
        request.name
        or " ".join(text for text in request.overrides if not is_for_hydra(text))
        or f"{config.model.name} {config.dataset.name} {config.backend.name}"
    )
    seen = seen_folder(resolved(config.outputs))
    data = {part: catalogue.fingerprint(config.dataset, part, seen) for part in ("train", "test")}  # type: ignore[arg-type]
    digest = tags["dataset.digest"] = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:8]
    return RunRecord(
        mask_text(name),
        request.parameters,
        tags,
        request.yaml,
        dataset=(config.dataset.name, digest, catalogue.find(config.dataset).origin(config.dataset)),
        parent_run_id=request.parent_run_id,
    )
