"""How MLflow answers to pictures by an ONNX file: copied beside the logged model as its code ("models from code").

It is loaded where nothing of this project is installed; what it imports of it is copied too.
"""

from __future__ import annotations

import base64
import dataclasses
import io
from pathlib import Path
from typing import Any

import mlflow
import onnxruntime
import pandas
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

from pipeline.datasets.pictures import read_image
from pipeline.datasets.preprocessing import Preprocessing, fit
from pipeline.host.errors import UserError

# Of all that Pillow reads: some of its formats start other programs.
_FORMATS = ("PNG", "JPEG")


class PictureModel(mlflow.pyfunc.PythonModel):  # type: ignore[name-defined, misc]
    """Files of pictures, each as text in base64, to the probability of each class; without classes, to the outputs."""

    def load_context(self, context: Any) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = context.model_config["threads"]
        self.session = onnxruntime.InferenceSession(
            context.artifacts["model"], options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name
        self.preprocessing = Preprocessing.read(Path(context.artifacts["preprocessing"]))
        self.reading = dataclasses.replace(self.preprocessing.reading, formats=_FORMATS)

    def predict(self, context: Any, model_input: pandas.DataFrame, params: Any = None) -> list[Any]:
        # One by one: the same bits as for a picture alone, and no more memory than that takes.
        return [self._answer(f"image {place}", text) for place, text in enumerate(model_input["image"])]

    def _answer(self, told: str, text: str) -> Any:
        try:
            content = base64.b64decode(text, validate=True)
            pixels = fit(read_image(io.BytesIO(content), self.reading, told), self.preprocessing.image_size)
        except (TypeError, ValueError) as error:
            raise MlflowException(f"{told}: is no base64: {error}", INVALID_PARAMETER_VALUE) from error
        except UserError as error:
            raise MlflowException(str(error), INVALID_PARAMETER_VALUE) from error
        (outputs,) = self.session.run(None, {self.input: self.preprocessing.model_input(pixels)})[0]
        names = self.preprocessing.class_names
        if not names:
            return outputs.tolist()
        return dict(zip(names, self.preprocessing.probabilities(outputs).tolist(), strict=True))


mlflow.models.set_model(PictureModel())
