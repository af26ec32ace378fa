"""An exported model: a runtime's file, `preprocessing.json` beside it, found by a path or in the registry.

Imports no more than the runtime does that the file needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.datasets.preprocessing import PREPROCESSING_FILE, Preprocessing
from pipeline.host.errors import UserError
from pipeline.host.files import expand_user, in_project
from pipeline.runtimes import Predictor, Runtime, check_runtimes, registry

# Of several files in a folder: the runtime that starts soonest.
_PREFERRED = ("onnxruntime", "openvino", "torchscript")
# Where MLflow's flavours keep a model's file and what goes with it.
_PLACES = ("", "extra_files", "artifacts")


@dataclass(frozen=True)
class ExportedModel:
    """A model that was loaded, and what it takes."""

    file: Path
    preprocessing: Preprocessing
    predictor: Predictor

    def probabilities(self, image: Path) -> np.ndarray:
        """The probability of each class, float64 (classes), for the image in a file.

        Raises:
            UserError: when the image cannot be read, or the model does not take it.
        """
        images = self.preprocessing.apply(image)
        try:
            (logits,) = self.predictor(images)
        except Exception as error:  # whatever the runtime raises on images of another shape
            reason = " ".join(str(error).split())
            raise UserError(f"{self.file}: does not take what {PREPROCESSING_FILE} makes: {reason}") from error
        names = self.preprocessing.class_names
        if logits.shape != (len(names),):
            raise UserError(f"{self.file}: gives {logits.size} outputs, where {PREPROCESSING_FILE} names {len(names)}")
        odds = np.exp(logits.astype(np.float64) - logits.max())
        return odds / odds.sum()


def locate(model: str | None, outputs: str) -> Path:
    """The file or folder of a model: a path, or None for the int8 model exported last.

    Raises:
        UserError: when it is not there.
    """
    if model is None:
        return _exported_last(in_project(outputs) / "artifacts")
    path = expand_user(model)
    if not path.exists():
        raise UserError(f"--model {model}: no such file or folder; allowed: models:/NAME@ALIAS, {_files()}")
    return path


def load(path: Path, threads: int = 1) -> ExportedModel:
    """Load the model in a file or in a folder, with the preprocessing beside it.

    Raises:
        UserError: when either is missing or cannot be read, or the runtime is not installed.
    """
    runtime, folder = _find(path)
    check_runtimes([runtime.name])
    preprocessing = Preprocessing.read(_beside(folder))
    try:
        predictor = runtime.load(folder, threads)
    except Exception as error:  # whatever the runtime raises on a damaged file
        reason = " ".join(str(error).split())
        raise UserError(f"{folder / runtime.file}: {runtime.name} cannot load it: {reason}") from error
    return ExportedModel(folder / runtime.file, preprocessing, predictor)


def _find(path: Path) -> tuple[Runtime, Path]:
    """The runtime whose file `path` is or holds, and the folder of that file."""
    runtimes = [registry()[name] for name in _PREFERRED]
    folders = [path / place for place in _PLACES] if path.is_dir() else [path.parent]
    for runtime in runtimes:
        for folder in folders:
            if (folder / runtime.file).is_file() and (path.is_dir() or path.name == runtime.file):
                return runtime, folder
    raise UserError(f"--model {path}: no exported model; allowed: models:/NAME@ALIAS, {_files()}")


def _files() -> str:
    names = [registry()[name].file for name in _PREFERRED]
    return f"a folder with {', '.join(names[:-1])} or {names[-1]}, or the path of one"


def _beside(folder: Path) -> Path:
    """Where `preprocessing.json` is: beside the model, or where MLflow keeps it."""
    kept_by_mlflow = folder / "extra_files" / PREPROCESSING_FILE
    return kept_by_mlflow if kept_by_mlflow.is_file() else folder / PREPROCESSING_FILE


def _exported_last(artifacts: Path) -> Path:
    """The folder of the int8 model in the newest result of the stage `export`."""
    files = [registry()[name].file for name in _PREFERRED]
    exports = [path for path in artifacts.glob("export-*/int8") if not path.parent.name.endswith(".partial")]
    for export in sorted(exports, key=lambda path: path.stat().st_mtime, reverse=True):
        for name, file in zip(_PREFERRED, files, strict=True):
            if (export / name / file).is_file():
                return export / name
    raise UserError(f"no exported int8 model in {artifacts}; a run with stage export makes one; allowed too: --model")
