"""Walks the stages of one run: check, plan, then each stage from the store or by making it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pipeline import models
from pipeline.datasets import catalogue
from pipeline.flows.catalogue import find as find_flow
from pipeline.host import environment, terminal, torchrun
from pipeline.host.errors import UserError, suggestion
from pipeline.host.files import in_project, make_writable_folder
from pipeline.host.interruption import stop_if_interrupted, termination_as_interrupt
from pipeline.host.remembered import keep
from pipeline.host.world import World, join
from pipeline.models import weights
from pipeline.reports import results as report
from pipeline.run.artifact_store import Artifact, Store, note_tracking, seen_folder
from pipeline.run.followers import check_processes, dismiss, follow
from pipeline.run.plan import Plan, is_replay, make_plan
from pipeline.run.registration import check_registration, keep_model
from pipeline.run.request import Request, describe, tell_data, tell_qconfigs
from pipeline.run.walk import Walk
from pipeline.runtimes import check_runtimes
from pipeline.settings.config import Config
from pipeline.tracking import Tracker, find_earlier, open_run
from pipeline.tracking.store import store_uri


@dataclass(frozen=True)
class Outcome:
    """The metrics of a whole run, and its id in the tracking store (None: not tracked)."""

    metrics: dict[str, float]
    run_id: str | None


def run(request: Request) -> Outcome:
    """Run the stages of one configuration; of several processes, rank 0 walks them and the others help to train.

    Raises:
        UserError: for whatever the user can mend; before the first stage runs wherever possible.
    """
    config = request.config
    plan = check_parts(config)
    device = environment.resolve_device(config.device)
    with termination_as_interrupt(), join(device) as world:
        if world.is_main:
            outcome = _run(request, plan, world)
            dismiss(world)
            return outcome
        follow(config, plan, world, device)
        return Outcome({}, None)


def _run(request: Request, plan: Plan, world: World) -> Outcome:
    config = request.config
    tell_qconfigs(config, plan)
    outputs = make_writable_folder(in_project(config.outputs), "outputs")
    store = Store(outputs / "artifacts")
    with store.holds().held(step.artifact for step in (*plan.earlier, *plan.steps)):
        return _walk(request, plan, world, store)


def _walk(request: Request, plan: Plan, world: World, store: Store) -> Outcome:
    config, outputs, forced = request.config, store.root.parent, _forced(request.config)
    done = _find_artifacts(plan, store, config, forced)
    keep(seen_folder(outputs))
    # Else the store lies beside the artifacts, and moves along with them.
    if config.tracking.enabled and config.tracking.uri is not None:
        note_tracking(outputs, store_uri(config.tracking, outputs))
    if any(step.stage.parts and step.artifact not in done for step in plan.steps):
        catalogue.find(config.dataset).prepare(config.dataset)
    record = describe(request, plan, tell_data(config, outputs, store.machine()))
    # To be registered, a model is logged: that takes a run.
    repeats = is_replay(plan, done) and config.register.name is None
    earlier = find_earlier(config.tracking, outputs, record) if repeats else None
    with open_run(config.tracking, outputs, record, earlier) as tracker:
        walk = Walk(config, store, tracker, done, world)
        for step in plan.steps:
            walk.take(step, step.stage.name in forced)
            stop_if_interrupted()
        _report(request, walk.metrics, tracker)
        keep_model(config, walk.folder_of("export"), walk.metrics, tracker)
        stop_if_interrupted()
    return Outcome(walk.metrics, tracker.run_id)


def artifacts_of(config: Config) -> list[str]:
    """The names of the artifacts that a run of this configuration ends in."""
    return [step.artifact for step in make_plan(config).steps]


def check_parts(config: Config) -> Plan:
    """Ask the owner of each choice whether it can be had here, and plan the run.

    Raises:
        UserError: for the first choice that cannot be had.
    """
    device = environment.resolve_device(config.device)
    check_processes(config, torchrun.world_size())
    catalogue.find(config.dataset)
    models.check_model(config.model, config.dataset.image_size)
    find_flow(config.backend).check(config, catalogue.info(config.dataset))
    if config.train.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("train.precision=bf16: this GPU does not have it; allowed: auto, fp32")
    if config.model.weights is not None:
        weights.load_into(models.build(config.model, catalogue.info(config.dataset)), config.model)
    _forced(config)
    check_runtimes(config.runtime.names, config.stages)
    check_registration(config)
    return make_plan(config)


def _forced(config: Config) -> list[str]:
    """The stages to run although their result is there: `force` is true, false, or the first of them."""
    choice = config.force.lower()
    if choice in ("true", "false"):
        return config.stages if choice == "true" else []
    if choice not in config.stages:
        raise UserError(f"force={config.force}: {suggestion(config.force, ['true', 'false', *config.stages])}")
    return config.stages[config.stages.index(choice) :]


def _find_artifacts(plan: Plan, store: Store, config: Config, forced: list[str]) -> dict[str, Artifact]:
    """What the store has of the plan; what stages outside the plan must have left is required."""
    done = {}
    for step in (*plan.earlier, *plan.steps):
        if step.stage.name in forced:
            continue
        artifact = store.find(step.artifact)
        if artifact is not None:
            done[step.artifact] = artifact
    needed = {name for step in plan.steps if step.artifact not in done for name in step.consumes.values()}
    missing: list[str] = []
    for step in reversed(plan.earlier):  # what a missing one is made from is needed too
        if step.artifact in needed and step.artifact not in done:
            missing.insert(0, step.stage.name)
            needed |= set(step.consumes.values())
    if missing:
        raise UserError(
            f"stages=[{','.join(config.stages)}]: there is no result of stage {' and '.join(missing)} for these "
            f"settings in {store.root}; run stage {missing[0]} first, with the same settings: "
            f"stages=[{','.join(missing)}]"
        )
    return done


def _report(request: Request, metrics: dict[str, float], tracker: Tracker) -> None:
    """Show the results table where there is one: in the terminal and on the run's page."""
    if "speedup" not in metrics:
        return
    words = report.in_words(metrics)
    conditions = report.conditions(request.config.evaluate, metrics, environment.cpu_name())
    below = "\n\n".join(f"{words}\n{conditions}".splitlines())  # Markdown joins lines that follow each other
    markdown = f"{report.results_table(metrics, 'github')}\n\n{report.pairs_table(metrics, 'github')}\n\n{below}\n"
    tracker.describe(markdown)
    tracker.text(markdown, "results.md")
    tables = f"{report.results_table(metrics, 'simple')}\n\n{report.pairs_table(metrics, 'simple')}"
    terminal.say(f"\n{tables}\n\n{words}\n{conditions}\n")
    if request.job is None:
        terminal.say(report.next_lines(request.overrides, tracker.way_to_runs))
