"""The rules of the house, kept by a test: which module may import what, and how long one may be."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from pipeline import models, stages
from pipeline.commands.composition import CONFIG_FOLDER
from pipeline.host.files import PROJECT_ROOT

MODULES = sorted((PROJECT_ROOT / "pipeline").rglob("*.py"))
OWNERS = {
    "mlflow": {
        f"tracking/{name}.py"
        for name in (
            *("channels", "delivery", "leftovers", "models", "parents", "reading", "registry"),
            *("repeats", "starting"),
            "torchscript_model",
        )
    },
    # search.py is a Sweeper, launching.py a Launcher: they implement Hydra's interface.
    # arguments.py, typed.py: what is typed comes in as Hydra's arguments, and goes out as its exceptions.
    "hydra": {"arguments.py", "composition.py", "launching.py", "search.py", "typed.py"},
    "submitit": {"launching.py", "submitted.py"},
    "yaml": {"config_files.py"},
    "optuna": {"search_space.py", "study.py"},
    "torch.ao": {
        f"quantization/{name}.py"
        for name in ("__init__", "fake_quantize", "graph", "layers", "qconfig", "ranges", "vectorized")
    },
    "onnx": {"tracking/models.py"},
    "onnxruntime": {"runtimes/onnx.py"},
    "openvino": {"runtimes/openvino.py"},
    "plotly": {"comparison/figures.py", "comparison/page.py"},
}


def imported(module: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


@pytest.mark.parametrize(("library", "owners"), OWNERS.items())
def test_library_is_imported_by_its_owners_alone(library: str, owners: set[str]) -> None:
    users = {
        module.relative_to(PROJECT_ROOT / "pipeline").as_posix()
        for module in MODULES
        if any(name == library or name.startswith(f"{library}.") for name in imported(module))
    }
    assert users == owners


def test_modules_stay_under_250_lines() -> None:
    assert {module.name: count for module in MODULES if (count := len(module.read_text().splitlines())) > 250} == {}


def test_imports_have_no_cycle() -> None:
    # A package's own module finds its members by name at run time; that a member imports its package is no cycle.
    name_of = {module: ".".join(module.relative_to(PROJECT_ROOT).with_suffix("").parts) for module in MODULES}
    names = {name.removesuffix(".__init__") for name in name_of.values()}
    graph = {name.removesuffix(".__init__"): imported(module) & names for module, name in name_of.items()}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"import cycle: {' → '.join((*path, name))}"
        if name not in done:
            for used in graph[name]:
                visit(used, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_stages_know_nothing_of_hydra_mlflow_the_store_or_each_other() -> None:
    forbidden = (
        "hydra",
        "mlflow",
        "pipeline.run.artifact_store",
        "pipeline.tracking",
        "pipeline.run.runner",
        "pipeline.stages",
    )
    for module in (PROJECT_ROOT / "pipeline" / "stages").glob("*.py"):
        assert not [name for name in imported(module) if name.startswith(forbidden)], module.name


def test_every_yaml_of_a_model_names_a_declared_one_and_the_other_way_round() -> None:
    assert {path.stem for path in (CONFIG_FOLDER / "model").glob("*.yaml")} == set(models.registry())


def test_every_stage_is_declared_in_the_file_of_its_name() -> None:
    files = {path.stem for path in (PROJECT_ROOT / "pipeline" / "stages").glob("*.py")} - {"__init__"}
    assert set(stages.registry()) == files
