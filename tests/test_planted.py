"""A task, a flow and a runtime of the user's own, chosen by import path: whole runs, with nothing else touched."""

from __future__ import annotations

import importlib.metadata
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch
from PIL import Image
from sklearn.datasets import load_digits

from pipeline import runtimes
from pipeline.commands.composition import check_command_line, compose_request
from pipeline.datasets.spec import Part
from pipeline.host.errors import UserError
from pipeline.reports.comparison import write_comparison
from pipeline.reports.comparison.table import compare
from pipeline.reports.comparison.text import text_table
from pipeline.run.request import Request
from pipeline.run.runner import Outcome, check_parts, run
from pipeline.settings.config import TrackingConfig
from pipeline.stages import evaluate
from pipeline.tracking.reading import read_runs
from tests import forked
from tests.conftest import SMALL

TASK = "task=tests.planted.task:TASK"
FLOW = "backend.flow=tests.planted.flow:FLOW"
RUNTIME = "runtime.names=[eager,torchscript,tests.planted.runtime:RUNTIME]"
QUICK = [
    *("dataset.image_size=16", "dataset.max_train_samples=120", "train.epochs=2", "train.batch_size=20"),
    *("sensitivity.samples=10", "ptq.calibration_samples=20", "export.min_agreement=90"),
    *(
        f"benchmark.{given}"
        for given in ("max_seconds=1", "min_repeats=2", "passes=2", "batch_sizes=[1]", "memory=false")
    ),
]
EVERYTHING = "stages=[train,finetune,fuse,qat,convert,ptq,sensitivity,evaluate,export,benchmark]"


def walk(outputs: Path, *overrides: str) -> Outcome:
    return run(compose_request([*SMALL, *QUICK, f"outputs={outputs}", *overrides]))


def folder_of(outputs: Path, stage: str) -> Path:
    (folder,) = (outputs / "artifacts").glob(f"{stage}-*[!l]")
    return folder


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, float]]:
    """The outputs and the metrics of a whole run of the planted task, on the planted runtime too. Read them alone."""
    outputs = tmp_path_factory.mktemp("regression") / "outputs"
    return outputs, walk(outputs, TASK, RUNTIME, EVERYTHING, "qat.init=ptq", "qat.distill_weight=0.5").metrics


def test_task_of_ones_own_is_judged_by_its_metric_from_training_to_the_benchmark(
    regression: tuple[Path, dict[str, float]],
) -> None:
    outputs, metrics = regression
    with np.load(folder_of(outputs, "evaluate") / "predictions.npz") as kept:
        decided = {name: kept[name] for name in kept}
    assert decided["int8"].dtype == np.float32
    errors = {form: np.abs(decided[form] - decided["labels"]).astype(np.float64) for form in ("fp32", "int8")}
    for form, of_form in errors.items():
        assert metrics[f"{form}/absolute_error"] == pytest.approx(of_form.mean(), abs=1e-6)
        interval = scipy.stats.t.interval(0.95, 59, of_form.mean(), scipy.stats.sem(of_form))
        ends = [metrics[f"{form}/absolute_error_ci_{end}"] for end in ("low", "high")]
        assert ends == pytest.approx(interval, abs=1e-6)
    apart = errors["int8"] - errors["fp32"]
    assert metrics["absolute_error_drop"] == pytest.approx(apart.mean(), abs=1e-6)
    assert (
        metrics["absolute_error_drop_ci_low"] < metrics["absolute_error_drop"] < metrics["absolute_error_drop_ci_high"]
    )
    assert metrics["int8_vs_fp32/won_images"] == (apart < 0).sum()
    assert metrics["int8_vs_fp32/lost_images"] == (apart > 0).sum()
    flipped = np.random.default_rng(1).choice([-1, 1], (20_000, len(apart))) @ apart
    assert metrics["sign_flip_p"] == pytest.approx((np.abs(flipped) >= abs(apart.sum())).mean(), abs=0.02)
    assert metrics["qat/kept_val_int8_absolute_error"] <= metrics["qat/start_val_int8_absolute_error"]
    assert metrics["torchscript/int8/absolute_error"] == pytest.approx(metrics["int8/absolute_error"], abs=1e-5)
    assert metrics["traced/int8/parity"] == 1
    assert metrics["traced/int8/latency_ms"] > 0
    told = [name for name in metrics if "accuracy" in name or "mcnemar" in name or "class" in name]
    assert told == []


def test_epoch_with_the_lowest_error_is_kept_when_lower_is_better(regression: tuple[Path, dict[str, float]]) -> None:
    outputs, metrics = regression
    history = json.loads((folder_of(outputs, "train") / "manifest.json").read_text())["metrics"]
    errors = [value for name, value, _ in history if name == "train/val_absolute_error"]
    assert len(errors) == 2
    assert errors[int(metrics["train/kept_epoch"]) - 1] == min(errors)
    assert min(errors) < max(errors)


def test_layers_that_lose_most_come_first_when_lower_is_better(regression: tuple[Path, dict[str, float]]) -> None:
    table = np.genfromtxt(folder_of(regression[0], "sensitivity") / "sensitivity.csv", delimiter=",", names=True)
    assert list(table["alone_int8"]) == sorted(table["alone_int8"], reverse=True)


def test_model_of_ones_own_task_and_runtime_predicts_its_outputs(
    regression: tuple[Path, dict[str, float]], tmp_path: Path
) -> None:
    pixels = np.rint(load_digits().images[0] * (255 / 16)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "zero.png")
    command = [sys.executable, "-m", "pipeline.predict", str(tmp_path / "zero.png"), "--outputs", str(regression[0])]
    done = forked.run([*command, "--runtime", "tests.planted.runtime:RUNTIME"], check=True)
    name, amount = done.stdout.split()
    assert name.endswith("zero.png")
    assert abs(float(amount.strip("[]"))) < 9


def test_runs_of_ones_own_task_are_compared_by_its_metric_and_apart_from_others(
    regression: tuple[Path, dict[str, float]], finished_outputs: Path, tmp_path: Path
) -> None:
    outputs, metrics = regression
    (found,) = read_runs(TrackingConfig(), outputs)
    (other,) = read_runs(TrackingConfig(), finished_outputs)
    comparison = compare([found, other])
    assert comparison.left_out == {"judged by another metric": 1}
    assert comparison.frame["val/int8_absolute_error"].tolist() == [metrics["val/int8_absolute_error"]]
    assert "the lowest int8 absolute error leading" in text_table(comparison)
    files = {path.name for path in write_comparison(comparison, tmp_path)}
    assert {"comparison.html", "absolute_error_latency.png", "absolute_error_epochs.png"} <= files
    assert compare([other, found]).left_out == {"judged by another metric": 1}


def test_flow_of_ones_own_takes_a_network_to_every_runtime(outputs: Path) -> None:
    stages = "stages=[train,fuse,qat,convert,ptq,evaluate,export,benchmark]"
    names = "runtime.names=[torchscript,tests.planted.runtime:RUNTIME]"
    metrics = walk(outputs, FLOW, names, stages, "tracking=off").metrics
    assert metrics["ptq_int8/accuracy_pct"] == metrics["fp32/accuracy_pct"]
    assert metrics["compression"] == pytest.approx(1, abs=0.01)
    assert metrics["traced/int8/parity"] == metrics["torchscript/int8/parity"] == 1
    assert metrics["machine/peak_int8_gmacs_t1"] == metrics["machine/peak_fp32_gmacs_t1"]
    (manifest,) = (outputs / "artifacts").glob("qat-*/manifest.json")
    hashed = json.loads(manifest.read_text())["hashed"]
    assert "tests/planted/flow.py" in hashed["sources"]
    assert not any("eager" in name for name in hashed["sources"])


def sources(outputs: Path, *overrides: str) -> dict[str, set[str]]:
    plan = check_parts(compose_request([f"outputs={outputs}", "tracking=off", *overrides]).config)
    return {step.stage.name: set(step.hashed["sources"]) for step in plan.steps}


def test_what_is_chosen_by_import_path_is_in_the_keys_of_what_computes_with_it(outputs: Path) -> None:
    found = sources(outputs, TASK, RUNTIME, "stages=[train,fuse,qat,convert,evaluate,export,benchmark]")
    with_task = {stage for stage, names in found.items() if "tests/planted/task.py" in names}
    assert with_task == {"train", "qat", "evaluate", "export"}
    with_runtime = {stage for stage, names in found.items() if "tests/planted/runtime.py" in names}
    assert with_runtime == {"export", "benchmark"}
    assert not any("runtimes/openvino.py" in name for name in found["export"])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["task=clasification"], "task=clasification: allowed: classification; did you mean 'classification'?"),
        (["task=tests.planted.task:Tusk"], "task=tests.planted.task:Tusk: tests.planted.task has no Tusk"),
        (["task=tests.planted.task:Amount"], "allowed: a Task, as pipeline/tasks/contract.py has it"),
        (["backend.flow=tests.planted.task:TASK"], "is no Flow, for it lacks "),
        (["runtime.names=[tests.planted.task:TASK]"], "allowed: a Runtime, as pipeline/runtimes/contract.py has it"),
        (["runtime.names=[tests.planted.runtime:NAMESAKE]"], "is named 'torchscript'; allowed: a plain name other"),
        (
            ["runtime.names=[tests.planted.runtime:PICKY]", "stages=[train,fuse,qat,convert,export]"],
            "picky cannot take the models of backend.flow=eager; allowed: eager, onnxruntime, openvino, torchscript",
        ),
    ],
)
def test_choice_by_import_path_is_refused_in_one_line_when_it_is_none(overrides: list[str], told: str) -> None:
    with pytest.raises(UserError) as error:
        check_parts(compose_request([*overrides, "tracking=off"]).config)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_search_goes_by_the_metric_of_ones_own_task() -> None:
    searched = ["hydra/sweeper=optuna", "qat.learning_rate=tag(log,interval(1e-5,1e-3))", TASK]
    with pytest.raises(UserError, match="no run reports 'val/int8_accuracy_pct'"):
        check_command_line(searched, multirun=True)
    objectives = "{val/int8_accuracy_pct: null, val/int8_absolute_error: minimize}"
    assert check_command_line([*searched, f"++hydra.sweeper.objectives={objectives}"], multirun=True)


def test_flow_is_not_asked_when_no_stage_goes_by_it(
    small_request: Callable[..., Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.planted import flow

    def refuse(*_: object) -> None:
        raise UserError("this network cannot go this way")

    monkeypatch.setattr(flow.Identity, "check", refuse)
    check_parts(small_request(FLOW, "stages=[train]").config)
    with pytest.raises(UserError, match="cannot go this way"):
        check_parts(small_request(FLOW, "stages=[train,fuse]").config)


def test_runtime_of_ones_own_may_need_what_has_another_name_or_none_where_it_is_installed() -> None:
    name = "tests.planted.runtime:NEEDY"
    runtimes.check_runtimes([name])
    assert runtimes.versions([name]) == {"PIL.Image": importlib.metadata.version("pillow")}


def test_amounts_of_more_than_a_byte_are_kept_as_they_are(tmp_path: Path) -> None:
    labels = torch.tensor([-1, 3, 700])
    part, path = Part(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), labels), tmp_path / "kept.npz"
    context = types.SimpleNamespace(attach=lambda file: path)
    evaluate._keep_decisions(part, {"fp32": labels.float()}, "kept.npz", context)  # type: ignore[arg-type]
    with np.load(path) as kept:
        assert kept["labels"].tolist() == labels.tolist()
        assert kept["fp32"].dtype == np.float32
