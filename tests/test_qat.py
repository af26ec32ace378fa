"""The qat stage: its schedule when resumed, the converted copy, the teacher, the ranges it begins with."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from pipeline import forms, quantization, training
from pipeline.calibration import calibrate
from pipeline.composition import compose_request
from pipeline.config import Config
from pipeline.datasets import load_training
from pipeline.distillation import distillation_loss
from pipeline.machine import Machine
from pipeline.plan import Step, make_plan
from pipeline.stage import PROGRESS_FILE, Context
from pipeline.stages import qat
from tests.conftest import SMALL
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
    )
    folder.mkdir(exist_ok=True)
    qat.run(config, fused.models, context)
    return torch.load(folder / "model.pt", weights_only=True), context


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def kill_at(moment: float) -> Callable[..., None]:
    freeze = qat.freeze_on_schedule

    def freeze_or_die(model: nn.Module, epochs_done: float, settings: object) -> None:
        if epochs_done > moment:
            raise Killed
        freeze(model, epochs_done, settings)  # type: ignore[arg-type]

    return freeze_or_die


FROZEN_EARLY = {"epochs": 2, "freeze_bn_epoch": 0.4, "freeze_observer_epoch": 0.6, "keep": "last"}


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
    assert len(still) > 100
    assert all(torch.equal(resumed[name], left[name]) for name in still)
    assert not torch.equal(resumed["fc.weight"], left["fc.weight"])
    assert equal(resumed, expected)
    assert again.history == context.history


def test_model_is_the_same_when_no_copy_of_it_is_converted(
    fused: Bench,
    undisturbed: tuple[dict[str, Tensor], Context],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(qat, "converted_accuracy_pct", lambda *args: 50.0)
    model, _ = run_qat(fused, tmp_path / "run", **FROZEN_EARLY)
    assert equal(model, undisturbed[0])


def test_converted_accuracy_is_that_of_the_int8_model_and_both_are_in_the_epochs_line(
    fused: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, context = run_qat(fused, tmp_path / "run", learning_rate=0.002)
    curves = {name: value for name, value, _ in context.history}
    torch.save(made, tmp_path / "qat.pt")
    model = forms.load("qat", tmp_path / "qat.pt", fused.config, fused.info)
    int8 = quantization.convert(model, fused.config.backend)
    _, validation = load_training(fused.config.dataset)
    predicted = training.predict(int8, validation, fused.config.dataset, 7, CPU, "test", Machine())
    expected = training.accuracy_pct(predicted, validation)
    assert curves["qat/val_int8_accuracy_pct"] == expected
    line = capsys.readouterr().err
    assert f"val_accuracy {curves['qat/val_accuracy_pct']:.2f} %  val_int8_accuracy {expected:.2f} %" in line


def test_best_converted_epoch_is_kept_of_equals_the_later(
    fused: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[dict[str, Tensor]] = []
    accuracies = [10.0, 80.0, 80.0, 70.0]

    def judge(model: nn.Module, *rest: object) -> float:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return accuracies[len(seen) - 1]

    monkeypatch.setattr(qat, "converted_accuracy_pct", judge)
    kept, context = run_qat(fused, tmp_path / "run", epochs=4, keep="best")
    assert equal(kept, seen[2])
    assert [value for name, value, _ in context.history if name == "qat/val_int8_accuracy_pct"] == accuracies


def test_distillation_is_the_weighted_sum_of_both_losses() -> None:
    torch.manual_seed(0)
    teacher, images, labels = nn.Linear(6, 4), torch.randn(5, 6), torch.randint(0, 4, (5,))
    logits = torch.randn(5, 4)
    wanted, given = (functional.softmax(values / 2.5, dim=1) for values in (teacher(images).detach(), logits))
    divergence = (wanted * (wanted.log() - given.log())).sum(1).mean()
    expected = 0.7 * functional.cross_entropy(logits, labels) + 0.3 * 2.5**2 * divergence
    torch.testing.assert_close(distillation_loss(teacher, 0.3, 2.5, 0.0)(images, logits, labels), expected)
    same = distillation_loss(teacher, 1.0, 2.5, 0.0)(images, teacher(images), labels)
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
    model, _ = run_qat(fused, tmp_path / "run", **FROZEN_EARLY, distill_weight=0.5)
    assert not torch.equal(model["fc.weight"], undisturbed[0]["fc.weight"])
    assert len(teachers) == 1
    assert not teachers[0].training
    assert equal(dict(teachers[0].state_dict()), torch.load(fused.models["float"], weights_only=True))


def step_of_qat(*overrides: str) -> Step:
    plan = make_plan(compose_request(list(overrides)).config)
    return next(step for step in plan.steps if step.stage.name == "qat")


def test_qat_takes_the_float_model_only_when_it_learns_from_it() -> None:
    assert set(step_of_qat().consumes) == {"fused"}
    assert set(step_of_qat("qat.distill_weight=0.5").consumes) == {"fused", "float"}


def test_calibration_is_in_the_key_only_when_qat_begins_with_its_ranges() -> None:
    def changes(*begin: str) -> bool:
        return step_of_qat(*begin).key != step_of_qat(*begin, "ptq.calibration_samples=50").key

    assert not changes()
    assert changes("qat.init=ptq")
    assert step_of_qat("qat.init=ptq").key == step_of_qat("qat.init=ptq", "ptq.observer=min_max").key


def prepared(config: Config, bench: Bench) -> nn.Module:
    model = forms.load("fused", bench.models["fused"], config, bench.info)
    return quantization.prepare(model, config.backend)


def test_training_begins_with_the_ranges_of_calibration_when_asked(
    fused: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[dict[str, Tensor]] = []
    monkeypatch.setattr(
        training, "fit", lambda model, *rest: begun.append({k: v.clone() for k, v in model.state_dict().items()})
    )
    run_qat(fused, tmp_path / "calibrated", init="ptq")
    run_qat(fused, tmp_path / "fresh", init="fresh")
    calibrated, fresh = begun
    config, ptq = fused.config, fused.config.ptq
    expected, images = prepared(config, fused), load_training(config.dataset)[0]
    calibrate(expected, images, config.dataset, ptq.calibration_samples, config.seed, ptq.batch_size, CPU, Machine())
    ranges = [name for name in calibrated if name.endswith(("min_val", "max_val")) and "weight" not in name]
    assert len(ranges) > 40
    assert all(torch.equal(calibrated[name], expected.state_dict()[name]) for name in ranges)
    assert all(fresh[name].isinf().all() for name in ranges)
    trained = ("running_mean", "running_var", "weight", "bias", "_enabled")
    assert all(torch.equal(calibrated[name], fresh[name]) for name in calibrated if name.endswith(trained))
