"""The controls of QAT: the float model trained on, and what evaluate makes of every form that is at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import stages
from pipeline.commands.composition import compose_request
from pipeline.flows import forms
from pipeline.flows.eager import silence_known_warnings
from pipeline.host.errors import UserError
from pipeline.measure.statistics import accuracy_interval, holm, mcnemar_p, paired_interval
from pipeline.run.plan import Step, make_plan
from pipeline.stages.contract import Stage
from pipeline.training import loop as training
from pipeline.training.context import Context
from tests.conftest import SMALL
from tests.test_stages import Bench

WITH_FINETUNE = "stages=[train,fuse,finetune,qat,convert,evaluate]"
FORMS = ("fp32", "fp32_finetuned", "ptq_int8", "qat_fake", "int8")


def steps(*overrides: str) -> dict[str, Step]:
    return {step.stage.name: step for step in make_plan(compose_request(list(overrides)).config).steps}


def changed(override: str) -> list[str]:
    """The stages whose key an override changes, of a run with the control."""
    before, after = steps(WITH_FINETUNE), steps(WITH_FINETUNE, override)
    return [name for name in before if before[name].key != after[name].key]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("backend=qnnpack", ["qat", "convert", "evaluate"]),
        ("qat.learning_rate=0.01", ["finetune", "qat", "convert", "evaluate"]),
        ("qat.epochs=3", ["finetune", "qat", "convert", "evaluate"]),
        ("qat.seed=7", ["finetune", "qat", "convert", "evaluate"]),
        ("qat.freeze_bn_epoch=1", ["finetune", "qat", "convert", "evaluate"]),
        ("qat.freeze_observer_epoch=1", ["qat", "convert", "evaluate"]),
        ("evaluate.fake_quantized=true", ["evaluate"]),
    ],
)
def test_finetune_is_made_again_only_where_its_result_depends_on_the_setting(
    override: str, expected: list[str]
) -> None:
    assert changed(override) == expected


def test_evaluate_takes_the_controls_that_the_run_makes_and_no_others() -> None:
    plain, controlled = steps(), steps(WITH_FINETUNE, "evaluate.fake_quantized=true")
    assert set(plain["evaluate"].consumes) == {"float", "int8"}
    assert plain["evaluate"].hashed["parents"] == [plain["train"].key, plain["convert"].key]
    assert "fake_quantized" not in plain["evaluate"].hashed["evaluate"]
    assert set(controlled["evaluate"].consumes) == {"float", "int8", "float_finetuned", "qat"}
    assert {controlled[name].key for name in ("finetune", "qat")} <= set(controlled["evaluate"].hashed["parents"])


def test_evaluate_is_refused_when_it_stands_before_a_control_of_the_run() -> None:
    with pytest.raises(UserError, match=r"evaluate needs float_finetuned.* allowed: finetune before evaluate"):
        steps("stages=[train,fuse,qat,convert,evaluate,finetune]")


def test_full_controls_are_every_stage_and_the_fake_quantized_model(monkeypatch: pytest.MonkeyPatch) -> None:
    double = Stage("ptq", lambda config, inputs, context: None, ("model",), consumes=("float",), produces="ptq_int8")
    declared = {"ptq": double} | stages.registry()
    monkeypatch.setattr(stages, "registry", lambda: declared)
    plan = steps("+controls=full")
    assert list(plan) == ["train", "fuse", "finetune", "ptq", "qat", "convert", "evaluate"]
    assert set(plan["evaluate"].consumes) == {"float", "float_finetuned", "ptq_int8", "qat", "int8"}


def test_finetune_trains_with_the_very_settings_of_qat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def record(model: object, settings: Any, dataset: Any, seed: int, *others: Any) -> None:
        curve = next(other for other in others if other in ("qat", "finetune"))
        asked[curve] = (settings, dataset, seed)

    bench = Bench(tmp_path, compose_request([*SMALL, "qat.epochs=3", "qat.schedule=step", "qat.keep=last"]).config)
    bench.run("train")
    bench.run("fuse")
    monkeypatch.setattr(training, "fit", record)
    bench.run("qat")
    bench.run("finetune")
    assert asked["finetune"] == asked["qat"]


@pytest.mark.parametrize(("epoch", "frozen"), [("0", True), ("null", False)])
def test_finetune_goes_on_from_the_float_model_and_freezes_batch_norm_when_qat_does(
    tmp_path: Path, epoch: str, frozen: bool
) -> None:
    bench = Bench(tmp_path, compose_request([*SMALL, "qat.keep=last", f"qat.freeze_bn_epoch={epoch}"]).config)
    bench.run("train")
    context = bench.run("finetune")
    assert [(name, step) for name, _, step in context.history] == [
        ("finetune/loss", 0),
        ("finetune/val_accuracy_pct", 0),
        ("finetune/kept_epoch", None),
        ("finetune/seconds", None),
    ]
    before = torch.load(bench.models["float"], weights_only=True)
    after = torch.load(bench.models["float_finetuned"], weights_only=True)
    forms.load("float_finetuned", bench.models["float_finetuned"], bench.config, bench.info)
    assert torch.equal(before["bn1.running_mean"], after["bn1.running_mean"]) == frozen
    assert not torch.equal(before["bn1.weight"], after["bn1.weight"])
    # Trained on, not anew: a few small steps away.
    assert 0 < float((after["fc.weight"] - before["fc.weight"]).abs().max()) < 0.05


# A rate at which QAT moves far from the float model.
APART = ["train.epochs=4", "train.learning_rate=0.01", "qat.learning_rate=0.01", "qat.keep=last"]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """Every form evaluated; the int8 model stands for that of post-training quantization, whose stage is another's."""
    silence_known_warnings()
    names = "train,fuse,finetune,ptq,qat,convert,evaluate"
    config = compose_request([*SMALL, f"stages=[{names}]", "evaluate.fake_quantized=true", *APART]).config
    bench = Bench(tmp_path_factory.mktemp("controls"), config)
    for name in ("train", "fuse", "finetune", "qat", "convert"):
        bench.run(name)
    bench.models["ptq_int8"] = bench.models["int8"]
    load: Callable[..., Any] = forms.load
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forms, "load", lambda form, *rest: load("int8" if form == "ptq_int8" else form, *rest))
        return bench.run("evaluate")


def metrics_of(context: Context) -> dict[str, float]:
    return {name: value for name, value, step in context.history if step is None}


def test_every_form_has_accuracy_interval_and_size_when_evaluated(evaluated: Context) -> None:
    metrics = metrics_of(evaluated)
    for form in FORMS:
        interval = accuracy_interval(metrics[f"{form}/accuracy_pct"], metrics["test_images"])
        assert (metrics[f"{form}/accuracy_ci_low_pct"], metrics[f"{form}/accuracy_ci_high_pct"]) == interval
        assert metrics[f"{form}/size_mb"] > 0
    drop = metrics["fp32_finetuned/accuracy_pct"] - metrics["int8/accuracy_pct"]
    assert metrics["accuracy_drop_vs_finetuned_pct"] == pytest.approx(drop)


def test_latency_is_that_of_the_models_that_could_be_shipped(evaluated: Context) -> None:
    assert {name for name in metrics_of(evaluated) if name.endswith("/latency_ms")} == {
        "fp32/latency_ms",
        "ptq_int8/latency_ms",
        "int8/latency_ms",
    }


def test_validation_accuracies_are_those_of_the_kept_predictions_and_of_other_images(evaluated: Context) -> None:
    metrics = metrics_of(evaluated)
    (path,) = (path for path in evaluated.attachments if path.name == "predictions_val.npz")
    with np.load(path) as kept:
        labels = kept["labels"]
        right = {form: kept[form] == labels for form in FORMS}
    assert len(labels) == metrics["val/images"] == 20
    for form in FORMS:
        assert metrics[f"val/{form}_accuracy_pct"] == pytest.approx(100 * right[form].mean())
    assert metrics["val/largest_class_pct"] == 100 * np.bincount(labels).max() / 20
    drop = metrics["val/fp32_accuracy_pct"] - metrics["val/int8_accuracy_pct"]
    assert metrics["val/accuracy_drop_pct"] == pytest.approx(drop)
    assert metrics["val/accuracy_drop_ci_low_pct"] < drop < metrics["val/accuracy_drop_ci_high_pct"]


def test_every_pair_that_a_reader_compares_is_tested_on_the_same_images(evaluated: Context) -> None:
    metrics = metrics_of(evaluated)
    (path,) = (path for path in evaluated.attachments if path.name == "predictions.npz")
    with np.load(path) as kept:
        right = {form: kept[form] == kept["labels"] for form in FORMS}
    pairs = [("int8", "fp32"), ("int8", "ptq_int8"), ("int8", "fp32_finetuned"), ("ptq_int8", "fp32")]
    for first, second in pairs:
        won, lost = int((right[first] & ~right[second]).sum()), int((right[second] & ~right[first]).sum())
        of_pair = {name: metrics[f"{first}_vs_{second}/{name}"] for name in ("won_images", "lost_images", "mcnemar_p")}
        assert of_pair == {"won_images": won, "lost_images": lost, "mcnemar_p": mcnemar_p(won, lost)}
        interval = paired_interval(won, lost, 60)
        assert metrics[f"{first}_vs_{second}/difference_ci_low_pct"] == interval[0]
        assert metrics[f"{first}_vs_{second}/difference_pct"] == pytest.approx(100 * (won - lost) / 60)
    corrected = holm([metrics[f"{first}_vs_{second}/mcnemar_p"] for first, second in pairs])
    assert [metrics[f"{first}_vs_{second}/mcnemar_p_holm"] for first, second in pairs] == corrected
    assert metrics["accuracy_drop_ci_low_pct"] == -metrics["int8_vs_fp32/difference_ci_high_pct"]


def test_accuracies_and_mcnemar_are_those_of_the_kept_predictions(evaluated: Context) -> None:
    metrics = metrics_of(evaluated)
    (path,) = (path for path in evaluated.attachments if path.name == "predictions.npz")
    with np.load(path) as kept:
        labels = kept["labels"]
        right = {form: kept[form] == labels for form in FORMS}
    assert len(labels) == metrics["test_images"]
    for form in FORMS:
        assert metrics[f"{form}/accuracy_pct"] == pytest.approx(100 * right[form].mean())
    counts = int((right["fp32"] & ~right["int8"]).sum()), int((right["int8"] & ~right["fp32"]).sum())
    assert counts == (metrics["mcnemar_fp32_only_right"], metrics["mcnemar_int8_only_right"])
    assert sum(counts) > 0, "the models must differ for this test to tell anything"
    assert metrics["mcnemar_p"] == mcnemar_p(*counts)
    assert metrics["accuracy_drop_pct"] == pytest.approx(100 * (counts[0] - counts[1]) / len(labels))
