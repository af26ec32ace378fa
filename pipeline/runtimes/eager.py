"""The model in this process, as torch runs it module by module."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.runtimes.contents import Weight
from pipeline.runtimes.contract import Predictor

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn


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


def weights(model: nn.Module) -> list[Weight]:
    """The tensors that a model holds; eager mode packs a quantized layer's weight with its bias."""
    import torch

    found = []
    for name, value in model.state_dict().items():
        for tensor in value if isinstance(value, tuple) else [value]:
            if isinstance(tensor, torch.Tensor):
                found.append(weight(name, tensor))
    return found


def weight(name: str, tensor: Tensor) -> Weight:
    """A tensor of torch; its own quantized types are 8 bits with their scale beside them."""
    dtype = str(tensor.dtype).removeprefix("torch.").replace("qint8", "int8").replace("quint8", "uint8")
    return Weight(name, tuple(tensor.shape), dtype, tensor.numel() * tensor.element_size())
