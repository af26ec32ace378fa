"""Models compared on the same images, pair by pair: the difference in accuracy, its interval, and whether it is chance.

Two models that saw the same images differ only on those that one of them alone gets right. That says far more of
their difference than their two separate intervals do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from pipeline.measure.statistics import holm, mcnemar_p, paired_interval

if TYPE_CHECKING:  # whoever only reads the names of pairs need not wait for torch
    from torch import Tensor


class Pair(NamedTuple):
    """Two forms by the prefix of their metrics; the difference is `first` minus `second`."""

    first: str
    second: str

    @property
    def prefix(self) -> str:
        return f"{self.first}_vs_{self.second}"


# Every pair that a reader of the results would compare.
PAIRS = (
    Pair("int8", "fp32"),
    Pair("int8", "ptq_int8"),
    Pair("int8", "fp32_finetuned"),
    Pair("ptq_int8", "fp32"),
)


def pair_metrics(right: Mapping[str, Tensor]) -> dict[str, float]:
    """The numbers of every pair of `PAIRS` that is at hand.

    `<first>_vs_<second>/` has `difference_pct` with its paired 95 % interval, in points; `won_images` and
    `lost_images`, which `first` or `second` alone gets right; `mcnemar_p`, and `mcnemar_p_holm`, corrected for all
    pairs here.

    Args:
        right: by form, which images it gets right: bool (N).
    """
    pairs = [pair for pair in PAIRS if pair.first in right and pair.second in right]
    found: dict[str, float] = {}
    for pair in pairs:
        first, second = right[pair.first], right[pair.second]
        won, lost = int((first & ~second).sum()), int((second & ~first).sum())
        low, high = paired_interval(won, lost, len(first))
        found |= {
            f"{pair.prefix}/difference_pct": 100 * (won - lost) / len(first),
            f"{pair.prefix}/difference_ci_low_pct": low,
            f"{pair.prefix}/difference_ci_high_pct": high,
            f"{pair.prefix}/won_images": won,
            f"{pair.prefix}/lost_images": lost,
            f"{pair.prefix}/mcnemar_p": mcnemar_p(won, lost),
        }
    corrected = holm([found[f"{pair.prefix}/mcnemar_p"] for pair in pairs])
    return found | {f"{pair.prefix}/mcnemar_p_holm": p for pair, p in zip(pairs, corrected, strict=True)}
