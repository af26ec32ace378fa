"""What is chosen by name: declared in a package of this project, where a new file is enough, or the user's own."""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from pipeline.host.errors import UserCodeError, UserError, nearest, suggestion


@functools.cache
def modules_of(package: str) -> tuple[ModuleType, ...]:
    """Every module of a package, given by its dotted name, imported."""
    path = importlib.import_module(package).__path__
    return tuple(importlib.import_module(f"{package}.{found.name}") for found in pkgutil.iter_modules(path))


def declared_in(package: str, name: str) -> dict[str, Any]:
    """What the modules of a package declare under a name, by the module's own name."""
    return {
        module.__name__.rpartition(".")[2]: getattr(module, name)
        for module in modules_of(package)
        if hasattr(module, name)
    }


def module_named(name: str, package: str) -> str:
    """The module that a chosen name is declared in: the user's own, or that of this name in a package of ours."""
    return name.partition(":")[0] if is_import_path(name) else f"{package}.{name}"


def is_import_path(name: str) -> bool:
    """Whether a name is one of the user's own code: `package.module:name`."""
    return ":" in name


def import_named(key: str, path: str) -> Any:
    """What stands under `package.module:name` in the user's own code.

    Raises:
        UserError: naming `key`, when there is no such module or no such name in it.
        UserCodeError: when the module cannot be imported.
    """
    module_name, _, name = path.partition(":")
    if not name or not all(part.isidentifier() for part in (*module_name.split("."), *name.split("."))):
        raise UserError(f"{key}={path}: allowed: package.module:name, of a module that can be imported from here")
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise UserCodeError(f"{key}={path}: {module_name} cannot be imported: {error}") from error
        raise UserError(
            f"{key}={path}: there is no module {error.name}; allowed: one in this folder, or an installed one"
        ) from error
    except Exception as error:
        raise UserCodeError(
            f"{key}={path}: {module_name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            close = nearest(part, [one for one in vars(found) if not one.startswith("_")])
            hint = f"; did you mean '{close}'?" if close else ""
            raise UserError(f"{key}={path}: {module_name} has no {part}{hint}")
        found = getattr(found, part)
    return found


def choose(key: str, name: str, declared: Mapping[str, Any], contract: type | None = None) -> Any:
    """What is declared by this name, or stands under it where it is an import path.

    Raises:
        UserError: when there is nothing, or what stands there is not what `contract` asks for.
    """
    if is_import_path(name):
        found = import_named(key, name)
        if contract is not None:
            _check_kept(f"{key}={name}", found, contract)
        return found
    if name not in declared:
        raise UserError(f"{key}={name}: {suggestion(name, declared)}; or package.module:name of your own")
    return declared[name]


def _check_kept(told: str, found: Any, contract: type) -> None:
    """See that something has what a protocol names, or is an object of another class."""
    what, where = contract.__name__, f"{contract.__module__.replace('.', '/')}.py"
    if not getattr(contract, "_is_protocol", False):
        if not isinstance(found, contract):
            raise UserError(f"{told}: is a {type(found).__name__}; allowed: a {what}, as {where} has it")
        return
    lacks = [name for name in dir(contract) if not name.startswith("_") and not hasattr(found, name)]
    if lacks:
        raise UserError(f"{told}: is no {what}, for it lacks {', '.join(lacks)}; allowed: what {where} names")
