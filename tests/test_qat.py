"""The qat stage: its schedule when resumed, the converted copy, the teacher, the ranges it begins with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from pipeline.commands.composition import compose_request
from pipeline.datasets.catalogue import load_training
from pipeline.datasets.loader import evaluation_batches
from pipeline.flows import eager as quantization
from pipeline.flows import forms
from pipeline.flows.eager import flow
from pipeline.host.machine import Machine
from pipeline.reports.results import in_words
from pipeline.run.plan import Step, make_plan
from pipeline.run.request import Request
from pipeline.run.runner import run
from pipeline.stages import qat
from pipeline.tasks.classification import TASK
from pipeline.training import loop as training
from pipeline.training.context import PROGRESS_FILE, Context
from pipeline.training.distillation import distillation_loss
from tests.conftest import LEARNED, SMALL, shrunk
from tests.test_stages import Bench

CPU = torch.device("cpu")


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A bench with a float and a fused model, ready for qat."""
    quantization.silence_known_warnings()
    bench = Bench(tmp_path_factory.mktemp("fused"), compose_request(SMALL).config)
    bench.run("train")
    bench.run("fuse")
    return bench


def run_qat(fused: Bench, folder: Path, **changes: object) -> tuple[dict[str, Tensor], Context]:
    """The `state_dict` that qat makes from the fused model, and its context."""
    config = dataclasses.replace(fused.config, qat=dataclasses.replace(fused.config.qat, **changes))  # type: ignore[arg-type]
    context = Context(
        folder=folder,
        device=CPU,
        info=fused.info,
        load_training=lambda: load_training(config.dataset),
        load_test=lambda: pytest.fail("qat reads the test part"),
        flow=flow,
        task=TASK,
    )
    folder.mkdir(exist_ok=True)
    qat.run(config, fused.models, context)
    return torch.load(folder / "model.pt", weights_only=True), context


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def kill_at(moment: float) -> Callable[..., None]:
    freeze = qat.freeze_on_schedule

    def freeze_or_die(model: nn.Module, epochs_done: float, settings: object, flow: object) -> None:
        if epochs_done > moment:
            raise Killed
        freeze(model, epochs_done, settings, flow)  # type: ignore[arg-type]

    return freeze_or_die


FROZEN_EARLY = {
    **{"epochs": 2, "freeze_bn_epoch": 0.4, "freeze_observer_epoch": 0.6, "keep": "last", "init": "fresh"},
    **{"distill_weight": 0.0, "learning_rate": 0.0002},
}


@pytest.fixture(scope="module")
def undisturbed(fused: Bench, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Context]:
    return run_qat(fused, tmp_path_factory.mktemp("undisturbed"), **FROZEN_EARLY)


def test_resumed_qat_keeps_statistics_and_ranges_frozen_and_ends_in_the_same_bits(
    fused: Bench,
    undisturbed: tuple[dict[str, Tensor], Context],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, context = undisturbed
    with monkeypatch.context() as patch:
        patch.setattr(qat, "freeze_on_schedule", kill_at(1.3))
        with pytest.raises(Killed):
            run_qat(fused, tmp_path / "killed", **FROZEN_EARLY)
    left = torch.load(tmp_path / "killed" / PROGRESS_FILE, weights_only=True)["model"]
    resumed, again = run_qat(fused, tmp_path / "killed", **FROZEN_EARLY)
    still = [name for name in left if name.endswith(("running_mean", "running_var", "min_val", "max_val"))]
    assert len(still) > 80
    assert all(torch.equal(resumed[name], left[name]) for name in still)
    assert not torch.equal(resumed["fc.weight"], left["fc.weight"])
    assert equal(resumed, expected)
    timed = ("qat/seconds", "qat/start_seconds")
    assert [point for point in again.history if point[0] not in timed] == [
        point for point in context.history if point[0] not in timed
    ]


def test_model_is_the_same_when_no_copy_of_it_is_converted(
    fused: Bench,
    undisturbed: tuple[dict[str, Tensor], Context],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(qat, "_predict_converted", lambda *args: torch.zeros(20, dtype=torch.long))
    model, _ = run_qat(fused, tmp_path / "run", **FROZEN_EARLY)
    assert equal(model, undisturbed[0])


def test_converted_accuracy_is_that_of_the_int8_model_and_both_are_in_the_epochs_line(
    fused: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, context = run_qat(fused, tmp_path / "run", learning_rate=0.002, init="fresh", distill_weight=0.0)
    curves = {name: value for name, value, _ in context.history}
    torch.save(made, tmp_path / "qat.pt")
    model = forms.load("qat", tmp_path / "qat.pt", fused.config, fused.info)
    int8 = quantization.convert(model, fused.config.backend)
    _, validation = load_training(fused.config.dataset)
    predicted = training.predict(int8, validation, fused.config.dataset, 7, CPU, "test", flow, Machine(), TASK)
    expected = TASK.value(predicted, validation.labels)
    assert curves["qat/val_int8_accuracy_pct"] == expected
    line = capsys.readouterr().err
    assert f"val_accuracy {curves['qat/val_accuracy_pct']:.2f} %  val_int8_accuracy {expected:.2f} %" in line


def test_best_converted_epoch_is_kept_of_equals_the_later(
    fused: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []
    accuracies = [10.0, 80.0, 80.0, 70.0]

    def judge(model: nn.Module, *rest: object) -> Tensor:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        labels = load_training(fused.config.dataset)[1].labels
        right = torch.arange(len(labels)) < len(labels) * accuracies[len(seen) - 1] / 100
        return torch.where(right, labels, -1)

    monkeypatch.setattr(qat, "_predict_converted", judge)
    kept, context = run_qat(fused, tmp_path / "run", epochs=4, keep="best", init="fresh")
    assert equal(kept, seen[2])
    assert [value for name, value, _ in context.history if name == "qat/val_int8_accuracy_pct"] == accuracies


def test_distillation_is_the_weighted_sum_of_both_losses() -> None:
    torch.manual_seed(0)
    teacher, images, labels = nn.Linear(6, 4), torch.randn(5, 6), torch.randint(0, 4, (5,))
    logits = torch.randn(5, 4)
    wanted, given = (functional.softmax(values / 2.5, dim=1) for values in (teacher(images).detach(), logits))
    divergence = (wanted * (wanted.log() - given.log())).sum(1).mean()
    expected = 0.7 * functional.cross_entropy(logits, labels) + 0.3 * 2.5**2 * divergence
    torch.testing.assert_close(distillation_loss(TASK, teacher, 0.3, 2.5, 0.0)(images, logits, labels), expected)
    same = distillation_loss(TASK, teacher, 1.0, 2.5, 0.0)(images, teacher(images), labels)
    assert float(same.detach()) == pytest.approx(0, abs=1e-6)


def test_distillation_learns_from_the_float_model_and_leaves_it_as_it_is(
    fused: Bench, undisturbed: tuple[dict[str, Tensor], Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers: list[nn.Module] = []
    load = forms.load

    def note(form: quantization.Form, *rest: object) -> nn.Module:
        model = load(form, *rest)  # type: ignore[arg-type]
        if form == "float":
            teachers.append(model)
        return model

    monkeypatch.setattr(forms, "load", note)
    model, _ = run_qat(fused, tmp_path / "run", **(FROZEN_EARLY | {"distill_weight": 0.5}))
    assert not torch.equal(model["fc.weight"], undisturbed[0]["fc.weight"])
    assert len(teachers) == 1
    assert not teachers[0].training
    assert equal(dict(teachers[0].state_dict()), torch.load(fused.models["float"], weights_only=True))


def step_of_qat(*overrides: str) -> Step:
    plan = make_plan(compose_request(list(overrides)).config)
    return next(step for step in plan.steps if step.stage.name == "qat")


def test_qat_takes_the_float_model_only_when_it_learns_from_it() -> None:
    fresh = ("qat.init=fresh", "qat.distill_weight=0")
    assert set(step_of_qat(*fresh).consumes) == {"fused"}
    assert set(step_of_qat(*fresh, "qat.distill_weight=0.5").consumes) == {"fused", "float"}
    assert set(step_of_qat(*fresh, "qat.init=ptq").consumes) == {"fused", "float"}


def test_calibration_is_in_the_key_only_when_qat_begins_with_its_ranges() -> None:
    def changes(begin: str, override: str) -> bool:
        return step_of_qat(begin).key != step_of_qat(begin, override).key

    for override in ("ptq.calibration_samples=50", "ptq.observer=min_max"):
        assert not changes("qat.init=fresh", override)
        assert changes("qat.init=ptq", override)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("backend=qnnpack",),
        ("backend.symmetric=true",),
        ("backend.observer=min_max",),
        ("ptq.observer=min_max",),
        ("fuse.mode=eval",),
        pytest.param(("model=mobilenet_v3_large",), marks=pytest.mark.operations),
        ("backend.skip_layers=[layer1.0.conv1,fc]",),
    ],
    ids=str,
)
def test_qat_begins_as_the_model_of_ptq_when_asked(
    fused: Bench, overrides: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(tmp_path, compose_request(shrunk("qat.init=ptq", *overrides)).config)
    if any(override.startswith("model=") for override in overrides):
        bench.run("train")
    else:
        bench.models["float"] = fused.models["float"]
    bench.run("fuse")
    bench.run("ptq")
    monkeypatch.setattr(training, "fit", lambda *args: None)
    bench.run("qat")
    bench.run("convert")
    images, _ = next(evaluation_batches(load_training(bench.config.dataset)[1], bench.config.dataset, 20, CPU))
    begun, expected = (
        forms.load(form, bench.models[form], bench.config, bench.info).eval()(images) for form in ("int8", "ptq_int8")
    )
    # Scales may be another in their last bit, which moves few values to the next level.
    torch.testing.assert_close(begun, expected, atol=0.02 * float(expected.abs().max()), rtol=0)


def test_qat_that_does_harm_returns_the_model_of_ptq_and_says_so(small_request: Callable[..., Request]) -> None:
    harm = ["qat.learning_rate=1", "qat.optimizer=sgd", "qat.distill_weight=0", "qat.freeze_bn_epoch=null"]
    request = small_request("stages=[train,fuse,ptq,qat,convert,evaluate]", *LEARNED, "qat.epochs=1", *harm)
    metrics = run(request).metrics
    assert metrics["qat/kept_epoch"] == 0
    assert metrics["qat/kept_val_int8_accuracy_pct"] == metrics["qat/start_val_int8_accuracy_pct"]
    assert metrics["val/int8_accuracy_pct"] == metrics["val/ptq_int8_accuracy_pct"]
    assert metrics["int8/accuracy_pct"] == metrics["ptq_int8/accuracy_pct"]
    assert "no epoch of QAT was better on validation than its start, which is kept: PTQ reaches the same" in in_words(
        metrics
    )


def test_start_is_no_candidate_when_the_last_epoch_is_asked_for(fused: Bench, tmp_path: Path) -> None:
    _, context = run_qat(fused, tmp_path / "run", init="ptq", keep="last", learning_rate=0.3)
    assert {name: value for name, value, _ in context.history}["qat/kept_epoch"] == 1


def test_qat_draws_by_its_own_seed_when_it_has_one(fused: Bench, tmp_path: Path) -> None:
    settings = {"init": "fresh", "distill_weight": 0.0, "keep": "last"}
    by_default, _ = run_qat(fused, tmp_path / "default", **settings)
    same, _ = run_qat(fused, tmp_path / "same", **settings, seed=fused.config.seed)
    other, _ = run_qat(fused, tmp_path / "other", **settings, seed=fused.config.seed + 1)
    assert equal(by_default, same)
    assert not equal(by_default, other)


@pytest.mark.parametrize("overrides", [(), ("backend=qnnpack", "qat.init=fresh", "qat.freeze_bn_epoch=null")], ids=str)
def test_a_network_is_trained_and_converted_when_its_blocks_begin_with_a_scale_of_zero(
    fused: Bench, overrides: tuple[str, ...], tmp_path: Path
) -> None:
    bench = Bench(tmp_path, compose_request([*SMALL, "qat.learning_rate=0.001", "qat.keep=last", *overrides]).config)
    weights = torch.load(fused.models["float"], weights_only=True)
    begun = {name for name in weights if name.endswith("bn2.weight")}
    for name in begun:  # as torchvision's zero_init_residual makes them
        weights[name].zero_()
    bench.models["float"] = tmp_path / "float.pt"
    torch.save(weights, bench.models["float"])
    for stage in ("fuse", "ptq", "qat", "convert"):
        bench.run(stage)
    trained = torch.load(bench.models["qat"], weights_only=True)
    assert all(value.isfinite().all() for value in trained.values() if value.is_floating_point())
    scales = [value for name, value in trained.items() if name.endswith("conv2.bn.weight")]
    assert len(scales) == len(begun)
    assert all((value != 0).float().mean() > 0.5 for value in scales)  # gamma has its gradient where ReLU passes one
