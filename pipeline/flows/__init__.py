"""How a float network becomes int8, and the forms of it that a reader of results meets.

Importing this does not import torch: whoever only shows numbers need not wait for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# What stages make and take.
Form = Literal["float", "float_finetuned", "fused", "qat", "int8", "ptq_int8"]


@dataclass(frozen=True)
class FormSpec:
    """The one declaration of a form that is evaluated, and shown in tables and plots.

    Attributes:
        name: as stages consume it.
        prefix: what its metrics begin with.
        label: what a reader calls it; `short` where there is little room.
        made_by: the stage without which a run does not have it; None where it is always there, or asked for otherwise.
        is_int8: it computes in int8, by kernels that there are for the CPU alone.
        is_shipped: it is timed, and exported to runtimes. The float model trained on has the arithmetic of the float
            model, and a fake-quantized one only simulates that of int8: nobody ships them for their speed.
        compared_with: the prefixes of the forms that it is compared with, on the very same images.
        colour: in the plots of runtimes.
    """

    name: Form
    prefix: str
    label: str
    short: str
    made_by: str | None = None
    is_int8: bool = False
    is_shipped: bool = False
    compared_with: tuple[str, ...] = ()
    colour: str = "#444444"

    def label_for(self, method: str) -> str:
        """The label in a run whose int8 form is made by `method`."""
        return f"{method.upper()} int8" if self.prefix == "int8" else self.label

    @property
    def is_control(self) -> bool:
        """Whether it only stands beside the float model and the int8 one, which every run compares."""
        return self.prefix not in ("fp32", "int8")


FORMS = (
    FormSpec("float", prefix="fp32", label="fp32", short="fp32", is_shipped=True, colour="#7f7f7f"),
    FormSpec("float_finetuned", prefix="fp32_finetuned", label="fp32 fine-tuned", short="tuned", made_by="finetune"),
    FormSpec(
        "ptq_int8",
        prefix="ptq_int8",
        label="PTQ int8",
        short="PTQ",
        made_by="ptq",
        is_int8=True,
        is_shipped=True,
        compared_with=("fp32",),
        colour="#9ecae1",
    ),
    FormSpec("qat", prefix="qat_fake", label="QAT fake-quantized", short="fake"),
    FormSpec(
        "int8",
        prefix="int8",
        label="QAT int8",
        short="int8",
        is_int8=True,
        is_shipped=True,
        compared_with=("fp32", "ptq_int8", "fp32_finetuned"),
        colour="#1f77b4",
    ),
)
BY_PREFIX = {form.prefix: form for form in FORMS}


def controls(stages: Sequence[str], method: str) -> tuple[FormSpec, ...]:
    """The forms beside fp32 and int8 that a run of these stages makes; of `method` ptq, int8 is PTQ's already."""
    return tuple(form for form in FORMS if form.made_by in stages and form.made_by != method)
