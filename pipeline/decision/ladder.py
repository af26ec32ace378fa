"""The ladder: int8 by the cheapest method that keeps the budget.

Each rung is a run like others, cached and resumed, and a child of the decision's run in MLflow. A rung is judged on
the validation part; what passes is exported, and the test part is looked at once, to confirm it.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from pipeline.decision.budget import Measured, confidence_of, criteria, measured, too_few_images
from pipeline.decision.verdict import Criterion, Verdict, together
from pipeline.host import terminal
from pipeline.host.errors import UserError, suggestion
from pipeline.run.request import Request
from pipeline.run.runner import Outcome, check_parts, run
from pipeline.settings.config import Config
from pipeline.settings.decision import DecisionConfig
from pipeline.tasks.catalogue import find as find_task

# Gives what overrides would run.
Compose = Callable[[list[str]], Request]

# A ladder sets what it walks by itself.
_STAGES = {"ptq": ["train", "ptq", "evaluate"], "qat": ["train", "fuse", "qat", "convert", "evaluate"]}
# What is the same on all rungs of a backend, or follows from the method.
_NOT_OF_RUNGS = ("backend", "stages", "outputs", "force")
_WORST, _LONGER = "{worst_layers}", "{longer_epochs}"
# Of training, nothing is counted: it is there in any case.
_NOT_QUANTIZING = "train"
# The criteria that no rung mends: each computes the same graph, or one with more layers in float.
_OF_GRAPH = ("speedup", "latency", "size")


@dataclass
class Rung:
    """One rung on one backend, climbed or not.

    Attributes:
        overrides: all that was typed for its run, and the rung's own.
        found: what it came to; None where it was not climbed, or failed.
        note: why it was not climbed, or failed, or what ends the climb.
        minutes: what its stages took, but training, when they were made; without those of earlier rungs.
    """

    backend: str
    name: str
    overrides: list[str]
    verdict: Verdict | None = None
    found: Measured | None = None
    criteria: list[Criterion] = field(default_factory=list)
    note: str = ""
    minutes: float = 0.0
    shipped: Outcome | None = None


@dataclass
class Ladder:
    """The rungs of one backend, in order, and what is to be said of all of them."""

    backend: str
    rungs: list[Rung]
    verdict: Verdict
    reason: str

    @property
    def passed(self) -> Rung | None:
        return next((rung for rung in self.rungs if rung.verdict is Verdict.PASSES), None)


class Climber:
    """Climbs the ladder of one decision, a backend at a time."""

    def __init__(
        self, settings: DecisionConfig, overrides: list[str], backends: Sequence[str], compose: Compose
    ) -> None:
        self.settings, self.overrides, self.backends = settings, overrides, list(backends)
        # A tenth of a second each, and most are asked for several times.
        self._composed = functools.cache(lambda overrides: compose(list(overrides)))
        self.parent_run_id: str | None = None
        # Why the last rung that did not run did not.
        self.broken: UserError | None = None
        self._counted: set[str] = set()
        self._minutes = 0.0

    def compose(self, overrides: Sequence[str]) -> Request:
        """What overrides would run."""
        return self._composed(tuple(overrides))

    def check(self) -> Config:
        """Compose and check every rung of every backend before the first runs; gives the first configuration.

        Raises:
            UserError: for the first that cannot be.
        """
        names, rungs = self._names(), self.settings.ladder.rungs
        for name in names:
            if name not in rungs:
                raise UserError(f"ladder.climb=[{','.join(names)}]: no rung '{name}'; {suggestion(name, rungs)}")
        if not names or len(set(names)) < len(names):
            raise UserError(
                f"ladder.climb=[{','.join(names)}]: allowed: one rung or more of {', '.join(rungs)}, each once"
            )
        for name in names:
            for text in rungs[name]:
                if text.lstrip("+~").partition("=")[0] in _NOT_OF_RUNGS:
                    raise UserError(f"ladder.rungs.{name}: {text}: a decision sets it itself; allowed: other settings")
        configs = []
        for backend in self.backends:
            for name in names:
                for ship in (False, True):
                    config = self._request(backend, name, [], ship, register=ship).config
                    check_parts(config)
                    configs.append(config)
        return configs[0]

    def _names(self) -> list[str]:
        ladder = self.settings.ladder
        return list(ladder.rungs) if ladder.climb is None else ladder.climb

    def _request(
        self, backend: str, rung: str, worst: list[str], ship: bool = False, register: bool = False
    ) -> Request:
        base = [*self.overrides, f"backend={backend}"]
        texts = self.settings.ladder.rungs[rung]
        longer = (
            str(self.settings.ladder.longer * self.compose(base).config.qat.epochs) if _uses(texts, _LONGER) else ""
        )
        own = [text.replace(_WORST, ",".join(worst)).replace(_LONGER, longer) for text in texts]
        kept = base if register else self._unregistered(base)
        method = self.compose([*kept, *own]).config.method
        stages = [*_STAGES[method], *(["export"] if ship else [])]
        request = self.compose([*kept, *own, f"stages=[{','.join(stages)}]"])
        name = f"{rung} {backend}{' registered' if register else ' shipped' if ship else ''}"
        return dataclasses.replace(request, name=name, parent_run_id=self.parent_run_id, job=name.replace(" ", "."))

    def climb(self, backend: str) -> Ladder:
        """Climb until a rung passes, or none can."""
        rungs = [Rung(backend, name, self.settings.ladder.rungs[name]) for name in self._names()]
        for place, rung in enumerate(rungs):
            limit = self.settings.budget.max_minutes
            if limit is not None and self._minutes >= limit:
                reason = f"budget.max_minutes={limit:g} are over before rung {rung.name}"
                return Ladder(backend, rungs, Verdict.UNKNOWN, reason)
            terminal.say(f"\nrung {place + 1} of {len(rungs)}: {rung.name}, backend {backend}")
            try:
                self._take(rung, confidence_of(place, len(self.backends)))
            except UserError as error:
                # What was judged already cannot be shipped; of what did not run nothing is known.
                rung.verdict = Verdict.UNKNOWN if rung.found is None else Verdict.FAILS
                rung.note, self.broken = str(error), error
                terminal.warn(f"{rung.name}: {error}")
                continue
            if rung.verdict is Verdict.PASSES:
                return Ladder(backend, rungs, Verdict.PASSES, "")
            if rung.note:
                return self._end(backend, rungs, rung.note)
        return self._end(backend, rungs, "no rung is shown to keep the budget")

    def epochs_of(self, rung: Rung) -> int:
        """How many epochs of QAT a rung would train."""
        config = self._request(rung.backend, rung.name, worst=[]).config
        return config.qat.epochs if config.method == "qat" else 0

    def _end(self, backend: str, rungs: list[Rung], reason: str) -> Ladder:
        untold = any(rung.verdict is Verdict.UNKNOWN for rung in rungs)
        return Ladder(backend, rungs, Verdict.UNKNOWN if untold else Verdict.FAILS, reason)

    def _take(self, rung: Rung, confidence: float) -> None:
        """Run a rung and judge it; one that passes is run once more, with the export."""
        budget = self.settings.budget
        worst = self._worst_layers(rung) if _uses(rung.overrides, _WORST) else []
        request = self._request(rung.backend, rung.name, worst)
        rung.overrides = request.overrides
        outcome = self._run(rung, request)
        task = find_task(request.config.task)
        rung.found = measured(outcome.metrics, outcome.artifacts["evaluate"], task, confidence)
        rung.criteria = criteria(rung.found, budget, task.primary)
        rung.verdict = together(rung.criteria)
        for criterion in rung.criteria:
            terminal.say(f"{rung.name}: {criterion.line}")
        failed = [one.name for one in rung.criteria if one.name in _OF_GRAPH and one.verdict is Verdict.FAILS]
        if failed:
            rung.note = f"{' and '.join(failed)}: no other rung on this backend is faster or smaller"
        elif rung.verdict is Verdict.UNKNOWN and task.primary.is_share:
            share = (rung.found.lost + rung.found.won) / rung.found.images
            rung.note = too_few_images(rung.found.images, share, budget.max_drop_pct, confidence) or ""
        elif rung.verdict is Verdict.PASSES:
            self._ship(rung, worst, register=False)

    def register(self, rung: Rung) -> None:
        """Register what is to be shipped, where that is asked for: once it is chosen and confirmed, and not before."""
        if self.compose([*self.overrides, f"backend={rung.backend}"]).config.register.name is not None:
            worst = self._worst_layers(rung) if _uses(self.settings.ladder.rungs[rung.name], _WORST) else []
            self._ship(rung, worst, register=True)

    def _ship(self, rung: Rung, worst: list[str], register: bool) -> None:
        request = self._request(rung.backend, rung.name, worst, ship=True, register=register)
        rung.shipped = self._run(rung, request)
        rung.overrides = request.overrides

    def _run(self, rung: Rung, request: Request) -> Outcome:
        outcome = run(request)
        for stage, artifact in outcome.artifacts.items():
            if stage != _NOT_QUANTIZING and artifact.folder.name not in self._counted:
                self._counted.add(artifact.folder.name)
                rung.minutes += artifact.seconds / 60
                self._minutes += artifact.seconds / 60
        return outcome

    def _unregistered(self, overrides: Sequence[str]) -> list[str]:
        """What is only climbed is not registered, also where a file asks for it."""
        kept = [text for text in overrides if not text.lstrip("+").startswith("register")]
        return kept if self.compose(kept).config.register.name is None else [*kept, "register.name=null"]

    def _worst_layers(self, rung: Rung) -> list[str]:
        """The layers that lose most, as `sensitivity` ranks them on the validation part."""
        typed = self._unregistered([*self.overrides, f"backend={rung.backend}"])
        base = self.compose([*typed, "stages=[train,sensitivity]"])
        name = f"sensitivity {rung.backend}"
        request = dataclasses.replace(base, name=name, parent_run_id=self.parent_run_id, job=name.replace(" ", "."))
        found = self._run(rung, request).artifacts["sensitivity"].folder / "sensitivity.csv"
        with found.open(newline="") as stream:
            ranked = [row["name"] for row in csv.DictReader(stream)]
        skipped = request.config.backend.skip_layers
        return [*skipped, *ranked[: self.settings.ladder.worst_layers]]


def _uses(texts: Sequence[str], word: str) -> bool:
    return any(word in text for text in texts)
