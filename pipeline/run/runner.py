"""Walks the stages of one run: check, plan, then each stage from the store or by making it."""

from __future__ import annotations

import functools
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch

from pipeline import models, stages
from pipeline.datasets import catalogue
from pipeline.datasets.preprocessing import OWN_PREPROCESSING
from pipeline.flows.catalogue import find as find_flow
from pipeline.host import environment, terminal, torchrun
from pipeline.host.errors import UserError, suggestion
from pipeline.host.files import make_writable_folder, resolved
from pipeline.host.interruption import stop_if_interrupted, termination_as_interrupt
from pipeline.host.world import SOLO, World, join
from pipeline.models import weights
from pipeline.reports import results as report
from pipeline.reports.card import markdown, page
from pipeline.reports.tracked_run import TrackedRun
from pipeline.run import card
from pipeline.run.artifact_store import Artifact, Store, note_tracking
from pipeline.run.followers import announce, check_processes, follow, undeclared_part
from pipeline.run.plan import (
    Plan,
    Step,
    goes_by_flow,
    input_hashes,
    is_current,
    make_plan,
    visible_config,
    visible_task,
    what_changed,
    wire,
)
from pipeline.run.registration import check_registration, keep_model
from pipeline.run.request import Request, describe, tell_data, tell_qconfigs
from pipeline.runtimes import check_runtimes
from pipeline.settings.config import Config
from pipeline.tasks.catalogue import find as find_task
from pipeline.tasks.catalogue import info as task_info
from pipeline.tracking import Tracker, find_earlier, open_run
from pipeline.tracking.store import store_uri
from pipeline.training.context import Context


@dataclass(frozen=True)
class Outcome:
    """What a run came to.

    Attributes:
        metrics: of the whole run.
        run_id: its id in the tracking store; None: not tracked.
        artifacts: by stage.
        told: the run as a store has it, whether it is tracked or not.
    """

    metrics: dict[str, float]
    run_id: str | None
    artifacts: dict[str, Artifact] = field(default_factory=dict)
    told: TrackedRun | None = None


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
            tell_qconfigs(config, plan)
            store = Store(make_writable_folder(resolved(config.outputs), "outputs") / "artifacts")
            with store.holding(step.artifact for step in (*plan.earlier, *plan.steps)):
                outcome = _run(request, plan, world, store)
            world.tell(None)  # that there is nothing more to train
            return outcome
        follow(config, plan, world, device)
        return Outcome({}, None)


def _run(request: Request, plan: Plan, world: World, store: Store) -> Outcome:
    config, outputs, forced = request.config, store.root.parent, _forced(request.config)
    done = _find_artifacts(plan, store, config, forced)
    # Else the store lies beside the artifacts, and moves along with them.
    if config.tracking.enabled and config.tracking.uri is not None:
        note_tracking(outputs, store_uri(config.tracking, outputs))
    if any(step.stage.parts and step.artifact not in done for step in plan.steps):
        catalogue.find(config.dataset).prepare(config.dataset)
    record = describe(request, plan, tell_data(config, outputs, store.machine()))
    nothing_new = all(is_current(step, done.get(step.artifact), done) for step in plan.steps)
    # To be registered, a model is logged: that takes a run.
    repeats = nothing_new and bool(plan.steps) and config.register.name is None
    earlier = find_earlier(config.tracking, outputs, record) if repeats else None
    with open_run(config.tracking, outputs, record, earlier) as tracker:
        walk = _Walk(config, store, tracker, done, world)
        for step in plan.steps:
            walk.take(step, step.stage.name in forced)
            stop_if_interrupted()
        _report(request, walk.metrics, tracker)
        keep_model(config, walk.folder_of("export"), walk.metrics, tracker)
        told = TrackedRun(
            tracker.run_id or "untracked",
            record.name,
            "FINISHED",
            record.logged_parameters(),
            walk.metrics,
            record.tags,
        )
        if config.register.name is not None:
            sections, title = card.sections(told, outputs), card.title(told)
            tracker.text(markdown(title, sections), "card.md")
            tracker.text(page(title, sections), "card.html")
        stop_if_interrupted()
    made = {step.stage.name: walk.done[step.artifact] for step in plan.steps}
    return Outcome(walk.metrics, tracker.run_id, made, told)


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
    info = task_info(config)
    models.check_model(config.model, info, config.dataset.image_size)
    flow, wired = find_flow(config.backend), [stages.registry()[name] for name in wire(config)]
    if any(goes_by_flow(stage, config) for stage in wired):
        flow.check(config, info)
    if config.train.precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise UserError("train.precision=bf16: this GPU does not have it; allowed: auto, fp32")
    if config.qat.compile:
        raise UserError("qat.compile=true: fake-quantize is not compiled, which did not pay; allowed: false")
    if config.model.weights is not None:
        weights.load_into(models.build(config.model, info), config.model, info)
    _forced(config)
    exports = any("runtime" in stage.sections for stage in wired)
    check_runtimes(config.runtime.names, config.stages, config.backend.flow if exports else None)
    target = flow.runtime(config)
    if target is not None and "evaluate" in config.stages:
        check_runtimes([target], ["export"], key=f"backend.engine={target}")
    if config.export.takes_pictures and catalogue.preprocessing(config.dataset) is None:
        raise UserError(f"export.input={config.export.input}: {OWN_PREPROCESSING}; allowed: float32")
    check_registration(config)
    if (
        config.benchmark.source == "file"
        and "benchmark" in config.stages
        and not catalogue.preprocessing(config.dataset)
    ):
        raise UserError(f"benchmark.source=file: {OWN_PREPROCESSING}; allowed: array")
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
    wanted = [step.artifact for step in (*plan.earlier, *plan.steps) if step.stage.name not in forced]
    done = {name: artifact for name in wanted if (artifact := store.find(name)) is not None}
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


class _Walk:
    """A walk over the steps: the artifacts so far, and the metrics of the whole run."""

    def __init__(self, config: Config, store: Store, tracker: Tracker, done: dict[str, Artifact], world: World) -> None:
        self.config, self.store, self.tracker, self.done, self.world = config, store, tracker, done, world
        self.metrics: dict[str, float] = {}
        self.machine = store.machine()
        self.device = environment.resolve_device(config.device)
        check = find_task(config.task).check
        self.load_training = functools.cache(lambda: catalogue.load_training(config.dataset, self.machine, check))
        self.load_test = functools.cache(lambda: catalogue.load_test(config.dataset, self.machine, check))

    def folder_of(self, stage: str) -> Path | None:
        """The folder of a stage's result, or None where the walk has not been there."""
        return next((artifact.folder for name, artifact in self.done.items() if name.startswith(f"{stage}-")), None)

    def take(self, step: Step, forced: bool) -> None:
        """Replay a step that is done already, or make it."""
        artifact = self.done.get(step.artifact)
        if not self._serves(step, artifact):
            with self.store.making(step.artifact):
                # Another process may have made it since the plan was drawn.
                artifact = None if forced else self.store.find(step.artifact)
                if not self._serves(step, artifact):
                    artifact = self._make(step, forced)
        assert artifact is not None
        self.done[step.artifact] = artifact
        for path in artifact.attachments:
            self.tracker.file(path)

    def _serves(self, step: Step, artifact: Artifact | None) -> bool:
        """Whether an artifact is what the step would make; then it is replayed."""
        if artifact is None:
            return False
        if not is_current(step, artifact, self.done):
            terminal.warn(f"{step.artifact} was made from another result than is there now, and will be made again")
            return False
        terminal.say(f"{step.stage.name:9} cached   {step.artifact}")
        for metric in artifact.metrics:
            self._on_metric(*metric)
        return True

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
            info=task_info(self.config),
            flow=find_flow(self.config.backend),
            task=visible_task(step.stage, self.config),
            load_training=self.load_training if "train" in step.stage.parts else undeclared_part,
            load_test=self.load_test if "test" in step.stage.parts else undeclared_part,
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


def _report(request: Request, metrics: dict[str, float], tracker: Tracker) -> None:
    """Show the results table where there is one: in the terminal and on the run's page."""
    if "speedup" not in metrics:
        return
    metric = find_task(request.config.task).primary
    method = request.config.method
    words = report.in_words(metrics, metric, method)
    target = find_flow(request.config.backend).runtime(request.config)
    where = environment.cpu_name() + (f", in {target}" if target is not None else "")
    conditions = report.conditions(request.config.evaluate, metrics, where, metric)

    def tables(style: str) -> str:
        return "\n\n".join(
            table(metrics, style, metric, method) for table in (report.results_table, report.pairs_table)
        )

    below = "\n\n".join(f"{words}\n{conditions}".splitlines())  # Markdown joins lines that follow each other
    markdown = f"{tables('github')}\n\n{below}\n"
    tracker.describe(markdown)
    tracker.text(markdown, "results.md")
    terminal.say(f"\n{tables('simple')}\n\n{words}\n{conditions}\n")
    if request.job is None:
        terminal.say(report.next_lines(request.overrides, tracker.way_to_runs))
