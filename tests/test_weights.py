"""Float weights as other people's tools write them: taken, with a line of what was stripped, or refused by name."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline import models
from pipeline.commands.composition import compose_request
from pipeline.datasets.spec import DatasetInfo
from pipeline.host.errors import UserError
from pipeline.models import weights
from pipeline.run.request import Request
from pipeline.run.runner import run
from pipeline.settings.config import ModelConfig

GREY = DatasetInfo(1, tuple("0123456789"))
State = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def state() -> State:
    torch.manual_seed(0)
    return dict(models.build(_config(), GREY).state_dict())


def _config() -> ModelConfig:
    return compose_request(["model=mobilenet_v2"]).config.model


def load(path: Path) -> tuple[State, str]:
    """The network's tensors after `path` was loaded, and what is told of it."""
    config = _config()
    config.weights = str(path)
    network = models.build(config, GREY)
    return dict(network.state_dict()), weights.load_into(network, config, GREY).told


def named(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def shifted(state: State) -> State:
    return {name: value + 1 for name, value in state.items()}


def lightning(state: State) -> Any:
    content = {**named(state, "model."), "criterion.weight": torch.ones(10)}
    return {"state_dict": content, "hyper_parameters": {"lr": 0.1}, "epoch": 3, "optimizer_states": [{"state": {}}]}


TAKEN: dict[str, tuple[Callable[[State], Any], str]] = {
    "plain": (lambda state: state, ""),
    "state_dict": (lambda state: {"state_dict": state, "epoch": 3, "arch": "x"}, "takes 'state_dict'"),
    "model": (lambda state: {"model": state, "optimizer": {"state": {0: {"step": torch.ones(1)}}}}, "takes 'model'"),
    "same twice": (lambda state: {"model": state, "state_dict": dict(state)}, "takes 'model'"),
    "numbers beside it": (lambda state: {**state, "epoch": 3}, ""),
    "DataParallel": (lambda state: named(state, "module."), "takes its tensors, stripped of 'module.'"),
    "torch.compile": (lambda state: named(state, "_orig_mod."), "takes its tensors, stripped of '_orig_mod.'"),
    "a compiled layer": (
        lambda state: {name.replace("features.", "features._orig_mod."): value for name, value in state.items()},
        "takes its tensors, stripped of '_orig_mod.'",
    ),
    "Lightning": (
        lightning,
        "takes 'state_dict', stripped of 'model.'; passes over 1 others, the first 'criterion.weight'",
    ),
    "all of it": (
        lambda state: {"checkpoint": {"model_state_dict": named(state, "module._orig_mod.net.")}},
        "takes 'model_state_dict' in 'checkpoint', stripped of '_orig_mod.', 'module.net.'",
    ),
    "an average beside it": (
        lambda state: {"state_dict_ema": shifted(state), "state_dict": state},
        "takes 'state_dict'; not the average beside it: 'state_dict_ema'",
    ),
    "an average alone": (lambda state: {"state_dict_ema": state}, "takes 'state_dict_ema'"),
    "torch's average": (
        lambda state: {"n_averaged": torch.tensor(3), **named(state, "module.")},
        "takes its tensors, stripped of 'module.'; passes over 1 others, the first 'n_averaged'",
    ),
}


@pytest.mark.parametrize("kind", TAKEN)
def test_weights_are_taken_and_what_was_stripped_is_told_when_a_tool_wrapped_them(
    kind: str, state: State, tmp_path: Path
) -> None:
    wrap, line = TAKEN[kind]
    torch.save(wrap(state), tmp_path / "weights.pth")
    loaded, told = load(tmp_path / "weights.pth")
    assert told == line
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_weights_are_read_when_they_are_safetensors_whatever_the_file_is_called(
    suffix: str, state: State, tmp_path: Path
) -> None:
    save_file(named(state, "model."), tmp_path / f"weights.{suffix}")
    loaded, told = load(tmp_path / f"weights.{suffix}")
    assert told == "takes its tensors, stripped of 'model.'"
    assert all(torch.equal(loaded[name], state[name]) for name in state)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_become_float32_and_say_so_once_when_they_are_of_another_type(
    kind: torch.dtype, state: State, tmp_path: Path
) -> None:
    other = {name: value.to(kind) if value.is_floating_point() else value for name, value in state.items()}
    torch.save(other, tmp_path / "weights.pth")
    loaded, told = load(tmp_path / "weights.pth")
    assert told == f"{str(kind).removeprefix('torch.')} becomes float32"
    assert all(torch.equal(loaded[name], other[name].to(state[name].dtype)) for name in state)


FIRST, NORM = "features.0.0.weight", "features.0.1.running_var"


def with_one(name: str, number: float) -> Callable[[State], Any]:
    def spoil(state: State) -> State:
        value = state[name].clone()
        value.view(-1)[0] = number
        return {**state, name: value}

    return spoil


REFUSED: dict[str, tuple[Callable[[State], Any], list[str]]] = {
    "nan": (with_one(FIRST, float("nan")), [f"'{FIRST}' holds nan: 1 of its 288", "allowed: finite numbers"]),
    "inf": (with_one(FIRST, float("inf")), [f"'{FIRST}' holds inf"]),
    "beyond float32": (
        lambda state: {**state, FIRST: state[FIRST].double() * 1e300},
        [f"'{FIRST}' holds ", "inf"],
    ),
    "a variance below 0": (with_one(NORM, -1), [f"'{NORM}' holds -1", "allowed: numbers of at least 0"]),
    "whole numbers": (lambda state: {**state, FIRST: state[FIRST].char()}, [f"'{FIRST}' is a tensor of int8"]),
    "sparse": (lambda state: {**state, FIRST: state[FIRST].to_sparse()}, [f"'{FIRST}'", "sparse_coo"]),
    "without values": (lambda state: {**state, FIRST: state[FIRST].to("meta")}, [f"'{FIRST}'", "meta"]),
    "two of them": (
        lambda state: {"student": state, "teacher": shifted(state)},
        ["more than one state_dict of mobilenet_v2", "'student'; 'teacher'"],
    ),
    "another network, wrapped": (
        lambda state: {"state_dict": named({n: v for n, v in state.items() if "classifier" not in n}, "model.")},
        ["2 keys differ", "'classifier.1.bias' (missing)", "looked at 'state_dict', stripped of 'model.'"],
    ),
    "an object beside it": (
        lambda state: {"state_dict": state, "hyper_parameters": argparse.Namespace(lr=0.1)},
        ["it holds argparse.Namespace", "never unpickled", "torch.save(model.state_dict(), "],
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_weights_are_refused_by_the_key_or_parameter_when_they_cannot_be_used(
    kind: str, state: State, tmp_path: Path
) -> None:
    spoil, fragments = REFUSED[kind]
    torch.save(spoil(state), tmp_path / "weights.pth")
    with pytest.raises(UserError) as refused:
        load(tmp_path / "weights.pth")
    line = str(refused.value)
    assert line.startswith(f"model.weights={tmp_path / 'weights.pth'}: ")
    assert [fragment for fragment in fragments if fragment not in line] == []


def test_weights_are_refused_when_a_safetensors_file_is_cut_off(state: State, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(state, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match="cannot be read as safetensors"):
        load(path)


def test_run_tells_once_what_was_stripped_when_it_takes_wrapped_weights(
    state: State, small_request: Callable[..., Request], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "weights.ckpt"
    torch.save(lightning(state), path)
    overrides = ["model=mobilenet_v2", f"model.weights={path}", "train.epochs=0", "stages=[train]", "tracking=off"]
    run(small_request(*overrides))
    assert capsys.readouterr().out.count(f"model.weights={path}: takes 'state_dict', stripped of 'model.'") == 1
