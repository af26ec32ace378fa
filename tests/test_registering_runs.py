"""What a run does with its exported int8 model after its stages: log it, register it, or refuse before any work."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import mlflow
import pytest
import torch

from pipeline.datasets.preprocessing import PREPROCESSING_FILE
from pipeline.host.errors import UserError
from pipeline.measure import measurement
from pipeline.run.registration import check_registration, keep_model
from pipeline.run.request import Request
from pipeline.run.runner import run
from pipeline.settings.config import TrackingConfig
from pipeline.tracking import RunRecord, Tracker, open_run
from tests.onnx_models import write_brightness_model

pytest.importorskip("onnxruntime")

STAGES = "stages=[train,fuse,qat,convert,evaluate,export]"
METRICS = {
    "fp32/accuracy_pct": 99.0,
    "int8/accuracy_pct": 99.0,
    "val/int8_accuracy_pct": 98.5,
    "val/accuracy_drop_pct": 0.2,
    "val/largest_class_pct": 11.0,
    "int8/latency_ms": 5.0,
    "onnxruntime/int8/parity": 1.0,
    "onnxruntime/int8/accuracy_pct": 98.9,
    "onnxruntime/int8/latency_ms": 1.5,
    "torchscript/int8/parity": 1.0,
    "torchscript/int8/accuracy_pct": 98.8,
}


class Brightness(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.stack([images[..., :4].mean((1, 2, 3)), images[..., 4:].mean((1, 2, 3))], dim=1)


@pytest.fixture
def exports(tmp_path: Path) -> Path:
    """What the stage export leaves, of a model without weights."""
    folder = tmp_path / "export-0123"
    onnx = write_brightness_model(folder / "int8" / "onnxruntime")
    torchscript = folder / "int8" / "torchscript"
    torchscript.mkdir()
    torch.jit.script(Brightness()).save(str(torchscript / "model.torchscript.pt"))
    (torchscript / PREPROCESSING_FILE).write_bytes((onnx / PREPROCESSING_FILE).read_bytes())
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The outputs of every test here, each of which registers under a name of its own."""
    return tmp_path_factory.mktemp("registering") / "outputs"


@pytest.fixture
def tracker(store: Path) -> Iterator[Tracker]:
    with open_run(TrackingConfig(), store, RunRecord("test", {}, {}, "", ("digits", "0", "nowhere"))) as opened:
        yield opened


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


Keep = Callable[..., Mapping[str, str] | None]


@pytest.fixture
def keep(tracker: Tracker, exports: Path, store: Path, small_request: Callable[..., Request]) -> Keep:
    """Keep the model of a run with these metrics; gives the flavours of what was logged."""

    def once(*overrides: str, **metrics: float) -> Mapping[str, str] | None:
        changed = {name.replace("__", "/"): value for name, value in metrics.items()}
        keep_model(small_request(STAGES, f"outputs={store}", *overrides).config, exports, METRICS | changed, tracker)
        active = mlflow.active_run()
        assert active is not None
        logged = mlflow.get_run(active.info.run_id).outputs
        if logged is None or not logged.model_outputs:
            return None
        return mlflow.models.get_model_info(f"models:/{logged.model_outputs[-1].model_id}").flavors

    return once


def champion(name: str) -> Mapping[str, str]:
    """The tags of the champion's version."""
    return mlflow.MlflowClient().get_model_version_by_alias(name, "champion").tags


def registered(name: str) -> bool:
    return bool(mlflow.MlflowClient().search_registered_models(f"name='{name}'"))


def test_model_is_logged_as_onnx_and_not_registered_when_no_name_is_given(keep: Keep, name: str) -> None:
    flavours = keep()
    assert flavours is not None
    assert "onnx" in flavours
    assert not registered(name)


def test_model_is_registered_with_what_the_rule_reads_when_a_name_is_given(
    keep: Keep, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    keep(f"register.name={name}")
    tags = champion(name)
    assert float(tags["accuracy_drop_pct"]) == pytest.approx(0.2)
    assert tags["latency_ms"] == "1.5"
    assert tags["conditions"].startswith("exported, 1 thread, ")
    assert f"registered {name} version 1, champion: there is no champion yet" in capsys.readouterr().out


def test_latency_of_the_benchmark_is_that_of_one_thread_when_evaluate_takes_more(keep: Keep, name: str) -> None:
    keep(f"register.name={name}", "evaluate.threads=2")
    assert champion(name)["conditions"].startswith("exported, 1 thread, ")


def test_torchscript_is_logged_when_onnx_fails_parity(keep: Keep, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    with measurement.threads(threads + 1):
        flavours = keep(f"register.name={name}", onnxruntime__int8__parity=0.0)
        assert torch.get_num_threads() == threads + 1  # the jobs that follow in a sweep keep theirs
    assert capfd.readouterr().err == ""
    assert flavours is not None
    assert "onnx" not in flavours
    tags = champion(name)
    assert tags["runtime"] == "torchscript"
    assert float(tags["accuracy_drop_pct"]) == pytest.approx(0.2)
    # It was not measured: the latency is that of the eager model, which is not compared with exported ones.
    assert tags["latency_ms"] == "5.0"
    assert tags["conditions"].startswith("eager, 1 thread, ")


def test_nothing_is_logged_when_nothing_has_parity(keep: Keep, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert keep(f"register.name={name}", onnxruntime__int8__parity=0.0, torchscript__int8__parity=0.0) is None
    assert not registered(name)
    assert "nothing is registered: no exported model has parity" in capsys.readouterr().err


def test_nothing_is_champion_when_it_loses_too_much_on_validation_however_good_it_is_on_test(
    keep: Keep, name: str
) -> None:
    keep(f"register.name={name}", val__accuracy_drop_pct=0.6, accuracy_drop_pct=-1.0)
    client = mlflow.MlflowClient()
    assert client.get_registered_model(name).aliases == {}
    keep(f"register.name={name}", "register.max_drop_pct=0.6", val__accuracy_drop_pct=0.6, accuracy_drop_pct=-1.0)
    assert float(champion(name)["accuracy_drop_pct"]) == pytest.approx(0.6)


def test_cached_repeat_is_logged_and_registered_when_a_name_is_given(
    finished_outputs: Path, small_request: Callable[..., Request], outputs: Path
) -> None:
    shutil.copytree(finished_outputs / "artifacts", outputs / "artifacts")
    asked = (STAGES, "runtime.names=[torchscript]", "export.min_agreement=0")
    before = run(small_request(*asked))
    again = run(small_request(*asked, "register.name=again"))
    (version,) = mlflow.MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}").search_model_versions("name='again'")
    assert before.run_id != again.run_id == version.run_id


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["register.name=a/b", STAGES], "allowed: a name of letters, digits"),
        (['register.name="it\'s"', STAGES], "allowed: a name of letters, digits"),
        (["register.name=' '", STAGES], "allowed: a name of letters, digits"),
        (["register.name=digits", STAGES, "tracking=off"], "with tracking.enabled=true"),
        (["register.name=digits"], "allowed: with export among stages=[train,fuse,qat,convert,evaluate]"),
        (["register.name=digits", "stages=[export]"], "allowed: with evaluate among stages=[export]"),
        (["register.name=digits", STAGES, "runtime.names=[eager,openvino]"], "onnxruntime or torchscript among them"),
    ],
)
def test_name_is_refused_before_any_work_when_nothing_could_be_registered(
    small_request: Callable[..., Request], overrides: list[str], words: str
) -> None:
    with pytest.raises(UserError) as refused:
        check_registration(small_request(*overrides).config)
    assert words in str(refused.value)
    assert str(refused.value).startswith("register.name=")
