"""What is shipped with a model does to an image what training and evaluation do, bit for bit and without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.datasets.loader import evaluation_batches, training_batches
from pipeline.datasets.preprocessing import PREPROCESSING_FILE, Preprocessing
from pipeline.datasets.spec import Part
from pipeline.host.errors import UserError
from pipeline.settings.config import DatasetConfig
from tests.array_images import EACH, declare

CPU = torch.device("cpu")


def config(name: str, channels: int, **settings: object) -> DatasetConfig:
    mean, std = [0.306, 0.4, 0.5][:channels], [0.377, 0.2, 0.3][:channels]
    return DatasetConfig(name=name, mean=mean, std=std, **settings)  # type: ignore[arg-type]


def saved(pixels: np.ndarray, path: Path) -> Path:
    """An image, uint8 (C, H, W), as a file."""
    Image.fromarray(pixels.transpose(1, 2, 0).squeeze()).save(path)
    return path


def noise(count: int, channels: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (count, channels, height, width), dtype=np.uint8)


def evaluated(part: Part, settings: DatasetConfig) -> list[bytes]:
    """Every image of a part as the evaluation sees it."""
    return [image.numpy().tobytes() for images, _ in evaluation_batches(part, settings, 3, CPU) for image in images]


def trained_on(part: Part, settings: DatasetConfig) -> set[bytes]:
    """Every image of a part as a training sees it."""
    batches = training_batches(part, settings, 1, CPU, torch.Generator().manual_seed(0))
    return {image.numpy().tobytes() for images, _ in batches for image in images}


def assert_agree(settings: DatasetConfig, train: list[Path], test: list[Path]) -> None:
    """What is trained on, validated and evaluated is what is shipped makes of the same images as files."""
    preprocessing = catalogue.preprocessing(settings)
    shipped = {path: preprocessing.apply(path)[0] for path in {*train, *test}}
    assert {(image.dtype, image.shape) for image in shipped.values()} == {
        (np.dtype(np.float32), (len(settings.mean), settings.image_size, settings.image_size))
    }
    training, validation = catalogue.load_training(settings)
    seen = trained_on(training, settings) | set(evaluated(validation, settings))
    assert seen == {shipped[path].tobytes() for path in train}
    assert evaluated(catalogue.load_test(settings), settings) == [shipped[path].tobytes() for path in test]


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "in turn"])
@pytest.mark.parametrize(("given", "channels"), [(1, 1), (3, 3), (3, 1), (1, 3)])
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(8, 8, 32), (28, 28, 32), (32, 32, 32), (100, 100, 32), (20, 51, 32), (51, 20, 32), (57, 100, 24), (100, 57, 24)],
)
def test_images_agree_when_they_come_as_arrays(
    height: int,
    width: int,
    size: int,
    given: int,
    channels: int,
    kept: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pixels = noise(2 * EACH, given, height, width)
    declare(monkeypatch, pixels)
    monkeypatch.setattr(catalogue, "_KEPT", 1_000_000 if kept else 0)
    files = [saved(image, tmp_path / f"{index:02}.png") for index, image in enumerate(pixels)]
    assert_agree(config("made", channels, image_size=size), files, files)


@pytest.mark.parametrize("loading", ["memory", "stream"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_agree_when_they_come_from_a_folder(tmp_path: Path, channels: int, loading: str) -> None:
    # Wide, tall, grey, of 16 bits, upright only by EXIF, smaller than what is asked for; JPEG and PNG.
    rng = np.random.default_rng(0)
    turned = Image.Exif()
    turned[0x0112] = 6
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (50, 90, 3), dtype=np.uint8)).save(folder / "a.jpg")
            Image.fromarray(rng.integers(0, 256, (70, 40), dtype=np.uint8)).save(folder / "b.png")
            Image.fromarray(rng.integers(0, 256, (50, 90, 3), dtype=np.uint8)).save(folder / "c.jpg", exif=turned)
            Image.fromarray(rng.integers(0, 65536, (31, 47), dtype=np.uint16)).save(folder / "d.png")
            Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8)).save(folder / "e.png")
    settings = config(
        "image_folder", channels, root=str(tmp_path), image_size=24, loading=loading, workers=2, validation_fraction=0.2
    )
    train, test = (sorted((tmp_path / part).rglob("*.*")) for part in ("train", "test"))
    assert_agree(settings, train, test)


@pytest.mark.parametrize(("size", "image_size"), [(8, 32), (28, 32), (28, 224), (100, 32), (333, 96)])
def test_resizing_is_bilinear_with_antialiasing_within_one_level(tmp_path: Path, size: int, image_size: int) -> None:
    (pixels,) = noise(1, 3, size, size)
    made = Preprocessing(image_size, 3, (0.0,) * 3, (1 / 255,) * 3, ("a", "b")).apply(saved(pixels, tmp_path / "a.png"))
    exact = torch.nn.functional.interpolate(
        torch.from_numpy(pixels)[None].double(), (image_size, image_size), mode="bilinear", antialias=True
    )
    np.testing.assert_allclose(made, exact, rtol=0, atol=1.01)


@pytest.mark.parametrize("wide", [True, False])
def test_middle_is_what_is_left_of_an_array_when_it_is_not_square(wide: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    thirds = np.repeat(np.eye(3, dtype=np.uint8)[:, None, :] * 255, 16, axis=2).repeat(16, axis=1)  # red, green, blue
    pixels = np.stack([thirds if wide else thirds.transpose(0, 2, 1)] * 2 * EACH)
    declare(monkeypatch, pixels)
    settings = DatasetConfig("made", image_size=16, mean=[0.0] * 3, std=[1.0] * 3)
    ((images, _),) = evaluation_batches(catalogue.load_test(settings), settings, 2 * EACH, CPU)
    assert torch.equal(images, torch.tensor([0.0, 1, 0]).view(3, 1, 1).expand(2 * EACH, 3, 16, 16))


@pytest.mark.parametrize("name", ["digits", "mnist", "fashion_mnist", "cifar10", "image_folder"])
def test_normalization_is_the_same_bit_for_bit_when_a_pixel_has_any_level(name: str) -> None:
    composed = compose_request([f"dataset={name}", "dataset.root=anywhere", "dataset.image_size=16"]).config.dataset
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(1, len(composed.mean), 1, 1)
    ((images, _),) = evaluation_batches(Part(levels, torch.zeros(1, dtype=torch.int64)), composed, 1, CPU)
    shipped = Preprocessing(16, len(composed.mean), tuple(composed.mean), tuple(composed.std), ("a", "b"))
    assert np.array_equal(shipped.model_input(levels[0].numpy()), images.numpy())


def grey_ramp() -> Image.Image:
    """Dark on the left, bright on the right, upright."""
    return Image.fromarray(np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1)))


def variants() -> dict[str, tuple[Image.Image, dict[str, object]]]:
    """The same ramp in every mode that PNG and JPEG have, and how it is saved."""
    ramp = grey_ramp()
    turned = Image.Exif()
    turned[0x0112] = 6  # to be turned by 90° clockwise to stand upright
    palette = ramp.convert("P")
    transparent = ramp.convert("RGB")
    transparent.putalpha(255)
    deep = Image.fromarray(np.asarray(ramp).astype(np.uint16) * 257)
    return {
        "grey.png": (ramp, {}),
        "rgb.png": (ramp.convert("RGB"), {}),
        "rgba.png": (transparent, {}),
        "grey_alpha.png": (transparent.convert("LA"), {}),
        "palette.png": (palette, {}),
        "palette_transparent.png": (palette, {"transparency": bytes([0, 255])}),
        "16_bit.png": (deep, {}),
        "grey.jpg": (ramp, {"quality": 100}),
        "rgb.jpg": (ramp.convert("RGB"), {"quality": 100, "subsampling": 0}),
        "cmyk.jpg": (ramp.convert("RGB").convert("CMYK"), {"quality": 100, "subsampling": 0}),
        "turned.jpg": (ramp.transpose(Image.Transpose.ROTATE_90), {"quality": 100, "exif": turned}),
        "turned.png": (ramp.transpose(Image.Transpose.ROTATE_90), {"exif": turned}),
    }


@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", list(variants()))
def test_preprocessing_gives_the_same_when_the_image_has_another_mode(tmp_path: Path, name: str, channels: int) -> None:
    image, how = variants()[name]
    image.save(tmp_path / name, **how)
    plain = Preprocessing(32, channels, (0.0,) * channels, (1.0,) * channels, ("a", "b"))
    made = plain.apply(tmp_path / name) * 255
    assert made.shape == (1, channels, 32, 32)
    np.testing.assert_allclose(made, np.broadcast_to(np.asarray(grey_ramp()), made.shape), atol=3)


def test_preprocessing_reads_the_one_bit_image_as_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(np.eye(8, dtype=bool)).save(tmp_path / "one_bit.png")
    made = Preprocessing(8, 1, (0.0,), (1.0,), ("a", "b")).apply(tmp_path / "one_bit.png")
    np.testing.assert_array_equal(made[0, 0], np.eye(8))


def test_preprocessing_is_the_same_when_written_and_read(tmp_path: Path) -> None:
    made = catalogue.preprocessing(config("digits", 3, image_size=64))
    path = made.write(tmp_path)
    assert path.name == PREPROCESSING_FILE
    assert Preprocessing.read(path) == made
    assert json.loads(path.read_text())["class_names"] == [str(digit) for digit in range(10)]


@pytest.mark.parametrize("rounds", [True, False])
def test_preprocessing_is_read_when_an_earlier_version_wrote_it(rounds: bool, tmp_path: Path) -> None:
    made = catalogue.preprocessing(config("digits", 3, image_size=64))
    path = made.write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rounds": rounds}))
    assert Preprocessing.read(path) == made


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("{", "is no preprocessing"),
        ("[]", "is no preprocessing"),
        ('{"image_size": 32}', "it lacks 'mean'"),
        ('{"image_size": 32, "channels": 1, "mean": [0], "std": [1, 2], "class_names": []}', "std="),
        ('{"image_size": 8, "channels": 1, "mean": [0], "std": [1], "class_names": [], "layout": "NHWC"}', "NHWC"),
        ('{"image_size": 8, "channels": 1, "mean": [0], "std": [1], "class_names": [], "colour": 1}', "colour"),
    ],
)
def test_reading_preprocessing_is_refused_when_the_file_says_something_else(
    tmp_path: Path, content: str | None, words: str
) -> None:
    path = tmp_path / PREPROCESSING_FILE
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=words) as refused:
        Preprocessing.read(path)
    assert str(path) in str(refused.value)
    assert "\n" not in str(refused.value)
