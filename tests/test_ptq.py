"""Post-training quantization: what it is calibrated on, and that its artifact is the model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.datasets import catalogue
from pipeline.datasets.loader import evaluation_batches
from pipeline.datasets.spec import Part
from pipeline.flows import Form, forms
from pipeline.flows.catalogue import find as find_flow
from pipeline.flows.eager import twins
from pipeline.host.errors import UserError
from pipeline.run.plan import make_plan
from pipeline.run.request import Request
from pipeline.run.runner import artifacts_of, run
from pipeline.settings.config import Config
from pipeline.tasks.classification import TASK
from pipeline.training import calibration
from pipeline.training.bias_correction import correct_biases
from pipeline.training.context import MODEL_FILE, Context
from tests.array_images import all_pixels
from tests.conftest import LEARNED

Compose = Callable[..., Request]
PTQ = ("stages=[train,ptq]", "tracking=off")


def logits(form: Form, stage: str, config: Config) -> torch.Tensor:
    """What a form answers to 100 training images, loaded from its artifact."""
    name = next(name for name in artifacts_of(config) if name.startswith(f"{stage}-"))
    path = Path(config.outputs) / "artifacts" / name / MODEL_FILE
    model = forms.load(form, path, config, catalogue.info(config.dataset)).eval()
    training, _ = catalogue.load_training(config.dataset)
    images, _ = next(evaluation_batches(training, config.dataset, 100, torch.device("cpu")))
    with torch.no_grad():
        return model(images)


def never() -> Part:
    raise AssertionError("the test part was read")


def test_ptq_answers_nearly_as_the_float_model_when_its_artifact_is_loaded(small_request: Compose) -> None:
    config = (request := small_request(*PTQ)).config
    run(request)
    expected, quantized = logits("float", "train", config), logits("ptq_int8", "ptq", config)
    assert not torch.equal(quantized, expected)
    assert (quantized - expected).norm() < 0.2 * expected.norm()
    path = next((Path(config.outputs) / "artifacts").glob(f"ptq-*/{MODEL_FILE}"))
    assert torch.load(path, weights_only=True)["conv1.weight"].dtype == torch.qint8


@pytest.mark.parametrize("backend", ["fbgemm", pytest.param("onnxruntime", marks=pytest.mark.operations)])
def test_rounded_weights_shift_no_channel_when_biases_are_corrected(small_request: Compose, backend: str) -> None:
    """Weights are simulated alone, on the mean of what goes in, far from borders: no shift is left there."""
    config = (request := small_request(*PTQ, *LEARNED, f"backend={backend}", "backend.per_channel=false")).config
    trained = run(request).artifacts["train"].product
    info, (training, _) = catalogue.info(config.dataset), catalogue.load_training(config.dataset)
    flow = find_flow(config.backend)
    context = Context(trained.parent, torch.device("cpu"), info, lambda: (training, training), never, flow, TASK)
    model = flow.prepare_simulation(forms.load("float", trained, config, info), config, info)
    calibration.calibrate(model, config, context)
    layers = flow.layers(model)
    images, _ = next(evaluation_batches(training, config.dataset, 400, torch.device("cpu")))

    flow.switch_all(model, False)
    inputs: dict[str, torch.Tensor] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given[0]}))
        for name, layer in layers.items()
    ]
    with torch.no_grad(), flow.observers_off(model):
        model(images)
    for hook in hooks:
        hook.remove()

    def means(weight: bool) -> list[torch.Tensor]:
        """Of each layer's output, by channel."""
        found = []
        for name, layer in layers.items():
            flow.switch(layer, weight=weight, activation=False)
            given = inputs[name]
            mean = given.mean([0, *range(2, given.dim())], keepdim=True).expand(1, *given.shape[1:])
            with torch.no_grad(), flow.observers_off(model):
                output = layer(mean)[0]
            found.append(output if output.dim() == 1 else output[:, output.shape[1] // 2, output.shape[2] // 2])
        return found

    def shift(expected: list[torch.Tensor]) -> float:
        apart = zip(means(weight=True), expected, strict=True)
        return float(sum((rounded - one).abs().sum() for rounded, one in apart))

    expected = means(weight=False)
    before = shift(expected)
    flow.switch_all(model, True)
    with flow.observers_off(model):
        correct_biases(model, config, context)
    flow.switch_all(model, False)
    assert shift(expected) < 0.01 * before


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_ptq_loses_less_when_what_is_large_behind_a_layer_norm_is_smoothed(
    small_request: Compose, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    apart = []
    for strength in ("null", "0.5"):
        request = small_request(
            *PTQ, "model=own", "model.target=tests.export_networks:Outlying", f"backend={backend}",
            f"ptq.smooth_quant={strength}",
        )  # fmt: skip
        run(request)
        expected, quantized = (
            logits(form, stage, request.config) for form, stage in (("float", "train"), ("ptq_int8", "ptq"))
        )
        apart.append(float((quantized - expected).norm() / expected.norm()))
    assert "ptq.smooth_quant=0.5: 2 linear layers behind LayerNorms (1) smoothed" in capsys.readouterr().out
    assert apart[1] < 0.5 * apart[0]


def test_int8_file_passes_when_an_exporter_computes_a_float_constant_beforehand(small_request: Compose) -> None:
    model = ["model=own", "model.target=tests.export_networks:Gathering", "backend=openvino", "method=ptq"]
    stages = "stages=[train,ptq,evaluate,export]"
    metrics = run(small_request(*model, stages, "tracking=off", "export.min_agreement=50")).metrics
    assert metrics["openvino/int8/int8_weights_pct"] < 60
    assert metrics["openvino/int8/parity"] == 1


@pytest.mark.parametrize("backend", ["fbgemm", "openvino"])
def test_ptq_is_as_without_smoothing_when_a_network_has_no_layer_norm(
    small_request: Compose, backend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []
    for strength in ("null", "0.5"):
        run(request := small_request(*PTQ, f"backend={backend}", f"ptq.smooth_quant={strength}"))
        made.append(logits("ptq_int8", "ptq", request.config))
    assert "ptq.smooth_quant=0.5: nothing to smooth" in capsys.readouterr().out
    assert torch.equal(*made)


def test_int8_is_that_of_ptq_when_the_method_is_ptq(small_request: Compose, capsys: pytest.CaptureFixture[str]) -> None:
    request = small_request("method=ptq", "tracking=off")
    outcome = run(request)
    made = artifacts_of(request.config)
    assert [name.rpartition("-")[0] for name in made] == ["train", "ptq", "evaluate"]
    config = request.config
    assert torch.equal(logits("int8", "ptq", config), logits("ptq_int8", "ptq", config))
    assert "PTQ int8" in (said := capsys.readouterr().out)
    assert "QAT" not in said
    assert {"int8/latency_ms", "speedup", "val/accuracy_drop_ci_high_pct"} <= outcome.metrics.keys()


def test_ptq_is_no_control_beside_itself_when_the_method_is_ptq(small_request: Compose) -> None:
    stages = "stages=[train,fuse,finetune,ptq,evaluate]"
    plan = make_plan(small_request("method=ptq", stages).config)
    evaluate = plan.steps[-1]
    assert set(evaluate.consumes) == {"float", "float_finetuned", "int8"}
    assert evaluate.consumes["int8"].startswith("ptq-")


def test_evaluate_asks_for_ptq_when_it_makes_the_int8_model(small_request: Compose) -> None:
    with pytest.raises(UserError, match="no result of stage train and ptq"):
        run(small_request("method=ptq", "stages=[evaluate]", "tracking=off"))


def test_ptq_never_reads_the_test_part(small_request: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> Part:
        raise AssertionError("the test part was read")

    monkeypatch.setattr(catalogue, "load_test", refuse)
    run(small_request(*PTQ))


def test_calibration_shows_training_images_alone_without_augmentation(
    small_request: Compose, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[torch.Tensor] = []
    batches = calibration.evaluation_batches

    def watch(part: Part, *rest):  # type: ignore[no-untyped-def]
        shown.append(all_pixels(part))
        return batches(part, *rest)

    monkeypatch.setattr(calibration, "evaluation_batches", watch)
    request = small_request(
        "stages=[train,ptq]", "tracking=off", "ptq.calibration_samples=50", "dataset.crop_padding=4"
    )
    run(request)
    (pixels,) = shown
    assert len(pixels) == 50
    training, validation = catalogue.load_training(request.config.dataset)

    def rows(images: torch.Tensor) -> set[bytes]:
        return {image.numpy().tobytes() for image in images}

    assert len(rows(pixels)) == 50  # no image twice
    assert rows(pixels) <= rows(all_pixels(training))
    assert not rows(pixels) & rows(all_pixels(validation))


def test_calibration_images_are_another_choice_when_the_seed_is_another() -> None:
    part = Part(torch.arange(100, dtype=torch.uint8).view(100, 1, 1, 1), torch.arange(100))
    first, again, other = (calibration.choose(part, 20, seed).labels for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert set(first.tolist()) != set(other.tolist())
    assert not np.array_equal(first, np.sort(first))


def test_calibration_observes_float_activations_when_the_model_is_prepared_for_qat(tmp_path: Path) -> None:
    from pipeline.commands.composition import compose_request
    from pipeline.flows import eager as quantization
    from pipeline.flows.eager import flow
    from pipeline.training.context import Context

    config = compose_request([]).config
    info = catalogue.info(config.dataset)
    torch.manual_seed(0)
    fused = quantization.rebuild("fused", twins.build(config.model, info))
    model = quantization.prepare(fused, config.backend)
    part = Part(torch.randint(0, 255, (32, 1, 32, 32), dtype=torch.uint8), torch.zeros(32, dtype=torch.long))
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    context = Context(tmp_path, torch.device("cpu"), info, lambda: (part, part), lambda: part, flow, TASK)
    calibration.calibrate(model, config, context)
    state = model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in before.items())
    assert all(value == 1 for name, value in state.items() if name.endswith("fake_quant_enabled"))
    assert all(value.isfinite().all() for name, value in state.items() if name.endswith("min_val"))
