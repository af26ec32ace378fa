"""The artifact store: one folder for each stage's result, complete or absent.

A result is made in `<stage>-<key>.partial/`, where an interrupted stage finds its checkpoint again.
Its manifest, with the hash of every file, is written last; then the folder is renamed to
`<stage>-<key>/`. What does not match its manifest is said in one line and made again.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline import terminal
from pipeline.files import sha256, write_and_rename
from pipeline.stage import MODEL_FILE, Metric

_MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Artifact:
    """A stage's complete result: its folder, the metrics it reported and the files it shows."""

    folder: Path
    metrics: tuple[Metric, ...]
    attachments: tuple[Path, ...]

    @property
    def model(self) -> Path:
        return self.folder / MODEL_FILE


class Store:
    """The folder `artifacts/` with everything that stages have made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._said: set[str] = set()

    def find(self, name: str) -> Artifact | None:
        """The artifact `<stage>-<key>`, or None when there is none or it is damaged (then it says so, once)."""
        folder = self.root / name
        if not folder.exists():
            return None
        try:
            manifest = json.loads((folder / _MANIFEST).read_text())
            metrics = tuple((str(key), float(value), step) for key, value, step in manifest["metrics"])
            for file, digest in manifest["files"].items():
                if sha256(folder / file) != digest:
                    raise ValueError(f"{file} does not match its manifest")
            attachments = tuple(folder / file for file in manifest["attachments"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if name not in self._said:
                terminal.warn(f"{folder} is damaged and will be made again: {error}")
            self._said.add(name)
            return None
        return Artifact(folder, metrics, attachments)

    @contextmanager
    def making(self, name: str) -> Iterator[None]:
        """Hold `<stage>-<key>` for this process alone; others wait, and say so."""
        locks = self.root / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(locks / name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            terminal.say(f"{name}: waiting for another process that is making it")
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def partial_folder(self, name: str, afresh: bool) -> Path:
        """Where `<stage>-<key>` is made; unless `afresh`, with what an interrupted run left there."""
        partial = self.root / f"{name}.partial"
        if afresh:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        return partial

    def complete(self, name: str, metrics: list[Metric], attachments: list[Path], record: dict[str, Any]) -> Artifact:
        """Write the manifest of a partial folder and put it in its place, instead of an older one."""
        partial, folder = self.root / f"{name}.partial", self.root / name
        files = {path.name: sha256(path) for path in sorted(partial.iterdir()) if path.name != _MANIFEST}
        manifest = {
            **record,
            "metrics": metrics,
            "attachments": [path.name for path in attachments],
            "files": files,
        }
        with write_and_rename(partial / _MANIFEST) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        return Artifact(folder, tuple(metrics), tuple(folder / path.name for path in attachments))
