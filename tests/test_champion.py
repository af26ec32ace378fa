"""The rule by which a registered model becomes the champion."""

from __future__ import annotations

import dataclasses

import pytest

from pipeline.tracking.champion import Contender, judge

PRESENT = Contender(
    drop=0.2,
    value=98.0,
    floor=11.0,
    latency_ms=2.0,
    parity=True,
    conditions="1 thread",
)


def contender(**values: object) -> Contender:
    return dataclasses.replace(PRESENT, **values)  # type: ignore[arg-type]


def test_candidate_wins_when_its_latency_is_lower() -> None:
    verdict = judge(contender(latency_ms=1.9, drop=0.5), PRESENT, max_drop_pct=0.5)
    assert verdict.wins
    assert verdict.reason == "it takes 1.900 ms, the champion 2.000 ms"


@pytest.mark.parametrize(
    "candidate",
    [
        pytest.param(contender(), id="tie"),
        pytest.param(contender(drop=0.0), id="tie, more accurate"),
        pytest.param(contender(latency_ms=2.1, drop=-1.0), id="slower, more accurate"),
        pytest.param(contender(latency_ms=1.0, parity=False), id="faster, without parity"),
        pytest.param(contender(latency_ms=1.0, drop=0.51), id="faster, loses too much"),
        pytest.param(contender(latency_ms=1.0, drop=float("nan")), id="faster, drop unknown"),
        pytest.param(contender(latency_ms=1.0, value=11.0), id="faster, always names the largest class"),
        pytest.param(contender(latency_ms=1.0, value=float("nan")), id="faster, validation unknown"),
        pytest.param(contender(latency_ms=float("nan")), id="latency unknown"),
        pytest.param(contender(latency_ms=0.0), id="latency impossible"),
        pytest.param(contender(latency_ms=1.0, conditions="2 threads"), id="faster, measured otherwise"),
    ],
)
def test_champion_stays_when_the_candidate_is_not_better(candidate: Contender) -> None:
    assert not judge(candidate, PRESENT, max_drop_pct=0.5).wins


def test_first_candidate_that_qualifies_wins_when_there_is_no_champion() -> None:
    assert judge(contender(latency_ms=1000.0), None, max_drop_pct=0.5).wins


@pytest.mark.parametrize("refused", [contender(parity=False), contender(drop=0.6)])
def test_nobody_wins_when_there_is_no_champion_and_the_candidate_does_not_qualify(refused: Contender) -> None:
    assert not judge(refused, None, max_drop_pct=0.5).wins


@pytest.mark.parametrize("present", [contender(parity=False), contender(drop=0.6)])
def test_slower_candidate_wins_when_the_champion_does_not_qualify_itself(present: Contender) -> None:
    assert judge(contender(latency_ms=5.0), present, max_drop_pct=0.5).wins


def test_drop_at_the_limit_qualifies_when_its_difference_is_not_exact() -> None:
    drop = 64.01 - 63.51
    assert drop > 0.5
    assert judge(contender(drop=drop), None, max_drop_pct=0.5).wins
