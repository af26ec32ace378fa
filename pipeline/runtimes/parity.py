"""Whether an exported model computes what torch's own does: on the whole test part, by its classes and its outputs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch

from pipeline.datasets.loader import count_batches, evaluation_batches
from pipeline.datasets.spec import Part
from pipeline.host import terminal
from pipeline.host.machine import Machine
from pipeline.measure.statistics import SIGNIFICANCE, mcnemar_p
from pipeline.runtimes import Predictor
from pipeline.settings.config import DatasetConfig

# In the folder of exported models: {form: {runtime: whether it has parity}}.
FILE = "parity.json"


@dataclass(frozen=True)
class Parity:
    """How far two models' outputs for the same images are apart.

    Attributes:
        agreement_pct: images of which both choose the same class.
        max_difference, mean_difference: of the outputs (logits), absolute.
        accuracy_pct: of the exported model.
        mcnemar_p: whether the images show a difference in accuracy.
    """

    agreement_pct: float
    max_difference: float
    mean_difference: float
    accuracy_pct: float
    mcnemar_p: float


def outputs(
    predictor: Predictor, part: Part, dataset: DatasetConfig, batch_size: int, description: str, machine: Machine
) -> np.ndarray:
    """The logits for every image of a part, in order: float32 (N, classes)."""
    found = []
    cpu = torch.device("cpu")
    with terminal.bar(description, count_batches(part, batch_size, training=False), unit="batch") as bar:
        for images, _ in evaluation_batches(part, dataset, batch_size, cpu):
            with machine.computing():
                found.append(predictor(images.numpy()))
            bar.update(1)
    return np.concatenate(found)


def compare(exported: np.ndarray, reference: np.ndarray, labels: np.ndarray) -> Parity:
    """Compare logits (N, classes) of the same images; a value that is no number differs infinitely."""
    difference = np.nan_to_num(np.abs(exported - reference).astype(np.float64), nan=np.inf)
    chosen, expected = exported.argmax(1), reference.argmax(1)
    agree = (chosen == expected) & np.isfinite(difference).all(1)
    return Parity(
        agreement_pct=100 * float(agree.mean()),
        max_difference=float(difference.max()),
        mean_difference=float(difference.mean()),
        accuracy_pct=100 * float((chosen == labels).mean()),
        mcnemar_p=mcnemar_p(
            int(((chosen == labels) & (expected != labels)).sum()),
            int(((chosen != labels) & (expected == labels)).sum()),
        ),
    )


def is_rounding(found: Parity, reference: np.ndarray, fp32: np.ndarray) -> bool:
    """Whether a lack of agreement is no more than int8 itself brings, and costs no accuracy that the images show.

    Runtimes round alike but for values between two levels; a deep network makes of one such value as much noise as
    quantization has made already. Where that changes classes, rounding changes them too.

    Args:
        reference, fp32: logits (N, classes) of torch's int8 and float models.
    """
    of_quantization = 100 * float((reference.argmax(1) == fp32.argmax(1)).mean())
    return found.agreement_pct >= of_quantization and found.mcnemar_p > SIGNIFICANCE


@contextmanager
def torch_threads_kept() -> Iterator[None]:
    """Give torch back the threads it had: predictors set their own, for the whole process."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(before)
