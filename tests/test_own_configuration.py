"""Experiments, models and data sets as YAML in a folder of the user's own: `--config-dir`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
import yaml
from omegaconf import OmegaConf

from pipeline.commands import composition
from pipeline.commands.composition import CONFIG_FOLDER, compose_request
from pipeline.host.files import PROJECT_ROOT
from pipeline.settings.typed import command, config_dirs_content, of_config_dir
from tests import forked, own_code
from tests.conftest import SMALL

Refuse = Callable[..., str]
MODEL = "name: mine\ntarget: mine.nets:Net\nquantizable_target: mine.nets:QuantizableNet\nkwargs:\n  width: 12\n"
EXPERIMENT = "# @package _global_\ndefaults:\n  - override /model: mine\n\nqat:\n  epochs: 7\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory of the test, with `conf/` and the package `mine`."""
    for name, text in {"model/mine": MODEL, "experiment/mine": EXPERIMENT}.items():
        file = tmp_path / "conf" / f"{name}.yaml"
        file.parent.mkdir(parents=True)
        file.write_text(text)
    own_code.write(tmp_path, "mine", nets=own_code.NETS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refuse(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Refuse:
    """The one line that ends a command."""

    def call(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["pipeline", *arguments])
        with pytest.raises(SystemExit) as ended:
            composition.main()
        assert ended.value.code == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return call


def test_experiment_and_model_of_ones_own_are_composed_among_the_projects(folder: Path) -> None:
    request = compose_request([of_config_dir(folder / "conf"), "+experiment=mine", "train.epochs=4"])
    assert (request.config.model.target, request.config.model.kwargs) == ("mine.nets:Net", {"width": 12})
    assert (request.config.qat.epochs, request.config.train.epochs) == (7, 4)
    assert request.parameters["model.kwargs.width"] == 12


def test_composition_is_another_as_soon_as_a_file_is(folder: Path) -> None:
    typed = [of_config_dir(folder / "conf"), "+experiment=mine"]
    assert compose_request(typed).config.qat.epochs == 7
    (folder / "conf" / "experiment" / "mine.yaml").write_text(EXPERIMENT.replace("7", "8"))
    assert compose_request(typed).config.qat.epochs == 8


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["qat.epochs=3", "backend=qnnpack", "++qat.epochs=4", "seed=2", "stages=[train]", "outputs='a b'"],
        ["model=own", "+model.kwargs.width=3", "model.kwargs.width=4", "model.kwargs={depth:1}", "task=my.task:TASK"],
        ["method=ptq", "seed=2"],
        ["qat=default", "hydra.job.chdir=false", "train.epochs='${qat.epochs}'"],
    ],
)
def test_composition_is_hydras_when_its_files_were_merged_before(overrides: list[str]) -> None:
    for _ in range(2):
        with hydra.initialize_config_dir(str(CONFIG_FOLDER), version_base="1.3"):
            expected = OmegaConf.to_container(hydra.compose("config", overrides), resolve=True)
        assert yaml.safe_load(compose_request(overrides).yaml) == expected


def test_experiments_network_stays_when_the_command_line_names_another_one(folder: Path) -> None:
    asked = [of_config_dir(folder / "conf"), "+experiment=mine", "model.target=mine.nets:QuantizableNet"]
    model = compose_request(asked).config.model
    assert (model.target, model.kwargs) == ("mine.nets:QuantizableNet", {"width": 12})


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--config-dir", "cof"], "--config-dir cof: no such folder; did you mean 'conf'?"),
        (["--config-dir=mine"], "--config-dir mine: no YAML in it"),
        (["--config-dir", "conf", "+experiment=mien"], "no such experiment; .*did you mean 'mine'?"),
        (["--config-dir", "conf", "model=mein"], "no such model; .*did you mean 'mine'?"),
    ],
)
def test_folder_or_name_is_refused_in_one_line_with_the_nearest(
    refuse: Refuse, arguments: list[str], line: str
) -> None:
    told = refuse(*arguments)
    for part in line.split(".*"):
        assert part in told


@pytest.mark.parametrize(
    ("file", "text", "line"),
    [
        ("model/stray.yaml", f"{MODEL}widht: 3\n", "model/stray.yaml: model.widht: no such setting; allowed: "),
        ("model/kind.yaml", f"{MODEL}stem: huge\n", "model.stem=huge: allowed: imagenet, small"),
        ("model/resnet18.yaml", MODEL, "model/resnet18.yaml has the name of one of the project's"),
        ("model/mine.yml", MODEL, "model/mine.yml is not read; allowed: model/mine.yaml"),
    ],
)
def test_file_is_checked_as_the_projects_are(folder: Path, refuse: Refuse, file: str, text: str, line: str) -> None:
    (folder / "conf" / file).write_text(text)
    assert line in refuse("--config-dir", "conf", f"model={Path(file).stem}")


def test_content_of_the_folder_is_another_when_a_file_in_it_changes(folder: Path) -> None:
    typed = [of_config_dir(folder / "conf"), "+experiment=mine"]
    before = config_dirs_content(typed)
    assert before == config_dirs_content(typed) != config_dirs_content(["+experiment=mine"]) == ""
    file = folder / "conf" / "experiment" / "mine.yaml"
    file.write_text(file.read_text() + "\n# and more\n")
    assert config_dirs_content(typed) != before


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("defaults:\n  - override /model: mine\n", "allowed: '# @package _global_' as its first line"),
        ("train:\n  epochs: 5\n", "allowed: '# @package _global_' as its first line"),
        ("train:\n  epochs: [1\n", 'experiment/wrong.yaml", line 3, column 1; allowed: YAML'),
    ],
)
def test_experiment_without_its_first_line_or_that_is_no_yaml_is_refused(
    folder: Path, refuse: Refuse, text: str, line: str
) -> None:
    (folder / "conf" / "experiment" / "wrong.yaml").write_text(text)
    assert line in refuse("--config-dir", "conf", "+experiment=wrong")


def test_lines_to_type_next_name_the_folder() -> None:
    typed = command([of_config_dir(Path("/my folder's/conf")), "+experiment=mine", "seed=1,2"], "-m")
    assert typed == "python -m pipeline -m --config-dir '/my folder'\"'\"'s/conf' +experiment=mine seed=1,2"


@pytest.mark.operations
@pytest.mark.parametrize("launcher", ["basic", pytest.param("submitit_local", marks=pytest.mark.operations)])
def test_jobs_of_a_sweep_have_the_folder_too(folder: Path, launcher: str) -> None:
    asked = ["--config-dir", "conf", "-m", "+experiment=mine", "seed=0,1", f"hydra/launcher={launcher}"]
    small = [*SMALL, "stages=[train]", "tracking=off"]
    environment = {"PYTHONPATH": str(PROJECT_ROOT), "PATH": "/usr/bin:/bin", "HOME": str(folder)}
    forked.run([sys.executable, "-m", "pipeline", *asked, *small], cwd=folder, env=environment, check=True)
    assert len(list((folder / "outputs" / "artifacts").glob("train-*/model.pt"))) == 2
