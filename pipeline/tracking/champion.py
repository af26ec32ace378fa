"""Which registered model is the champion: the rule, on numbers alone."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.reports.tracked_run import METRIC_TAG
from pipeline.tasks import ACCURACY, Metric

_FLOOR = "largest_class_pct"


@dataclass(frozen=True)
class Contender:
    """What the rule looks at.

    Attributes:
        drop: of the metric, that int8 loses against fp32, both on the validation part: what chooses must not be
            what judges.
        value: of int8, on the validation part.
        floor: the value of always naming the largest class of the validation part; None: there are no classes.
        latency_ms: the median at batch 1.
        parity: whether the exported model agrees with the one it was made from.
        conditions: what a latency depends on besides the model: how it was measured, processor, threads.
            Latencies of different conditions are not compared.
    """

    drop: float
    value: float
    floor: float | None
    latency_ms: float
    parity: bool
    conditions: str
    metric: Metric = ACCURACY

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> Contender:
        """The contender of its fields, as `dataclasses.asdict` gives them."""
        return cls(**{**content, "metric": Metric(**content["metric"])})

    def tags(self) -> dict[str, str]:
        """As a registered version keeps it."""
        found: dict[str, object] = {self.metric.of("drop"): self.drop, self.metric.name: self.value, _FLOOR: self.floor}
        found |= {"latency_ms": self.latency_ms, "parity": self.parity, "conditions": self.conditions}
        said = {name: str(value) for name, value in found.items() if value is not None}
        return said | {METRIC_TAG: json.dumps(dataclasses.asdict(self.metric))}

    @classmethod
    def of_tags(cls, tags: Mapping[str, str]) -> Contender | None:
        """What a version's tags say of it; None where a version was registered by other means."""
        try:
            metric = Metric(**json.loads(tags[METRIC_TAG])) if METRIC_TAG in tags else ACCURACY
            # Versions registered before there were these tags were chosen on the test part.
            unknown = "nan" if metric == ACCURACY else None
            floor = tags.get(_FLOOR, unknown)
            return cls(
                drop=float(tags[metric.of("drop")]),
                value=float(tags.get(metric.name, "nan")),
                floor=None if floor is None else float(floor),
                latency_ms=float(tags["latency_ms"]),
                parity=tags["parity"] == "True",
                conditions=tags["conditions"],
                metric=metric,
            )
        except (KeyError, ValueError):
            return None


@dataclass(frozen=True)
class Verdict:
    """Whether the candidate becomes the champion, and why, in a few words."""

    wins: bool
    reason: str


def judge(candidate: Contender, champion: Contender | None, max_drop_pct: float) -> Verdict:
    """Compare a candidate with the present champion (None: there is none).

    A model without parity, that loses more than `max_drop_pct` of its metric, or that is no better than always naming
    one class, never wins. Of those that qualify the lower latency wins; a tie keeps the present champion, and so do
    latencies that cannot be compared. A champion that does not qualify itself, under a rule that has become stricter,
    yields to a candidate that does.
    """
    refused = _refusal(candidate, max_drop_pct)
    if refused:
        return Verdict(False, refused)
    if champion is None:
        return Verdict(True, "there is no champion yet")
    outdated = _refusal(champion, max_drop_pct)
    if outdated:
        return Verdict(True, f"the champion so far does not qualify: {outdated}")
    if candidate.metric != champion.metric:
        return Verdict(False, f"it is judged by {candidate.metric.label}, the champion by {champion.metric.label}")
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
    metric, floor = contender.metric, contender.floor
    if math.isnan(contender.value):
        return f"nothing is known of its {metric.label} on the validation part"
    if floor is not None and not metric.drop(floor, contender.value) < 0:
        return (
            f"it is no better than always naming the largest class ({metric.text(contender.value)} of the validation "
            f"images, which has {metric.text(floor)})"
        )
    # Rounded: 64.01 - 63.51 is more than 0.5. A drop that is not a number qualifies for nothing.
    if not round(contender.drop, 6) <= max_drop_pct:
        return f"it loses {contender.drop:.2f} {metric.step} on validation; register.max_drop_pct={max_drop_pct:g}"
    if not contender.latency_ms > 0:
        return f"its latency is {contender.latency_ms}"
    return None
