"""Data that are not as they should be: one line each, the very one that docs/data.md shows."""

from __future__ import annotations

import dataclasses
import functools
import gzip
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.commands.composition import compose_request
from pipeline.datasets import archives, catalogue
from pipeline.datasets.spec import Part
from pipeline.host.errors import UserError
from pipeline.host.files import PROJECT_ROOT
from pipeline.host.machine import UNSHARED
from pipeline.settings.config import DatasetConfig
from pipeline.tasks.classification import TASK


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Flat grey images, 8 a class to train and 4 to test."""
    for part, count in (("train", 8), ("test", 4)):
        for label, name in enumerate(("cat", "dog")):
            (tmp_path / "pictures" / part / name).mkdir(parents=True)
            for index in range(count):
                image = Image.new("RGB", (20, 20), (10 * index, 100 * label, 0))
                image.save(tmp_path / "pictures" / part / name / f"{index}.png")
    return tmp_path / "pictures"


def settings(root: Path, **changes: object) -> DatasetConfig:
    catalogue.look_again()
    config = composed("dataset=image_folder", "dataset.root=anywhere", "dataset.image_size=16", "dataset.workers=2")
    return dataclasses.replace(config, root=str(root), **changes)


@functools.cache
def composed(*overrides: str) -> DatasetConfig:
    return compose_request(list(overrides)).config.dataset


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(UserError) as refused:
        read()
    return str(refused.value)


def pixels(part: Part) -> list[bytes]:
    (images,) = part.batches([torch.arange(len(part))], torch.device("cpu"))
    return [image.numpy().tobytes() for image in images]


def promise(path: Path, side: int) -> Path:
    """Make of a PNG one whose header promises `side` × `side` pixels."""
    content = bytearray(path.read_bytes())
    content[16:24] = side.to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    path.write_bytes(content)
    return path


# --- files that cannot be read


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_unreadable_files_are_left_out_and_named_when_they_are_to_be_skipped(
    loading: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = {name: pixels(part) for name, part in parts(settings(folder)).items()}
    (folder / "train" / "cat" / "2.png").write_bytes(b"")
    (folder / "train" / "dog" / "x.png").symlink_to(folder / "nowhere.png")
    promise(folder / "train" / "dog" / "7.png", 30_000)
    promise(folder / "test" / "cat" / "0.png", 14_000)
    capsys.readouterr()
    found = parts(settings(folder, unreadable="skip", loading=loading))
    assert pixels(found["train"]) == [image for index, image in enumerate(whole["train"]) if index not in (2, 15)]
    assert found["train"].labels.tolist() == [0] * 7 + [1] * 7
    assert pixels(found["test"]) == whole["test"][1:]
    said = capsys.readouterr()
    at = f"warning: left out: dataset.root: {folder}"
    limit = "allowed: dataset.max_image_megapixels=179"
    assert said.err.splitlines() == [
        f"{at}/train/cat/2.png: cannot be read as an image: it is empty",
        f"{at}/train/dog/7.png: cannot be read as an image: its 30,000 × 30,000 pixels are 900.0 megapixels; {limit}",
        f"{at}/train/dog/x.png: cannot be read as an image: No such file or directory",
        "warning: dataset.unreadable=skip: 3 of 17 train images cannot be read and are left out",
        f"{at}/test/cat/0.png: cannot be read as an image: its 14,000 × 14,000 pixels are 196.0 megapixels; {limit}",
        "warning: dataset.unreadable=skip: 1 of 8 test images cannot be read and are left out",
    ]
    if loading == "stream":
        each = "each of 17 train images"
        assert f"unreadable=skip: {each} is decoded once before the first batch, to check it" in said.out
        assert f"image_folder: checked {each} in " in said.out


def parts(config: DatasetConfig) -> dict[str, Part]:
    """Both parts as they are read, in the order of the files."""
    return {name: catalogue.find(config).read(config, name, UNSHARED) for name in ("train", "test")}


def test_first_unreadable_files_are_named_and_the_others_counted_when_there_are_many(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for index in range(7):
        (folder / "train" / "dog" / f"{index}.png").write_bytes(b"GIF89a")
    catalogue.find(config := settings(folder, unreadable="skip")).read(config, "train", UNSHARED)
    *named, count = capsys.readouterr().err.splitlines()
    assert len(named) == 5
    assert count == (
        "warning: dataset.unreadable=skip: 7 of 16 train images cannot be read and are left out, 2 of them not named "
        "here"
    )


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_skipping_is_refused_when_a_class_has_no_image_left(loading: str, folder: Path) -> None:
    for path in (folder / "train" / "dog").iterdir():
        path.write_bytes(b"")
    config = settings(folder, unreadable="skip", loading=loading)
    assert refusal(lambda: catalogue.load_training(config)) == (
        "dataset.unreadable=skip: class 'dog' has no train image left that can be read; allowed: one in each class at "
        f"least; the first: dataset.root: {folder}/train/dog/0.png: cannot be read as an image: it is empty"
    )


def test_streaming_ends_in_one_line_when_a_file_cannot_be_read(folder: Path) -> None:
    path = promise(folder / "test" / "dog" / "1.png", 14_000)
    part = catalogue.load_test(settings(folder, loading="stream"))
    batches = part.batches(torch.arange(8).split(2), torch.device("cpu"))
    assert refusal(lambda: list(batches)) == (
        f"dataset.root: {path}: cannot be read as an image: its 14,000 × 14,000 pixels are 196.0 megapixels; "
        "allowed: dataset.max_image_megapixels=179 (dataset.unreadable=skip leaves such files out)"
    )


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_empty_file_is_refused_with_the_setting_that_leaves_it_out(loading: str, folder: Path) -> None:
    path = folder / "train" / "cat" / "2.png"
    path.write_bytes(b"")

    def read() -> None:
        part, _ = catalogue.load_training(settings(folder, loading=loading))
        list(part.batches(torch.arange(len(part)).split(2), torch.device("cpu")))

    assert refusal(read) == (
        f"dataset.root: {path}: cannot be read as an image: it is empty (dataset.unreadable=skip leaves such files out)"
    )


LOAD = """
import sys
from pipeline.datasets import catalogue
from pipeline.commands.command_line import run_command
from pipeline.settings.config import DatasetConfig

run_command(lambda: catalogue.load_training(DatasetConfig("image_folder", sys.argv[1])))
"""


def test_process_ends_in_one_line_and_without_a_warning_when_an_image_is_a_bomb(folder: Path) -> None:
    path = promise(folder / "train" / "cat" / "3.png", 14_000)
    command = [sys.executable, "-c", LOAD, str(folder)]
    ended = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True, timeout=120)
    assert (ended.returncode, ended.stderr) == (
        2,
        f"error: dataset.root: {path}: cannot be read as an image: its 14,000 × 14,000 pixels are 196.0 megapixels; "
        "allowed: dataset.max_image_megapixels=179 (dataset.unreadable=skip leaves such files out)\n",
    )


# --- files that are others than those the run began with


def cut(path: Path) -> str:
    before = path.stat().st_size
    path.write_bytes(path.read_bytes()[:40])
    return f"has changed since the run began ({before} bytes then, 40 now)"


def touch(path: Path) -> str:
    os.utime(path, (1, 1))
    return "has changed since the run began (another time)"


def remove(path: Path) -> str:
    path.unlink()
    return "has vanished since the run began (No such file or directory)"


@pytest.mark.parametrize("change", [cut, touch, remove])
@pytest.mark.parametrize("loading", ["memory", "stream"])
@pytest.mark.parametrize("unreadable", ["refuse", "skip"])
def test_file_is_refused_when_it_changed_after_the_fingerprint(
    change: Callable[[Path], str], loading: str, unreadable: str, folder: Path, tmp_path: Path
) -> None:
    config = settings(folder, loading=loading, unreadable=unreadable)
    catalogue.fingerprint(config, "test", tmp_path / "seen")
    path = folder / "test" / "dog" / "2.png"
    what = change(path)
    assert refusal(lambda: pixels(catalogue.load_test(config))) == (
        f"dataset.root: {path} {what}; started again, the command takes the files as they are then"
    )
    catalogue.look_again()
    assert catalogue.fingerprint(config, "test", tmp_path / "seen")


# --- labels


def test_classes_that_train_lacks_are_all_named_when_test_has_them(folder: Path) -> None:
    for name in ("cow", "pig"):
        (folder / "test" / name).mkdir()
        Image.new("L", (9, 9)).save(folder / "test" / name / "0.png")
    assert refusal(lambda: catalogue.load_test(settings(folder))) == (
        f"dataset.root={folder}/test: classes 'cow', 'pig' in test/ but not in train/; allowed: cat, dog"
    )


def test_part_that_is_missing_is_named_when_the_other_is_there(folder: Path) -> None:
    (folder / "test").rename(folder / "val")
    assert refusal(lambda: catalogue.load_test(settings(folder))) == (
        f"dataset.root={folder}: train/ is there, test/ is not: rename val/ to test/, or link it; allowed: "
        "train/<class>/* and test/<class>/*, or <class>/* alone"
    )
    (folder / "train").rename(folder / "test")
    assert f"dataset.root={folder}: test/ is there, train/ is not" in refusal(
        lambda: catalogue.load_test(settings(folder))
    )


def test_classes_may_have_the_names_of_parts_when_they_hold_images(folder: Path) -> None:
    (folder / "train" / "cat").rename(folder / "train" / "train")
    assert catalogue.info(settings(folder / "train")).class_names == ("dog", "train")


def test_class_folder_is_refused_before_any_training_when_its_name_is_no_utf8(folder: Path) -> None:
    for part in ("train", "test"):
        os.rename(os.fsencode(folder / part / "cat"), os.fsencode(folder / part) + b"/caf\xe9")
    line = f"dataset.root={folder}/train: the class folder 'caf\\udce9': allowed: names in UTF-8, without control"
    assert refusal(lambda: catalogue.info(settings(folder))).startswith(line)


def test_classes_that_test_lacks_are_told(folder: Path, tmp_path: Path) -> None:
    shutil.rmtree(folder / "test" / "dog")
    assert len(catalogue.load_test(config := settings(folder)).labels) == 4
    line = f"dataset.root={folder}: no test images of 'dog': the accuracy there says nothing of them"
    assert catalogue.inspect(config, tmp_path / "notes")["classes_lacking"] == line


def idx(content: np.ndarray) -> bytes:
    """An array of bytes in MNIST's format."""
    return struct.pack(f">HBB{content.ndim}I", 0, 8, content.ndim, *content.shape) + content.tobytes()


@pytest.fixture
def mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., DatasetConfig]:
    """Make an MNIST with these labels, whose archives nobody fetches or checks."""
    monkeypatch.setattr(archives, "fetch", lambda *_: None)

    def make(train: list[int], test: list[int], images: int | None = None) -> DatasetConfig:
        raw = tmp_path / "MNIST" / "raw"
        raw.mkdir(parents=True)
        for name, labels in (("train", train), ("t10k", test)):
            shown = np.zeros((len(labels) if images is None else images, 28, 28), np.uint8)
            (raw / f"{name}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(shown)))
            (raw / f"{name}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.array(labels, np.uint8))))
        return dataclasses.replace(composed("dataset=mnist"), root=str(tmp_path))

    return make


DIGITS = [*range(10)] * 3


@pytest.mark.parametrize(
    ("train", "line"),
    [
        (
            [0, 11, *DIGITS],
            "the train part has the label 11 at image 1 (of 32, from 0); allowed: 0 to 9, its 10 classes",
        ),
        (
            [*DIGITS, 255, 10],
            "the train part has the label 255 at image 30 (of 32, from 0), and 1 more such; allowed: 0 to 9, its 10 "
            "classes",
        ),
        ([], "the train part has no images; allowed: images of each of its 10 classes"),
        (
            [3] * 20,
            "the train part has one class only: its 20 images have the label 3 ('3 - three'); allowed: images of each "
            "of its 10 classes",
        ),
        (
            [label for label in DIGITS if label not in (4, 7)],
            "the train part has no images with the label 4 ('4 - four'), 7 ('7 - seven'); allowed: images of each of "
            "its 10 classes",
        ),
    ],
)
def test_mnist_is_refused_when_its_training_labels_cannot_be(
    train: list[int], line: str, mnist: Callable[..., DatasetConfig]
) -> None:
    config = mnist(train, DIGITS)
    assert refusal(lambda: catalogue.load_training(config, check=TASK.check)) == f"dataset=mnist: {line}"


@pytest.mark.parametrize(
    ("test", "images", "line"),
    [
        ([9, 10], None, "has the label 10 at image 1 (of 2, from 0); allowed: 0 to 9, its 10 classes"),
        ([], None, "has no images; allowed: images of each of its 10 classes"),
        (DIGITS, 29, "has 29 images and 30 labels; allowed: one label an image"),
    ],
)
def test_mnist_is_refused_when_its_test_labels_cannot_be(
    test: list[int], images: int | None, line: str, mnist: Callable[..., DatasetConfig]
) -> None:
    config = mnist(DIGITS, test, images)
    assert refusal(lambda: catalogue.load_test(config, check=TASK.check)) == f"dataset=mnist: the test part {line}"


def test_cifar10_is_refused_when_a_batch_has_a_label_beyond_its_classes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import calculate_md5

    unpacked = tmp_path / CIFAR10.base_folder
    unpacked.mkdir()
    contents = {
        "test_batch": {"data": np.zeros((3, 3072), np.uint8), "labels": [0, 9, -1]},
        "batches.meta": {"label_names": [str(label) for label in range(10)]},
    }
    for name, content in contents.items():
        (unpacked / name).write_bytes(pickle.dumps(content))
    sums = {name: calculate_md5(str(unpacked / name)) for name in contents}
    monkeypatch.setattr(CIFAR10, "train_list", [])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    config = dataclasses.replace(composed("dataset=cifar10"), root=str(tmp_path))
    assert refusal(lambda: catalogue.load_test(config)) == (
        "dataset=cifar10: the test part has the label -1 at image 2 (of 3, from 0); allowed: 0 to 9, its 10 classes"
    )
