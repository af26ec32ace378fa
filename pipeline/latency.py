"""Latency that can be trusted: the method of docs/latency.md.

Everything that is compared is timed turn by turn in one loop, so that whatever else the machine does falls on all of
it alike; a loop begins when its times are stable and ends when its medians are known well enough.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from pipeline import terminal

Call = Callable[[], object]
Loader = Callable[[], Call]
_CONFIDENCE = 0.95
_RESAMPLES = 2000
# Rounds between two looks at how well the medians are known.
_LOOK_EVERY = 50


@dataclass(frozen=True)
class Method:
    """How long a loop warms up and measures.

    Attributes:
        min_repeats: rounds that are measured at least, unless `max_seconds` are over.
        interval_pct: the loop ends when the 95 % interval of every median is narrower than this share of it.
        max_seconds: the loop ends then in any case; the warm-up takes a quarter of it at most.
        stable_pct: the warm-up ends when the median of no call differs more from that of the window before.
        window: rounds of a warm-up's window.
        passes: how often everything is loaded anew, in another order.
    """

    min_repeats: int = 200
    interval_pct: float = 2.0
    max_seconds: float = 60.0
    stable_pct: float = 5.0
    window: int = 10
    passes: int = 3

    def of_a_pass(self) -> Method:
        """The share of it that one of the passes has to do; together their medians are as well known."""
        return dataclasses.replace(
            self,
            min_repeats=-(-self.min_repeats // self.passes),
            interval_pct=self.interval_pct * math.sqrt(self.passes),
            max_seconds=self.max_seconds / self.passes,
        )


@dataclass(frozen=True)
class Taken:
    """What a loop has measured: milliseconds by name, one number a round, and whether it could end as it should."""

    samples_ms: dict[str, list[float]]
    warmup_rounds: int
    stable: bool
    narrow: bool
    timed_out: bool

    @property
    def rounds(self) -> int:
        return len(next(iter(self.samples_ms.values())))


def take_turns_afresh(
    loaders: Mapping[str, Loader], method: Method, clock: Callable[[], float] = time.perf_counter
) -> Taken:
    """Take turns in several passes, for each of which everything is loaded anew, in random order.

    Where a model comes to lie in memory can make it a tenth slower or faster, as long as it lies there.
    """
    rng = np.random.default_rng(0)
    passes = []
    for _ in range(method.passes):
        calls = {name: loaders[name]() for name in rng.permutation(list(loaders)).tolist()}
        passes.append(take_turns(calls, method.of_a_pass(), clock))
    samples = {name: [value for taken in passes for value in taken.samples_ms[name]] for name in loaders}
    return Taken(
        samples_ms=samples,
        warmup_rounds=sum(taken.warmup_rounds for taken in passes),
        stable=all(taken.stable for taken in passes),
        narrow=all(width_pct(values) < method.interval_pct for values in samples.values()),
        timed_out=any(taken.timed_out for taken in passes),
    )


def take_turns(calls: Mapping[str, Call], method: Method, clock: Callable[[], float] = time.perf_counter) -> Taken:
    """Time calls turn by turn, the order reversed every other round, until their medians are known.

    No call always follows the same neighbour and finds the cache as that one left it.
    """
    began = clock()
    orders = itertools.cycle([list(calls), list(calls)[::-1]])

    def rounds(count: int, samples: dict[str, list[float]]) -> None:
        for _ in range(count):
            for name in next(orders):
                started = clock()
                calls[name]()
                samples[name].append(1000 * (clock() - started))

    warmup_rounds, stable, before = 0, False, None
    while not stable and (before is None or clock() - began < method.max_seconds / 4):
        window: dict[str, list[float]] = {name: [] for name in calls}
        rounds(method.window, window)
        medians = np.array([np.median(window[name]) for name in calls])
        stable = before is not None and bool((np.abs(medians / before - 1) <= method.stable_pct / 100).all())
        warmup_rounds, before = warmup_rounds + method.window, medians

    samples: dict[str, list[float]] = {name: [] for name in calls}
    measured, narrow, timed_out, done, began = 0, False, False, False, clock()
    with terminal.bar("latency", method.min_repeats, unit="round") as bar:
        while not done:
            count = min(_LOOK_EVERY, max(1, method.min_repeats - measured))
            for _ in range(count):
                rounds(1, samples)
                bar.update(1)
                measured += 1
                if clock() - began >= method.max_seconds:
                    timed_out = done = True
                    break
            narrow = measured > 1 and all(width_pct(taken) < method.interval_pct for taken in samples.values())
            done = done or (measured >= method.min_repeats and narrow)
    return Taken(samples, warmup_rounds, stable, narrow, timed_out and not narrow)


def median_interval(samples: Sequence[float]) -> tuple[float, float, float]:
    """The median and its 95 % interval, by order statistics (David and Nagaraja 2003, section 7.1): no distribution
    is assumed."""
    from scipy import stats  # slow to import, and not needed where results are cached

    found = stats.quantile_test(np.asarray(samples), p=0.5).confidence_interval(_CONFIDENCE)
    middle = float(np.median(samples))
    # Of too few samples no interval has that confidence; then it is all of them.
    low = found.low if np.isfinite(found.low) else min(samples)
    high = found.high if np.isfinite(found.high) else max(samples)
    return middle, float(low), float(high)


def width_pct(samples: Sequence[float]) -> float:
    """How wide the median's interval is, in percent of it."""
    middle, low, high = median_interval(samples)
    return 100 * (high - low) / middle


def ratio_interval(slower: Sequence[float], faster: Sequence[float]) -> tuple[float, float, float]:
    """How many times as fast `faster` is: the ratio of the medians and its 95 % percentile-bootstrap interval.

    Rounds are drawn, not samples (Efron and Tibshirani 1993, chapter 13): what disturbs a round disturbs both.
    """

    def ratio(one: np.ndarray, other: np.ndarray, axis: int = -1) -> np.ndarray:
        return np.median(one, axis=axis) / np.median(other, axis=axis)

    pair = np.asarray(slower), np.asarray(faster)
    middle = float(ratio(*pair))
    if len(pair[0]) < 2 or np.array_equal(*pair):
        return middle, middle, middle
    from scipy import stats

    found = stats.bootstrap(
        pair, ratio, paired=True, method="percentile", n_resamples=_RESAMPLES, rng=np.random.default_rng(0)
    ).confidence_interval
    return middle, float(found.low), float(found.high)


@contextmanager
def pinned(processors: int | None) -> Iterator[None]:
    """Keep this process on its first processors within the block (None, or a system that cannot: on all of them).

    Threads inherit it that are started within the block, as runtimes do when they load a model.
    """
    if processors is None or not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:processors]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
