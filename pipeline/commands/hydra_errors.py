"""What Hydra and OmegaConf raise of a command line, as one line that names what is allowed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from pipeline.host.errors import UserError, first_line, suggestion
from pipeline.settings.schema import allowed_words, settings_named

# What a path is meant for that was given to a group.
_FILES = {"dataset": "dataset=image_folder dataset.root=FOLDER", "model": "model.weights=FILE"}


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
    except Exception as error:  # of strange input Hydra raises almost anything
        raise UserError(one_line(error)) from error


def one_line(error: Exception) -> str:
    """What an exception says of a command line, in one line, with the override or key and what is allowed there."""
    if isinstance(error, OverrideParseException):
        key, equals, value = str(error.override).partition("=")
        quoted = f": \"{key}='{value}'\"" if equals and "'" not in value else ""
        if value.count("[") > value.count("]"):
            quoted = f": the shell has cut it at a blank: '{error.override} …]'"
        return (
            f"{error.override}: cannot be read ({first_line(error)}); allowed: key=value, quoted where needed{quoted}"
        )
    if type(error).__module__.partition(".")[0] == "yaml":  # PyYAML comes with OmegaConf
        return f"{' '.join(str(error).split())}; allowed: YAML"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options:
        file = error.missing_cfg_file
        group, _, name = file.rpartition("/") if file.startswith("hydra/") else file.partition("/")
        meant = f"; or {_FILES[group]}" if "/" in name and group in _FILES else ""
        return f"{group}={name}: no such {group}; {suggestion(name, error.options)}{meant}"
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if ambiguous := re.match(r"Ambiguous value for argument '([^']+)'", text):
        key, _, value = ambiguous[1].partition("=")
        allowed = allowed_words(key) or "one value"
        return f"{ambiguous[1]}: allowed: {allowed}; a sweep over several: python -m pipeline -m {key}={value}"
    override = text.removeprefix("Error merging override ") if text.startswith("Error merging override ") else None
    found = re.match(r"In '([^']+)': ", text)  # Hydra tells the file here alone
    place = f"{found[1]}.yaml: " if found else ""
    packaged = f"{place}it says everything of its own group alone; allowed: '# @package _global_' as its first line"
    if found and re.search(r"Could not override '\w+@\w+\.\w+'", text):
        return packaged
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConfigKeyError | ConfigAttributeError) and isinstance(cause.parent_node, DictConfig):
            if found and str(cause.full_key) == found[1].rpartition("/")[0]:
                return packaged
            section = str(cause.full_key).removesuffix(str(cause.key))
            if names := [f"{section}{key!s}" for key in cause.parent_node if key not in ("hydra", "_target_")]:
                named = settings_named(str(cause.key)) if not section else []
                known = f"did you mean {' or '.join(named)}?" if named else suggestion(str(cause.full_key), names)
                return f"{place}{cause.full_key}: no such setting; {known}"
        elif isinstance(cause, OmegaConfBaseException) and cause.full_key:
            words = allowed_words(str(cause.full_key))
            if "is not a ListConfig" in str(cause) and words:
                return f"{place}{override or cause.full_key}: allowed: {words}: '{cause.full_key}=[…]'"
            return f"{place}{override or cause.full_key}: {first_line(cause)}" + (
                f"; allowed: {words}" if words else ""
            )
        cause = cause.__cause__ or cause.__context__  # Hydra does not say what it raises from
    if isinstance(error, HydraException | OmegaConfBaseException) and text:
        return text
    return f"Hydra cannot compose what was typed: {type(error).__name__}: {text}; allowed: key=value as --help shows"
