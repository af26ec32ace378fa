"""Latency that can be trusted: the method of docs/latency.md.

Everything that is compared is timed turn by turn in one loop, so that whatever else the machine does falls on all of
it alike; a loop begins when its times are stable and ends when its medians are known well enough. It is done in
several passes, for each of which everything is loaded anew: where a model comes to lie in memory can make it a tenth
slower or faster for as long as it lies there. So a pass is one draw, however many rounds it has, and the intervals
are those of passes.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

import numpy as np

from pipeline.host import terminal
from pipeline.settings.config import BenchmarkConfig

if TYPE_CHECKING:  # exported files are timed without torch
    from torch import Tensor, nn

Call = Callable[[], object]
Loader = Callable[[], Call]
Clock = Callable[[], float]
# a value with the ends of its 95 % interval
Interval = tuple[float, float, float]
# what was measured of one call: for each pass its rounds, in milliseconds
Passes = Sequence[Sequence[float]]
_CONFIDENCE = 0.95
# Rounds between two looks at how well the medians are known.
_LOOK_EVERY = 10
# Rounds of a warm-up's window, and how many percent a median may differ from that of the window before.
_WINDOW = 5
_STABLE_PCT = 5.0


@dataclass(frozen=True)
class Taken:
    """What passes have measured, and whether they could end as they should.

    Attributes:
        samples_ms: milliseconds by name: for each pass, one number a round.
        stable: every warm-up ended by itself.
        timed_out: in some pass the time was over before the rounds said enough of every median.
    """

    samples_ms: dict[str, list[list[float]]]
    warmup_rounds: int
    stable: bool
    timed_out: bool

    @property
    def rounds(self) -> int:
        return sum(len(rounds) for rounds in next(iter(self.samples_ms.values())))

    def widest(self) -> tuple[str, float]:
        """Which median is known least, and how wide its interval is, in percent of it."""
        intervals = {name: median_interval(passes) for name, passes in self.samples_ms.items()}
        widths = {name: 100 * (high - low) / middle for name, (middle, low, high) in intervals.items()}
        return max(widths.items(), key=lambda item: item[1])


def rounds_of(calls: Mapping[str, Call], clock: Clock = perf_counter) -> Iterator[dict[str, float]]:
    """Call all turn by turn, endlessly, and give the milliseconds of each round.

    A machine's speed drifts; taken turn by turn, all meet the same drift, and the ratio of their medians holds where
    their absolute times do not. The order is reversed every other round, so that no call always follows the same
    neighbour and finds the cache as that one left it.
    """
    for order in itertools.cycle([list(calls), list(calls)[::-1]]):
        taken = {}
        for name in order:
            started = clock()
            calls[name]()
            taken[name] = 1000 * (clock() - started)
        yield taken


def measure_latency(
    models: Mapping[str, nn.Module],
    image: Tensor,
    *,
    thread_count: int,
    warmup: int,
    repeats: int,
    clock: Clock = perf_counter,
) -> dict[str, list[float]]:
    """The milliseconds of so many forward passes of each model on `image` (1, C, H, W), on the CPU, without warm-up."""
    import torch

    from pipeline.measure.measurement import threads

    calls = {name: functools.partial(model.eval(), image) for name, model in models.items()}
    with torch.inference_mode(), threads(thread_count), terminal.bar("latency", warmup + repeats, unit="round") as bar:
        taken = []
        for one in itertools.islice(rounds_of(calls, clock), warmup + repeats):
            taken.append(one)
            bar.update(1)
    return _by_name(taken[warmup:])


def take_turns_afresh(loaders: Mapping[str, Loader], settings: BenchmarkConfig, clock: Clock = perf_counter) -> Taken:
    """Take turns in several passes, for each of which everything is loaded anew, in random order.

    Each has its share of rounds and time to itself; together their rounds say as much as the settings ask for.
    """
    share = dataclasses.replace(
        settings,
        min_repeats=-(-settings.min_repeats // settings.passes),
        interval_pct=settings.interval_pct * math.sqrt(settings.passes),
        max_seconds=settings.max_seconds / settings.passes,
    )
    rng = np.random.default_rng(0)
    passes = []
    for _ in range(settings.passes):
        calls = {name: loaders[name]() for name in rng.permutation(list(loaders)).tolist()}
        passes.append(take_turns(calls, share, clock))
    return Taken(
        samples_ms={name: [taken.samples_ms[name][0] for taken in passes] for name in loaders},
        warmup_rounds=sum(taken.warmup_rounds for taken in passes),
        stable=all(taken.stable for taken in passes),
        timed_out=any(taken.timed_out for taken in passes),
    )


def take_turns(calls: Mapping[str, Call], settings: BenchmarkConfig, clock: Clock = perf_counter) -> Taken:
    """Take turns in one pass: warm up until the times are stable, and go on until the medians are known.

    It ends after `max_seconds` in any case; the warm-up takes half of that at most.
    """
    began, rounds = clock(), rounds_of(calls, clock)
    warmup: list[dict[str, float]] = []
    stable = False
    while not stable and clock() - began < settings.max_seconds / 2:
        warmup.append(next(rounds))
        if len(warmup) % _WINDOW == 0 and len(warmup) > _WINDOW:
            before, now = _by_name(warmup[-2 * _WINDOW : -_WINDOW]), _by_name(warmup[-_WINDOW:])
            stable = all(_agree(before[name], now[name]) for name in calls)
    measured: list[dict[str, float]] = []
    known = over = False
    with terminal.bar("latency", settings.min_repeats, unit="round") as bar:
        while not known and not over:
            measured.append(next(rounds))
            bar.update(1)
            over = clock() - began >= settings.max_seconds
            further = len(measured) - settings.min_repeats
            if over or (further >= 0 and further % _LOOK_EVERY == 0):
                samples = _by_name(measured)
                narrow = (_own_width_pct(times) < settings.interval_pct for times in samples.values())
                known = len(measured) > 1 and all(narrow)
    return Taken({name: [times] for name, times in samples.items()}, len(warmup), stable, timed_out=not known)


def _by_name(rounds: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {name: [one[name] for one in rounds] for name in rounds[0]}


def _agree(before: Sequence[float], now: Sequence[float]) -> bool:
    """Whether the rounds of two windows are alike: in their medians, or in that they mix."""
    moved_pct = 100 * abs(np.median(now) / np.median(before) - 1)
    return bool(moved_pct <= _STABLE_PCT) or (min(now) <= max(before) and min(before) <= max(now))


def median_interval(passes: Passes) -> Interval:
    """The median in milliseconds, as the geometric mean of the passes' medians, and its 95 % interval.

    It is Student's interval of the medians' logarithms, one number a pass: rounds of a pass share where the model
    lies, and only passes are independent (Kalibera and Jones 2013, "Rigorous benchmarking in reasonable time").

    Raises:
        ValueError: for fewer than two passes, which say nothing of their spread.
    """
    return _of_passes(_log_medians(passes))


def ratio_interval(slower: Passes, faster: Passes) -> Interval:
    """How many times as fast `faster` is, the ratio of the medians, and its 95 % interval, of the passes' ratios.

    Raises:
        ValueError: for fewer than two passes.
    """
    return _of_passes(_log_medians(slower) - _log_medians(faster))


def _log_medians(passes: Passes) -> np.ndarray:
    return np.log([np.median(rounds) for rounds in passes])


def _of_passes(logarithms: np.ndarray) -> Interval:
    """Student's interval: a percentile bootstrap of so few passes is too narrow."""
    from scipy import stats  # slow to import, and not needed where results are cached

    count = len(logarithms)
    if count < 2:
        raise ValueError("the passes must be two at least")
    middle = logarithms.mean()
    reach = stats.t.ppf((1 + _CONFIDENCE) / 2, count - 1) * logarithms.std(ddof=1) / math.sqrt(count)
    return math.exp(middle), math.exp(middle - reach), math.exp(middle + reach)


def _own_width_pct(samples: Sequence[float]) -> float:
    """How wide the 95 % interval of a pass's median is, in percent of it, as long as everything lies where it does.

    By order statistics (David and Nagaraja 2003, section 7.1): no distribution is assumed.
    """
    from scipy import stats

    found = stats.quantile_test(np.asarray(samples), p=0.5).confidence_interval(_CONFIDENCE)
    # Of too few samples no interval has that confidence; then it is all of them.
    low = found.low if np.isfinite(found.low) else min(samples)
    high = found.high if np.isfinite(found.high) else max(samples)
    return 100 * float(high - low) / float(np.median(samples))
