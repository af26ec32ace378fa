"""What `backend` can override: the qconfig, the layers that stay float, and the recipe that is none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import DeQuantStub, QuantStub

from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.datasets.spec import DatasetInfo
from pipeline.flows import Form, forms
from pipeline.flows import eager as quantization
from pipeline.flows.eager import twins
from pipeline.flows.eager.layers import fuse_modules
from pipeline.host.errors import UserError
from pipeline.run.request import Request
from pipeline.run.runner import artifacts_of, check_parts, run
from pipeline.settings.config import BackendConfig, Config
from pipeline.training.context import MODEL_FILE
from tests.conftest import EAGER_BACKENDS

GREY = DatasetInfo(1, tuple("0123456789"))
NO_VNNI = {"architecture": "x86_64", "avx2": True, "avx512_f": True, "avx512_vnni": False, "avx_vnni": False}


class Twin(nn.Module):
    """A network of the layers that matter, small enough to try every setting on every engine."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv, self.bn, self.relu = nn.Conv2d(4, 16, 3), nn.BatchNorm2d(16), nn.ReLU()
        self.depthwise, self.bn2 = nn.Conv2d(16, 16, 3, groups=16, bias=False), nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn2(self.depthwise(self.relu(self.bn(self.conv(self.quant(x))))))
        return self.dequant(self.fc(nn.functional.max_pool2d(x, 6).flatten(1)))

    def fuse_model(self, is_qat: bool) -> None:
        fuse_modules(self, [["conv", "bn", "relu"], ["depthwise", "bn2"]], is_qat)


def backend_of(name: str, *overrides: str) -> BackendConfig:
    if name not in quantization.supported_engines():
        pytest.skip(f"this machine's torch has no engine {name}")
    return compose_request([f"backend={name}", *(f"backend.{text}" for text in overrides)]).config.backend


def batch(seed: int = 0) -> Tensor:
    return torch.randn(16, 4, 10, 10, generator=torch.Generator().manual_seed(seed))


def trained(backend: BackendConfig, fuse_mode: str = "train") -> nn.Module:
    torch.manual_seed(0)
    model = quantization.rebuild("qat", Twin(), backend, fuse_mode)
    for seed in range(3):
        model(batch(seed))
    return model


def calibrated(backend: BackendConfig) -> nn.Module:
    torch.manual_seed(0)
    model = quantization.prepare_ptq(Twin(), backend)
    model(batch())
    return model


SETTINGS = [
    ("activation_bits=7", "activation", "[0, 127]"),
    ("activation_bits=8", "activation", "[0, 255]"),
    ("per_channel=true", "weight", "per_channel_symmetric"),
    ("per_channel=false", "weight", "per_tensor_symmetric"),
    ("observer=moving_average", "activation", "MovingAverageMinMaxObserver"),
    ("observer=histogram", "activation", "HistogramObserver"),
    ("observer=min_max", "activation", " MinMaxObserver"),
    ("symmetric=true", "activation", "per_tensor_symmetric"),
    ("symmetric=false", "activation", "per_tensor_affine"),
]


@pytest.mark.parametrize("name", EAGER_BACKENDS)
@pytest.mark.parametrize(("override", "role", "words"), SETTINGS)
def test_setting_is_resolved_and_int8_is_what_was_simulated_or_said_to_saturate_when_overridden(
    name: str, override: str, role: str, words: str
) -> None:
    backend, default = backend_of(name, override), backend_of(name)
    for resolve in (quantization.resolved_qconfig, quantization.resolved_ptq_qconfig):
        assert words in resolve(backend)[role]
        other = "weight" if role == "activation" else "activation"
        assert resolve(backend)[other] == resolve(default)[other]
    for prepared in (trained(backend), calibrated(backend)):
        with torch.no_grad():
            expected = prepared.eval()(batch())
            answered = quantization.convert(prepared, backend)(batch())
        # Where products saturate, the answer is another, if of the same kind; a line says so before anything runs.
        saturates = quantization.saturation_warning(backend) is not None
        assert (answered - expected).norm() < (0.5 if saturates else 0.1) * expected.norm()


def test_zero_point_is_in_the_middle_of_the_reduced_range_when_7_bits_are_symmetric() -> None:
    int8 = quantization.convert(calibrated(backend_of("fbgemm", "symmetric=true")), backend_of("fbgemm"))
    assert int8.conv.zero_point == 63


def test_ptqs_own_observer_stands_before_the_backends_when_both_are_set() -> None:
    backend = backend_of("fbgemm", "observer=min_max")
    assert "MovingAverage" in quantization.resolved_ptq_qconfig(backend, "moving_average")["activation"]
    assert " MinMax" in quantization.resolved_ptq_qconfig(backend, None)["activation"]


@pytest.mark.parametrize(
    ("name", "override", "vnni", "warned"),
    [
        ("fbgemm", "activation_bits=8", None, True),
        ("fbgemm", "activation_bits=null", None, False),  # 7 bits by default
        ("fbgemm", "activation_bits=8", "avx512_vnni", False),
        ("fbgemm", "activation_bits=8", "avx_vnni", True),  # which fbgemm does not use
        ("x86", "activation_bits=8", None, True),
        ("onednn", "activation_bits=null", None, True),
        ("onednn", "activation_bits=null", "avx_vnni", False),
        ("onednn", "activation_bits=7", None, False),
        ("qnnpack", "activation_bits=8", None, False),
    ],
)
def test_saturation_is_warned_of_when_the_processor_lacks_vnni(
    name: str, override: str, vnni: str | None, warned: bool
) -> None:
    capabilities = NO_VNNI | ({vnni: True} if vnni else {})
    warning = quantization.saturation_warning(backend_of(name, override), capabilities)
    assert (warning is not None) == warned
    if warning:
        for words in (f"backend.engine={name}", "8 bits saturates", "lacks VNNI", "backend.activation_bits=7"):
            assert words in warning


def test_qconfig_is_told_tagged_and_warned_of_when_a_run_starts(
    small_request: Callable[..., Request], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.run.plan import make_plan
    from pipeline.run.request import describe

    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: NO_VNNI)
    request = small_request("tracking=off", "stages=[train,ptq]", "backend.activation_bits=8", "train.epochs=1")
    run(request)
    told = capsys.readouterr()
    assert "ptq_qconfig: activation quint8 [0, 255] per_tensor_affine HistogramObserver" in told.out
    assert told.err.count("saturates on this processor") == 1
    tags = describe(request, make_plan(request.config)).tags
    assert tags["ptq_qconfig.activation"].startswith("quint8 [0, 255]")
    assert "per_channel" in tags["ptq_qconfig.weight"]


LAYERS = {
    "resnet18": ("conv1", "layer1.0.conv1", "layer2.0.downsample.0", "fc"),
    "blog_resnet18": ("conv", "stage1.0.conv2", "stage1.0.shortcut", "fc"),
    "mobilenet_v2": ("features.0.0", "features.1.conv.0.0", "features.1.conv.1", "classifier.1"),
    "mobilenet_v3_large": ("features.0.0", "features.4.block.2.fc1", "features.4.block.2.fc2", "classifier.3"),
}


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        pytest.param("mobilenet_v3_large", marks=pytest.mark.operations),
        pytest.param("blog_resnet18", marks=pytest.mark.operations),
        pytest.param("mobilenet_v2", marks=pytest.mark.operations),
    ],
)
def test_skipped_layers_stay_float_and_round_trip_when_named(name: str, tmp_path: Path) -> None:
    skipped = LAYERS[name]
    overrides = [f"model={name}", "dataset.image_size=80", f"backend.skip_layers=[{','.join(skipped)}]"]
    config = compose_request(overrides).config
    torch.manual_seed(0)
    prepared = quantization.rebuild("qat", twins.build(config.model, GREY), config.backend)
    images = torch.randn(4, 1, 80, 80)
    prepared(images)
    chain: list[tuple[Form, nn.Module]] = [("qat", prepared.eval())]
    for form, _ in [*chain, ("int8", None)]:
        model = chain[0][1] if form == "qat" else quantization.convert(chain[0][1], config.backend)
        torch.save(model.state_dict(), tmp_path / "model.pt")
        loaded = forms.load(form, tmp_path / "model.pt", config, GREY).eval()
        with torch.no_grad():
            assert torch.equal(loaded(images), model(images))
    float_weights = {key.split(".layer.")[0] for key, value in model.state_dict().items() if ".layer." in key}
    assert float_weights == set(skipped)
    kinds = {type(model.get_submodule(f"{layer}.layer")).__module__ for layer in skipped}
    assert not any("quantized" in kind for kind in kinds)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    quantized = [module for module in model.modules() if "quantized.modules.conv" in type(module).__module__]
    assert quantized


@pytest.mark.parametrize("kind", ["qat", "ptq"])
def test_int8_comes_nearer_to_float_when_a_layer_is_skipped(kind: str) -> None:
    def error(*overrides: str) -> float:
        backend = backend_of("qnnpack", *overrides)
        torch.manual_seed(0)
        twin = Twin()
        with torch.no_grad():
            twin.bn.weight[0] = 0.005  # BatchNorm makes up for it: one channel of weights that spoils the scale of all
        twin.bn.momentum = twin.bn2.momentum = None  # a plain mean: settled at once
        twin.train()(batch())
        if kind == "ptq":
            prepared = quantization.prepare_ptq(twin, backend)
        else:
            prepared = quantization.prepare(quantization.fuse(twin, "train"), backend).eval()
        with torch.no_grad():
            with quantization.fake_quantize_off(prepared):
                expected = prepared(batch())
            return float((quantization.convert(prepared, backend)(batch()) - expected).norm() / expected.norm())

    assert error("skip_layers=[depthwise]") < 0.5 * error()


def test_skipped_layers_batch_norm_is_frozen_with_the_others() -> None:
    model = quantization.rebuild("qat", Twin(), backend_of("fbgemm", "skip_layers=[conv]"))
    model.train()
    quantization.freeze_batch_norm(model)
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    model(batch())
    assert len(before) == 4
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("skip", "hint"), [("layer1.0.conv3", "did you mean 'layer1.0.conv2'?"), ("zzz", "allowed: conv1, layer1.0.conv1,")]
)
def test_skip_layers_are_refused_before_any_work_when_the_model_has_none_of_that_name(skip: str, hint: str) -> None:
    config = compose_request([f"backend.skip_layers=[conv1,{skip}]"]).config
    with pytest.raises(UserError) as refused:
        check_parts(config)
    assert str(refused.value).startswith(f"backend.skip_layers=[conv1,{skip}]: resnet18 has no quantizable layer")
    assert hint in str(refused.value)
    assert "\n" not in str(refused.value)


def artifact(config: Config, stage: str) -> Path:
    name = next(name for name in artifacts_of(config) if name.startswith(f"{stage}-"))
    return Path(config.outputs) / "artifacts" / name / MODEL_FILE


@pytest.mark.operations
def test_defective_recipe_has_no_fake_quantize_modules_and_the_right_one_has(outputs: Path) -> None:
    small = ["dataset=digits", "dataset.image_size=80", "dataset.max_train_samples=120", f"outputs={outputs}"]
    small += ["train.epochs=1", "qat.epochs=1", "train.batch_size=16", "qat.batch_size=16", "tracking=off"]
    counts = {}
    for recipe in ("blog_defective", "blog_right"):
        request = compose_request([f"+experiment={recipe}", *small, "stages=[train,fuse,qat,convert]"])
        run(request)
        info = catalogue.info(request.config.dataset)
        trained = forms.load("qat", artifact(request.config, "qat"), request.config, info)
        counts[recipe] = quantization.count_fake_quantize(trained)
        assert any(isinstance(module, nn.BatchNorm2d) for module in trained.modules()) == (recipe == "blog_right")
        assert forms.load("int8", artifact(request.config, "convert"), request.config, info)
    assert counts["blog_defective"] == 0
    assert counts["blog_right"] > 50


def test_validation_leaves_bare_observers_as_they_are() -> None:
    model = trained(backend_of("fbgemm", "fake_quantize=false"), "eval")
    assert quantization.count_fake_quantize(model) == 0
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with quantization.observers_off(model):
        model(100 * batch())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(100 * batch())
    assert not all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
