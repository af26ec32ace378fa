"""What is in an exported file: its constants by type, and its operators by the arithmetic that they run in."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Arithmetic = Literal["int8", "float", "conversion"]

# So often is an image predicted while a runtime's profiler looks on; of each operator the median is kept.
PROFILED_RUNS = 20
INT8 = ("int8", "uint8")


@dataclass(frozen=True)
class Weight:
    """A constant tensor of a file. `dtype`: as numpy has it."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int

    @property
    def elements(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def is_matrix(self) -> bool:
        """Whether it has two dimensions at least: what int8 is for, and no bias, scale or statistic of channels."""
        return sum(size > 1 for size in self.shape) >= 2


@dataclass(frozen=True)
class Operators:
    """Those of one kind, in a loaded file, that compute alike.

    Attributes:
        arithmetic: conversion: between int8 and float.
        microseconds: of one image, of all of them together; None: the runtime does not tell.
    """

    kind: str
    arithmetic: Arithmetic
    count: int
    microseconds: float | None = None


@dataclass(frozen=True)
class Contents:
    """What a file says of itself.

    Attributes:
        input, output: in words: name, type, shape.
        weights: its constants; None: it does not tell.
        operators: as they run on this machine; none where no image could be made to try.
        unknown: what is not known, and why, a line each.
    """

    input: str
    output: str
    weights: Sequence[Weight] | None
    operators: Sequence[Operators]
    unknown: Sequence[str] = ()

    @property
    def int8_weights_pct(self) -> float | None:
        """Of the numbers in its weights, how many are held in 8 bits; None where that is not known."""
        return None if self.weights is None else int8_pct(self.weights)

    @property
    def float_matrices(self) -> list[Weight]:
        """The weights that are held in float, the largest first."""
        found = [one for one in self.weights or () if one.is_matrix and "float" in one.dtype]
        return sorted(found, key=lambda one: -one.bytes)


def int8_numbers(weights: Iterable[Weight]) -> int:
    """How many numbers are in 8 bits, in those with two dimensions at least."""
    return sum(one.elements for one in weights if one.is_matrix and one.dtype in INT8)


def int8_pct(weights: Iterable[Weight]) -> float | None:
    """The share of 8 bits among the numbers of those with two dimensions at least; None where there are none."""
    counted = [one for one in weights if one.is_matrix and (one.dtype in INT8 or "float" in one.dtype)]
    total = sum(one.elements for one in counted)
    return 100 * int8_numbers(counted) / total if total else None


def together(nodes: Iterable[tuple[str, Arithmetic, Sequence[float] | None]]) -> list[Operators]:
    """The operators of nodes, each with its kind, its arithmetic and its microseconds in several runs, if known."""
    counts: dict[tuple[str, Arithmetic], int] = {}
    times: dict[tuple[str, Arithmetic], float] = {}
    for kind, arithmetic, microseconds in nodes:
        key = (kind, arithmetic)
        counts[key] = counts.get(key, 0) + 1
        if microseconds is not None:
            times[key] = times.get(key, 0.0) + float(np.median(microseconds))
    return [Operators(*key, count, times.get(key)) for key, count in counts.items()]


def port(name: str, dtype: str, shape: Iterable[object]) -> str:
    """An input or output in words."""
    return f"{name}: {dtype} ({', '.join(map(str, shape))})"


def ports_of(images: np.ndarray, outputs: np.ndarray) -> tuple[str, str]:
    """Input and output of a file that says nothing of them, by what it took and gave."""
    return port("images", images.dtype.name, images.shape), port("outputs", outputs.dtype.name, outputs.shape)
