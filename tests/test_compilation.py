"""Training with torch.compile: the same training, a freeze that takes effect, and a fallback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import DeQuantStub, QuantStub

from pipeline import models
from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.flows import eager as quantization
from pipeline.flows.eager import flow
from pipeline.flows.eager.fusing import fuse_modules
from pipeline.settings.config import BackendConfig
from pipeline.training import loop as training
from pipeline.training.compilation import CompiledForward
from pipeline.training.context import PROGRESS_FILE
from tests.test_training import DATA, Killed, context, equal, settings


@pytest.fixture(autouse=True)
def no_compiled_code_of_other_tests() -> None:
    torch.compiler.reset()


def needs_compiler() -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("no C++ compiler here")


class Small(nn.Module):
    """Conv+BN+ReLU and a linear layer between stubs, for images of 8 px."""

    def __init__(self) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.conv, self.bn, self.relu = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
        self.fc = nn.Linear(144, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.dequant(self.fc(self.relu(self.bn(self.conv(self.quant(x)))).flatten(1)))


def network(quantized: bool) -> nn.Module:
    torch.manual_seed(0)
    model = Small()
    if quantized:
        model.train()
        fuse_modules(model, [["conv", "bn", "relu"]], is_qat=True)
        quantization.prepare(model, BackendConfig(name="fbgemm", qconfig="fbgemm", engine="fbgemm"))
        quantization.size_ranges(model)
    return model


def fit(folder: Path, compiled: bool, quantized: bool, before_step=lambda model, done: None) -> nn.Module:  # type: ignore[no-untyped-def]
    folder.mkdir(exist_ok=True)
    model, chosen = network(quantized), settings(compile=compiled, epochs=2, keep="last")
    training.fit(model, chosen, DATA, 0, context(folder), "train", before_step)
    return model


@pytest.mark.parametrize("quantized", [False, True])
def test_compiled_training_is_the_uncompiled_one_up_to_rounding(tmp_path: Path, quantized: bool) -> None:
    needs_compiler()
    torch._dynamo.utils.counters.clear()
    compiled = fit(tmp_path / "compiled", True, quantized)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    plain = fit(tmp_path / "plain", False, quantized)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        # A level of difference after a rounding is no error.
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=0.05, atol=0.05, msg=name)


def test_frozen_statistics_and_ranges_stay_when_the_model_is_compiled(tmp_path: Path) -> None:
    needs_compiler()
    at_freeze: dict[str, Tensor] = {}

    def freeze(model: nn.Module, epochs_done: float) -> None:
        if epochs_done >= 1.5:
            if not at_freeze:
                at_freeze.update({name: value.clone() for name, value in model.state_dict().items()})
            quantization.freeze_batch_norm(model)
            quantization.freeze_observers(model)

    model = fit(tmp_path / "run", True, True, freeze)
    trained = model.state_dict()
    before = torch.load(tmp_path / "run" / PROGRESS_FILE, weights_only=True)
    assert before["epochs_done"] == 2
    still = [name for name in trained if name.endswith(("running_mean", "running_var", "min_val", "max_val"))]
    assert len(still) == 12
    assert all(torch.equal(trained[name], at_freeze[name]) for name in still)
    assert not torch.equal(trained["fc.weight"], at_freeze["fc.weight"])


def test_compiled_qat_ends_in_the_same_bits_when_resumed(tmp_path: Path) -> None:
    needs_compiler()

    def freeze(model: nn.Module, epochs_done: float) -> None:
        if epochs_done >= 0.5:
            quantization.freeze_batch_norm(model)

    def die(model: nn.Module, epochs_done: float) -> None:
        if epochs_done > 1.2:
            raise Killed
        freeze(model, epochs_done)

    undisturbed = fit(tmp_path / "undisturbed", True, True, freeze)
    with pytest.raises(Killed):
        fit(tmp_path / "killed", True, True, die)
    assert equal(fit(tmp_path / "killed", True, True, freeze), undisturbed)


def test_training_goes_on_uncompiled_with_one_line_when_there_is_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch._inductor import config as inductor

    with inductor.patch({"cpp.cxx": ("/nowhere/c++",), "force_disable_caches": True}):
        fallen_back = fit(tmp_path / "fallen_back", True, True)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: train.compile: ")
    assert warnings[0].endswith("; training goes on uncompiled")
    assert equal(fallen_back, fit(tmp_path / "plain", False, True))


def test_mistake_in_the_model_is_not_hidden_when_compiled() -> None:
    model = network(quantized=False).train()
    with pytest.raises(RuntimeError, match=r"shape|size"):
        CompiledForward(model, "train")(torch.zeros(2, 1, 9, 9))


def test_ranges_of_ptq_stay_finite_when_the_model_is_made_compilable() -> None:
    config = compose_request([]).config
    info = catalogue.info(config.dataset)
    images = torch.rand(4, info.channels, 32, 32)
    calibrated = flow.prepare_ptq(models.build(config.model, info), config, info)
    calibrated(images)
    prepared = flow.prepare(flow.fuse(models.build(config.model, info), config, info), config)
    flow.take_ranges(prepared, calibrated)
    flow.make_compilable(prepared)
    scales = [value for name, value in prepared.state_dict().items() if name.endswith("weight_fake_quant.scale")]
    assert len(scales) > 20
    assert all(scale.isfinite().all() and (scale > 0).all() for scale in scales)
    prepared(images)  # in training mode, with ranges that go on moving
    state = prepared.state_dict()
    assert all(value.isfinite().all() for name, value in state.items() if name.endswith("weight_fake_quant.scale"))
