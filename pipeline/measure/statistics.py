"""What the numbers of a part can bear: the interval of an accuracy or of a difference, and tests of two models.

scipy computes both; it is imported only when asked, because that takes a second.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

SIGNIFICANCE = 0.05
"""Below this p a difference is called one."""
# More than anybody has.
_MOST_IMAGES = 10**12


def accuracy_interval(accuracy_pct: float, test_images: float | None) -> tuple[float, float]:
    """The 95 % Wilson score interval of an accuracy in % (Wilson 1927); two NaN where the number of images is unknown.

    It holds for accuracies near 100 %, where the usual normal interval reaches beyond.
    """
    if test_images is None or not test_images >= 1:
        return math.nan, math.nan
    from scipy.stats import binomtest

    count = round(test_images)
    hits = min(max(round(accuracy_pct / 100 * count), 0), count)
    interval = binomtest(hits, count).proportion_ci(confidence_level=0.95, method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def mean_interval(values: np.ndarray, confidence: float = 0.95) -> tuple[float, float]:
    """The interval of a mean by Student's t (Student 1908), from its values (N); two NaN of fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    from scipy.stats import t

    mean = float(values.mean())
    half = float(t.ppf((1 + confidence) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
    return mean - half, mean + half


def mcnemar_p(only_first: int, only_second: int) -> float:
    """The two-sided p of McNemar's exact test (McNemar 1947), from the images that only one of two models gets right.

    Were the models equally good, each such image would fall to either like a coin: a binomial test with 1/2.
    Without such an image nothing tells them apart, and p is 1.
    """
    from scipy.stats import binomtest

    disagreements = only_first + only_second
    if disagreements == 0:
        return 1.0
    return float(binomtest(only_first, disagreements, 0.5).pvalue)


def sign_flip_p(differences: np.ndarray) -> float:
    """The two-sided p of the permutation test of paired amounts (Fisher 1935), from their differences (N).

    Were the models equally good, each difference would have either sign: of all ways to flip them, or of 9,999 drawn
    ones where there are more, how many give a mean as far from 0. Without a difference p is 1.
    """
    import numpy as np
    from scipy.stats import permutation_test

    if not differences.any():
        return 1.0
    tested = permutation_test(
        (differences,), np.mean, permutation_type="samples", batch=100, random_state=np.random.default_rng(0)
    )
    return float(tested.pvalue)


def paired_interval(
    only_first: float, only_second: float, images: int, confidence: float = 0.95
) -> tuple[float, float]:
    """The interval of the difference in accuracy of two models on the same images, first minus second, in points.

    Tango's score interval (1998, "Equivalence test and confidence interval for the difference in proportions for the
    paired-sample design", Statistics in Medicine 17), which holds for few disagreements and for none. scipy and its
    relatives have no interval of paired proportions.

    Args:
        only_first, only_second: the images that only one of the two gets right; of a plan, not of a count, fractions.
        images: all of them.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    quantile, difference = float(norm.ppf((1 + confidence) / 2)), (only_first - only_second) / images

    def score(supposed: float) -> float:
        """How many standard errors the observed difference lies above a supposed one."""
        # The second model's share of disagreements if the difference is the supposed one: the likeliest, a root.
        linear = (2 * images - only_first + only_second) * supposed - only_first - only_second
        constant = -only_second * supposed * (1 - supposed)
        share = (math.sqrt(max(linear**2 - 8 * images * constant, 0)) - linear) / (4 * images)
        variance = images * (2 * share + supposed * (1 - supposed))
        distance = only_first - only_second - images * supposed
        if distance == 0:
            return 0.0
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    low = -1.0 if only_second == images else brentq(lambda at: score(at) - quantile, -1 + 1e-12, difference)
    high = 1.0 if only_first == images else brentq(lambda at: score(at) + quantile, difference, 1 - 1e-12)
    return 100 * low, 100 * high


def smallest_drop(images: int, discordant_share: float, confidence: float = 0.95) -> float:
    """The smallest limit of a drop, in points, that so many images show to be kept, of models that are equally good.

    It is the upper end of Tango's interval where each of the two alone is right on half of the images that they
    disagree on. In about half of all samples of that size the second model has worse luck, and shows a larger one.

    Args:
        discordant_share: of the images, those that only one of the two models gets right.
    """
    each = discordant_share * images / 2
    return paired_interval(each, each, images, confidence)[1]


def images_needed(limit_pct: float, discordant_share: float, confidence: float = 0.95) -> int | None:
    """The smallest number of images whose `smallest_drop` is at most `limit_pct`; None where no number does."""
    if limit_pct <= 0:
        return None
    return 1 + bisect_left(
        range(1, _MOST_IMAGES),
        True,
        key=lambda images: smallest_drop(images, discordant_share, confidence) <= limit_pct,
    )


def holm(ps: Sequence[float]) -> list[float]:
    """The p of several tests, corrected so that one of them is called a difference by chance in 5 % of cases at most.

    Holm (1979), "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6.
    """
    corrected, largest = [0.0] * len(ps), 0.0
    for place, index in enumerate(sorted(range(len(ps)), key=lambda index: ps[index])):
        largest = max(largest, min(1.0, (len(ps) - place) * ps[index]))
        corrected[index] = largest
    return corrected
