"""What an output of a network is worth: the tasks, and the number by which each judges its models.

Importing this does not import torch: whoever only shows numbers need not wait for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """The number by which a task judges models: the mean of its scores, one an example.

    Attributes:
        name: what results of it are called, its unit at the end: `accuracy_pct`.
        unit: that end, or "" where the number has none; a mean whose unit is `pct` is given in percent.
        higher_is_better: lower is, where not.
        is_share: every score says right or wrong. Then intervals and tests are those of shares, else those of means.
    """

    name: str
    unit: str = ""
    higher_is_better: bool = True
    is_share: bool = False

    @property
    def stem(self) -> str:
        """The name without its unit."""
        return self.name.removesuffix(f"_{self.unit}")

    @property
    def label(self) -> str:
        """What a reader calls it."""
        return self.stem.replace("_", " ")

    @property
    def heading(self) -> str:
        """What heads a column of its values: % alone says enough of a share."""
        return "%" if self.unit == "pct" else f"{self.label} {self.unit}".rstrip()

    @property
    def in_words(self) -> str:
        """The label with the unit, as an axis has it."""
        return f"{self.label} (%)" if self.unit == "pct" else self.heading

    @property
    def step(self) -> str:
        """The unit of a difference between two values, in words."""
        return "points" if self.unit == "pct" else self.unit or self.label

    @property
    def test(self) -> str:
        """Which test two models are compared by on the same examples; the name of its p too."""
        return "mcnemar_p" if self.is_share else "sign_flip_p"

    @property
    def scale(self) -> float:
        """A value over the mean of scores."""
        return 100 if self.unit == "pct" else 1

    def of(self, what: str) -> str:
        """The name of a number that is derived of it: of `drop`, `accuracy_drop_pct`."""
        return self.in_unit(f"{self.stem}_{what}")

    def in_unit(self, what: str) -> str:
        """A name with the unit at its end: of `difference`, `difference_pct`."""
        return f"{what}_{self.unit}" if self.unit else what

    def drop(self, reference: Any, value: Any) -> Any:
        """How much worse a value is than a reference, numbers or arrays of them; negative, where it is better."""
        return reference - value if self.higher_is_better else value - reference

    def text(self, value: float) -> str:
        """A value as lines of text have it."""
        return f"{value:.2f} {'%' if self.unit == 'pct' else self.unit}".rstrip()


ACCURACY = Metric("accuracy_pct", unit="pct", is_share=True)
"""Classification's; that of results from before there were tasks too."""
