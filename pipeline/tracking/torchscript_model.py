"""How MLflow runs a TorchScript file: copied beside the logged model as its code ("models from code").

It stands alone: it is loaded where nothing of this project is installed.
"""

from __future__ import annotations

from typing import Any

import mlflow
import numpy as np
import torch


class TorchScriptModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined, misc]
    """Images as the model's signature says, to logits float32 (N, classes)."""

    def load_context(self, context: Any) -> None:
        # Global to the process, and decides with which kernels the weights are packed.
        torch.backends.quantized.engine = context.model_config["engine"]
        torch.set_num_threads(context.model_config["threads"])
        self.module = torch.jit.load(context.artifacts["model"], map_location="cpu").eval()

    def predict(self, context: Any, model_input: np.ndarray, params: Any = None) -> np.ndarray:
        with torch.inference_mode():
            return self.module(torch.from_numpy(np.ascontiguousarray(model_input))).numpy()


mlflow.models.set_model(TorchScriptModel())
