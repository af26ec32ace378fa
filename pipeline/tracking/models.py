"""The int8 model in MLflow: logged so that it loads without this project, and registered by the champion's rule.

An ONNX file goes through MLflow's own onnx flavour: it is data, and onnxruntime alone runs it. A TorchScript file
goes through pyfunc "models from code" (`torchscript_model.py` is copied beside it) instead of mlflow.pytorch, whose
default format cannot take a converted model and whose pickle executes what it holds when it is loaded. One that answers
to pictures is an ONNX file with the code that reads them (`picture_model.py`, and what that imports).
"""

from __future__ import annotations

import base64
import dataclasses
import importlib.metadata
import io
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from pipeline.datasets.preprocessing import PREPROCESSING_FILE, Preprocessing
from pipeline.host.files import sha256
from pipeline.settings.config import RegisterConfig
from pipeline.tracking.champion import Contender, Verdict, judge

ALIAS = "champion"
_NAME = "int8"  # of the model within its run
_DIGEST, _INPUT = "sha256", "input"
# What `picture_model.py` needs of this project: Pillow and numpy are enough for it.
_FOR_PICTURES = (
    *("__init__.py", "host/__init__.py", "host/errors.py"),
    *("datasets/__init__.py", "datasets/pictures.py", "datasets/preprocessing.py"),
)


@dataclass(frozen=True)
class ModelRecord:
    """An exported model to keep with its run.

    Attributes:
        runtime: which runtime runs it: onnxruntime or torchscript.
        file: the runtime's file; `preprocessing.json` lies beside it.
        threads: how many it was measured with, and is served with.
        engine: torch's quantized engine that it was converted for.
        input: what it takes in MLflow: `array`, as the file does, or `picture`; of onnxruntime's alone.
    """

    runtime: str
    file: Path
    threads: int
    engine: str
    input: str = "array"

    @property
    def tags(self) -> dict[str, str]:
        """What it is known by: the same of the same model."""
        return {"runtime": self.runtime, _DIGEST: sha256(self.file), _INPUT: self.input}


@dataclass(frozen=True)
class Registration:
    """The version of a registered model that a file has, and whether it is the champion now."""

    version: int
    verdict: Verdict


def keep_with_run(client: Any, run_id: str, content: Mapping[str, Any]) -> str:
    """Log a model to a run, once for each file, and register it where that is asked for; gives what came of it.

    Args:
        content: `path`, `runtime`, `threads`, `engine`, `input` as in `ModelRecord`; `register` and `candidate`, the
            fields of `RegisterConfig` and `Contender`, or None; `outputs`, the folder of the runs.
    """
    import mlflow

    record = ModelRecord(
        content["runtime"],
        Path(content["path"]),
        content["threads"],
        content["engine"],
        content.get("input", "array"),  # earlier ones that wait to be delivered lack it
    )
    before = client.get_run(run_id).info
    try:
        with mlflow.start_run(run_id=run_id):
            uri = _logged_before(client, run_id, record) or log_model(record)
            if content["register"] is None:
                return ""
            config, candidate = RegisterConfig(**content["register"]), Contender.read(content["candidate"])
            done = register(config, Path(content["outputs"]), record, uri, candidate)
    finally:  # MLflow takes a run that logs a model for one that begins, and then ends
        if before.status != "RUNNING":
            client.set_terminated(run_id, before.status, before.end_time)
    role = "champion" if done.verdict.wins else "not champion"
    return f"registered {config.name} version {done.version}, {role}: {done.verdict.reason}"


def _logged_before(client: Any, run_id: str, record: ModelRecord) -> str | None:
    """The URI of the model that the run has of this very file, or None."""
    outputs = client.get_run(run_id).outputs
    for output in outputs.model_outputs if outputs is not None else []:
        model = client.get_logged_model(output.model_id)
        if str(model.status) == "READY" and _is_of(record, model.tags):
            return str(model.model_uri)
    return None


def _is_of(record: ModelRecord, tags: Mapping[str, str]) -> bool:
    """Whether a model with these tags is of this file, and takes the same; earlier ones lack what they take."""
    return (tags.get(_DIGEST), tags.get(_INPUT, "array")) == (record.tags[_DIGEST], record.input)


def log_model(record: ModelRecord) -> str:
    """Log a model to the active run, with signature, input example and preprocessing; gives its URI."""
    preprocessing = Preprocessing.read(record.file.parent / PREPROCESSING_FILE)
    signature, example = (_of_pictures if record.input == "picture" else _of_arrays)(preprocessing)
    common = {
        "name": _NAME,
        "signature": signature,
        "input_example": example,
        "tags": record.tags,
        "metadata": {"preprocessing": dataclasses.asdict(preprocessing), "runtime": record.runtime},
    }
    if record.input == "picture":
        return str(_log_pictures(record, common).model_uri)
    log = {"onnxruntime": _log_onnx, "torchscript": _log_torchscript}[record.runtime]
    return str(log(record, common).model_uri)


def _of_arrays(preprocessing: Preprocessing) -> tuple[Any, np.ndarray]:
    """Signature and input example of a model that takes what its file does."""
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    # Of zeros, whose JSON stays small: the mean colour, or black.
    example = np.zeros_like(preprocessing.example())
    # Of a model without classes nobody has said how many outputs it has.
    classes = len(preprocessing.class_names) or -1
    inputs = Schema([TensorSpec(example.dtype, (-1, *example.shape[1:]))])
    return ModelSignature(inputs, Schema([TensorSpec(np.dtype(np.float32), (-1, classes))])), example


def _of_pictures(preprocessing: Preprocessing) -> tuple[Any, dict[str, list[str]]]:
    """Signature and input example of a model that takes files of pictures, in base64."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec
    from PIL import Image

    black = io.BytesIO()
    Image.new("L", (preprocessing.image_size, preprocessing.image_size)).save(black, "PNG")
    example = {"image": [base64.b64encode(black.getvalue()).decode()]}
    names: list[Any] = [ColSpec("double", name) for name in preprocessing.class_names]
    outputs = Schema(names or [TensorSpec(np.dtype(np.float32), (-1, -1))])
    return ModelSignature(Schema([ColSpec("string", "image")]), outputs), example


def _log_onnx(record: ModelRecord, common: Mapping[str, Any]) -> Any:
    import mlflow.onnx
    import onnx

    return mlflow.onnx.log_model(
        onnx.load(record.file),
        **common,
        save_as_external_data=False,  # one file, as it was exported
        extra_files=[str(record.file.parent / PREPROCESSING_FILE)],
        onnx_execution_providers=["CPUExecutionProvider"],
        onnx_session_options={"intra_op_num_threads": record.threads},
        pip_requirements=_pinned("onnxruntime", "numpy"),
    )


def _log_torchscript(record: ModelRecord, common: Mapping[str, Any]) -> Any:
    import mlflow.pyfunc

    from pipeline.measure.measurement import threads

    # MLflow tries the model with the input example, here, and the model sets the number of threads.
    with threads(record.threads):
        return mlflow.pyfunc.log_model(
            **common,
            python_model=str(Path(__file__).with_name("torchscript_model.py")),
            artifacts={"model": str(record.file), "preprocessing": str(record.file.parent / PREPROCESSING_FILE)},
            model_config={"engine": record.engine, "threads": record.threads},
            pip_requirements=_pinned("torch", "numpy"),
        )


def _log_pictures(record: ModelRecord, common: Mapping[str, Any]) -> Any:
    import mlflow.pyfunc

    rooms = Path(__file__).parent.parent
    with tempfile.TemporaryDirectory() as made:
        code = Path(made) / rooms.name
        for name in _FOR_PICTURES:
            (code / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(rooms / name, code / name)
        return mlflow.pyfunc.log_model(
            **common,
            python_model=str(Path(__file__).with_name("picture_model.py")),
            code_paths=[str(code)],
            artifacts={"model": str(record.file), "preprocessing": str(record.file.parent / PREPROCESSING_FILE)},
            model_config={"threads": record.threads},
            pip_requirements=_pinned("onnxruntime", "numpy", "pillow"),
        )


def _pinned(*names: str) -> list[str]:
    """The installed version of each, without a local part (+cpu), which no registry has."""
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in names]


def register(
    config: RegisterConfig, outputs: Path, record: ModelRecord, model_uri: str, candidate: Contender
) -> Registration:
    """Register a logged model under `register.name`, and make it the champion if the rule says so.

    A file that is registered already keeps its version, whose measurements become the new ones; those of the champion
    only if they were taken as its own. The alias is set last: whatever fails before leaves the champion that was.
    """
    import mlflow

    client, name = mlflow.MlflowClient(), config.name
    assert name is not None
    tags = candidate.tags() | record.tags
    outputs.mkdir(parents=True, exist_ok=True)
    # Two jobs of a sweep may come at once; each has to see the champion that the other made.
    with FileLock(outputs / ".register.lock"):
        known = client.search_registered_models(f"name='{name}'")
        champion = (known[0] if known else client.create_registered_model(name)).aliases.get(ALIAS)
        versions = {int(found.version): found for found in client.search_model_versions(f"name='{name}'")}
        same = [number for number, found in versions.items() if _is_of(record, found.tags)]
        if same:
            version = max(same)
        else:
            model = client.get_logged_model(model_uri.removeprefix("models:/"))
            made = client.create_model_version(name, model_uri, model.source_run_id, tags, model_id=model.model_id)
            version = int(made.version)
        is_champion = champion is not None and int(champion) == version
        # Contenders are held against what the champion won with: an eager latency would shut out all that benchmark
        # has measured.
        if same and not (is_champion and versions[version].tags.get("conditions") != tags["conditions"]):
            for key, value in tags.items():
                client.set_model_version_tag(name, str(version), key, value)
        if is_champion:
            return Registration(version, Verdict(True, "as before"))
        verdict = _judge(candidate, versions, champion, config.max_drop_pct)
        client.set_model_version_tag(name, str(version), "verdict", verdict.reason)
        if verdict.wins:
            client.set_registered_model_alias(name, ALIAS, str(version))
    return Registration(version, verdict)


def _judge(candidate: Contender, versions: Mapping[int, Any], champion: Any, max_drop_pct: float) -> Verdict:
    if champion is None or int(champion) not in versions:  # none yet, or its version was deleted
        return judge(candidate, None, max_drop_pct)
    present = Contender.of_tags(versions[int(champion)].tags)
    if present is None:
        return Verdict(False, f"the champion, version {champion}, says nothing of its worth and latency")
    return judge(candidate, present, max_drop_pct)
