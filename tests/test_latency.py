"""The method of latency, on a clock that the test turns."""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np
import pytest

from pipeline import environment, latency
from pipeline.latency import Method, median_interval, pinned, ratio_interval, take_turns, take_turns_afresh


class Clock:
    """Seconds that pass only when a call takes them."""

    def __init__(self) -> None:
        self.now = 0.0
        self.order: list[str] = []

    def __call__(self) -> float:
        return self.now

    def call(self, name: str, milliseconds: Callable[[int], float]) -> Callable[[], None]:
        """A call that takes so many milliseconds, by how often it was called before."""
        counted = 0

        def run() -> None:
            nonlocal counted
            self.now += milliseconds(counted) / 1000
            counted += 1
            self.order.append(name)

        return run


@pytest.fixture
def clock() -> Clock:
    return Clock()


def steady(value: float) -> Callable[[int], float]:
    return lambda count: value


def noisy(value: float, spread: float, seed: int) -> Callable[[int], float]:
    draws = np.random.default_rng(seed).normal(value, spread, 100_000)
    return lambda count: float(draws[count])


def test_loop_measures_at_least_min_repeats_and_ends_when_medians_are_known(clock: Clock) -> None:
    taken = take_turns({"a": clock.call("a", steady(1)), "b": clock.call("b", steady(2))}, Method(), clock)
    assert taken.rounds == 200
    assert taken.stable
    assert taken.narrow
    assert taken.samples_ms["a"] == pytest.approx([1] * 200)
    assert taken.samples_ms["b"] == pytest.approx([2] * 200)


def test_loop_goes_on_beyond_min_repeats_when_a_median_is_not_known_well(clock: Clock) -> None:
    calls = {"a": clock.call("a", noisy(10, 1.2, 1)), "b": clock.call("b", steady(1))}
    taken = take_turns(calls, Method(), clock)
    assert taken.rounds > 200
    assert taken.narrow
    middle, low, high = median_interval(taken.samples_ms["a"])
    assert (high - low) / middle < 0.02


def test_loop_ends_in_time_and_says_so_when_times_never_settle(clock: Clock) -> None:
    calls = {"a": clock.call("a", lambda count: 5.0 + 100 * (count % 2))}
    taken = take_turns(calls, Method(min_repeats=200, max_seconds=2), clock)
    assert not taken.narrow
    assert taken.rounds < 200
    assert clock.now < 2 + 2 / 4 + 1


def test_order_is_reversed_every_other_round(clock: Clock) -> None:
    calls = {name: clock.call(name, steady(1)) for name in "abc"}
    take_turns(calls, Method(), clock)
    assert "".join(clock.order[:12]) == "abccbaabccba"


def test_passes_load_everything_anew_in_other_orders(clock: Clock) -> None:
    loaded: list[str] = []

    def loader(name: str) -> Callable[[], Callable[[], None]]:
        def load() -> Callable[[], None]:
            loaded.append(name)
            milliseconds = 1.0 + 0.1 * loaded.count(name)  # as if each time it came to lie elsewhere in memory
            return clock.call(name, lambda count: milliseconds)

        return load

    names = ["a", "b", "c", "d"]
    method = Method(min_repeats=31, interval_pct=50, max_seconds=60, passes=3)
    taken = take_turns_afresh({name: loader(name) for name in names}, method, clock)
    passes = [loaded[start : start + 4] for start in (0, 4, 8)]
    assert [sorted(each) for each in passes] == [names] * 3
    assert len({tuple(each) for each in passes}) > 1
    assert list(taken.samples_ms) == names
    assert taken.rounds == 33
    assert np.median(taken.samples_ms["c"]) == pytest.approx(1.2)
    assert taken.stable
    assert taken.narrow


def test_warm_up_lasts_until_two_windows_agree(clock: Clock) -> None:
    # The first 35 calls are slow: the windows 31–40 and 41–50 differ, 41–50 and 51–60 agree.
    taken = take_turns({"a": clock.call("a", lambda count: 9.0 if count < 36 else 1.0)}, Method(), clock)
    assert taken.warmup_rounds == 20  # slow, but stable
    clock = Clock()
    taken = take_turns({"a": clock.call("a", lambda count: max(1.0, 9.0 - count / 5))}, Method(), clock)
    assert taken.warmup_rounds == 60
    assert taken.stable
    assert set(np.round(taken.samples_ms["a"], 9)) == {1.0}


def test_warm_up_takes_a_quarter_of_the_time_at_most(clock: Clock) -> None:
    taken = take_turns({"a": clock.call("a", lambda count: 1.01**count)}, Method(max_seconds=8), clock)
    assert not taken.stable


def test_ratio_holds_when_the_machine_slows_down_during_the_loop(clock: Clock) -> None:
    def drifting(value: float) -> Callable[[int], float]:
        return lambda count: value * (1 + count / 100)

    calls = {"slow": clock.call("slow", drifting(3)), "fast": clock.call("fast", drifting(1))}
    taken = take_turns(calls, Method(max_seconds=3), clock)
    middle, low, high = ratio_interval(taken.samples_ms["slow"], taken.samples_ms["fast"])
    assert middle == pytest.approx(3)
    assert low <= 3 <= high
    assert high - low < 0.2


def test_median_interval_is_that_of_order_statistics() -> None:
    # Of 100 samples the 40th and the 61st smallest: Conover, Practical Nonparametric Statistics, section 3.2.
    middle, low, high = median_interval(list(range(1, 101)))
    assert middle == 50.5
    assert (low, high) == (40, 61)


def test_median_interval_is_the_whole_range_when_there_are_too_few_samples() -> None:
    assert median_interval([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)


def test_ratio_interval_covers_the_truth_as_often_as_it_claims() -> None:
    draw = np.random.default_rng(3)
    covered = 0
    for _ in range(60):
        disturbance = draw.exponential(1, 200)  # of a whole round
        slow, fast = 20 + disturbance + draw.normal(0, 0.3, 200), 10 + disturbance + draw.normal(0, 0.3, 200)
        _, low, high = ratio_interval(slow, fast)
        truth = (20 + np.log(2)) / (10 + np.log(2))
        covered += low <= truth <= high
    assert covered >= 51  # 57 expected; fewer than 51 has a probability below 1 %


def test_ratio_of_a_call_to_itself_is_one() -> None:
    assert ratio_interval([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == (1, 1, 1)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not pin")
def test_pinning_is_undone_when_the_block_ends_in_an_error() -> None:
    before = os.sched_getaffinity(0)

    def fail_when_pinned() -> None:
        with pinned(1):
            raise RuntimeError(str(len(os.sched_getaffinity(0))))

    with pytest.raises(RuntimeError, match="1"):
        fail_when_pinned()
    assert os.sched_getaffinity(0) == before


def test_busy_share_is_that_of_the_counters_when_others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["cpu 100 0 0 900 0 0 0 0 0 0", "cpu 130 0 20 950 0 0 0 0 0 0"])
    monkeypatch.setattr("pathlib.Path.exists", lambda path: True)
    monkeypatch.setattr("pathlib.Path.read_text", lambda path: next(lines))
    assert environment.busy_share(0) == pytest.approx(0.5)


def test_module_gives_intervals_in_order() -> None:
    samples = np.random.default_rng(0).gamma(2, 3, 333)
    middle, low, high = latency.median_interval(samples)
    assert low <= middle <= high
