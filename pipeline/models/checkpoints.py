"""Finding a network's tensors in a file: other people's tools wrap a `state_dict`, and name its keys after the wrapper.

What fits is found by its keys, not by the names of the tools: any mapping in the file, at any depth, and in it any
prefix before the network's own names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pipeline.host.errors import UserError
from pipeline.host.files import load_tensors

# What torch.compile, FSDP and activation checkpointing put before the names of what they wrap, at any depth.
_WRAPPERS = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AVERAGE = re.compile(r"(?<![a-z])(?:ema|swa|averaged?)(?![a-z])", re.IGNORECASE)
_DEEPEST = 6
_WHOLE = "its tensors"
_PLAIN = "allowed: a file with one mapping of tensors by their names, as torch.save writes a state_dict"


class Found(NamedTuple):
    """Tensors by their names without prefix; in words, where in the file; and the names there without that prefix."""

    tensors: Mapping[str, Tensor]
    place: str
    is_average: bool
    beside: list[str]


def find(path: Path, network: str, names: set[str], optional: set[str]) -> tuple[Mapping[str, Tensor], str]:
    """The tensors of a network in a file, and what is to be told of it: empty where the file holds nothing else.

    Args:
        path: of the file, torch's or safetensors'.
        network: its name, for errors.
        names: of all its tensors.
        optional: those of them that may be missing.

    Raises:
        UserError: when the file cannot be read, when nothing in it fits, or more than one thing does.
    """

    def strays(one: Found) -> list[str]:
        return sorted((one.tensors.keys() ^ names) - optional)

    found = list(_candidates(_read(path), names))
    if not found:
        raise UserError(f"model.weights={path}: not a state_dict; {_PLAIN}")
    fitting = [one for one in found if not strays(one)]
    if not fitting:
        nearest = min(found, key=lambda one: len(strays(one)))
        strange = strays(nearest)
        what = [f"'{name}' ({'strange' if name in nearest.tensors else 'missing'})" for name in strange[:3]]
        place = "" if nearest.place == _WHOLE else f"; looked at {nearest.place}"
        raise UserError(
            f"model.weights={path}: not a state_dict of {network}: {len(strange)} keys differ, the first are "
            f"{', '.join(what)}{place}"
        )
    chosen, *others = [one for one in fitting if not one.is_average] or fitting
    differing = [one.place for one in others if not _equal(one.tensors, chosen.tensors)]
    if differing:
        raise UserError(
            f"model.weights={path}: more than one state_dict of {network} is in it: "
            f"{'; '.join([chosen.place, *differing])}; {_PLAIN}"
        )
    told = [] if chosen.place == _WHOLE else [f"takes {chosen.place}"]
    told += [f"not the average beside it: {one.place}" for one in fitting if one.is_average and one is not chosen]
    if chosen.beside:
        told.append(f"passes over {len(chosen.beside)} others, the first '{chosen.beside[0]}'")
    return chosen.tensors, "; ".join(told)


def _read(path: Path) -> Any:
    with path.open("rb") as stream:
        start = stream.read(9)
    if path.suffix == ".safetensors" or start[8:] == b"{":  # behind the length of its header
        import safetensors.torch

        try:
            return safetensors.torch.load_file(path)
        except Exception as error:  # its own, and others for an unknown type
            raise UserError(f"model.weights={path}: cannot be read as safetensors ({error}); {_PLAIN}") from error
    try:
        return load_tensors(path)
    except UserError as error:
        raise UserError(
            f"model.weights={error}; {_PLAIN}: in the program that made it, torch.save(model.state_dict(), 'w.pt')"
        ) from error


def _candidates(content: Any, names: set[str], where: tuple[str, ...] = ()) -> Iterator[Found]:
    """Every mapping of tensors at or below `content`, behind every prefix that stands before one of `names`."""
    if not isinstance(content, Mapping) or len(where) > _DEEPEST:
        return
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    wrapped = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    bare = {_WRAPPERS.sub("", name): value for name, value in wrapped.items()}
    wrappers = sorted({part for name in wrapped for part in _WRAPPERS.findall(name)})
    starts = [name[: at.end()] for name in bare for at in re.finditer(r"\.", name) if name[at.end() :] in names]
    for prefix in dict.fromkeys(["", *starts]) if bare else ():
        place = " in ".join(f"'{key}'" for key in reversed(where)) or _WHOLE
        stripped = ", ".join(f"'{part}'" for part in (*wrappers, prefix) if part)
        yield Found(
            {name.removeprefix(prefix): value for name, value in bare.items() if name.startswith(prefix)},
            f"{place}, stripped of {stripped}" if stripped else place,
            any(_AVERAGE.search(text) for text in (*where, prefix)),
            [name for name in bare if not name.startswith(prefix)],
        )
    for name, value in named.items():
        yield from _candidates(value, names, (*where, name))


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
