"""What was typed, as Hydra takes it: strangeness is refused before Hydra reads it, or told in one line after.

Hydra's grammar recurses, expands sweeps in memory and raises almost anything of strange input. These are its
arguments and exceptions, hence the import.
"""

from __future__ import annotations

import dataclasses
import io
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.types import ChoiceSweep, Override, RangeSweep
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from pipeline.host.errors import UserError, suggestion
from pipeline.settings.config import Config
from pipeline.settings.schema import allowed_words, check_path

_DEEPEST, _MOST_CHARACTERS, _MOST_DIGITS = 30, 100_000, 400
_MOST_JOBS = 10_000
_REFUSED_KEYS = {
    "hydra": "allowed: one setting of it, hydra.name=value",
    "hydra.mode": "allowed: -m for a sweep, and nothing for a run",
    "hydra.searchpath": "allowed: groups and experiments in conf/",
}


@contextmanager
def showing(package: str | None) -> Iterator[None]:
    """Let Hydra show a part of the configuration; where there is none, it has a line and a status of its own.

    Raises:
        UserError: when there is no such part.
    """
    if not package:
        yield
        return
    try:
        with redirect_stderr(io.StringIO()):
            yield
    except SystemExit as ended:
        if ended.code != 1:
            raise
        names = [spec.name for spec in dataclasses.fields(Config)]
        raise UserError(f"--package={package}: nothing there to show; {suggestion(package, names)}") from None


def check_texts(overrides: Iterable[str]) -> None:
    """Refuse what is too long or too deeply nested to be read in reasonable time.

    Raises:
        UserError: for the first.
    """
    for text in overrides:
        if len(text) > _MOST_CHARACTERS:
            raise UserError(f"{text}: {len(text)} characters; allowed: {_MOST_CHARACTERS}")
        if "\0" in text:
            raise UserError(f"{text}: allowed: text without NUL characters")
        if re.search(rf"\d{{{_MOST_DIGITS},}}", text):
            raise UserError(f"{text}: allowed: numbers of fewer than {_MOST_DIGITS} digits")
        depth = 0
        for character in text:
            depth += (character in "([{") - (character in ")]}")
            if depth > _DEEPEST:
                raise UserError(f"{text}: nested too deeply; allowed: {_DEEPEST} brackets in each other")


def check_override(override: Override, multirun: bool, loader: ConfigLoader) -> None:
    """Refuse an unknown key or group option before Hydra does, with the nearest right name."""
    key, text = override.key_or_group, str(override.input_line)
    if override.is_sweep_override() and not multirun:
        raise UserError(f"{text}: several values; allowed: one, or all of them in a sweep with -m")
    groups = [group for group in loader.list_groups("") if group != "hydra"]
    _check_hydra_key(override)
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return
    if override.is_delete():
        raise UserError(f"{text}: settings and groups cannot be removed; allowed: {key.split('=')[0]}=value")
    if key not in groups:
        check_path(key, text, groups)
        return
    defaults = [spec.name for spec in dataclasses.fields(Config)]
    if key not in defaults and not override.is_add():
        raise UserError(f"{text}: {key} is added, not replaced; allowed: +{text.lstrip('+')}")
    options = loader.get_group_options(key)
    discrete = override.is_sweep_override() and override.is_discrete_sweep()
    values = override.sweep_string_iterator() if discrete else [override.get_value_string()]
    for value in values:
        if value.strip("\"'") not in options:
            raise UserError(f"{key}={value}: no such {key}; {suggestion(value, options)}")


def check_single(overrides: list[str]) -> None:
    """Refuse for one run what starts the jobs of a sweep, and would be passed over.

    Raises:
        UserError: for the first such override.
    """
    for text in overrides:
        if text.lstrip("+~").replace("/", ".").startswith(("hydra.launcher", "hydra.sweeper")):
            raise UserError(f"{text}: it starts the jobs of a sweep; allowed: with -m")


def _check_hydra_key(override: Override) -> None:
    """Refuse the settings of Hydra's own that would lead past the checks.

    Raises:
        UserError: for `override`, if it is one of them.
    """
    if override.key_or_group in _REFUSED_KEYS:
        raise UserError(f"{override.input_line}: {_REFUSED_KEYS[override.key_or_group]}")


def check_sweep_settings(node: Any) -> None:
    """Refuse what Hydra only asserts of its own settings once a sweep is under way; `node` is its part.

    Raises:
        UserError: for the first.
    """
    if not isinstance(node.verbose, bool | str) and not OmegaConf.is_list(node.verbose):
        raise UserError(f"hydra.verbose={node.verbose}: allowed: true, false, or a logger's name, or a list of them")
    if not OmegaConf.is_dict(node.job.env_set):
        raise UserError(f"hydra.job.env_set={node.job.env_set}: allowed: {{NAME: value}}")
    batch = (node.sweeper or {}).get("max_batch_size")
    if batch is not None and batch < 1:
        raise UserError(f"hydra.sweeper.max_batch_size={batch}: allowed: at least 1, or null")


def check_size(overrides: Iterable[Override]) -> None:
    """Refuse a sweep whose jobs nobody can wait for; Hydra would first write them all into memory.

    Raises:
        UserError: when there are too many, or a range that has no end.
    """
    jobs = 1
    for override in overrides:
        if override.is_sweep_override():
            jobs *= _count_values(override)
        if jobs > _MOST_JOBS:
            raise UserError(f"{override.input_line}: a sweep of more than {_MOST_JOBS} jobs; allowed: {_MOST_JOBS}")


def _count_values(override: Override) -> int:
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return len(value.list)
    if isinstance(value, RangeSweep) and value.start is not None and value.stop is not None:
        if not all(math.isfinite(number) for number in (value.start, value.stop, value.step)) or value.step == 0:
            raise UserError(f"{override.input_line}: allowed: range(start,stop,step), all finite and the step not 0")
        count = (value.stop - value.start) / value.step
        return max(0, math.ceil(count)) if count < _MOST_JOBS else _MOST_JOBS + 1
    return 1


@contextmanager
def composing() -> Iterator[None]:
    """Turn what Hydra raises of a command line into one line.

    Raises:
        UserError: for everything but an interruption.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # see above: almost anything
        raise UserError(one_line(error)) from error


def one_line(error: Exception) -> str:
    """What an exception says of a command line, in one line, with the override or key and what is allowed there."""
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read ({_first_line(error)}); allowed: key=value{_quoted(error.override)}"
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    override = text.removeprefix("Error merging override ") if text.startswith("Error merging override ") else None
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        group, _, name = error.missing_cfg_file.rpartition("/")
        return f"{group}={name}: {suggestion(name, error.options)}"
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(cause.parent_node, DictConfig):
            names = [str(key) for key in cause.parent_node if not str(key).startswith("_")]
            what = override or cause.full_key
            there = suggestion(str(cause.key), names) if names else f"allowed: +{what}, as a new one"
            return f"{what}: no such setting; {there}"
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            words = allowed_words(str(cause.full_key))
            return f"{override or cause.full_key}: {_first_line(cause)}" + (f"; allowed: {words}" if words else "")
        cause = cause.__cause__
    if isinstance(error, HydraException | OmegaConfBaseException) and text:
        return text
    return f"Hydra cannot compose what was typed: {type(error).__name__}: {text}; allowed: key=value as --help shows"


def _quoted(override: str) -> str:
    """How a value with blanks or signs is typed in a shell, where that is what is wrong."""
    key, equals, value = override.partition("=")
    plain = equals and value and not set(value) & set("'\"\\$`![](){},") and key.isascii() and " " not in key
    return f""", quoted where needed: "{key}='{value}'\"""" if plain else ", quoted where needed"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
