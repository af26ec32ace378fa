"""What is chosen by name: declared in a package of this project, where a new file is enough, or the user's own."""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from pipeline.host.errors import UserCodeError, UserError, first_line, nearest, suggestion


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


def call_named(key: str, path: str, offered: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Any:
    """What the user's class or function under `path` returns.

    It is called with those of `offered` that its signature names, and with `kwargs`, which go before them.

    Args:
        key: the setting with the path, such as `model.target`; `kwargs` are that section's.

    Raises:
        UserError: when it is none that can be called so.
        UserCodeError: when it raises.
    """
    called, settings = import_named(key, path), f"{key.partition('.')[0]}.kwargs"
    if not callable(called):
        raise UserError(f"{key}={path}: it is of type {type(called).__name__}; allowed: a class or a function")
    names, required, takes_any = _signature(called)
    for name in kwargs:
        if name not in names and not takes_any:
            allowed = suggestion(name, names) if names else "allowed: nothing, it takes no arguments"
            raise UserError(f"{settings}.{name}: {path} does not take it; {allowed}")
    given = {name: value for name, value in offered.items() if name in names} | dict(kwargs)
    lacking = [name for name in required if name not in given]
    if lacking:
        raise UserError(f"{key}={path}: it must be called with {', '.join(lacking)}: set {settings}.{lacking[0]}")
    return run_users(f"{key}={path}", lambda: called(**given))


def run_users(what: str, code: Callable[[], Any]) -> Any:
    """What code of the user's own returns.

    Raises:
        UserCodeError: when it raises, `what` being the beginning of the line.
    """
    try:
        return code()
    except UserError:
        raise
    except Exception as error:
        raise UserCodeError(f"{what}: {type(error).__name__}: {first_line(error)}") from error


def argument_names(called: Any) -> list[str]:
    """The names of the arguments that a class or function takes."""
    return _signature(called)[0] if callable(called) else []


def _signature(called: Callable[..., Any]) -> tuple[list[str], list[str], bool]:
    """The names of the arguments that a call may have, those that it must have, and whether any other is taken.

    A class that passes `**kwargs` on takes what the classes it inherits from take.
    """
    names: list[str] = []
    required: list[str] | None = None
    for one in inspect.getmro(called) if inspect.isclass(called) else [called]:
        try:
            parameters = inspect.signature(one).parameters.values()
        except (TypeError, ValueError):  # of a compiled extension, which tells nothing
            return names, required or [], True
        by_name = [one for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]
        names += [one.name for one in by_name if one.name not in names]
        if required is None:
            required = [one.name for one in by_name if one.default is one.empty]
        if not any(one.kind is one.VAR_KEYWORD for one in parameters):
            return names, required, False
    return names, required or [], True


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
            raise UserError(f"{told}: is of type {type(found).__name__}; allowed: a {what}, as {where} has it")
        return
    lacks = [name for name in dir(contract) if not name.startswith("_") and not hasattr(found, name)]
    if lacks:
        raise UserError(f"{told}: is no {what}, for it lacks {', '.join(lacks)}; allowed: what {where} names")
