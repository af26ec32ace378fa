"""The statistics against examples that others have published, and against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pipeline.measure.statistics import (
    accuracy_interval,
    holm,
    images_needed,
    mcnemar_p,
    mean_interval,
    paired_interval,
    smallest_drop,
)


@pytest.mark.parametrize(
    ("hits", "images", "low", "high"),
    [
        # Newcombe (1998), Two-sided confidence intervals for the single proportion, Statistics in Medicine 17,
        # table I, method 3 (Wilson's score without continuity correction).
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_interval_is_wilsons_when_the_number_of_images_is_known(
    hits: int, images: int, low: float, high: float
) -> None:
    found = accuracy_interval(100 * hits / images, images)
    assert [round(bound / 100, 4) for bound in found] == [low, high]


def test_interval_ends_at_100_when_every_image_is_right() -> None:
    assert accuracy_interval(100.0, 50)[1] == 100.0


@pytest.mark.parametrize("images", [None, math.nan, 0])
def test_interval_is_unknown_when_the_number_of_images_is(images: float | None) -> None:
    assert all(math.isnan(bound) for bound in accuracy_interval(99.0, images))


@pytest.mark.parametrize(
    ("only_first", "only_second", "published"),
    [
        # VassarStats' online computation, as statsmodels' test_mcnemar_exact cites it.
        (121, 59, 0.000004),
        (70, 59, 0.378688),
        (80, 59, 0.089452),
        (10, 30, 0.002221),
        (10, 10, 1.0),
    ],
)
def test_mcnemar_is_the_published_p_whichever_model_comes_first(
    only_first: int, only_second: int, published: float
) -> None:
    assert round(mcnemar_p(only_first, only_second), 6) == published
    assert mcnemar_p(only_second, only_first) == pytest.approx(mcnemar_p(only_first, only_second))


def test_mcnemar_is_twice_the_binomial_tail_when_computed_by_hand() -> None:
    # Bentur et al. in Fagerland, Lydersen and Laake (2013), BMC Medical Research Methodology 13:91, table 1: 1 and 7
    # discordant pairs, whose exact p they define as twice the smaller tail of a binomial with 1/2: 2 (1 + 8) / 2^8.
    assert mcnemar_p(1, 7) == pytest.approx(2 * sum(math.comb(8, count) for count in (0, 1)) / 2**8)
    assert mcnemar_p(0, 5) == pytest.approx(2 / 2**5)


def test_mcnemar_is_1_when_no_image_tells_the_models_apart() -> None:
    assert mcnemar_p(0, 0) == 1.0


def test_paired_interval_is_the_published_one_of_tango() -> None:
    # Bentur et al. (2009), airway hyper-responsiveness of 21 children before and after a transplantation, as in
    # Fagerland, Lydersen and Laake (2014), "Recommended tests and confidence intervals for paired binomial
    # proportions", Statistics in Medicine 33, table of intervals: Tango's is -0.517 to -0.026.
    low, high = paired_interval(1, 7, 21)
    assert (round(low / 100, 3), round(high / 100, 3)) == (-0.517, -0.026)


@pytest.mark.parametrize("counts", [(4, 3, 10_000), (0, 1, 44), (0, 0, 359), (40, 20, 160), (0, 5, 5), (5, 0, 5)])
def test_paired_interval_holds_the_difference_and_mirrors_when_the_models_change_places(
    counts: tuple[int, int, int],
) -> None:
    first, second, images = counts
    low, high = paired_interval(first, second, images)
    assert low <= 100 * (first - second) / images <= high
    assert -100 <= low < high <= 100
    assert paired_interval(second, first, images) == pytest.approx((-high, -low), abs=1e-6)


def test_paired_interval_covers_the_true_difference_in_95_of_100_cases() -> None:
    random, images, only_first, only_second = np.random.default_rng(0), 10_000, 0.0030, 0.0015
    held = 0
    for _ in range(1000):
        first, second, _ = random.multinomial(images, [only_first, only_second, 1 - only_first - only_second])
        low, high = paired_interval(int(first), int(second), images)
        held += low <= 100 * (only_first - only_second) <= high
    assert 930 <= held <= 970


@pytest.mark.parametrize("confidence", [0.8, 0.9, 0.99])
def test_intervals_cover_as_often_as_they_are_asked_to(confidence: float) -> None:
    random, images, share, paired, mean = np.random.default_rng(0), 4000, 0.02, 0, 0
    for _ in range(1000):
        first, second, _ = random.multinomial(images, [share, share, 1 - 2 * share])
        low, high = paired_interval(int(first), int(second), images, confidence)
        paired += low <= 0 <= high
        low, high = mean_interval(random.normal(size=6), confidence)
        mean += low <= 0 <= high
    spread = 4 * math.sqrt(1000 * confidence * (1 - confidence))
    assert abs(paired - 1000 * confidence) < spread
    assert abs(mean - 1000 * confidence) < spread


@pytest.mark.parametrize("confidence", [0.9, 0.95])
@pytest.mark.parametrize("share", [0.0, 0.004, 0.05, 1.0])
@pytest.mark.parametrize("limit_pct", [0.1, 0.5, 5.0])
def test_images_needed_are_the_fewest_that_show_the_limit(limit_pct: float, share: float, confidence: float) -> None:
    needed = images_needed(limit_pct, share, confidence)
    assert needed is not None
    assert smallest_drop(needed, share, confidence) <= limit_pct
    assert smallest_drop(needed - 1, share, confidence) > limit_pct


def test_images_needed_is_that_of_the_normal_interval_when_the_models_disagree_far_more_than_the_limit() -> None:
    # Whose half width is z times the root of the discordant share over the number of images.
    assert images_needed(0.5, 0.05) == pytest.approx(1.959964**2 * 0.05 / 0.005**2, rel=0.02)


def test_images_needed_show_the_limit_in_half_of_all_samples() -> None:
    needed = images_needed(1.0, 0.04)
    assert needed is not None
    random, shown = np.random.default_rng(0), 0
    for _ in range(500):
        first, second, _ = random.multinomial(needed, [0.02, 0.02, 0.96])
        shown += paired_interval(int(first), int(second), needed)[1] <= 1.0
    assert 200 <= shown <= 300


def test_images_needed_is_unknown_when_no_number_of_them_could_show_the_limit() -> None:
    assert images_needed(0.0, 0.01) is None


def test_holm_is_the_worked_example_and_keeps_the_order() -> None:
    # Holm (1979): the smallest p times their number, the next times one less, and never less than one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
