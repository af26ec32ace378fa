"""A run as it was asked for, and what the tracker is told of it before it starts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch

from pipeline import datasets, environment, quantization
from pipeline.config import Config
from pipeline.plan import Plan
from pipeline.tracking import RunRecord
from pipeline.tracking.parents import JOB_TAG


@dataclass(frozen=True)
class Request:
    """The configuration, its YAML and flattened form, and the overrides that were typed.

    For a job of a sweep also its name among the jobs, the sweep's run and the job's own mark.
    """

    config: Config
    yaml: str
    parameters: dict[str, Any]
    overrides: list[str]
    name: str | None = None
    parent_run_id: str | None = None
    job: str | None = None


def describe(request: Request, plan: Plan) -> RunRecord:
    """Name, parameters, tags and data set of the run."""
    config = request.config
    qconfig = quantization.resolved_qconfig(config.backend)
    tags = {
        "git_commit": environment.git_commit(),
        "torch_version": torch.__version__,
        "cpu": environment.cpu_name(),
        "device": str(environment.resolve_device(config.device)),
        "threads": str(torch.get_num_threads()),
        "latency_threads": str(config.evaluate.threads),
        "backend": config.backend.name,
        "qconfig.activation": qconfig["activation"],
        "qconfig.weight": qconfig["weight"],
        **{f"artifact.{step.stage.name}": step.artifact for step in (*plan.earlier, *plan.steps)},
    }
    if request.job is not None:
        tags[JOB_TAG] = request.job
    name = (
        request.name
        or " ".join(request.overrides)
        or f"{config.model.name} {config.dataset.name} {config.backend.name}"
    )
    data = {part: datasets.fingerprint(config.dataset, part) for part in ("train", "test")}  # type: ignore[arg-type]
    digest = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:8]
    origin = datasets.find(config.dataset).origin(config.dataset)
    dataset = (config.dataset.name, digest, origin)
    return RunRecord(name, request.parameters, tags, request.yaml, dataset, request.parent_run_id)
