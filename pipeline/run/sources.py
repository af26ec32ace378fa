"""The source that computes a result: the modules that a stage imports, as syntax, and the libraries that they use.

What changes how a result is printed or tracked is left out. Comments, docstrings, the wording of errors and calls of
`terminal` are no part of the syntax that is compared, and a few modules compute nothing. Everything else counts.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.host.remembered import FileMemory, memory_at, state_of

# Of this project: they say, draw, fetch, look for oddities and wait, or hold settings, whose values are in a key
# themselves. Of libraries: the same. Neither is followed. Of a package its own file is meant alone.
_COMPUTE_NOTHING = frozenset(
    {
        *("pipeline", "pipeline.host", "pipeline.stages", "pipeline.stages.contract", "pipeline.training.context"),
        *(f"pipeline.host.{name}" for name in ("declared", "environment", "errors", "faults", "files", "interruption")),
        *(f"pipeline.host.{name}" for name in ("machine", "redaction", "remembered", "terminal", "torchrun")),
        *(f"pipeline.datasets.{name}" for name in ("archives", "folder_findings")),
        "pipeline.tasks.confusion_matrix",
        *("filelock", "mlflow", "tabulate", "tqdm"),
    }
)
# Rooms of which the same holds throughout.
_ROOMS = frozenset({"pipeline.settings", "pipeline.reports", "pipeline.tracking"})
# Libraries whose distribution has another name, which is slow to look up.
_DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn"}


@dataclass(frozen=True)
class Code:
    """What computes: the hash of each file's syntax by its path, and the version of each library by its name.

    A path begins where its package is imported from, so it is the same in every checkout.
    """

    files: dict[str, str]
    libraries: dict[str, str]


def code_of(roots: Iterable[str], memory: Path) -> Code:
    """The code that the modules `roots` (dotted names) run: theirs and that of all they import.

    Followed are the modules of this project and whatever else is no installed library. `memory` is a file that saves
    parsing again. A file counts as it was when this process first asked.
    """
    known, files, libraries, seen, open_ends = memory_at(memory), {}, {"python"}, set(), list(roots)
    while open_ends:
        name = open_ends.pop()
        package = name.partition(".")[0]
        if name in seen or _computes_nothing(name, package):
            continue
        seen.add(name)
        folder = _folder_of(package)
        if folder is None:
            libraries.add(package)
            continue
        path = _file_of(name, folder)
        if path is not None:  # no name within a module
            files[path.relative_to(folder).as_posix()], imports = _read(path, folder, known)
            open_ends += imports
        open_ends.append(name.rpartition(".")[0] or package)
    known.save()
    versions = {library: version_of(library) for library in sorted(libraries)}
    return Code(dict(sorted(files.items())), {name: version for name, version in versions.items() if version})


def _computes_nothing(name: str, package: str) -> bool:
    if package != "pipeline":
        return package in _COMPUTE_NOTHING
    return name in _COMPUTE_NOTHING or ".".join(name.split(".")[:2]) in _ROOMS


def digest_of(shown: str, memory: FileMemory) -> str | None:
    """The hash today of a file that `Code.files` names; None where it is not there any more."""
    folder = _folder_of(Path(shown).parts[0].removesuffix(".py"))
    return _read(folder / shown, folder, memory)[0] if folder is not None and (folder / shown).is_file() else None


@functools.cache
def version_of(library: str) -> str | None:
    """The version of a library that is imported by this name; None for Python's own, and where it is not installed."""
    if library == "python":  # another one may print another syntax of the same source
        return f"{sys.version_info.major}.{sys.version_info.minor}"
    if library in sys.stdlib_module_names:
        return None
    try:
        return importlib.metadata.version(_DISTRIBUTIONS.get(library, library))
    except importlib.metadata.PackageNotFoundError:
        found = importlib.metadata.packages_distributions().get(library)
        return importlib.metadata.version(found[0]) if found else None


# By path: what this process has read.
_read_before: dict[Path, tuple[str, list[str]]] = {}


def _read(path: Path, folder: Path, memory: FileMemory) -> tuple[str, list[str]]:
    """The hash of a module's syntax, and the dotted names that it imports."""
    if path in _read_before:
        return _read_before[path]
    state = state_of(os.stat(path))
    found = memory.recall(str(path), state)
    if found is None:
        source, package = path.read_bytes(), ".".join(path.relative_to(folder).parent.parts)
        try:
            tree = ast.parse(source, str(path))
            imports = sorted(set(_imports(tree, package)))
            syntax = ast.dump(_Bare().visit(tree)).encode()
        except (SyntaxError, ValueError, RecursionError, ImportError):  # who runs it will say so
            syntax, imports = source, []
        found = [hashlib.sha256(syntax).hexdigest()[:16], imports]
        memory.note(str(path), state, found)
    _read_before[path] = found[0], found[1]
    return _read_before[path]


class _Wordless(ast.NodeTransformer):
    """Takes the words out of an expression, and what is put into them."""

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return ast.Constant("")

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        return ast.Constant("") if isinstance(node.value, str) else node


class _Bare(ast.NodeTransformer):
    """Takes out of a module's syntax what does not compute."""

    def _without_docstring(self, node: Any) -> Any:
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            node.body = node.body[1:]
        return self.generic_visit(node)

    visit_Module = visit_ClassDef = visit_FunctionDef = visit_AsyncFunctionDef = _without_docstring

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """Without the words of the error."""
        return _Wordless().visit(node)  # type: ignore[no-any-return]

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        called = node.value.func if isinstance(node.value, ast.Call) else None
        talks = isinstance(called, ast.Attribute) and ast.unparse(called.value) == "terminal"
        return None if talks else self.generic_visit(node)


def _imports(tree: ast.AST, package: str) -> Iterable[str]:
    """Every dotted name that is imported anywhere in a module of `package`; some are names within a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.util.resolve_name("." * node.level + (node.module or ""), package)
            yield from (f"{module}.{alias.name}" for alias in node.names)


@functools.cache
def _folder_of(package: str) -> Path | None:
    """The folder that holds a top-level package or module whose source counts; None for libraries and Python's own."""
    if package in sys.stdlib_module_names or package == "__main__":
        return None
    try:
        found = importlib.util.find_spec(package)
    except ValueError:  # of a module that was made by hand
        found = None
    # A package's folder, or a module's file.
    place = next(iter(found.submodule_search_locations or ()), found.origin) if found is not None else None
    if place is None:
        return None
    path = Path(place)
    # Where pip, a system or a user's folder keeps libraries, or Python its own.
    installed = {"site-packages", "dist-packages"} & set(path.parts) or path.is_relative_to(
        sysconfig.get_path("stdlib")
    )
    return None if installed and package != __name__.partition(".")[0] else path.parent


@functools.cache
def _file_of(name: str, folder: Path) -> Path | None:
    base = folder.joinpath(*name.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)
