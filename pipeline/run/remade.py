"""Why a stage is made again: what has changed since the newest result of the same settings."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pipeline.run.artifact_store import Store
from pipeline.run.plan import Step

# What a key holds besides settings.
_NOT_ASKED_FOR = {"sources", "libraries", "data", "weights", "parents", "machine"}
# Of the files that changed, so many are named.
_NAMED = 3


def what_changed(step: Step, store: Store) -> str | None:
    """In words, what differs from the newest other artifact of the same stage and settings; None: there is none."""
    now = json.loads(json.dumps(step.hashed))
    for folder, manifest in store.manifests(step.stage.name):
        before = manifest.get("hashed", {})
        asked = (now.keys() | before.keys()) - _NOT_ASKED_FOR
        if folder.name == step.artifact or any(now.get(name) != before.get(name) for name in asked):
            continue
        if "sources" not in before:
            return "keys hold the code and the libraries now"
        return "; ".join(_differences(now, before, step, manifest)) or None
    return None


def _differences(
    now: Mapping[str, Any], before: Mapping[str, Any], step: Step, manifest: Mapping[str, Any]
) -> list[str]:
    said = []
    files = _changed(now["sources"], before["sources"])
    if files:
        more = f" and {len(files) - _NAMED} more files" if len(files) > _NAMED else ""
        said.append(f"{', '.join(files[:_NAMED])}{more} changed")
    for name in _changed(now["libraries"], before["libraries"]):
        was, there = (versions.get(name, "absent") for versions in (before["libraries"], now["libraries"]))
        said.append(f"{name} was {was} and is {there}")
    for part in _changed(now["data"], before["data"]):
        said.append(f"the {part} images changed")
    if now.get("weights") != before.get("weights"):
        said.append("the file model.weights changed")
    for name in _changed(now.get("machine", {}), before.get("machine", {})):
        said.append(f"the machine's {name} is another")
    parents = [name.rpartition("-")[0] for name in step.consumes.values() if name not in manifest.get("inputs", {})]
    if parents:
        said.append(f"{' and '.join(parents)} changed")
    return said


def _changed(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    return sorted(name for name in now.keys() | before.keys() if now.get(name) != before.get(name))
