"""How often the ladder errs: planted networks whose true drop is known, judged as `python -m pipeline.decide` judges.

    python -m benchmarks.ladder_error

Of each trial and rung the validation images that int8 loses or wins are drawn anew, independently of the rungs before:
that is the worst case, since real rungs share the images. Printed is how many of the trials pass on any rung.
"""

from __future__ import annotations

import argparse
import functools

import numpy as np
from tabulate import tabulate

from pipeline.decision.budget import Measured, confidence_of, criteria, too_few_images
from pipeline.decision.verdict import Verdict
from pipeline.measure.statistics import paired_interval
from pipeline.settings.decision import BudgetConfig
from pipeline.tasks import ACCURACY

_RUNGS = 6
# The same few counts come again and again.
_interval, _too_few = functools.cache(paired_interval), functools.cache(too_few_images)


def passes(
    rng: np.random.Generator, images: int, drop_pct: float, discordant_pct: float, limit_pct: float, backends: int
) -> bool:
    """Whether a network passes on any rung of any backend, each with the same true drop."""
    budget = BudgetConfig(max_drop_pct=limit_pct)
    shares = [(discordant_pct + drop_pct) / 200, (discordant_pct - drop_pct) / 200]
    for _ in range(backends):
        for rung in range(_RUNGS):
            lost, won, _ = rng.multinomial(images, [*shares, 1 - sum(shares)]).tolist()
            confidence = confidence_of(rung, backends)
            low, high = _interval(lost, won, images, confidence)
            found = Measured(
                100 * (lost - won) / images,
                low,
                high,
                confidence,
                lost,
                won,
                images,
                speedup=1,
                latency_ms=1,
                size_mb=1,
                value=95,
                floor=None,
            )
            verdict = criteria(found, budget, ACCURACY)[0].verdict
            if verdict is Verdict.PASSES:
                return True
            if verdict is Verdict.UNKNOWN and _too_few(images, (lost + won) / images, limit_pct, confidence):
                break
    return False


def main() -> None:
    """Print the shares of trials that pass."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--limit", type=float, default=0.5, help="the budget, in points (default: %(default)s)")
    arguments = parser.parse_args()
    rng, limit, rows = np.random.default_rng(0), arguments.limit, []
    for images in (1000, 6000):
        for backends in (1, 2):
            for drop in (0.0, limit / 4, limit / 2, limit * 1.001, limit * 1.5):
                discordant = max(0.5, 1.2 * drop)
                count = sum(passes(rng, images, drop, discordant, limit, backends) for _ in range(arguments.trials))
                rows.append(
                    [images, backends, f"{drop:.3f}", f"{discordant:.2f}", f"{100 * count / arguments.trials:.1f}"]
                )
    headers = ["validation images", "backends", "true drop, points", "images that differ, %", "passes, %"]
    print(f"budget {limit:g} points, {_RUNGS} rungs, {arguments.trials} trials a row")
    print(tabulate(rows, headers, tablefmt="github", disable_numparse=True))


if __name__ == "__main__":
    main()
