"""The model in this process, as torch runs it module by module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.runtimes.contract import Predictor

if TYPE_CHECKING:
    import numpy as np
    from torch import nn


def predictor(model: nn.Module, threads: int) -> Predictor:
    """The predictor of a model on the CPU, or of a TorchScript module."""
    import torch

    model.eval()

    def predict(images: np.ndarray) -> np.ndarray:
        if torch.get_num_threads() != threads:  # global to the process, and others' too
            torch.set_num_threads(threads)
        with torch.inference_mode():
            outputs: np.ndarray = model(torch.from_numpy(images)).numpy()
        return outputs

    return predict
