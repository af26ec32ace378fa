"""One decision: every backend climbs, the fastest that passes is chosen, and the test part confirms it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock, Timeout

from pipeline.datasets import catalogue
from pipeline.decision.budget import confidence_of, too_few_images
from pipeline.decision.ladder import Climber, Compose, Ladder, Rung
from pipeline.decision.verdict import Verdict, judge
from pipeline.host import terminal
from pipeline.host.errors import UserError
from pipeline.host.files import make_writable_folder, resolved
from pipeline.host.machine import Machine
from pipeline.measure import latency
from pipeline.measure.measurement import threads
from pipeline.reports.card import Section, markdown, page
from pipeline.run import card
from pipeline.run.artifact_store import Store
from pipeline.runtimes import exported_to
from pipeline.settings.config import BenchmarkConfig, Config
from pipeline.settings.decision import DecisionConfig
from pipeline.sweeps.states import sweep_id
from pipeline.tasks import Metric
from pipeline.tasks.catalogue import find as find_task
from pipeline.tracking import parents

# What passes is timed once more, all in one loop: enough to tell a tenth.
_TIMING = BenchmarkConfig(min_repeats=100, passes=5, max_seconds=20)


@dataclass
class Decision:
    """What was found, and what is to be done.

    Attributes:
        chosen: the rung to ship; None where there is none.
        verdict: of all: passes, fails, cannot be told.
        lines: the decision in words, the first line first.
        timed: of what passed, by `<runtime>/<form> <backend>`: the median in ms with its 95 % interval, and how many
            times as fast as the fastest fp32.
    """

    ladders: list[Ladder]
    chosen: Rung | None
    verdict: Verdict
    lines: list[str]
    timed: dict[str, tuple[latency.Interval, latency.Interval]]


def decide(
    settings: DecisionConfig, overrides: list[str], backends: Sequence[str], compose: Compose, typed: str
) -> Verdict:
    """Climb, choose, confirm, and keep the card; gives what was decided. `typed`: the command that asked for it.

    Raises:
        UserError: for whatever the user can mend, before the first rung runs wherever possible.
    """
    climber = Climber(settings, overrides, backends, compose)
    config = climber.check()
    outputs = make_writable_folder(resolved(config.outputs), "outputs")
    identity = sweep_id([*overrides, f"backend={','.join(backends)}", repr(settings)])
    folder = outputs / "decisions" / identity
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / ".lock", timeout=0), _tracked(config, outputs, identity, overrides) as (parent, keep):
            climber.parent_run_id = parent
            decision = _decide(climber, config, outputs)
            title = f"Decision {identity}: int8 for {config.model.name} on {config.dataset.name}"
            sections = _sections(decision, climber, config)
            if decision.chosen is not None and decision.chosen.shipped is not None:
                assert decision.chosen.shipped.told is not None
                sections += card.sections(decision.chosen.shipped.told, outputs)
            sections.append(Section("Decided by", code=[typed]))
            files = [folder / "card.md", folder / "card.html"]
            files[0].write_text(markdown(title, sections))
            files[1].write_text(page(title, sections))
            keep(parents.Summary(files[0].read_text(), files, {"decision": decision.lines[0]}))
    except Timeout as error:
        raise UserError(f"decision {identity}: another process is at it; wait for its end, then go on") from error
    terminal.say("\n" + "\n".join(decision.lines) + f"\ncard: {files[1]}")
    return decision.verdict


@contextmanager
def _tracked(
    config: Config, outputs: Path, identity: str, overrides: list[str]
) -> Iterator[tuple[str | None, Callable[[parents.Summary], None]]]:
    """The run in MLflow whose children the rungs are, where anything is tracked; and who takes its summary."""
    if not config.tracking.enabled:
        yield None, lambda summary: None
        return
    metric, name = find_task(config.task).primary, f"decide {' '.join(overrides)}".strip()
    varying = ["backend.name", "method", "ptq.bias_correction", "qat.distill_weight", "qat.epochs"]
    parent = parents.open_parent(config.tracking, outputs, identity, name, varying, metric)
    parents.mark_killed(config.tracking, outputs, parent.run_id, lambda job: True)
    kept: list[parents.Summary] = []
    status = "KILLED"
    try:
        yield parent.run_id, kept.append
        status = "FINISHED"
    except Exception:
        status = "FAILED"
        raise
    finally:
        parents.close_parent(config.tracking, outputs, parent.run_id, name, status, kept[0] if kept else None)


def _decide(climber: Climber, config: Config, outputs: Path) -> Decision:
    metric, budget = find_task(config.task).primary, climber.settings.budget
    if metric.is_share:
        catalogue.find(config.dataset).prepare(config.dataset)
        machine = Store(outputs / "artifacts").machine()
        _, validation = catalogue.load_training(config.dataset, machine, find_task(config.task).check)
        confidence = confidence_of(0, len(climber.backends))
        few = too_few_images(len(validation), 0.0, budget.max_drop_pct, confidence)
        if few is not None:
            return Decision([], None, Verdict.UNKNOWN, [f"cannot be told: {few}"], {})
    ladders = [climber.climb(backend) for backend in climber.backends]
    if climber.broken is not None and all(rung.found is None for ladder in ladders for rung in ladder.rungs):
        raise climber.broken
    passed = [ladder.passed for ladder in ladders if ladder.passed is not None]
    if not passed:
        verdict = Verdict.UNKNOWN if any(ladder.verdict is Verdict.UNKNOWN for ladder in ladders) else Verdict.FAILS
        head = "cannot be told" if verdict is Verdict.UNKNOWN else "do not ship int8"
        return Decision(ladders, None, verdict, [f"{head}: {_reasons(ladders)}"], {})
    timed = _timed(passed, climber, Store(outputs / "artifacts").machine())
    chosen, fastest = _fastest(passed, timed)
    confirmed, said = _confirm(chosen, metric, budget.max_drop_pct)
    if not confirmed:
        return Decision(ladders, chosen, Verdict.FAILS, [f"do not ship int8: {chosen.name}, {said}"], timed)
    climber.register(chosen)
    assert chosen.found is not None
    ship = f"ship {chosen.name} on {chosen.backend}: drop {chosen.criteria[0].evidence}"
    lines = [ship, said, *_speed(fastest, timed), *_spent(chosen, ladders, climber)]
    return Decision(ladders, chosen, Verdict.PASSES, lines, timed)


def _reasons(ladders: list[Ladder]) -> str:
    return "; ".join(f"{ladder.backend}: {ladder.reason}" for ladder in ladders)


def _timed(
    passed: list[Rung], climber: Climber, machine: Machine
) -> dict[str, tuple[latency.Interval, latency.Interval]]:
    """Every exported file of what passed, in one loop: median and, against the fastest fp32, the ratio."""
    loaders: dict[str, latency.Loader] = {}
    for rung in passed:
        assert rung.shipped is not None
        config = climber.compose(rung.overrides).config
        image = _noise(config)
        exports = rung.shipped.artifacts["export"].folder
        for runtime in exported_to(config.runtime.names):
            for form in ("fp32", "int8"):
                if rung.shipped.metrics.get(f"{runtime.name}/{form}/parity"):
                    load = functools.partial(runtime.load, exports / form / runtime.name, config.evaluate.threads)
                    loaders[f"{runtime.name}/{form} {rung.backend}"] = functools.partial(_loaded, load, image)
    with machine.measuring(), threads(config.evaluate.threads):
        samples = latency.take_turns_afresh(loaders, _TIMING).samples_ms
    medians = {name: latency.median_interval(passes) for name, passes in samples.items()}
    floats = [name for name in medians if "/fp32 " in name] or list(medians)
    best = min(floats, key=lambda name: medians[name][0])
    return {name: (medians[name], latency.ratio_interval(samples[best], samples[name])) for name in samples}


def _noise(config: Config) -> np.ndarray:
    """An image as the exported files take it."""
    rng, channels, side = np.random.default_rng(0), len(config.dataset.mean), config.dataset.image_size
    if config.export.takes_pictures:
        return rng.integers(0, 256, (1, side, side, channels), np.uint8)
    return rng.standard_normal((1, channels, side, side)).astype(np.float32)


def _loaded(load: Callable[[], Callable[[np.ndarray], object]], image: np.ndarray) -> latency.Call:
    return functools.partial(load(), image)


def _fastest(passed: list[Rung], timed: dict[str, tuple[latency.Interval, latency.Interval]]) -> tuple[Rung, str]:
    """The rung whose int8 file is the fastest, and that file's name in `timed`."""
    files = {name: values[0][0] for name, values in timed.items() if "/int8 " in name}
    name = min(files, key=lambda one: files[one])
    return next(rung for rung in passed if rung.backend == name.split(" ", 1)[1]), name


def _confirm(chosen: Rung, metric: Metric, limit: float) -> tuple[bool, str]:
    """What the test part says of the chosen one, which is all that it is asked."""
    assert chosen.shipped is not None
    found = chosen.shipped.metrics
    value, low, high = (found[metric.of(what)] + 0.0 for what in ("drop", "drop_ci_low", "drop_ci_high"))
    words = {
        Verdict.PASSES: "confirmed by the test part",
        Verdict.UNKNOWN: "not contradicted by the test part",
        Verdict.FAILS: "contradicted by the test part",
    }
    verdict = judge(low, high, limit)
    told = f"drop {value:+.2f} [{low:+.2f}, {high:+.2f}] {metric.step} on {found['test_images']:,.0f} images"
    return verdict is not Verdict.FAILS, f"{words[verdict]}: {told}"


def _speed(name: str, timed: dict[str, tuple[latency.Interval, latency.Interval]]) -> list[str]:
    _, (ratio, low, high) = timed[name]
    file, _, backend = name.partition(" ")
    runtime = file.split("/")[0]
    slow = "" if low > 1 else ": it is slower" if high < 1 else ": it is not shown to be faster"
    return [
        f"the file for {runtime} (backend {backend}) is {ratio:.2f} [{low:.2f}, {high:.2f}] times as fast as the "
        f"fastest fp32 file here, turn by turn in one loop{slow}"
    ]


def _spent(chosen: Rung, ladders: list[Ladder], climber: Climber) -> list[str]:
    """What quantizing took, and what the rungs that were not needed would have trained."""
    lines = [f"quantizing took {sum(rung.minutes for ladder in ladders for rung in ladder.rungs):.1f} min"]
    assert chosen.shipped is not None
    config, trained = climber.compose(chosen.overrides).config, chosen.shipped.artifacts["train"]
    left = [
        rung for rung in next(one for one in ladders if one.backend == chosen.backend).rungs if rung.verdict is None
    ]
    epochs = sum(climber.epochs_of(rung) for rung in left)
    if epochs and config.train.epochs:
        pace = trained.seconds / config.train.epochs / 60
        lines.append(
            f"not needed: {', '.join(rung.name for rung in left)}: {epochs} epochs of QAT, at the pace of float "
            f"training {epochs * pace:.1f} min"
        )
    return lines


def _sections(decision: Decision, climber: Climber, config: Config) -> list[Section]:
    """The card's: the decision, the ladder, the times, what was not tried."""
    rows = []
    for ladder in decision.ladders:
        for rung in ladder.rungs:
            found = rung.found
            drop = "" if found is None else f"{found.drop:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"
            numbers = (
                ["", "", ""]
                if found is None
                else [f"{found.speedup:.2f}", f"{found.latency_ms:.2f}", f"{found.size_mb:.2f}"]
            )
            verdict = "not climbed" if rung.verdict is None else rung.verdict
            minutes = f"{rung.minutes:.1f}" if rung.verdict is not None else ""
            rows.append([ladder.backend, rung.name, drop, *numbers, minutes, verdict, rung.note])
    metric = find_task(config.task).primary
    budget = {name: value for name, value in vars(climber.settings.budget).items() if value is not None}
    sections = [Section("Decision", decision.lines)]
    if rows:
        drop = f"drop on validation, {metric.step}"
        heads = ["backend", "rung", drop, "speed-up", "ms", "MB", "minutes", "verdict", "note"]
        text = (
            "Budget: " + ", ".join(f"{name} {value:g}" for name, value in budget.items()) + ". A rung passes if the "
            "whole interval of its drop lies within the budget. The intervals widen from rung to rung, so that a "
            "network that loses more than the budget passes on any of them in 5 % of all decisions at most, but for "
            "what a method itself chooses on validation (the epoch that QAT keeps, the layers that stay float). "
            "Speed-up, ms and MB are what evaluate found of each rung; what is shipped is the file, timed below."
        )
        sections.append(Section("The ladder", [text], heads, rows))
    if decision.timed:
        timed = [
            [name, f"{ms:.3f} [{low:.3f}, {high:.3f}]", f"{ratio:.2f} [{worst:.2f}, {best:.2f}]"]
            for name, ((ms, low, high), (ratio, worst, best)) in decision.timed.items()
        ]
        heads = ["file", "median ms, batch 1", "times as fast as the fastest fp32"]
        sections.append(Section("Files that passed, turn by turn in one loop", [], heads, timed))
    return sections
