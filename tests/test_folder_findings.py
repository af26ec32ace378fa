"""Folders of images that are not what they seem: the very line that docs/faults.md shows of each kind."""

from __future__ import annotations

import dataclasses
import functools
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue, looking
from pipeline.datasets.splitting import split_indices, take_indices
from pipeline.host.errors import UserError
from pipeline.host.files import PROJECT_ROOT
from pipeline.run.runner import run
from pipeline.settings.config import DatasetConfig


@functools.cache
def composed() -> DatasetConfig:
    overrides = ["dataset=image_folder", "dataset.root=anywhere", "dataset.image_size=16", "dataset.workers=2"]
    return compose_request(overrides).config.dataset


def settings(root: Path, **changes: object) -> DatasetConfig:
    catalogue.look_again()
    return dataclasses.replace(composed(), root=str(root), **changes)


def noise(seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of noise, all different: 10 a class to train and 5 to test."""
    seed = 0
    for part, count in (("train", 10), ("test", 5)):
        for name in ("cat", "dog"):
            (tmp_path / "pictures" / part / name).mkdir(parents=True)
            for index in range(count):
                noise(seed := seed + 1).save(tmp_path / "pictures" / part / name / f"{index}.png")
    return tmp_path / "pictures"


@pytest.fixture
def found(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """What is odd about a folder, without the part that every line begins with."""

    def inspect(root: Path, **changes: object) -> dict[str, str]:
        lines = catalogue.inspect(settings(root, **changes), tmp_path / "notes")
        assert all(line.startswith(f"dataset.root={root}: ") and "\n" not in line for line in lines.values())
        return {name: line.removeprefix(f"dataset.root={root}: ") for name, line in lines.items()}

    return inspect


Found = Callable[..., dict[str, str]]


def refusal(read: Callable[[], object]) -> str:
    with pytest.raises(UserError) as refused:
        read()
    return str(refused.value)


def change_every(root: Path, change: Callable[[Path], None]) -> None:
    for path in sorted(root.rglob("*.png")):
        change(path)


def test_nothing_is_said_of_a_folder_that_is_what_it_seems(folder: Path, found: Found) -> None:
    assert found(folder) == {}
    assert found(folder / "train") == {}


# --- names


def test_pictures_that_lie_deeper_or_beside_are_counted(folder: Path, found: Found) -> None:
    (folder / "train" / "cat" / "batch2" / "late").mkdir(parents=True)
    for index in range(5):
        (folder / "train" / "cat" / f"{index}.png").rename(
            folder / "train" / "cat" / "batch2" / "late" / f"{index}.png"
        )
    noise(99).save(folder / "test" / "stray.png")
    assert found(folder) == {
        "files_not_read": "6 image files are not read, which are not in a class folder itself but in one below it or "
        f"beside it; the first: {Path('train/cat/batch2/late/0.png')}"
    }


def test_class_without_pictures_is_refused_with_those_that_lie_deeper(folder: Path) -> None:
    shutil.copytree(folder / "train" / "dog", folder / "train" / "cow" / "2024")
    assert refusal(lambda: catalogue.load_training(settings(folder))) == (
        f"dataset.root={folder}/train: class 'cow' has no images, the first below it is cow/2024/0.png; allowed: some "
        "in each class"
    )


def test_files_with_other_suffixes_are_counted_by_suffix(folder: Path, found: Found) -> None:
    for name in ("a.HEIC", "b.heic", "c.jfif", "readme"):
        (folder / "test" / "dog" / name).write_bytes(b"")
    assert found(folder) == {
        "other_suffixes": "files in class folders are not read: 2 .heic, 1 .jfif, 1 without a suffix; read are .png "
        ".jpg .jpeg .bmp .webp .tif .tiff .gif .ppm .pgm"
    }


@pytest.mark.parametrize("split", [True, False])
def test_hidden_files_and_those_of_other_systems_are_no_pictures(split: bool, folder: Path, found: Found) -> None:
    root = folder if split else folder / "train"
    whole = len(catalogue.load_test(settings(root)))
    places = [root, *(path for path in root.rglob("*") if path.is_dir())]
    for place in places:
        for name in ("._0.png", ".DS_Store", ".hidden.jpg", "Thumbs.db", "desktop.ini"):
            (place / name).write_bytes(b"\0\5\x16\7")
        for name in ("__MACOSX", "@eaDir", ".ipynb_checkpoints"):
            shutil.copytree(PROJECT_ROOT / "conf" / "qat", place / name / "cat", dirs_exist_ok=True)
            noise(5).save(place / name / "cat" / "0.png")
            noise(6).save(place / name / "0.png")
    assert len(catalogue.load_test(settings(root))) == whole
    assert catalogue.info(settings(root)).class_names == ("cat", "dog")
    assert found(root) == {}


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_class_is_the_same_in_both_parts_when_its_name_has_another_unicode_form(form: str, folder: Path) -> None:
    here, there = unicodedata.normalize(form, "Müll"), unicodedata.normalize("NFD" if form == "NFC" else "NFC", "Müll")
    (folder / "train" / "dog").rename(folder / "train" / here)
    (folder / "test" / "dog").rename(folder / "test" / there)
    (folder / "train" / "cat").rename(folder / "train" / "Zoë")
    (folder / "test" / "cat").rename(folder / "test" / "Zoë")
    config = settings(folder)
    assert catalogue.load_test(config).labels.tolist() == [0] * 5 + [1] * 5
    assert catalogue.preprocessing(config).class_names == (here, "Zoë")  # what predict prints


def test_classes_are_refused_when_train_has_one_name_in_two_unicode_forms(folder: Path) -> None:
    for form in ("NFC", "NFD"):
        shutil.copytree(folder / "train" / "cat", folder / "train" / unicodedata.normalize(form, "Müll"))
    assert refusal(lambda: catalogue.info(settings(folder))) == (
        f"dataset.root={folder}/train: the class folders 'Mu\\u0308ll' and 'M\\xfcll' have one name in two Unicode "
        "forms; allowed: one of them"
    )


def test_classes_that_differ_by_case_alone_are_named(folder: Path, found: Found) -> None:
    (folder / "test" / "cat").rename(folder / "test" / "Cat")
    assert refusal(lambda: catalogue.load_test(settings(folder))) == (
        f"dataset.root={folder}/test: class 'Cat' in test/ but not in train/; allowed: cat, dog; 'Cat' and 'cat' "
        "differ by case alone"
    )
    (folder / "train" / "Cat").mkdir()
    noise(77).save(folder / "train" / "Cat" / "0.png")
    noise(78).save(folder / "train" / "Cat" / "1.png")
    assert found(folder)["class_names"] == "the classes 'Cat' and 'cat' differ by case alone"


@pytest.mark.parametrize(
    ("train", "test"),
    [("Train", "Test"), ("training", "testing"), ("TRAIN", "validation"), ("seg_train", "seg_test"), ("trian", "tset")],
)
def test_parts_by_other_names_are_named_with_what_to_rename(train: str, test: str, folder: Path) -> None:
    (folder / "train").rename(folder / train)
    (folder / "test").rename(folder / test)
    shown = ", ".join(f"{name}/" for name in sorted((train, test)))
    assert refusal(lambda: catalogue.info(settings(folder))) == (
        f"dataset.root={folder}: train/ and test/ are not there, {shown} are: rename {train}/ to train/ and {test}/ to "
        "test/, or link them; allowed: train/<class>/* and test/<class>/*, or <class>/* alone"
    )


def test_part_by_another_name_is_named_when_the_other_part_is_there(folder: Path) -> None:
    (folder / "test").rename(folder / "Test")
    assert f"dataset.root={folder}: train/ is there, test/ is not: rename Test/ to test/, or link it; " in refusal(
        lambda: catalogue.info(settings(folder))
    )


def test_folder_that_holds_the_parts_is_named_when_the_root_is_above_it(folder: Path) -> None:
    assert refusal(lambda: catalogue.info(settings(folder.parent))) == (
        f"dataset.root={folder.parent}: train/ and test/ are in pictures/; did you mean dataset.root={folder}?"
    )


@pytest.mark.parametrize("name", ["val", "valid", "validation", "more"])
def test_folders_beside_the_parts_are_named_with_their_count(name: str, folder: Path, found: Found) -> None:
    shutil.copytree(folder / "test", folder / name)
    (folder / "docs").mkdir()
    assert found(folder) == {
        "folders_not_read": f"not read: {name}/ (10 images); the validation part is split off train/ "
        "(dataset.validation_fraction=0.1)"
    }


# --- copies


@pytest.mark.parametrize("loading", ["memory", "stream"])
def test_copies_of_training_files_in_test_are_counted(loading: str, folder: Path, found: Found) -> None:
    shutil.copy(folder / "train" / "dog" / "3.png", folder / "test" / "cat" / "0.png")
    shutil.copy(folder / "train" / "dog" / "4.png", folder / "test" / "dog" / "x.png")
    assert found(folder, loading=loading) == {
        "copies": "2 of 11 test files are byte-equal to training files: what is known by heart is no accuracy; the "
        "first: test/cat/0.png is train/dog/3.png"
    }


def test_copies_are_found_when_all_files_have_one_size_and_one_head(folder: Path, found: Found) -> None:
    change_every(folder, lambda path: path.unlink())
    for index, (part, name) in enumerate((part, name) for part in ("train", "test") for name in ("cat", "dog")):
        for number in range(4):
            pixels = np.zeros((100, 100, 3), np.uint8)
            pixels[0, 0] = index * 4 + number  # a BMP begins with its last row: beyond what is read at first
            Image.fromarray(pixels).save(folder / part / name / f"{number}.bmp")
    assert "copies" not in found(folder, validation_fraction=0.25)
    shutil.copy(folder / "train" / "dog" / "3.bmp", folder / "test" / "cat" / "0.bmp")
    assert found(folder, validation_fraction=0.25)["copies"].startswith(
        "1 of 8 test files are byte-equal to training files"
    )


def test_copies_are_found_when_a_part_is_held_out(folder: Path, found: Found) -> None:
    for name in ("cat", "dog"):
        for index in range(10):
            shutil.copy(folder / "train" / name / f"{index}.png", folder / "train" / name / f"copy{index}.png")
    assert " of 8 test files are byte-equal to training files" in found(folder / "train")["copies"]


# --- classes that are lacking


def rare(root: Path, count: int) -> Path:
    for name, images in (("cat", 40), ("ship", count), ("frog", 40)):
        (root / name).mkdir(parents=True)
        for index in range(images):
            noise(1000 * len(name) + index).save(root / name / f"{index}.png")
    return root


@pytest.mark.parametrize(
    ("count", "lacking"),
    [
        (1, "no validation images of 'ship' and no test images of 'ship': the accuracy there says nothing of them"),
        (2, "no validation images of 'ship': the accuracy there says nothing of them"),
        (3, None),
        (4, None),
    ],
)
def test_each_part_has_one_of_a_rare_class_or_lacks_it_by_name(
    count: int, lacking: str | None, tmp_path: Path, found: Found
) -> None:
    root = rare(tmp_path / "rare", count)
    config = settings(root)
    training, validation = catalogue.load_training(config)
    test = catalogue.load_test(config)
    has = [2 in part.labels for part in (training, test, validation)]
    assert has == [True, count > 1, count > 2]
    assert len(training) + len(validation) + len(test) == 80 + count
    assert found(root).get("classes_lacking") == lacking


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("second", [4, 10, 50, 86])
def test_split_gives_both_sides_one_of_each_class_that_has_two(second: int, seed: int) -> None:
    labels = np.repeat([0, 1, 2, 3, 4], [60, 2, 1, 25, 3])
    chosen, held_out = split_indices(labels, second, seed, "key")
    assert len(held_out) == second
    assert sorted([*chosen, *held_out]) == list(range(len(labels)))
    assert {*labels[held_out]} == {0, 1, 3, 4}
    assert {*labels[chosen]} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("count", [5, 6, 20])
def test_every_class_is_taken_when_only_some_images_are(count: int) -> None:
    labels = np.repeat([0, 1, 2, 3, 4], [60, 2, 1, 25, 3])
    taken = take_indices(labels, count, 0, "key")
    assert len(taken) == count
    assert {*labels[taken]} == {0, 1, 2, 3, 4}


# --- pictures


def test_pictures_of_one_colour_are_counted_with_their_alpha_channel(folder: Path, found: Found) -> None:
    def into_alpha(path: Path) -> None:
        picture = Image.new("RGBA", (20, 20), (0, 0, 0, 0))
        picture.putalpha(Image.open(path).convert("L"))
        picture.save(path)

    change_every(folder, into_alpha)
    assert found(folder) == {
        "constant": "30 of the 30 images are of one colour throughout; 30 of them have an alpha channel, which is not "
        f"read; the first: {folder}/train/cat/0.png"
    }


def test_pictures_of_one_colour_are_counted_when_some_are(folder: Path, found: Found) -> None:
    Image.new("RGB", (20, 20), (9, 80, 200)).save(folder / "test" / "dog" / "2.png")
    assert found(folder) == {
        "constant": f"1 of the 30 images are of one colour throughout; the first: {folder}/test/dog/2.png"
    }


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_pictures_of_12_bits_in_16_are_told_with_the_range_and_the_setting(
    suffix: str, folder: Path, found: Found
) -> None:
    def deepen(path: Path) -> None:
        grey = np.asarray(Image.open(path).convert("L")).astype(np.uint16) << 4
        grey[grey > 4000 - 16] = 4000
        path.unlink()
        Image.fromarray(grey).save(path.with_suffix(f".{suffix}"))

    change_every(folder, deepen)
    assert found(folder) == {
        "dark": "30 of the 30 images are dark: read as 0 to 65535, none of them has a value above 4000; "
        "dataset.white_level=4095 reads 12 bits"
    }
    assert found(folder, white_level=4095) == {}
    (bright,) = (part.pixels for part in [catalogue.load_test(settings(folder, white_level=4095))])
    assert 100 < float(bright.float().mean()) < 155


def test_pictures_of_8_bits_that_use_few_of_them_are_told(folder: Path, found: Found) -> None:
    change_every(folder, lambda path: Image.open(path).point(lambda value: value // 16).save(path))
    assert found(folder) == {
        "dark": "30 of the 30 images are dark: read as 0 to 255, none of them has a value above 15, as of files with "
        "fewer bits than they have room for"
    }


def test_some_pictures_are_looked_at_and_said_to_be_when_there_are_many(
    folder: Path, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(looking, "_LOOKED_AT", 4)
    change_every(folder, lambda path: Image.new("L", (9, 9), 50 + len(path.read_bytes()) % 100).save(path))
    line = found(folder)["constant"]
    assert line.startswith("8 of the 8 images that were looked at, of 30, are of one colour throughout")


def test_what_files_hold_is_noted_and_read_again_when_they_change(
    folder: Path, found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found(folder) == {}
    read = []
    monkeypatch.setattr(looking, "_look", lambda *given: read.append(given))
    assert found(folder) == {}
    assert read == []
    noise(99).save(folder / "test" / "cat" / "0.png")
    assert found(folder) == {}
    assert len(read) == 30


# --- what a run says


def test_order_of_classes_is_told_when_names_are_numbers_and_weights_come_from_outside(tmp_path: Path) -> None:
    for label in range(12):
        (tmp_path / "pictures" / str(label)).mkdir(parents=True)
    config = settings(tmp_path / "pictures")
    assert catalogue.class_order(config) == "0, 1, 10, 11, 2, 3, 4, 5, 6, 7, 8, 9"
    for label in range(10, 12):
        (tmp_path / "pictures" / str(label)).rmdir()
    assert catalogue.class_order(config) is None


def test_run_says_each_line_once_and_has_it_as_a_tag_when_made_and_when_cached(
    folder: Path, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "test", folder / "val")
    shutil.copy(folder / "train" / "dog" / "3.png", folder / "test" / "cat" / "0.png")
    for name in ("1", "10", "2"):  # beside cat and dog
        for part, first in (("train", 200), ("test", 300)):
            (folder / part / name).mkdir()
            noise(first + int(name)).save(folder / part / name / "0.png")
            noise(first + 50 + int(name)).save(folder / part / name / "1.png")
    from pipeline import models

    overrides = [
        *("dataset=image_folder", f"dataset.root={folder}", "dataset.image_size=32", "stages=[train]"),
        *("train.epochs=0", f"model.weights={outputs.parent / 'weights.pt'}", f"outputs={outputs}"),
        "dataset.validation_fraction=0.3",
    ]
    config = compose_request(overrides).config
    torch.save(models.build(config.model, catalogue.info(config.dataset)).state_dict(), outputs.parent / "weights.pt")
    root = f"dataset.root={folder}: "
    expected = {
        "folders_not_read": f"{root}not read: val/ (10 images); the validation part is split off train/ "
        "(dataset.validation_fraction=0.3)",
        "copies": f"{root}1 of 16 test files are byte-equal to training files: what is known by heart is no accuracy; "
        "the first: test/cat/0.png is train/dog/3.png",
        "class_order": f"model.weights={outputs.parent / 'weights.pt'}: has to have its classes in this order: 1, 10, "
        "2, cat, dog",
    }
    for name in ("made", "cached"):
        capsys.readouterr()
        made = run(compose_request([*overrides, f"tracking.run_name={name}"]))
        warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
        assert sorted(warnings) == sorted(f"warning: {line}" for line in expected.values())
        tags = mlflow.MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}").get_run(str(made.run_id)).data.tags
        told = {tag.removeprefix("warning."): text for tag, text in tags.items() if tag.startswith("warning.")}
        assert told == expected
