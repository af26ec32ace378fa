"""The artifact store: one folder for each stage's result, complete or absent.

A result is made in `<stage>-<key>.partial/`, where an interrupted stage finds its checkpoint again.
Its manifest, with the hash of every file, is written last; then the folder is renamed to
`<stage>-<key>/`. What does not match its manifest is said in one line and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pipeline.host import terminal
from pipeline.host.files import sha256, write_and_rename
from pipeline.host.machine import Machine, machine_of
from pipeline.training.context import MODEL_FILE, PROGRESS_FILE, PROGRESS_FILES, Metric

_MANIFEST = "manifest.json"
PARTIAL = ".partial"
# In a partial folder: the content of the artifacts that its checkpoint was trained from.
_BEGUN = "begun.json"
_TRACKED = ".tracked"
# The damaged folders that this process has told of, until they are made again.
_said: set[Path] = set()


@dataclass(frozen=True)
class Artifact:
    """A stage's complete result: its folder, the metrics it reported and the files it shows.

    `content_hash` is its checkpoint's, or that of all its files, `inputs` those of the artifacts that it was made
    from: a key says what was asked for, the hashes which of two results of the same key was used. It took so many
    `seconds` to make.
    """

    folder: Path
    metrics: tuple[Metric, ...]
    attachments: tuple[Path, ...]
    content_hash: str | None
    inputs: dict[str, str | None]
    seconds: float

    @property
    def product(self) -> Path:
        """What later stages consume: the checkpoint, or the folder of a result that is no single form."""
        checkpoint = self.folder / MODEL_FILE
        return checkpoint if checkpoint.is_file() else self.folder


def _read_json(path: Path) -> dict[str, Any]:
    """The manifest at `path`, or nothing where it cannot be read: then it is no candidate."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def seen_folder(outputs: Path) -> Path:
    """Where the runs of an `outputs` folder remember what they found out about files."""
    return outputs / "artifacts" / ".seen"


def note_tracking(outputs: Path, uri: str) -> None:
    """Note where the runs of an `outputs` folder are tracked: the one who removes artifacts has to ask there."""
    known = tracked_in(outputs)
    if uri not in known:
        with write_and_rename(outputs / "artifacts" / _TRACKED) as temporary:
            temporary.write_text("\n".join([*known, uri]))


def tracked_in(outputs: Path) -> list[str]:
    """Every store in which runs of an `outputs` folder were tracked."""
    try:
        return (outputs / "artifacts" / _TRACKED).read_text().splitlines()
    except FileNotFoundError:
        return []


class Store:
    """The folder `artifacts/` with everything that stages have made."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._locks = root / ".locks"
        # A lock for each artifact and each run that holds it, named by both.
        self._holds = self._locks / "holds"

    def machine(self) -> Machine:
        """The lock of this machine among all runs that use this store."""
        return machine_of(self.root)

    def find(self, name: str) -> Artifact | None:
        """The artifact `<stage>-<key>`, or None when there is none or it is damaged (then it says so, once)."""
        folder = self.root / name
        if not folder.exists():
            return None
        try:
            manifest = json.loads((folder / _MANIFEST).read_text())
            metrics = tuple((str(key), float(value), step) for key, value, step in manifest["metrics"])
            for file, digest in manifest["files"].items():
                if not (folder / file).resolve().is_relative_to(folder.resolve()):
                    raise ValueError(f"{file} is not within it")
                if sha256(folder / file) != digest:
                    raise ValueError(f"{file} does not match its manifest")
            if not set(manifest["attachments"]) <= manifest["files"].keys():  # they are sent with a run
                raise ValueError("what it shows is not in its manifest")
            attachments = tuple(folder / file for file in manifest["attachments"])
            all_files = hashlib.sha256(json.dumps(manifest["files"], sort_keys=True).encode()).hexdigest()
            content_hash = manifest["files"].get(MODEL_FILE) or all_files
            seconds = float(manifest.get("seconds", 0.0))
            return Artifact(folder, metrics, attachments, content_hash, dict(manifest["inputs"]), seconds)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if folder not in _said:
                terminal.warn(f"{folder} is damaged and will be made again: {error}")
            _said.add(folder)
            return None

    @contextmanager
    def making(self, name: str) -> Iterator[None]:
        """Hold `<stage>-<key>` for this process alone; others wait, and say so."""
        self._locks.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self._locks / name)
        try:
            held = lock.acquire(timeout=0)
        except Timeout:
            terminal.say(f"{name}: waiting for another process that is making it")
            held = lock.acquire()
        with held:
            yield

    @contextmanager
    def holding(self, names: Iterable[str]) -> Iterator[None]:
        """Let nobody remove these artifacts, whether they are there or not, for the time of the block.

        A run that is killed loses its locks, and its holds with them.
        """
        run = secrets.token_hex(4)
        with ExitStack() as held:
            with self._deciding():
                for name in names:
                    lock = FileLock(self._holds / f"{name}.{run}")
                    held.callback(Path(lock.lock_file).unlink, missing_ok=True)
                    held.enter_context(lock)
            yield

    def _deciding(self) -> FileLock:
        """The lock under which runs begin to hold artifacts, and others remove what none holds."""
        self._holds.mkdir(parents=True, exist_ok=True)
        return FileLock(self._holds / ".deciding")

    def _is_held(self, name: str) -> bool:
        for path in self._holds.glob(f"{name}.*"):
            try:
                with FileLock(path, timeout=0):
                    path.unlink(missing_ok=True)  # of a run that was killed
            except Timeout:
                return True
        return False

    def remove(self, names: Iterable[str]) -> set[str]:
        """Remove these, and interrupted attempts to make them, except what a run under way holds; gives the removed."""
        removed: set[str] = set()
        graves = self.root / ".removed"
        grave = graves / f"{os.getpid()}-{time.time_ns()}"
        grave.mkdir(parents=True)
        with self._deciding():
            for name in names:
                if not self._is_held(name):
                    for folder in (name, f"{name}{PARTIAL}"):  # at once, so that no run finds half of it
                        with suppress(FileNotFoundError):
                            (self.root / folder).rename(grave / folder)
                    removed.add(name)
        shutil.rmtree(graves, ignore_errors=True)  # also what a killed removal left
        return removed

    def manifests(self, stage: str) -> Iterator[tuple[Path, dict[str, Any]]]:
        """Every artifact of a stage that can be read, the newest first: its folder and its manifest."""
        ages = {}
        for folder in self.root.glob(f"{stage}-*"):
            with suppress(OSError):  # put in its place, or removed, at this moment
                ages[folder] = (folder / _MANIFEST).stat().st_mtime
        for folder in sorted(ages, key=lambda folder: ages[folder], reverse=True):
            if folder.suffix != PARTIAL:
                yield folder, _read_json(folder / _MANIFEST)

    def partial_folder(self, name: str, inputs: dict[str, str | None], afresh: bool) -> Path:
        """Where `<stage>-<key>` is made from `inputs`, with what an interrupted run left there.

        Unless `afresh`, and only where that run had inputs of the same content.
        """
        partial = self.root / f"{name}{PARTIAL}"
        other = _read_json(partial / _BEGUN).get("inputs", {}) != inputs
        if other and (partial / PROGRESS_FILE).exists() and not afresh:
            terminal.warn(f"{partial} was begun from another result than is there now, and begins anew")
        if afresh or other:
            shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True, exist_ok=True)
        if inputs:
            with write_and_rename(partial / _BEGUN) as temporary:
                temporary.write_text(json.dumps({"inputs": inputs}))
        for cut_off in partial.glob("*.tmp"):  # a write that was killed; the lock says that nobody is at it
            cut_off.unlink()
        return partial

    def start_from_shorter(
        self, name: str, hashed: dict[str, Any], inputs: dict[str, str | None], extends: tuple[str, str]
    ) -> str | None:
        """Put into the partial folder the checkpoint of an artifact that differs by fewer `extends` alone.

        It was made from `inputs` of the same content. The longest is taken, unless the folder has a checkpoint of its
        own. Gives the artifact's name.
        """
        section, setting = extends
        partial = self.root / f"{name}{PARTIAL}"
        if (partial / PROGRESS_FILE).exists():
            return None
        wanted, shorter = hashed[section][setting], []
        for folder, manifest in self.manifests(hashed["stage"]):
            other = manifest.get("hashed", {})
            if PROGRESS_FILE not in manifest.get("files", {}) or other.get(section, {}).get(setting, wanted) >= wanted:
                continue
            if other | {section: other[section] | {setting: wanted}} == hashed and manifest.get("inputs") == inputs:
                shorter.append((other[section][setting], folder))
        for _, folder in sorted(shorter, reverse=True):
            if self.find(folder.name) is not None:  # its files are as its manifest says
                with suppress(FileNotFoundError):  # removed at this moment
                    for file in sorted(folder.glob(PROGRESS_FILES)):  # progress.pt itself comes last
                        with write_and_rename(partial / file.name) as temporary:
                            shutil.copyfile(file, temporary)
                    return folder.name
        return None

    def complete(
        self,
        name: str,
        metrics: list[Metric],
        attachments: list[Path],
        record: dict[str, Any],
        keep_progress: bool,
    ) -> Artifact:
        """Write the manifest of a partial folder and put it in its place, instead of an older one.

        The training checkpoint is kept where a longer training may go on from it (`keep_progress`).
        """
        partial, folder = self.root / f"{name}{PARTIAL}", self.root / name
        (partial / _BEGUN).unlink(missing_ok=True)
        if not keep_progress:
            for file in partial.glob(PROGRESS_FILES):
                file.unlink()
        paths = {path.relative_to(partial).as_posix(): path for path in sorted(partial.rglob("*")) if path.is_file()}
        files = {name: sha256(path) for name, path in paths.items() if name != _MANIFEST}
        shown = [path.name for path in attachments]
        manifest = {**record, "metrics": metrics, "attachments": shown, "files": files}
        with write_and_rename(partial / _MANIFEST) as temporary:
            temporary.write_text(json.dumps(manifest, indent=1))
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        _said.discard(folder)
        artifact = self.find(name)
        assert artifact is not None
        return artifact
