"""A network of the user's own, by its import path: `model.target`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline import models
from pipeline.commands.command_line import tell_error
from pipeline.commands.composition import check_command_line, compose_request, with_own
from pipeline.datasets.spec import DatasetInfo
from pipeline.host.errors import UserError
from pipeline.models import weights
from pipeline.run import sources
from pipeline.run.request import Request
from pipeline.run.runner import check_parts, run
from tests import own_code

NO_TRACKING = "tracking=off"
_numbers = itertools.count()

STRANGE = """
class Named(Net):
    def forward(self, x):
        return {"out": super().forward(x)}


class Raising(Net):
    def forward(self, x):
        return super().forward(x) + torch.ones(3)


class Needing(nn.Module):
    def __init__(self, depth):
        super().__init__()


class AnotherSum(QuantizableNet):
    def add(self, x, y):
        return x


class PlainSum(QuantizableNet):
    def add(self, x, y):
        return x + y


class FewerParameters(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(1, num_classes)

    def fuse_model(self, is_qat): ...


def a_number():
    return 5


def raising(num_classes):
    raise ValueError("words of its own\\nand more")
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package that can be imported, with the module `nets`."""
    name = f"own_package_{next(_numbers)}"  # a process imports a name once
    own_code.write(tmp_path / "elsewhere", name, nets=own_code.NETS + STRANGE, broken="import nowhere_to_be_found")
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    return name


def refusal(*overrides: str) -> UserError:
    with pytest.raises(UserError) as caught:
        check_parts(compose_request([*overrides]).config)
    return caught.value


def test_network_and_twin_of_ones_own_go_the_whole_way(package: str, small_request: Callable[..., Request]) -> None:
    request = small_request(
        f"model.target={package}.nets:Net",
        f"model.quantizable_target={package}.nets:QuantizableNet",
        "model.kwargs.width=12",
        NO_TRACKING,
    )
    assert request.parameters["model.name"] == "Net"
    outcome = run(request)
    assert outcome.metrics["compression"] > 1.5
    assert outcome.metrics["fp32/size_mb"] == pytest.approx(0.036, abs=0.01)  # 12 wide


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["model.target={p}.nets:Net"], "model.quantizable_target=package.module:name (docs/own-network.md"),
        (["model.target={p}.nets:Nett"], "has no Nett; did you mean 'Net'?"),
        (["model.target={p}.nets"], "allowed: package.module:name"),
        (["model.target={p}.nothing:Net"], "there is no module {p}.nothing"),
        (["model.target={p}.nets:Net", "model.kwargs.widht=3"], "model.kwargs.widht: .*did you mean 'width'?"),
        (["model.target={p}.nets:Needing"], "set model.kwargs.depth"),
        (["model.target={p}.nets:a_number"], "is of type int; allowed: torch.nn.Module"),
        (["model.target={p}.nets:torch"], "is of type module; allowed: a class or a function"),
        (["model.target={p}.nets:Named"], "is of type dict; allowed: one tensor, the logits (N, classes)"),
        (["model.target={p}.nets:Net", "model.kwargs.num_classes=3"], "(1, 3); allowed: (1, 10)"),
        (["model.target={p}.nets:Net", "model.stem=small"], "model.stem=small: allowed: null"),
        (["model.target={p}.nets:Net", "model=resnet18"], "allowed: model=own"),
        (["model.target={p}.nets:Net", "model.kwargs.at=http://me:secret@host/x"], "model.kwargs.at=http://\\*\\*\\*@"),
        (["model.kwargs.width=3"], "model.kwargs=.*allowed: with model.target"),
        (["model=own"], "or model.target=package.module:name"),
        (["{n}", "model.quantizable_target={p}.nets:Net"], "Net has no fuse_model"),
        (["{n}", "model.quantizable_target={p}.nets:AnotherSum"], "its outputs differ from those of {p}.nets:Net"),
        (["{n}", "model.quantizable_target={p}.nets:PlainSum"], "PlainSum: torch has no int8 add; allowed: Float"),
        (["{n}", "model.quantizable_target={p}.nets:FewerParameters"], "names in its state_dict are not those of"),
    ],
)
def test_network_is_refused_in_one_line_when_it_cannot_serve(package: str, overrides: list[str], line: str) -> None:
    known = {"p": package, "n": f"model.target={package}.nets:Net"}
    told = str(refusal(*(text.format(**known) for text in overrides)))
    assert "\n" not in told
    for part in line.format(**known).split(".*"):
        assert part.replace("\\", "") in told


@pytest.mark.parametrize(
    ("path", "line", "own"),
    [
        ("nets:raising", "ValueError: words of its own", "nets.py"),
        ("nets:Raising", "its forward, on one image of 1 × 32 × 32: RuntimeError: The size of tensor a", "nets.py"),
        ("broken:Net", "cannot be imported: No module named 'nowhere_to_be_found'", "broken.py"),
    ],
)
def test_users_own_traceback_stands_below_the_line_when_their_code_raises(
    package: str, path: str, line: str, own: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tell_error(refusal(f"model.target={package}.{path}"))
    first, *below = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: model.target={package}.{path}: ")
    assert line in first
    assert below[0] == "Traceback (most recent call last):"
    assert own in "\n".join(below)
    assert "pipeline/models" not in "\n".join(below)


def test_network_without_a_twin_is_trained_when_no_stage_needs_one(package: str) -> None:
    config = compose_request([f"model.target={package}.nets:Net", "stages=[train]"]).config
    assert [step.stage.name for step in check_parts(config).steps] == ["train"]


def test_float_training_stays_when_a_twin_is_added(package: str) -> None:
    asked = [f"model.target={package}.nets:Net", "stages=[train]"]
    twin = f"model.quantizable_target={package}.nets:QuantizableNet"
    alone, both = (check_parts(compose_request(given).config) for given in (asked, [*asked, twin]))
    assert alone.steps[0].artifact == both.steps[0].artifact


def test_weights_in_a_file_keep_a_fresh_head_when_they_are_of_other_classes(package: str, tmp_path: Path) -> None:
    config = compose_request([f"model.target={package}.nets:Net"]).config.model
    digits, letters = DatasetInfo(1, tuple("0123456789")), DatasetInfo(1, tuple("abc"))
    trained = models.build(config, letters)
    torch.save(trained.state_dict(), tmp_path / "letters.pt")
    config.weights = str(tmp_path / "letters.pt")
    network = models.build(config, digits)
    assert weights.load_into(network, config, digits).fresh == ["head.weight", "head.bias"]
    assert torch.equal(network.state_dict()["first.0.weight"], trained.state_dict()["first.0.weight"])


def test_arguments_of_ones_own_network_can_be_searched() -> None:
    pytest.importorskip("optuna")
    asked = ["hydra/sweeper=optuna", "model.target=own.nets:Net", "model.kwargs.width=range(4,13,4)"]
    widths = [config.model.kwargs["width"] for _, config in check_command_line(with_own(asked), multirun=True)]
    assert (min(widths), max(widths)) == (4, 12)
    assert all(isinstance(width, int) for width in widths)


def test_torchvisions_own_pair_serves_by_import_path() -> None:
    of_torchvision = [
        "model.target=torchvision.models:resnet18",
        "model.quantizable_target=torchvision.models.quantization:resnet18",
        "model.kwargs.num_classes=10",
        "dataset.mean=[0.5,0.5,0.5]",
        "dataset.std=[0.5,0.5,0.5]",
    ]
    assert len(check_parts(compose_request(of_torchvision).config).steps) == 5


def test_network_is_trained_again_and_the_file_named_when_its_source_changes_and_not_for_a_comment(
    package: str,
    tmp_path: Path,
    small_request: Callable[..., Request],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    request = small_request(f"model.target={package}.nets:Net", "stages=[train]", NO_TRACKING)
    file = tmp_path / "elsewhere" / package / "nets.py"
    text = file.read_text()

    def said(source: str) -> str:
        file.write_text(source)
        monkeypatch.setattr(sources, "_read_before", {})  # as another process begins
        run(request)
        return next(line for line in capsys.readouterr().out.splitlines() if line.startswith("train "))

    assert " done " in said(text)
    assert " cached " in said(text.replace("def add(self, x, y):", "# a sum\n    def add(self, x, y):"))
    assert said(text.replace("x + y", "x + 2 * y")).endswith(f"made again: {package}/nets.py changed")
