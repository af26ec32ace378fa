"""Rules of the house that import-linter does not keep (`make lint`)."""

from __future__ import annotations

import ast
from pathlib import Path

from pipeline import models, stages
from pipeline.commands.composition import CONFIG_FOLDER
from pipeline.host.files import PROJECT_ROOT
from pipeline.models.libraries import LIBRARIES

MODULES = sorted((PROJECT_ROOT / "pipeline").rglob("*.py"))


def imported(module: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_torch_ao_is_imported_by_the_eager_flow_alone() -> None:
    # import-linter, which holds the order of the rooms, sees of torch only that it is imported.
    users = {
        module.relative_to(PROJECT_ROOT / "pipeline").parts[:2]
        for module in MODULES
        if any(name == "torch.ao" or name.startswith("torch.ao.") for name in imported(module))
    }
    assert users == {("flows", "eager")}


def test_every_yaml_of_a_model_names_a_declared_one_and_the_other_way_round() -> None:
    assert {path.stem for path in (CONFIG_FOLDER / "model").glob("*.yaml")} == {*models.registry(), *LIBRARIES, "own"}


def test_every_stage_is_declared_in_the_file_of_its_name() -> None:
    files = {path.stem for path in (PROJECT_ROOT / "pipeline" / "stages").glob("*.py")} - {"__init__", "contract"}
    assert set(stages.registry()) == files
