"""The parts of a data set of the user's own: what the code under `dataset.target` is called with, and what it gives."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from pipeline.host import terminal
from pipeline.host.declared import argument_names, call_named, import_named
from pipeline.host.errors import UserError
from pipeline.settings.config import DatasetConfig

KEY = "dataset.target"
# What libraries call the test part, and what stands for it where there is none.
_TEST = ("test", "validation", "val")
_PARTS = (
    "allowed: a training and a test part, as a pair or by the names train and test, or one part, of which "
    "dataset.test_fraction is held out; each with __len__ and __getitem__"
)


def parts_of(config: DatasetConfig) -> dict[str, Any]:
    """By the names train and test; a whole of which a test part is yet to be held out, as train alone."""
    if config.target is None:
        raise UserError("dataset.target must be set: allowed: package.module:name (docs/own-network.md)")
    return _call(config.target, json.dumps(config.kwargs, sort_keys=True))


@functools.cache
def _call(target: str, kwargs_json: str) -> dict[str, Any]:
    kwargs, what = json.loads(kwargs_json), f"{KEY}={target}"
    names = argument_names(import_named(KEY, target))

    def call(**offered: Any) -> Any:
        return call_named(KEY, target, offered, kwargs)

    if "train" in names and "train" not in kwargs:  # as most of torchvision's have it
        parts = {"train": call(train=True), "test": call(train=False)}
    elif "split" in names and "split" not in kwargs:  # as Hugging Face's and the rest of torchvision's
        parts = {"train": call(split="train"), "test": _test_split(call)}
    else:
        parts = _named(what, call())
    for part, source in parts.items():
        if not (hasattr(source, "__len__") and hasattr(source, "__getitem__")):
            raise UserError(f"{what}: the {part} part is of type {type(source).__name__}; {_PARTS}")
        if len(source) == 0:
            raise UserError(f"{what}: the {part} part has no images; allowed: some of each class")
    return parts


def _test_split(call: Callable[..., Any]) -> Any:
    first: UserError | None = None
    for name in _TEST:
        try:
            found = call(split=name)
        except UserError as error:
            first = first or error
            continue
        if first is not None:
            terminal.say(f"{first}; its split {name} is the test part")
        return found
    assert first is not None
    raise first


def _named(what: str, made: Any) -> dict[str, Any]:
    if isinstance(made, Mapping):
        test = next((name for name in _TEST if name in made), None)
        if "train" not in made:
            raise UserError(f"{what}: it returns {', '.join(map(str, made)) or 'nothing'} by name; {_PARTS}")
        return {"train": made["train"]} | ({} if test is None else {"test": made[test]})
    if isinstance(made, tuple | list):
        if len(made) != 2:
            raise UserError(f"{what}: it returns {len(made)} things; {_PARTS}")
        return {"train": made[0], "test": made[1]}
    return {"train": made}
