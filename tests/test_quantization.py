"""The forms of a model: float, fused, qat, int8, for every backend that this machine has."""

from __future__ import annotations

import io

import pytest
import torch
from torch import nn

from pipeline import models
from pipeline.commands.composition import compose_request
from pipeline.datasets.spec import DatasetInfo
from pipeline.flows import Form, forms
from pipeline.flows import eager as quantization
from pipeline.flows.eager import flow, twins
from pipeline.settings.config import Config
from pipeline.stages.qat import freeze_on_schedule
from pipeline.tasks.classification import TASK
from tests.conftest import EAGER_BACKENDS, TINY

INFO = DatasetInfo(1, tuple("0123456789"))


def config_of(backend: str, *overrides: str) -> Config:
    if backend not in quantization.supported_engines():
        pytest.skip(f"this machine's torch has no engine {backend}")
    return compose_request([f"backend={backend}", *overrides]).config


def images(count: int = 8, seed: int = 0, size: int = 32) -> torch.Tensor:
    return torch.randn(count, 1, size, size, generator=torch.Generator().manual_seed(seed))


def trained_qat(config: Config) -> nn.Module:
    """A prepared model whose observers have seen two batches."""
    torch.manual_seed(0)
    fused = quantization.rebuild("fused", twins.build(config.model, INFO))
    prepared = quantization.prepare(fused, config.backend)
    return observed(prepared, config.dataset.image_size)


def calibrated_ptq(config: Config) -> nn.Module:
    """A model prepared for post-training quantization whose observers have seen two batches."""
    torch.manual_seed(0)
    return observed(
        quantization.prepare_ptq(twins.build(config.model, INFO), config.backend), config.dataset.image_size
    )


def observed(prepared: nn.Module, size: int = 32) -> nn.Module:
    for seed in range(2):
        prepared(images(seed=seed, size=size))
    return prepared


@pytest.mark.parametrize("backend", EAGER_BACKENDS)
@pytest.mark.parametrize("form", ["float", "fused", "qat", "int8", "ptq_int8"])
def test_form_round_trips_bit_equal_when_loaded_from_its_state_dict(backend: str, form: Form, tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = config_of(backend, *TINY)
    torch.manual_seed(0)
    if form == "float":
        model = models.build(config.model, INFO)
    elif form == "fused":
        model = quantization.rebuild("fused", twins.build(config.model, INFO))
    elif form == "ptq_int8":
        model = quantization.convert(calibrated_ptq(config), config.backend)
    else:
        model = trained_qat(config)
        if form == "int8":
            model = quantization.convert(model, config.backend)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with torch.no_grad():
        expected = model.eval()(images())
        loaded = forms.load(form, tmp_path / "model.pt", config, INFO).eval()
        assert torch.equal(loaded(images()), expected)


@pytest.mark.filterwarnings("error:must run observer")
@pytest.mark.parametrize(
    "model",
    [
        "mobilenet_v2",
        "compact_resnet",
        pytest.param("blog_resnet18", marks=pytest.mark.operations),
        pytest.param("mobilenet_v3_large", marks=pytest.mark.operations),
    ],
)
def test_both_int8_forms_round_trip_when_the_model_is_another(model: str, tmp_path) -> None:  # type: ignore[no-untyped-def]
    config = compose_request([f"model={model}", "dataset.image_size=80"]).config
    for form, prepared in (("int8", trained_qat(config)), ("ptq_int8", calibrated_ptq(config))):
        int8 = quantization.convert(prepared, config.backend)
        torch.save(int8.state_dict(), tmp_path / f"{form}.pt")
        with torch.no_grad():
            loaded = forms.load(form, tmp_path / f"{form}.pt", config, INFO).eval()  # type: ignore[arg-type]
            assert torch.equal(loaded(images(size=80)), int8(images(size=80)))


@pytest.mark.parametrize("backend", EAGER_BACKENDS)
def test_int8_has_quantized_layers_and_a_quarter_of_the_size_when_converted(backend: str) -> None:
    config = config_of(backend)
    prepared = trained_qat(config)
    float_bytes = _bytes(models.build(config.model, INFO))
    int8 = quantization.convert(prepared, config.backend)
    assert torch.backends.quantized.engine == backend
    assert quantization.count_fake_quantize(int8) == 0
    kinds = {type(module).__module__ for module in int8.modules() if hasattr(module, "scale")}
    assert any("quantized" in kind for kind in kinds)
    assert not any(isinstance(module, nn.BatchNorm2d | nn.Linear | nn.Conv2d) for module in int8.modules())
    assert float_bytes / _bytes(int8) == pytest.approx(3.95, abs=0.1)


def test_qconfig_is_resolved_to_its_ranges() -> None:
    fbgemm = quantization.resolved_qconfig(config_of("fbgemm").backend)
    qnnpack = quantization.resolved_qconfig(config_of("qnnpack").backend)
    assert fbgemm["activation"].startswith("quint8 [0, 127]")
    assert "per_channel_symmetric" in fbgemm["weight"]
    assert qnnpack["activation"].startswith("quint8 [0, 255]")
    assert "per_tensor_symmetric" in qnnpack["weight"]


def test_freeze_schedule_stops_statistics_and_ranges_when_their_epochs_have_come() -> None:
    config = config_of("fbgemm", *TINY)
    config.qat.freeze_bn_epoch, config.qat.freeze_observer_epoch = 1.0, 1.5
    model = trained_qat(config)

    def changes(epochs_done: float, seed: int) -> tuple[bool, bool]:
        """Whether a step moved BatchNorm statistics, and whether it moved ranges."""
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.train()
        freeze_on_schedule(model, epochs_done, config.qat, flow)
        model(3 * images(seed=seed))
        moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
        return any("running_mean" in name for name in moved), any("min_val" in name for name in moved)

    assert changes(0.9, seed=3) == (True, True)
    assert changes(1.0, seed=4) == (False, True)
    assert changes(1.5, seed=5) == (False, False)


def _bytes(model: nn.Module) -> int:
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    return buffer.getbuffer().nbytes


def test_validation_leaves_ranges_as_they_are_when_observers_still_learn() -> None:
    from pipeline.datasets.spec import Part
    from pipeline.host.machine import Machine
    from pipeline.settings.config import DatasetConfig
    from pipeline.training.loop import predict

    model = trained_qat(config_of("fbgemm", *TINY))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    bright = Part(torch.full((4, 1, 32, 32), 255, dtype=torch.uint8), torch.zeros(4, dtype=torch.long))
    predict(
        model, bright, DatasetConfig(name="made", std=[0.01]), 2, torch.device("cpu"), "test", flow, Machine(), TASK
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(value == 1 for name, value in model.state_dict().items() if name.endswith("observer_enabled"))
