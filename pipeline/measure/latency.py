"""Latency that can be trusted: the method of docs/latency.md.

Everything that is compared is timed turn by turn in one loop, so that whatever else the machine does falls on all of
it alike; a loop begins when its times are stable and ends when its medians are known well enough. It is done in
several passes, for each of which everything is loaded anew: where a model comes to lie in memory can make it a tenth
slower or faster for as long as it lies there. So a pass is one draw, however many rounds it has, and the intervals
are those of passes.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.host import terminal

Call = Callable[[], object]
Loader = Callable[[], Call]
# a value with the ends of its 95 % interval
Interval = tuple[float, float, float]
# what was measured of one call: for each pass its rounds, in milliseconds
Passes = Sequence[Sequence[float]]
_CONFIDENCE = 0.95
# Rounds between two looks at how well the medians are known.
_LOOK_EVERY = 10


@dataclass(frozen=True)
class Method:
    """How long a loop warms up and measures.

    Attributes:
        min_repeats: rounds that are measured at least, unless `max_seconds` are over.
        interval_pct: the 95 % interval of every median shall be narrower than this share of it. A pass ends when its
            own rounds allow that.
        max_seconds: all passes end by then in any case, each by its share; the warm-up takes half of that at most.
        stable_pct: the warm-up ends when no median differs more than this from that of the window before, beyond
            what the rounds of a window differ among themselves.
        window: rounds of a warm-up's window.
        passes: how often everything is loaded anew, in another order; at least 2.
    """

    min_repeats: int = 200
    interval_pct: float = 2.0
    max_seconds: float = 60.0
    stable_pct: float = 5.0
    window: int = 5
    passes: int = 10

    def of_a_pass(self) -> Method:
        """The share of it that one of the passes has to do; together their rounds are as many and say as much."""
        return dataclasses.replace(
            self,
            min_repeats=-(-self.min_repeats // self.passes),
            interval_pct=self.interval_pct * math.sqrt(self.passes),
            max_seconds=self.max_seconds / self.passes,
        )


@dataclass(frozen=True)
class Pass:
    """What one pass has measured: milliseconds by name, one number a round, and whether it could end as it should.

    Attributes:
        stable: the warm-up ended by itself.
        timed_out: the time was over before the rounds said enough of every median.
    """

    samples_ms: dict[str, list[float]]
    warmup_rounds: int
    stable: bool
    timed_out: bool


@dataclass(frozen=True)
class Taken:
    """What all passes have measured."""

    passes: tuple[Pass, ...]

    @property
    def samples_ms(self) -> dict[str, list[list[float]]]:
        """By name: for each pass, one number a round."""
        return {name: [taken.samples_ms[name] for taken in self.passes] for name in self.passes[0].samples_ms}

    @property
    def rounds(self) -> int:
        return sum(len(next(iter(taken.samples_ms.values()))) for taken in self.passes)

    @property
    def warmup_rounds(self) -> int:
        return sum(taken.warmup_rounds for taken in self.passes)

    @property
    def stable(self) -> bool:
        return all(taken.stable for taken in self.passes)

    @property
    def timed_out(self) -> bool:
        return any(taken.timed_out for taken in self.passes)

    def widest(self) -> tuple[str, float]:
        """Which median is known least, and how wide its interval is, in percent of it."""
        intervals = {name: median_interval(passes) for name, passes in self.samples_ms.items()}
        widths = {name: 100 * (high - low) / middle for name, (middle, low, high) in intervals.items()}
        return max(widths.items(), key=lambda item: item[1])


def take_turns_afresh(
    loaders: Mapping[str, Loader], method: Method, clock: Callable[[], float] = time.perf_counter
) -> Taken:
    """Take turns in several passes, for each of which everything is loaded anew, in random order."""
    rng = np.random.default_rng(0)
    passes = []
    for _ in range(method.passes):
        calls = {name: loaders[name]() for name in rng.permutation(list(loaders)).tolist()}
        taken = take_turns(calls, method.of_a_pass(), clock)
        passes.append(dataclasses.replace(taken, samples_ms={name: taken.samples_ms[name] for name in loaders}))
    return Taken(tuple(passes))


def take_turns(calls: Mapping[str, Call], method: Method, clock: Callable[[], float] = time.perf_counter) -> Pass:
    """Time calls turn by turn, the order reversed every other round, until their medians are known.

    No call always follows the same neighbour and finds the cache as that one left it.
    """
    began = clock()
    orders = itertools.cycle([list(calls), list(calls)[::-1]])

    def time_a_round(samples: dict[str, list[float]]) -> None:
        for name in next(orders):
            started = clock()
            calls[name]()
            samples[name].append(1000 * (clock() - started))

    warmup_rounds, stable = 0, False
    before: dict[str, list[float]] | None = None
    window: dict[str, list[float]] = {name: [] for name in calls}
    while not stable and clock() - began < method.max_seconds / 2:
        time_a_round(window)
        warmup_rounds += 1
        if warmup_rounds % method.window == 0:
            stable = before is not None and all(_agree(before[name], window[name], method) for name in calls)
            before, window = window, {name: [] for name in calls}

    samples: dict[str, list[float]] = {name: [] for name in calls}
    measured, narrow, done = 0, False, False
    with terminal.bar("latency", method.min_repeats, unit="round") as bar:
        while not done:
            for _ in range(max(0, method.min_repeats - measured) or _LOOK_EVERY):
                time_a_round(samples)
                bar.update(1)
                measured += 1
                done = clock() - began >= method.max_seconds
                if done:
                    break
            narrow = measured > 1 and all(_own_width_pct(taken) < method.interval_pct for taken in samples.values())
            done = done or narrow
    return Pass(samples, warmup_rounds, stable, timed_out=not narrow)


def _agree(before: Sequence[float], now: Sequence[float], method: Method) -> bool:
    """Whether the rounds of two windows are alike: in their medians, or in that they mix."""
    moved_pct = 100 * abs(np.median(now) / np.median(before) - 1)
    return bool(moved_pct <= method.stable_pct) or (min(now) <= max(before) and min(before) <= max(now))


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
