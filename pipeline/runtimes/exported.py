"""An exported model: a runtime's file, `preprocessing.json` beside it, found by a path or in the registry.

Imports no more than the runtime does that the file needs.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.datasets.preprocessing import OWN_PREPROCESSING, PREPROCESSING_FILE, Preprocessing
from pipeline.host.errors import UserError
from pipeline.host.files import resolved
from pipeline.runtimes import Predictor, Runtime, check_runtimes, find, registry
from pipeline.runtimes.contents import Contents

# Where MLflow's flavours keep a model's file and what goes with it.
_PLACES = ("", "extra_files", "artifacts")


@dataclass(frozen=True)
class ExportedModel:
    """A model that was loaded, and what it takes."""

    file: Path
    preprocessing: Preprocessing
    predictor: Predictor

    def outputs(self, image: np.ndarray) -> np.ndarray:
        """What the network gives for an image as `preprocessing` makes it: float32 (…).

        Raises:
            UserError: when the model does not take it.
        """
        try:
            (made,) = self.predictor(image)
        except Exception as error:  # whatever the runtime raises on images of another shape
            reason = " ".join(str(error).split())
            raise UserError(f"{self.file}: does not take what {PREPROCESSING_FILE} makes: {reason}") from error
        return made

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """The probability of each class, float64 (classes), for such an image; of a model that names classes.

        Raises:
            UserError: as `outputs`, and when it gives another number of them.
        """
        logits = self.outputs(image)
        names = self.preprocessing.class_names
        if logits.shape != (len(names),):
            raise UserError(f"{self.file}: gives {logits.size} outputs, where {PREPROCESSING_FILE} names {len(names)}")
        return self.preprocessing.probabilities(logits)


def locate(model: str | None, outputs: str, runtime: str | None = None, key: str = "--model") -> Path:
    """The file or folder of a model: a path, or None for the int8 model exported last; for `runtime`, where given.

    Args:
        key: what names the model, in an error's line.

    Raises:
        UserError: when it is not there.
    """
    if model is not None:
        path = Path(os.path.expanduser(model))
        if not path.exists():
            raise UserError(f"{key} {model}: no such file or folder; allowed: models:/NAME@ALIAS, {_files(runtime)}")
        return path
    artifacts = resolved(outputs) / "artifacts"
    exports = [path for path in artifacts.glob("export-*/int8") if not path.parent.name.endswith(".partial")]
    for export in sorted(exports, key=lambda path: path.stat().st_mtime, reverse=True):
        found = _first((export / one.name for one in _those(runtime)), runtime)
        if found is not None:
            return found[1]
    raise UserError(f"no exported int8 model in {artifacts}; a run with stage export makes one; allowed too: {key}")


def load(path: Path, threads: int = 1, runtime: str | None = None, key: str = "--model") -> ExportedModel:
    """Load the model in a file or in a folder, with the preprocessing beside it.

    Args:
        runtime: which one runs it, as `runtime.names` has it; None: that of this project whose file is there.
        key: what names the model, in an error's line.

    Raises:
        UserError: when either is missing or cannot be read, or the runtime is not installed.
    """
    chosen, folder = _find(path, runtime, key)
    check_runtimes([runtime or chosen.name], only_to_load=True)
    beside = _beside(folder)
    if not beside.exists():
        raise UserError(
            f"{beside}: it is not there, and without it images cannot be prepared: it was removed, or "
            f"{OWN_PREPROCESSING}: then give {chosen.file} tensors of your own (docs/own-network.md)"
        )
    preprocessing = Preprocessing.read(beside)
    with _readable(chosen, folder):
        predictor = chosen.load(folder, threads)
    return ExportedModel(folder / chosen.file, preprocessing, predictor)


@dataclass(frozen=True)
class InspectedModel:
    """What is known of an exported file; `preprocessing`: None where none lies beside it."""

    runtime: str
    file: Path
    bytes: int
    preprocessing: Preprocessing | None
    contents: Contents


def inspect(path: Path, runtime: str | None = None, key: str = "MODEL") -> InspectedModel:
    """Look into the model in a file or in a folder; the arguments are those of `load`.

    Raises:
        UserError: when it is not there or cannot be read, or the runtime is not installed or tells nothing.
    """
    chosen, folder = _find(path, runtime, key)
    check_runtimes([runtime or chosen.name])
    if chosen.inspect is None:
        raise UserError(f"{key} {path}: {chosen.name} does not tell what is in its files (it has no `inspect`)")
    beside = _beside(folder)
    preprocessing = Preprocessing.read(beside) if beside.exists() else None
    with _readable(chosen, folder):
        contents = chosen.inspect(folder, None if preprocessing is None else preprocessing.example())
    size = sum(one.stat().st_size for one in folder.glob(f"{Path(chosen.file).stem}.*"))
    return InspectedModel(chosen.name, folder / chosen.file, size, preprocessing, contents)


def _find(path: Path, runtime: str | None, key: str) -> tuple[Runtime, Path]:
    """The runtime of the model in a file or folder, and the folder of its file."""
    places, file = ([path / place for place in _PLACES], None) if path.is_dir() else ([path.parent], path.name)
    found = _first(places, runtime, file)
    if found is None:
        why = "no exported model" if file is None else "no exported model, by its name"
        raise UserError(f"{key} {path}: {why}; allowed: models:/NAME@ALIAS, {_files(runtime)}")
    return found


def _beside(folder: Path) -> Path:
    """The preprocessing that goes with the file in a folder."""
    kept_by_mlflow = folder / "extra_files" / PREPROCESSING_FILE
    return kept_by_mlflow if kept_by_mlflow.is_file() else folder / PREPROCESSING_FILE


@contextmanager
def _readable(runtime: Runtime, folder: Path) -> Iterator[None]:
    """Say in one line whatever a runtime raises on a damaged file."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder / runtime.file}: {runtime.name} cannot load it: {reason}") from error


def _those(runtime: str | None) -> list[Runtime]:
    return list(registry().values()) if runtime is None else [find(runtime, "--runtime")]


def _first(folders: Iterable[Path], runtime: str | None = None, file: str | None = None) -> tuple[Runtime, Path] | None:
    """The first runtime whose file is in one of the folders, and the folder; with `file`, only that of this name."""
    places = list(folders)
    for one in _those(runtime):
        for folder in places:
            if (folder / one.file).is_file() and file in (None, one.file):
                return one, folder
    return None


def _files(runtime: str | None) -> str:
    *names, last = (one.file for one in _those(runtime))
    return f"a folder with {', '.join(names)}{' or ' if names else ''}{last}, or the path of one"
