"""The model in this process, as torch runs it module by module."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from pipeline.runtimes.contract import Predictor


def predictor(model: nn.Module, threads: int) -> Predictor:
    """The predictor of a model on the CPU, or of a TorchScript module."""
    model.eval()

    def predict(images: np.ndarray) -> np.ndarray:
        if torch.get_num_threads() != threads:  # global to the process, and others' too
            torch.set_num_threads(threads)
        with torch.inference_mode():
            logits: np.ndarray = model(torch.from_numpy(images)).numpy()
        return logits

    return predict
