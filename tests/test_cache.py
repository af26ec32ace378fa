"""What makes a stage be made again: changed code, libraries and parents; and what does not."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline import stages
from pipeline.commands.composition import compose_request
from pipeline.host.errors import UserError
from pipeline.host.files import PROJECT_ROOT
from pipeline.run import plan, sources
from pipeline.run.artifact_store import Store
from pipeline.run.plan import make_plan
from pipeline.run.runner import run
from pipeline.run.sources import Code, code_of
from pipeline.training.context import PROGRESS_FILE, Metric
from tests.conftest import SMALL

# --- the syntax that counts, on a network of somebody's own

NETWORK = {
    "__init__.py": "",
    "nets.py": """
        '''A network.'''
        from own_networks import blocks

        def forward(x):
            return blocks.add(x)
        """,
    "blocks.py": """
        from pipeline.host import terminal
        from pipeline.host.errors import UserError
        from .deep.arithmetic import plus

        def add(x):
            '''Adds.'''
            if x is None:
                raise UserError("x is missing")
            terminal.say("adds")
            return plus(x, 1)  # one
        """,
    "deep/__init__.py": "",
    "deep/arithmetic.py": """
        def plus(x, y):
            import numpy
            return numpy.add(x, y)
        """,
    "unused.py": "def nothing(): ...",
}


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the package `own_networks`, importable."""
    for name, text in NETWORK.items():
        path = tmp_path / "own_networks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(line.removeprefix(" " * 8) for line in text.splitlines()))
    monkeypatch.syspath_prepend(str(tmp_path))
    sources._folder_of.cache_clear()  # of the test before
    return tmp_path / "own_networks"


def code(tmp_path: Path) -> Code:
    """The network's code as another process sees it."""
    sources._read_before.clear()
    sources._file_of.cache_clear()
    return code_of(["own_networks.nets"], tmp_path / "sources.json")


def test_code_is_what_is_imported_when_a_network_is_somebodys_own(own: Path, tmp_path: Path) -> None:
    found = code(tmp_path)
    names = ["__init__", "blocks", "deep/__init__", "deep/arithmetic", "nets"]
    assert list(found.files) == [f"own_networks/{name}.py" for name in names]
    assert list(found.libraries) == ["numpy", "python"]


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("deep/arithmetic.py", "numpy.add(x, y)", "numpy.subtract(x, y)"),
        ("blocks.py", "plus(x, 1)", "plus(x, 2)"),
        ("blocks.py", "if x is None", "if x is not None"),
        ("deep/__init__.py", "", "import math"),
    ],
)
def test_code_differs_when_what_computes_changes(own: Path, tmp_path: Path, file: str, old: str, new: str) -> None:
    before = code(tmp_path)
    path = own / file
    path.write_text(path.read_text().replace(old, new) if old else new)
    after = code(tmp_path)
    changed = {name for name in before.files if before.files[name] != after.files[name]}
    assert changed == {f"own_networks/{file}"}


@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("blocks.py", "# one", "# still one"),
        ("blocks.py", "'''Adds.'''", "'''Adds one.'''"),
        ("nets.py", "'''A network.'''\n", ""),
        ("blocks.py", '"adds"', '"adds one"'),
        ("blocks.py", '"x is missing"', 'f"x={x}: allowed: a tensor"'),
        ("blocks.py", "    return plus(x, 1)", "\n\n    return (plus(x,\n        1))"),
        ("unused.py", "nothing", "something"),
    ],
)
def test_code_is_the_same_when_only_words_change(own: Path, tmp_path: Path, file: str, old: str, new: str) -> None:
    before = code(tmp_path)
    text = (own / file).read_text()
    assert old in text
    (own / file).write_text(text.replace(old, new))
    assert code(tmp_path) == before


def test_code_of_a_module_that_does_not_parse_is_its_bytes(own: Path, tmp_path: Path) -> None:
    (own / "deep" / "arithmetic.py").write_text("def plus(x, y:")
    before = code(tmp_path)
    (own / "deep" / "arithmetic.py").write_text("def plus(x, y):")
    assert code(tmp_path) != before


def test_code_differs_when_an_error_carries_another_number(own: Path, tmp_path: Path) -> None:
    before, path = code(tmp_path), own / "blocks.py"
    path.write_text(path.read_text().replace('UserError("x is missing")', 'UserError("x is missing", 2)'))
    assert code(tmp_path) != before


def test_libraries_that_compute_nothing_are_in_no_key(own: Path, tmp_path: Path) -> None:
    (own / "deep" / "__init__.py").write_text("from tqdm.auto import tqdm\nfrom filelock import FileLock\n")
    assert list(code(tmp_path).libraries) == ["numpy", "python"]


# --- this project's own code, changed in a copy of it


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this project, with the tiny network of its tests."""
    folder = tmp_path_factory.mktemp("project")
    for name in ("pipeline", "conf", "hydra_plugins", "tests"):
        shutil.copytree(PROJECT_ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


_FOLDER_OF = sources._folder_of


def keys(project: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The key of every stage of the default run with controls, as another process sees the copy."""
    monkeypatch.setattr(
        sources, "_folder_of", lambda package: project if package == "pipeline" else _FOLDER_OF(package)
    )
    sources._read_before.clear()
    steps = make_plan(compose_request(["+controls=full", f"outputs={project}/outputs"]).config).steps
    return {step.stage.name: step.key for step in steps}


@pytest.mark.parametrize(
    ("file", "old", "new", "first"),
    [
        ("models/resnet.py", "def forward", "def  forward", None),
        ("stages/qat.py", '"""', '"""Otherwise: ', None),
        ("host/terminal.py", "def say(", "def say_it(text): ...\n\n\ndef say(", None),
        ("reports/results.py", "def ", "def another(): ...\n\n\ndef ", None),
        ("tracking/pages.py", "def ", "def another(): ...\n\n\ndef ", None),
        ("models/mobilenet.py", "stride = 1", "stride = 3", None),
        ("datasets/mnist.py", "offset=16", "offset=17", None),
        ("datasets/catalogue.py", "def ", "def another(): ...\n\n\ndef ", "train"),
        ("flows/eager/twins/resnet.py", "def ", "def another(): ...\n\n    def ", "fuse"),
        ("training/optimization.py", "def ", "def another(): ...\n\n\ndef ", "train"),
        ("flows/straight_through.py", "_BLOCK = 2**17", "_BLOCK = 2**16", "qat"),
        ("training/calibration.py", "def ", "def another(): ...\n\n\ndef ", "ptq"),
        ("stages/convert.py", "def run", "VERSION = 2\n\n\ndef run", "convert"),
    ],
)
def test_stages_from_the_first_that_runs_the_file_are_made_again_when_it_changes(
    project: Path, file: str, old: str, new: str, first: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, path = keys(project, monkeypatch), project / "pipeline" / file
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    try:
        after = keys(project, monkeypatch)
    finally:
        path.write_text(text)
    changed = {name for name in before if before[name] != after[name]}
    assert ("train" in changed) == (first == "train")
    assert bool(changed) == (first is not None)
    assert first is None or first in changed
    if first == "convert":
        assert changed == {"convert", "evaluate"}


@pytest.mark.operations
def test_run_is_made_again_and_says_why_when_a_network_computes_otherwise(project: Path) -> None:
    command = [sys.executable, "-m", "pipeline", *SMALL, "stages=[train]", "tracking=off"]

    def lines() -> list[str]:
        done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=True)
        return [line for line in done.stdout.splitlines() if line.startswith("train")]

    assert "done" in lines()[0]
    path = project / "pipeline" / "models" / "resnet.py"
    text = path.read_text()
    path.write_text(text.replace('mode="fan_out"', 'mode="fan_in"', 1))
    try:
        said = lines()
    finally:
        path.write_text(text)
    assert said[0] == "train     made again: pipeline/models/resnet.py changed"
    assert "done" in said[1]
    assert "cached" in lines()[0]


def test_stage_is_made_again_and_says_why_when_a_library_is_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    request = compose_request([*SMALL, "stages=[train]", "tracking=off", f"outputs={tmp_path}"])
    run(request)
    monkeypatch.setattr(
        plan,
        "code_of",
        lambda roots, memory: Code(code_of(roots, memory).files, code_of(roots, memory).libraries | {"numpy": "9.9"}),
    )
    run(request)
    said = [line for line in capsys.readouterr().out.splitlines() if "made again" in line]
    assert len(said) == 1
    assert said[0].startswith("train     made again: numpy was ")
    assert said[0].endswith(" and is 9.9")


# --- what a result was made from

RECORD = {"hashed": {"stage": "qat", "qat": {"epochs": 1}, "parents": ["0"]}, "inputs": {"fused-0": "a"}}


def finish(store: Store, name: str, record: dict[str, object]) -> None:
    folder = store.partial_folder(name, record["inputs"], afresh=False)  # type: ignore[arg-type]
    (folder / "model.pt").write_bytes(b"model")
    (folder / PROGRESS_FILE).write_bytes(b"one epoch")
    metrics: list[Metric] = []
    store.complete(name, metrics, [], record, keep_progress=True)


@pytest.mark.parametrize(("content", "goes_on"), [("a", "qat-1"), ("b", None)])
def test_training_goes_on_from_a_shorter_one_only_when_that_had_the_same_parents(
    tmp_path: Path, content: str, goes_on: str | None
) -> None:
    store = Store(tmp_path)
    finish(store, "qat-1", RECORD)
    inputs: dict[str, str | None] = {"fused-0": content}
    folder = store.partial_folder("qat-2", inputs, afresh=False)
    longer = RECORD["hashed"] | {"qat": {"epochs": 2}}  # type: ignore[operator]
    assert store.start_from_shorter("qat-2", longer, inputs, ("qat", "epochs")) == goes_on
    assert (folder / PROGRESS_FILE).exists() == (goes_on is not None)


@pytest.mark.parametrize(("content", "goes_on"), [("a", True), ("b", False)])
def test_interrupted_training_goes_on_only_when_its_parents_are_the_same(
    tmp_path: Path, content: str, goes_on: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    folder = store.partial_folder("qat-1", {"fused-0": "a"}, afresh=False)
    (folder / PROGRESS_FILE).write_bytes(b"one epoch")
    assert (store.partial_folder("qat-1", {"fused-0": content}, afresh=False) / PROGRESS_FILE).exists() == goes_on
    assert ("begins anew" in capsys.readouterr().err) == (not goes_on)


def test_plan_is_refused_when_two_stages_make_one_form(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = stages.registry()
    double = declared["qat"].__class__(
        "quick_qat", declared["qat"].run, ("model",), consumes=("fused",), produces="qat"
    )
    monkeypatch.setattr(stages, "registry", lambda: declared | {"quick_qat": double})
    with pytest.raises(UserError, match="stages qat and quick_qat both declare that they make qat: allowed: one"):
        make_plan(compose_request(SMALL).config)
