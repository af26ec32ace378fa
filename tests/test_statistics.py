"""The statistics against examples that others have published, and against their definitions."""

from __future__ import annotations

import math

import pytest

from pipeline.statistics import accuracy_interval, mcnemar_p


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
