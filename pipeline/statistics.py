"""What the numbers of a test part can bear: the interval of an accuracy, and a test of two models on the same images.

scipy computes both; it is imported only when asked, because that takes a second.
"""

from __future__ import annotations

import math

SIGNIFICANCE = 0.05
"""Below this p a difference is called one."""


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
