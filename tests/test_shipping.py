"""From a run to a prediction: the real pipeline exports, logs and registers, `predict` takes the champion."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from pipeline import predict
from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.datasets.arrays import Arrays
from pipeline.host.errors import UserError
from pipeline.run.request import Request
from pipeline.run.runner import check_parts, run
from pipeline.settings.config import Config
from tests.conftest import SMALL, TRAINED

pytest.importorskip("onnxruntime")

SHIPPING = ["stages=[train,fuse,qat,convert,evaluate,export]", "runtime.names=[onnxruntime]", "register.name=digits"]
# So small a training need not reach what a champion must; whether it does is another test's affair.
ANY_DROP = "register.max_drop_pct=100"


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> Request:
    """A run that registers, finished."""
    outputs = tmp_path_factory.mktemp("shipping") / "outputs"
    request = compose_request([*SMALL, *TRAINED, *SHIPPING, ANY_DROP, f"outputs={outputs}"])
    run(request)
    return request


def client(config: Config) -> mlflow.MlflowClient:
    return mlflow.MlflowClient(f"sqlite:///{config.outputs}/mlflow.db")


def test_champion_predicts_the_classes_that_the_run_predicted_when_its_test_images_are_files(
    request_: Request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = request_.config
    test = catalogue.load_test(config.dataset)
    names = []
    assert isinstance(test.pixels, Arrays)
    for index, pixels in enumerate(test.pixels.images.numpy()):  # of 8 px, as they were read
        names.append(str(tmp_path / f"{index}.png"))
        Image.fromarray(pixels[0]).save(names[-1])
    champion = ["--outputs", config.outputs, "--model", "models:/digits@champion"]
    monkeypatch.setattr(sys, "argv", ["predict", *champion, "--top", "1", *names])
    predict.main()
    predicted = [int(line.split()[-1]) for line in capsys.readouterr().out.splitlines()[1::2]]
    (evaluated,) = Path(config.outputs).glob("artifacts/evaluate-*/predictions.npz")
    assert predicted == np.load(evaluated)["int8"].tolist()


def test_version_stays_the_same_when_the_cached_run_is_repeated(
    request_: Request, capsys: pytest.CaptureFixture[str]
) -> None:
    run(request_)
    assert "registered digits version 1, champion: as before" in capsys.readouterr().out
    assert [version.version for version in client(request_.config).search_model_versions("name='digits'")] == [1]


def test_run_has_its_model_with_it(request_: Request) -> None:
    store = client(request_.config)
    version = store.get_model_version_by_alias("digits", "champion")
    assert version.run_id is not None
    finished = store.get_run(version.run_id)
    assert finished.info.status == "FINISHED"
    (output,) = finished.outputs.model_outputs
    assert version.source == f"models:/{output.model_id}"
    drop = finished.data.metrics["val/fp32_accuracy_pct"] - finished.data.metrics["val/int8_accuracy_pct"]
    assert float(version.tags["accuracy_drop_pct"]) == pytest.approx(drop)


def test_champion_stays_when_a_later_run_fails(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.training import loop as training

    def burst(*arguments: object, **settings: object) -> None:
        raise RuntimeError("the disk is full")

    with monkeypatch.context() as broken:
        broken.setattr(training, "fit", burst)
        with pytest.raises(RuntimeError, match="the disk is full"):
            run(compose_request([*request_.overrides, "seed=1"]))
    assert client(request_.config).get_model_version_by_alias("digits", "champion").version == 1


def test_name_is_refused_before_any_work_when_nothing_could_be_registered(
    small_request: Callable[..., Request],
) -> None:
    with pytest.raises(UserError, match=r"register\.name=digits: allowed: with export among stages"):
        check_parts(small_request("register.name=digits").config)
