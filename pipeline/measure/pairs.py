"""Models compared in pairs, on the very same test images.

Two models see the same images, so what tells them apart is the images that one of them alone gets right. That says far
more of their difference than their two separate intervals do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pipeline.flows import FORMS
from pipeline.measure.statistics import holm, mcnemar_p, paired_interval

if TYPE_CHECKING:  # whoever only reads the names of pairs need not wait for torch
    from torch import Tensor

# Every pair that a reader of the results would compare, by the prefixes of their metrics: QAT's first.
PAIRS = tuple((form.prefix, other) for form in reversed(FORMS) for other in form.compared_with)


def pair_metrics(right: Mapping[str, Tensor]) -> dict[str, float]:
    """The numbers of every pair of `PAIRS` that is at hand.

    `<first>_vs_<second>/` has `difference_pct` (first minus second) with its paired 95 % interval, in points;
    `won_images` and `lost_images`, which `first` or `second` alone gets right; `mcnemar_p`, and `mcnemar_p_holm`,
    corrected for all pairs here.

    Args:
        right: by form, which images it gets right: bool (N).
    """
    found: dict[str, float] = {}
    ps: dict[str, float] = {}
    for first, second in PAIRS:
        if first not in right or second not in right:
            continue
        pair, images = f"{first}_vs_{second}", len(right[first])
        won = int((right[first] & ~right[second]).sum())
        lost = int((right[second] & ~right[first]).sum())
        low, high = paired_interval(won, lost, images)
        ps[pair] = mcnemar_p(won, lost)
        found |= {
            f"{pair}/difference_pct": 100 * (won - lost) / images,
            f"{pair}/difference_ci_low_pct": low,
            f"{pair}/difference_ci_high_pct": high,
            f"{pair}/won_images": won,
            f"{pair}/lost_images": lost,
            f"{pair}/mcnemar_p": ps[pair],
        }
    corrected = holm(list(ps.values()))
    return found | {f"{pair}/mcnemar_p_holm": p for pair, p in zip(ps, corrected, strict=True)}
