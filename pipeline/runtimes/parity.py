"""Whether an exported model computes what torch's own does: on the whole test part, by decisions and by outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipeline.measure.pairs import difference
from pipeline.measure.statistics import SIGNIFICANCE
from pipeline.runtimes.contract import Predictor

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.datasets.spec import Part
    from pipeline.host.machine import Machine
    from pipeline.settings.config import DatasetConfig
    from pipeline.tasks.contract import Task

# In the folder of exported models: {form: {runtime: whether it has parity}}.
FILE = "parity.json"


@dataclass(frozen=True)
class Parity:
    """How far two models' outputs for the same images are apart.

    Attributes:
        agreement_pct: images on which both decide the same.
        max_difference, mean_difference: of the outputs, absolute.
        value: of the primary metric, of the exported model.
        p: whether the images show a difference in it.
    """

    agreement_pct: float
    max_difference: float
    mean_difference: float
    value: float
    p: float


def outputs(
    predictor: Predictor,
    part: Part,
    dataset: DatasetConfig,
    batch_size: int,
    description: str,
    machine: Machine,
    as_pictures: bool = False,
) -> np.ndarray:
    """The outputs for every image of a part, in order: float32 (N, …); `as_pictures`: given uint8 (N, S, S, C)."""
    import torch

    from pipeline.datasets.loader import count_batches, evaluation_batches
    from pipeline.host import terminal  # its bars are tqdm's, which predicting does not need

    found = []
    cpu = torch.device("cpu")
    with terminal.bar(description, count_batches(part, batch_size, training=False), unit="batch") as bar:
        for images, _ in evaluation_batches(part, dataset, batch_size, cpu, as_pictures):
            with machine.computing():
                found.append(predictor(images.numpy()))
            bar.update(1)
    return np.concatenate(found)


def compare(exported: np.ndarray, reference: np.ndarray, targets: Tensor, task: Task) -> Parity:
    """Compare outputs (N, …) for the same images; a value that is no number differs infinitely."""
    apart = np.nan_to_num(np.abs(exported - reference).astype(np.float64), nan=np.inf)
    decided, expected = _decide(exported, task), _decide(reference, task)
    agree = task.agree(decided, expected).numpy() & np.isfinite(apart).reshape(len(apart), -1).all(1)
    scores = task.score(decided, targets), task.score(expected, targets)
    return Parity(
        agreement_pct=100 * float(agree.mean()),
        max_difference=float(apart.max()),
        mean_difference=float(apart.mean()),
        value=task.value(decided, targets),
        p=difference(task.primary, *scores).p,
    )


def value(made: np.ndarray, targets: Tensor, task: Task) -> float:
    """The primary metric of outputs (N, …)."""
    return task.value(_decide(made, task), targets)


def is_rounding(found: Parity, reference: np.ndarray, fp32: np.ndarray, task: Task) -> bool:
    """Whether a lack of agreement is no more than int8 itself brings, and costs nothing that the images show.

    Runtimes round alike but for values between two levels; a deep network makes of one such value as much noise as
    quantization has made already. So the file may decide otherwise on as many images as quantization does, its outputs
    may be as far from the int8 model's as those are from the float model's, and the metric may not differ.

    Args:
        reference, fp32: outputs (N, …) of torch's int8 and float models.
    """
    of_quantization = 100 * float(task.agree(_decide(reference, task), _decide(fp32, task)).double().mean())
    noise = float(np.abs(reference - fp32).mean())
    return found.agreement_pct >= of_quantization and found.mean_difference <= noise and found.p > SIGNIFICANCE


def _decide(made: np.ndarray, task: Task) -> Tensor:
    import torch

    return task.decide(torch.from_numpy(made))
