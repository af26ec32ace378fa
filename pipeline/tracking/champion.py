"""Which registered model is the champion: the rule, on numbers alone."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Contender:
    """What the rule looks at.

    Attributes:
        accuracy_drop_pct: points that int8 loses against fp32, both on the validation part: what chooses must not be
            what judges.
        accuracy_pct: of int8, on the validation part.
        largest_class_pct: the accuracy of always naming the largest class of the validation part.
        latency_ms: the median at batch 1.
        parity: whether the exported model agrees with the one it was made from.
        conditions: what a latency depends on besides the model: how it was measured, processor, threads.
            Latencies of different conditions are not compared.
    """

    accuracy_drop_pct: float
    accuracy_pct: float
    largest_class_pct: float
    latency_ms: float
    parity: bool
    conditions: str


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate becomes the champion, and why, in a few words."""

    wins: bool
    reason: str


def judge(candidate: Contender, champion: Contender | None, max_drop_pct: float) -> Verdict:
    """Compare a candidate with the present champion (None: there is none).

    A model without parity, that loses more than `max_drop_pct` points, or that is no better than always naming one
    class, never wins. Of those that qualify the
    lower latency wins; a tie keeps the present champion, and so do latencies that cannot be compared. A champion
    that does not qualify itself, under a rule that has become stricter, yields to a candidate that does.
    """
    refused = _refusal(candidate, max_drop_pct)
    if refused:
        return Verdict(False, refused)
    if champion is None:
        return Verdict(True, "there is no champion yet")
    outdated = _refusal(champion, max_drop_pct)
    if outdated:
        return Verdict(True, f"the champion so far does not qualify: {outdated}")
    if candidate.conditions != champion.conditions:
        return Verdict(
            False,
            f"its latency was measured otherwise ({candidate.conditions}) than the champion's ({champion.conditions})",
        )
    took = f"{candidate.latency_ms:.3f} ms, the champion {champion.latency_ms:.3f} ms"
    if candidate.latency_ms < champion.latency_ms:
        return Verdict(True, f"it takes {took}")
    return Verdict(False, f"it takes {took}")


def _refusal(contender: Contender, max_drop_pct: float) -> str | None:
    if not contender.parity:
        return "it fails parity"
    if math.isnan(contender.accuracy_pct):
        return "nothing is known of its accuracy on the validation part"
    if not contender.accuracy_pct > contender.largest_class_pct:
        return (
            f"it is no better than always naming the largest class ({contender.accuracy_pct:.2f} % of the validation "
            f"images, which has {contender.largest_class_pct:.2f} %)"
        )
    # Rounded: 64.01 - 63.51 is more than 0.5. A drop that is not a number qualifies for nothing.
    if not round(contender.accuracy_drop_pct, 6) <= max_drop_pct:
        return (
            f"it loses {contender.accuracy_drop_pct:.2f} points on validation; register.max_drop_pct={max_drop_pct:g}"
        )
    if not contender.latency_ms > 0:
        return f"its latency is {contender.latency_ms}"
    return None
