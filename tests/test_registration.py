"""The int8 model in MLflow: logged, registered, made champion, found again. A real store, small models."""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pytest

from pipeline.host.errors import UserError
from pipeline.runtimes import registry
from pipeline.runtimes.exported import load
from pipeline.settings.config import RegisterConfig, TrackingConfig
from pipeline.tracking import RunRecord, open_run
from pipeline.tracking.models import ModelRecord, Registration, log_model, register
from pipeline.tracking.registry import find_registered
from tests.onnx_models import write_brightness_model
from tests.test_champion import PRESENT

pytest.importorskip("onnxruntime")

Register = Callable[..., Registration]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One store for every test here, each of which registers under a name of its own."""
    return tmp_path_factory.mktemp("registration") / "outputs"


@pytest.fixture(scope="module")
def run(outputs: Path) -> Iterator[None]:
    record = RunRecord("test", {}, {}, "", ("digits", "0", "nowhere"))
    with open_run(TrackingConfig(), outputs, record) as tracker, mlflow.start_run(run_id=tracker.run_id):
        yield


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelRecord:
    folder = write_brightness_model(tmp_path_factory.mktemp("model"))
    return ModelRecord("onnxruntime", folder / "model.onnx", 1, "fbgemm")


@pytest.fixture(scope="module")
def logged(run: None, model: ModelRecord) -> str:
    return log_model(model)


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


@pytest.fixture
def registering(logged: str, outputs: Path, model: ModelRecord, name: str, tmp_path: Path) -> Register:
    """Register one logged model again and again, as a new file each time, with other measurements."""
    numbers = itertools.count(1)

    def once(same_file: bool = False, max_drop_pct: float = 0.5, **measured: Any) -> Registration:
        other = tmp_path / "model.onnx"
        other.write_bytes(model.file.read_bytes() + bytes(next(numbers)))
        record = model if same_file else replace(model, file=other)
        return register(RegisterConfig(name, max_drop_pct), outputs, record, logged, replace(PRESENT, **measured))

    return once


def champion(name: str) -> int | None:
    aliases = mlflow.MlflowClient().get_registered_model(name).aliases
    return int(aliases["champion"]) if aliases else None


def test_champion_is_the_first_that_qualifies_when_the_registry_is_empty(registering: Register, name: str) -> None:
    assert not registering(drop=0.6).verdict.wins
    assert champion(name) is None
    assert not registering(parity=False).verdict.wins
    assert champion(name) is None
    assert registering(latency_ms=9.0).verdict.wins
    assert champion(name) == 3


def test_champion_changes_hands_when_a_version_is_faster_and_stays_when_it_ties(
    registering: Register, name: str
) -> None:
    registering()
    assert not registering(drop=0.0).verdict.wins  # a tie
    assert champion(name) == 1
    assert not registering(latency_ms=2.5).verdict.wins
    assert not registering(latency_ms=1.0, parity=False).verdict.wins
    assert champion(name) == 1
    assert registering(latency_ms=1.5).verdict.wins
    assert champion(name) == 5
    tags = mlflow.MlflowClient().get_model_version(name, "2").tags
    assert tags["verdict"] == "it takes 2.000 ms, the champion 2.000 ms"
    assert tags["latency_ms"] == "2.0"


def test_champion_stays_when_registering_the_next_version_fails(
    registering: Register, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    registering()

    def full(*arguments: object, **settings: object) -> None:
        raise OSError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(mlflow.MlflowClient, "create_model_version", full)
        with pytest.raises(OSError, match="the disk is full"):
            registering(latency_ms=1.0)
    assert champion(name) == 1
    with monkeypatch.context() as broken:
        broken.setattr(mlflow.MlflowClient, "set_model_version_tag", full)
        with pytest.raises(OSError, match="the disk is full"):
            registering(latency_ms=1.0)
    assert champion(name) == 1
    assert registering(latency_ms=1.0).verdict.wins  # and the lock is free again


def test_version_is_kept_when_the_same_file_is_registered_again(registering: Register, name: str) -> None:
    first = registering(same_file=True)
    again = registering(same_file=True)
    assert (first.version, again.version) == (1, 1)
    assert first.verdict.wins
    assert again.verdict.reason == "as before"
    assert mlflow.MlflowClient().get_model_version(name, "1").tags["verdict"] == "there is no champion yet"
    assert champion(name) == 1


def test_champion_keeps_what_it_won_with_when_its_file_is_measured_otherwise(registering: Register, name: str) -> None:
    assert registering(same_file=True, latency_ms=2.0).verdict.wins
    registering(same_file=True, latency_ms=5.0, conditions="eager")
    assert registering(latency_ms=1.0).verdict.wins  # a contender measured as the champion was


def test_first_that_qualifies_is_champion_when_the_champion_was_deleted(registering: Register, name: str) -> None:
    registering()
    mlflow.MlflowClient().delete_model_version(name, "1")
    assert registering(latency_ms=9.0).verdict.wins
    assert champion(name) == 2


def test_champion_stays_when_it_was_registered_by_other_means(registering: Register, name: str) -> None:
    registering(drop=0.6)
    client = mlflow.MlflowClient()
    source = client.get_model_version(name, "1").source
    client.create_model_version(name, source)
    client.set_registered_model_alias(name, "champion", "2")
    done = registering(latency_ms=0.1)
    assert not done.verdict.wins
    assert "version 2, says nothing" in done.verdict.reason
    assert champion(name) == 2


def test_logged_model_has_signature_example_and_preprocessing(logged: str) -> None:
    info = mlflow.models.get_model_info(logged)
    assert info.signature.inputs.to_dict()[0]["tensor-spec"] == {"dtype": "float32", "shape": (-1, 1, 8, 8)}
    assert info.signature.outputs.to_dict()[0]["tensor-spec"] == {"dtype": "float32", "shape": (-1, 2)}
    assert info.saved_input_example_info["type"] == "ndarray"
    assert info.metadata["preprocessing"]["class_names"] == ["left", "right"]
    active = mlflow.active_run()
    assert active is not None
    (output,) = mlflow.get_run(active.info.run_id).outputs.model_outputs
    assert output.model_id == info.model_id


@pytest.mark.parametrize("channels", [1, 3])
def test_logged_model_says_that_it_takes_pictures_when_its_file_does(channels: int, run: None, tmp_path: Path) -> None:
    folder = write_brightness_model(tmp_path / "model", 8, channels, takes_pictures=True)
    uri = log_model(ModelRecord("onnxruntime", folder / "model.onnx", 1, "fbgemm"))
    info = mlflow.models.get_model_info(uri)
    assert info.signature.inputs.to_dict()[0]["tensor-spec"] == {"dtype": "uint8", "shape": (-1, 8, 8, channels)}
    assert (info.metadata["preprocessing"]["layout"], info.metadata["preprocessing"]["dtype"]) == ("NHWC", "uint8")
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, channels), np.uint8)
    (answer,) = mlflow.pyfunc.load_model(uri).predict(pictures).values()
    assert np.array_equal(answer, registry()["onnxruntime"].load(folder, 1)(pictures))


def test_logged_file_is_the_exported_one_to_its_outputs_when_found_by_its_alias(
    registering: Register, name: str, outputs: Path, model: ModelRecord
) -> None:
    registering(same_file=True)
    folder = find_registered(f"models:/{name}@champion", TrackingConfig(), outputs)
    assert find_registered(f"models:/{name}/1", TrackingConfig(), outputs) == folder
    assert json.loads((folder / "extra_files" / "preprocessing.json").read_text())["class_names"] == ["left", "right"]
    images = np.random.default_rng(0).normal(size=(5, 1, 8, 8)).astype(np.float32)
    exported = registry()["onnxruntime"].load(model.file.parent, 1)(images)
    assert np.array_equal(load(folder).predictor(images), exported)


def test_model_is_refused_in_one_line_when_the_registry_does_not_have_it(
    registering: Register, name: str, outputs: Path
) -> None:
    registering(parity=False)

    def refusal(uri: str, where: Path = outputs) -> str:
        with pytest.raises(UserError) as refused:
            find_registered(uri, TrackingConfig(), where)
        assert "\n" not in str(refused.value)
        return str(refused.value)

    assert f"{name} has no @champion; allowed: /1" in refusal(f"models:/{name}@champion")
    assert f"no model '{name}t' is registered" in refusal(f"models:/{name}t/1")
    assert f"did you mean '{name}'?" in refusal(f"models:/{name}t/1")
    assert f"{name} has no /2" in refusal(f"models:/{name}/2")
    assert "allowed: models:/NAME@ALIAS" in refusal(f"models:/{name}")
    assert "there is no such database" in refusal(f"models:/{name}/1", outputs / "nowhere")
    mlflow.MlflowClient().delete_model_version(name, "1")
    assert f"{name} has no /1" in refusal(f"models:/{name}/1")


def test_model_is_found_when_the_registry_has_more_than_one_answer_holds(
    registering: Register, name: str, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registering(same_file=True)
    mlflow.MlflowClient().create_registered_model(f"A {name}")
    search = functools.partialmethod(mlflow.MlflowClient.search_registered_models, max_results=1)
    monkeypatch.setattr(mlflow.MlflowClient, "search_registered_models", search)
    assert find_registered(f"models:/{name}/1", TrackingConfig(), outputs).is_dir()
