"""Models compared in pairs, on the very same test images.

Two models see the same images, so what tells them apart is the images that one of them alone gets right, or gets more
nearly right. That says far more of their difference than their two separate intervals do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.flows import FORMS
from pipeline.measure.statistics import (
    accuracy_interval,
    holm,
    mcnemar_p,
    mean_interval,
    paired_interval,
    sign_flip_p,
)
from pipeline.tasks import Metric

if TYPE_CHECKING:  # whoever only reads the names of pairs need not wait for torch
    from torch import Tensor

# Every pair that a reader of the results would compare, by the prefixes of their metrics: QAT's first.
PAIRS = tuple((form.prefix, other) for form in reversed(FORMS) for other in form.compared_with)


# Of a primary metric (`Metric.test`): whose test it is; and whose intervals, of one model and of a difference.
TESTS = {"mcnemar_p": "McNemar's", "sign_flip_p": "Fisher's sign-flip"}


@dataclass(frozen=True)
class Difference:
    """What tells two models apart: the first minus the second.

    Attributes:
        value, low, high: of the primary metric, with its paired interval.
        won, lost: examples on which the first, or the second, is better; of shares, which it alone gets right.
        p: that it is chance, by the test that `Metric.test` names.
    """

    value: float
    low: float
    high: float
    won: int
    lost: int
    p: float


def difference(metric: Metric, first: Tensor, second: Tensor, confidence: float = 0.95) -> Difference:
    """Compare two models by their scores (N) for the same examples, as `Task.score` gives them."""
    count = len(first)
    if metric.is_share:
        won, lost = int((first & ~second).sum()), int((second & ~first).sum())
        low, high = paired_interval(won, lost, count, confidence)
        return Difference(100 * (won - lost) / count, low, high, won, lost, mcnemar_p(won, lost))
    apart = metric.scale * (first.double() - second.double()).numpy()
    higher, lower = int((apart > 0).sum()), int((apart < 0).sum())
    won, lost = (higher, lower) if metric.higher_is_better else (lower, higher)
    return Difference(float(apart.mean()), *mean_interval(apart, confidence), won, lost, sign_flip_p(apart))


def interval(metric: Metric, scores: Tensor) -> tuple[float, float]:
    """The 95 % interval of the primary metric of one model, from its scores (N)."""
    if metric.is_share:
        return accuracy_interval(100 * float(scores.double().mean()), len(scores))
    return mean_interval(metric.scale * scores.double().numpy())


def pair_metrics(metric: Metric, scores: Mapping[str, Tensor]) -> dict[str, float]:
    """The numbers of every pair of `PAIRS` that is at hand.

    `<first>_vs_<second>/` has `difference_<unit>` (first minus second) with its paired 95 % interval;
    `won_images` and `lost_images`, on which `first` or `second` is better; the p of the test, and `…_holm`,
    corrected for all pairs here.

    Args:
        scores: by form, of each image (N).
    """
    found: dict[str, float] = {}
    ps: dict[str, float] = {}
    for first, second in PAIRS:
        if first not in scores or second not in scores:
            continue
        pair, apart = f"{first}_vs_{second}", difference(metric, scores[first], scores[second])
        ps[pair] = apart.p
        found |= {
            f"{pair}/{metric.in_unit('difference')}": apart.value,
            f"{pair}/{metric.in_unit('difference_ci_low')}": apart.low,
            f"{pair}/{metric.in_unit('difference_ci_high')}": apart.high,
            f"{pair}/won_images": apart.won,
            f"{pair}/lost_images": apart.lost,
            f"{pair}/{metric.test}": apart.p,
        }
    corrected = holm(list(ps.values()))
    return found | {f"{pair}/{metric.test}_holm": p for pair, p in zip(ps, corrected, strict=True)}
