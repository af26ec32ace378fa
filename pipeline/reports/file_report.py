"""What is in an exported file, for reading in a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from tabulate import tabulate

from pipeline.host.files import amount
from pipeline.runtimes.contents import INT8, Contents, Operators, Weight
from pipeline.runtimes.exported import InspectedModel

# So many of the largest weights in float are named.
_NAMED = 5


def report(model: InspectedModel, origin: Sequence[tuple[str, str]]) -> str:
    """A model's file as text; `origin`: what is known of how it was made."""
    contents, about = model.contents, model.preprocessing
    lines = [
        ("runtime", model.runtime),
        ("file", f"{model.file}, {amount(model.bytes)}"),
        ("input", contents.input),
        ("output", contents.output),
        ("classes", "not told: no preprocessing.json lies beside it" if about is None else _classes(about.class_names)),
        *origin,
        *_weights(contents),
    ]
    parts = [tabulate(lines, tablefmt="plain", disable_numparse=True)]
    if contents.operators:
        parts += [_operators(contents.operators), _shares(contents.operators)]
    parts += [f"not known: {line}" for line in contents.unknown]
    return "\n\n".join(parts)


def _classes(names: Sequence[str]) -> str:
    if not names:
        return "none: its outputs are no classes"
    return f"{len(names)}: {', '.join(names[:_NAMED])}{', …' if len(names) > _NAMED else ''}"


def _weights(contents: Contents) -> list[tuple[str, str]]:
    if contents.weights is None:
        return [("weights", "not told")]
    in_int8, in_float = (
        [one for one in contents.weights if chosen(one)]
        for chosen in (lambda one: one.dtype in INT8, lambda one: "float" in one.dtype)
    )
    share = contents.int8_weights_pct
    lines = [
        ("int8 constants", amount(sum(one.bytes for one in in_int8))),
        ("float constants", amount(sum(one.bytes for one in in_float))),
        ("weights in int8", "there are none" if share is None else f"{share:.2f} % of their numbers"),
    ]
    if share and contents.float_matrices:
        lines.append(("weights in float", in_words(contents.float_matrices)))
    return lines


def in_words(weights: Sequence[Weight]) -> str:
    """The first of some weights, by name and shape."""
    named = [f"{one.name or 'one'} {'×'.join(map(str, one.shape))}" for one in weights[:_NAMED]]
    further = len(weights) - len(named)
    return ", ".join(named) + (f" and {further} more" if further else "")


def _operators(operators: Sequence[Operators]) -> str:
    times = [one.microseconds for one in operators if one.microseconds is not None]
    rows = []
    for one in sorted(operators, key=lambda one: -(one.microseconds or 0.0)):
        share = "–" if one.microseconds is None else f"{100 * one.microseconds / max(sum(times), 1e-9):.1f}"
        rows.append([one.kind, one.arithmetic, str(one.count), share])
    headers = ["operator", "runs in", "count", "% of the time"]
    return tabulate(rows, headers, disable_numparse=True, colalign=("left", "left", "right", "right"))


def _shares(operators: Sequence[Operators]) -> str:
    """One line: how much of the time, or of the operators, is int8."""
    timed = all(one.microseconds is not None for one in operators)
    parts = {"int8": 0.0, "float": 0.0, "conversion": 0.0}
    for one in operators:
        parts[one.arithmetic] += one.microseconds if timed and one.microseconds is not None else one.count
    total = max(sum(parts.values()), 1e-9)
    words = {"int8": "int8", "float": "float", "conversion": "conversions between them"}
    shares = ", ".join(f"{words[name]} {100 * part / total:.1f} %" for name, part in parts.items())
    what = "the time of one image on one thread, by the runtime's profiler" if timed else "the operators, by number"
    return f"{shares} of {what}"
