"""The method of latency, on a clock that the test turns."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.commands.composition import compose_request
from pipeline.host import environment
from pipeline.host.pinning import pinned
from pipeline.measure.latency import Method, median_interval, ratio_interval, take_turns, take_turns_afresh


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
    assert taken.stable
    assert not taken.timed_out
    assert taken.samples_ms["a"] == pytest.approx([1] * 200)
    assert taken.samples_ms["b"] == pytest.approx([2] * 200)


def test_loop_goes_on_beyond_min_repeats_when_a_median_is_not_known_well(clock: Clock) -> None:
    calls = {"a": clock.call("a", noisy(10, 1.2, 1)), "b": clock.call("b", steady(1))}
    taken = take_turns(calls, Method(), clock)
    # A median's standard error is sqrt(pi / 2) times that of a mean: about 870 rounds are needed.
    assert 300 < len(taken.samples_ms["a"]) < 2000
    assert not taken.timed_out


def test_loop_ends_in_time_and_says_so_when_times_never_settle(clock: Clock) -> None:
    calls = {"a": clock.call("a", lambda count: 5.0 + 100 * (count % 2))}
    taken = take_turns(calls, Method(min_repeats=200, max_seconds=2), clock)
    assert taken.timed_out
    assert len(taken.samples_ms["a"]) < 200
    assert clock.now < 2 + 0.2


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
    assert [set(np.round(rounds, 9)) for rounds in taken.samples_ms["c"]] == [{1.1}, {1.2}, {1.3}]
    assert taken.stable
    assert not taken.timed_out


def test_widest_interval_is_that_of_the_call_whose_passes_differ_most(clock: Clock) -> None:
    speeds = {"same": iter([1.0] * 4), "other": iter([1.0, 1.1, 1.2, 1.1])}
    loaders = {name: lambda name=name: clock.call(name, steady(next(speeds[name]))) for name in speeds}
    name, width_pct = take_turns_afresh(loaders, Method(passes=4), clock).widest()
    assert name == "other"
    # Student's 3.182 with 3 degrees of freedom, times twice the standard error of log 1.0, 1.1, 1.2, 1.1.
    assert width_pct == pytest.approx(2 * 3.182 * 100 * np.std(np.log([1.0, 1.1, 1.2, 1.1]), ddof=1) / 2, rel=0.01)


def test_warm_up_lasts_until_two_windows_agree(clock: Clock) -> None:
    taken = take_turns({"a": clock.call("a", lambda count: 9.0 if count < 36 else 1.0)}, Method(), clock)
    assert taken.warmup_rounds == 10  # slow, but stable
    clock = Clock()
    taken = take_turns({"a": clock.call("a", lambda count: max(1.0, 9.0 - count / 5))}, Method(), clock)
    assert taken.warmup_rounds == 50  # the 40th call is the last slow one
    assert taken.stable
    assert set(np.round(taken.samples_ms["a"], 9)) == {1.0}


def test_warm_up_ends_when_windows_differ_by_noise_alone(clock: Clock) -> None:
    calls = {name: clock.call(name, noisy(10, 1, seed)) for seed, name in enumerate("abcdefgh")}
    assert take_turns(calls, Method(), clock).warmup_rounds <= 20


def test_warm_up_takes_half_of_the_time_at_most(clock: Clock) -> None:
    taken = take_turns({"a": clock.call("a", lambda count: 1.02**count)}, Method(max_seconds=8), clock)
    assert not taken.stable
    assert sum(1.02**count for count in range(taken.warmup_rounds - 1)) / 1000 < 4
    assert taken.samples_ms["a"]


def test_all_passes_end_in_time_when_a_round_takes_long(clock: Clock) -> None:
    loaders = {"slow": lambda: clock.call("slow", steady(2500))}
    taken = take_turns_afresh(loaders, Method(max_seconds=60, passes=10), clock)
    assert len(taken.samples_ms["slow"]) == 10
    assert clock.now <= 60 + 10 * 2.5


def test_ratio_holds_when_the_machine_slows_down_during_the_loop(clock: Clock) -> None:
    def drifting(value: float) -> Callable[[], Callable[[], None]]:
        return lambda: clock.call("", lambda count: value * (1 + clock.now))

    taken = take_turns_afresh({"slow": drifting(3), "fast": drifting(1)}, Method(max_seconds=30), clock)
    middle, low, high = ratio_interval(taken.samples_ms["slow"], taken.samples_ms["fast"])
    assert (middle, low, high) == pytest.approx((3, 3, 3), rel=0.01)
    _, low, high = median_interval(taken.samples_ms["fast"])
    assert high > 1.3 * low


def test_intervals_are_students_of_the_passes_medians() -> None:
    # With one degree of freedom Student's 97.5 % point is tan(0.475 pi) = 12.706.
    passes = [[8.0, 10.0, 12.0], [1.0, 40.0, 41.0, 90.0, 10.0]]
    middle, low, high = median_interval(passes)
    spread = np.exp(np.tan(0.475 * np.pi) * np.log(4) / 2)
    assert (middle, low, high) == pytest.approx((20, 20 / spread, 20 * spread))
    twice = [[2 * value for value in rounds] for rounds in passes]
    assert ratio_interval(twice, passes) == pytest.approx((2, 2, 2))


@pytest.mark.parametrize("passes", [Method().passes, 3, 2])
def test_intervals_cover_the_truth_as_often_as_they_claim_when_each_load_changes_the_speed(passes: int) -> None:
    """3 % of noise a round, and 5 % a load, each model's own: the model's median over loads and rounds is 10 ms."""
    draw = np.random.default_rng(1)
    loops, rounds = 500, -(-Method().min_repeats // passes)

    def measure() -> np.ndarray:
        logarithms = draw.normal(0, 0.05, (passes, 1)) + draw.normal(0, 0.03, (passes, rounds))
        return 10 * np.exp(logarithms)

    hits = np.zeros(2)
    for _ in range(loops):
        one, other = measure(), measure()
        intervals = median_interval(one.tolist()), ratio_interval(one.tolist(), other.tolist())
        hits += [low <= truth <= high for truth, (_, low, high) in zip((10, 1), intervals, strict=True)]
    # 475 expected; fewer than 462 or more than 488 would have a probability below 1 % each.
    assert all(462 <= hit <= 488 for hit in hits), hits / loops


def test_defaults_of_the_method_are_those_of_the_configuration() -> None:
    settings = compose_request([]).config.benchmark
    assert Method() == Method(settings.min_repeats, settings.interval_pct, settings.max_seconds, passes=settings.passes)


def test_interval_is_refused_when_one_pass_says_nothing_of_their_spread() -> None:
    with pytest.raises(ValueError, match="two"):
        median_interval([[1.0, 2.0, 3.0]])


def test_ratio_of_a_call_to_itself_is_one() -> None:
    passes = [[1.0, 2.0, 3.0], [2.0, 3.0]]
    assert ratio_interval(passes, passes) == (1, 1, 1)


needs_threads = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="this system does not pin threads")


class Waiting:
    """A thread that waits until the test is over."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._over.wait, daemon=True)
        self._thread.start()

    @property
    def processors(self) -> set[int]:
        assert self._thread.native_id is not None
        return os.sched_getaffinity(self._thread.native_id)

    def end(self) -> None:
        self._over.set()
        self._thread.join()


@needs_threads
def test_pinning_holds_for_every_thread_and_is_undone_when_the_block_ends() -> None:
    everywhere = os.sched_getaffinity(0)
    if len(everywhere) < 2:
        pytest.skip("one processor alone")
    first, last = min(everywhere), max(everywhere)
    earlier, elsewhere, ended = Waiting(), Waiting(), Waiting()
    os.sched_setaffinity(elsewhere._thread.native_id or 0, {last})
    with pinned(1):
        assert earlier.processors == elsewhere.processors == os.sched_getaffinity(0) == {first}
        within = Waiting()
        assert within.processors == {first}
        ended.end()
    assert earlier.processors == within.processors == os.sched_getaffinity(0) == everywhere
    assert elsewhere.processors == {last}
    for one in (earlier, elsewhere, within):
        one.end()


@needs_threads
def test_pinning_is_undone_when_the_block_ends_in_an_error() -> None:
    before = os.sched_getaffinity(0)

    def fail_when_pinned() -> None:
        with pinned(1):
            raise RuntimeError(str(len(os.sched_getaffinity(0))))

    with pytest.raises(RuntimeError, match="1"):
        fail_when_pinned()
    assert os.sched_getaffinity(0) == before


def test_no_thread_is_pinned_when_it_is_not_asked_for() -> None:
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    with pinned(None):
        assert before is None or os.sched_getaffinity(0) == before


def test_busy_share_is_that_of_the_counters_when_others_work(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = iter(["cpu 100 0 0 900 0 0 0 0 0 0", "cpu 130 0 20 950 0 0 0 0 0 0"])
    monkeypatch.setattr("pathlib.Path.exists", lambda path: True)
    monkeypatch.setattr("pathlib.Path.read_text", lambda path: next(lines))
    assert environment.busy_share(0) == pytest.approx(0.5)
