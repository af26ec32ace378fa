"""Float training with torch.compile: the same training, and a fallback."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.training import loop as training
from pipeline.training.compilation import CompiledForward
from tests.test_training import DATA, context, equal, settings


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


def network() -> nn.Module:
    """Conv+BN+ReLU and a linear layer, for images of 8 px."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 4))
    return nn.Sequential(*layers)


def fit(folder: Path, compiled: bool) -> nn.Module:
    folder.mkdir(exist_ok=True)
    model, chosen = network(), settings(compile=compiled, epochs=2, keep="last")
    training.fit(model, chosen, DATA, 0, context(folder), "train", lambda model, done: None)
    return model


@pytest.mark.operations
def test_compiled_training_is_the_uncompiled_one_up_to_rounding(tmp_path: Path) -> None:
    needs_compiler()
    torch._dynamo.utils.counters.clear()
    compiled = fit(tmp_path / "compiled", True)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    plain = fit(tmp_path / "plain", False)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(compiled.state_dict()[name], value, rtol=0.05, atol=0.05, msg=name)


def test_training_goes_on_uncompiled_with_one_line_when_there_is_no_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from torch._inductor import config as inductor

    with inductor.patch({"cpp.cxx": ("/nowhere/c++",), "force_disable_caches": True}):
        fallen_back = fit(tmp_path / "fallen_back", True)
    warnings = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(warnings) == 1
    assert warnings[0].startswith("warning: train.compile: ")
    assert warnings[0].endswith("; training goes on uncompiled")
    assert equal(fallen_back, fit(tmp_path / "plain", False))


def test_mistake_in_the_model_is_not_hidden_when_compiled() -> None:
    model = network().train()
    with pytest.raises(RuntimeError, match=r"shape|size"):
        CompiledForward(model, "train")(torch.zeros(2, 1, 9, 9))
