"""Finding a network's tensors in a file: other people's tools wrap a `state_dict`, and name its keys after the wrapper.

What fits is found by its keys, not by the names of the tools: any mapping in the file, at any depth, and in it any
prefix before the network's own names.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pipeline.host.errors import UserError
from pipeline.host.files import load_tensors

# What torch.compile, FSDP and activation checkpointing put before the names of what they wrap, at any depth.
_WRAPPERS = re.compile(r"\b(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_AVERAGE = re.compile(r"(?<![a-z])(?:ema|swa|averaged?)(?![a-z])", re.IGNORECASE)
_DEEPEST = 6
_PLAIN = "allowed: a file with one mapping of tensors by their names, as torch.save writes a state_dict"


@dataclass(frozen=True)
class Found:
    """Tensors by their names, from a place in a file.

    Attributes:
        tensors: under this place and behind this prefix.
        where: the keys that lead to the mapping.
        prefix: what stood before each name.
        wrappers: what was taken out of names before that.
        beside: what stands in the mapping without the prefix.
    """

    tensors: Mapping[str, Tensor]
    where: tuple[str, ...]
    prefix: str
    wrappers: tuple[str, ...]
    beside: tuple[str, ...]

    def __str__(self) -> str:
        place = " in ".join(f"'{key}'" for key in reversed(self.where)) or "its tensors"
        stripped = ", ".join(f"'{part}'" for part in (*self.wrappers, self.prefix) if part)
        return f"{place}, stripped of {stripped}" if stripped else place

    @property
    def is_plain(self) -> bool:
        return not (self.where or self.wrappers or self.prefix)

    @property
    def is_average(self) -> bool:
        return any(_AVERAGE.search(text) for text in (*self.where, self.prefix))

    def strays(self, names: set[str], optional: set[str]) -> list[str]:
        """The names that it has too many or too few, in the order of the alphabet."""
        return sorted((self.tensors.keys() ^ names) - optional)


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
    content = _read(path)
    found = list(_candidates(content, names, (), set()))
    if not found:
        raise UserError(f"model.weights={path}: not a state_dict; {_PLAIN}")
    fitting = [one for one in found if not one.strays(names, optional)]
    if not fitting:
        nearest = min(found, key=lambda one: len(one.strays(names, optional)))
        strays = nearest.strays(names, optional)
        what = [f"'{name}' ({'strange' if name in nearest.tensors else 'missing'})" for name in strays[:3]]
        place = f"; looked at {nearest}" if not nearest.is_plain else ""
        raise UserError(
            f"model.weights={path}: not a state_dict of {network}: {len(strays)} keys differ, the first are "
            f"{', '.join(what)}{place}"
        )
    plain = [one for one in fitting if not one.is_average] or fitting
    chosen = plain[0]
    others = [one for one in plain[1:] if not _equal(one.tensors, chosen.tensors)]
    if others:
        raise UserError(
            f"model.weights={path}: more than one state_dict of {network} is in it: "
            f"{'; '.join(map(str, (chosen, *others)))}; {_PLAIN}"
        )
    return chosen.tensors, _told(chosen, [one for one in fitting if one.is_average and one is not chosen])


def _told(chosen: Found, averages: list[Found]) -> str:
    told = [f"takes {chosen}"] if not chosen.is_plain else []
    told += [f"not the average beside it: {one}" for one in averages]
    if chosen.beside:
        told.append(f"passes over {len(chosen.beside)} others, the first '{chosen.beside[0]}'")
    return "; ".join(told)


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


def _candidates(content: Any, names: set[str], where: tuple[str, ...], seen: set[int]) -> Iterator[Found]:
    """Every mapping of tensors at or below `content`, behind every prefix that stands before one of `names`."""
    if not isinstance(content, Mapping) or len(where) > _DEEPEST or id(content) in seen:
        return
    seen.add(id(content))  # a forged file may hold itself
    named = {name: value for name, value in content.items() if isinstance(name, str)}
    tensors = {name: value for name, value in named.items() if isinstance(value, Tensor)}
    if tensors:
        bare = {_WRAPPERS.sub("", name): value for name, value in tensors.items()}
        wrappers = tuple(sorted({part for name in tensors for part in _WRAPPERS.findall(name)}))
        starts = [name[: at.end()] for name in bare for at in re.finditer(r"\.", name) if name[at.end() :] in names]
        for prefix in dict.fromkeys(["", *starts]):
            inside = {name.removeprefix(prefix): value for name, value in bare.items() if name.startswith(prefix)}
            beside = tuple(name for name in bare if not name.startswith(prefix))
            yield Found(inside, where, prefix, wrappers, beside)
    for name, value in named.items():
        yield from _candidates(value, names, (*where, name), seen)


def _equal(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
