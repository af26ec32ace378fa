"""What is shipped with a model does to an image what the evaluation does, and without torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline import datasets
from pipeline.config import DatasetConfig
from pipeline.datasets.loader import evaluation_batches
from pipeline.datasets.spec import Part
from pipeline.errors import UserError
from pipeline.preprocessing import PREPROCESSING_FILE, Preprocessing

# A difference of one 8-bit level would be 0.01 and more.
FLOAT_ROUNDING = 5e-6


def config(name: str = "digits", channels: int = 1, **settings: object) -> DatasetConfig:
    mean, std = [0.306, 0.4, 0.5][:channels], [0.377, 0.2, 0.3][:channels]
    return DatasetConfig(name=name, mean=mean, std=std, **settings)  # type: ignore[arg-type]


def evaluated(pixels: np.ndarray, settings: DatasetConfig) -> np.ndarray:
    """The evaluation's batch of one image, uint8 (C, H, W)."""
    part = Part(torch.from_numpy(pixels)[None], torch.zeros(1, dtype=torch.int64))
    ((images, _),) = evaluation_batches(part, settings, 1, torch.device("cpu"))
    return images.numpy()


def saved(pixels: np.ndarray, path: Path) -> Path:
    Image.fromarray(pixels.transpose(1, 2, 0).squeeze()).save(path)
    return path


def noise(channels: int, size: int) -> np.ndarray:
    return np.random.default_rng(size).integers(0, 256, (channels, size, size), dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("size", "image_size"), [(8, 32), (32, 32), (28, 224), (100, 32), (333, 96)])
def test_preprocessing_agrees_with_evaluation_when_image_is_resized(
    tmp_path: Path, channels: int, size: int, image_size: int
) -> None:
    settings = config(channels=channels, image_size=image_size)
    pixels = noise(channels, size)
    made = datasets.preprocessing(settings).apply(saved(pixels, tmp_path / "image.png"))
    assert made.dtype == np.float32
    np.testing.assert_allclose(made, evaluated(pixels, settings), rtol=0, atol=FLOAT_ROUNDING)


def test_preprocessing_agrees_with_evaluation_when_image_is_of_the_test_part(tmp_path: Path) -> None:
    settings = config(image_size=32, max_test_samples=20)
    part = datasets.load_test(settings)
    ((images, _),) = evaluation_batches(part, settings, 20, torch.device("cpu"))
    preprocessing = datasets.preprocessing(settings)
    for index, pixels in enumerate(part.pixels.numpy()):
        made = preprocessing.apply(saved(pixels, tmp_path / "image.png"))[0]
        np.testing.assert_allclose(made, images[index].numpy(), rtol=0, atol=FLOAT_ROUNDING)


@pytest.mark.parametrize("channels", [1, 3])
def test_preprocessing_agrees_with_evaluation_when_images_come_from_a_folder(tmp_path: Path, channels: int) -> None:
    # Wide, grey, upright only by EXIF, JPEG: as the folder decodes them.
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (50, 90, 3), dtype=np.uint8)).save(folder / "a.jpg")
            Image.fromarray(rng.integers(0, 256, (70, 40), dtype=np.uint8)).save(folder / "b.png")
            turned = Image.Exif()
            turned[0x0112] = 6
            Image.fromarray(rng.integers(0, 256, (50, 90, 3), dtype=np.uint8)).save(folder / "c.jpg", exif=turned)
    settings = config("image_folder", channels, root=str(tmp_path), image_size=24)
    ((images, _),) = evaluation_batches(datasets.load_test(settings), settings, 6, torch.device("cpu"))
    preprocessing = datasets.preprocessing(settings)
    assert preprocessing.class_names == ("cat", "dog")
    for index, path in enumerate(sorted((tmp_path / "test").rglob("*.*"))):
        np.testing.assert_allclose(
            preprocessing.apply(path)[0], images[index].numpy(), rtol=0, atol=FLOAT_ROUNDING, err_msg=path.name
        )


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
    made = datasets.preprocessing(config(channels=3, image_size=64))
    path = made.write(tmp_path)
    assert path.name == PREPROCESSING_FILE
    assert Preprocessing.read(path) == made
    assert json.loads(path.read_text())["class_names"] == [str(digit) for digit in range(10)]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "No such file"),
        ("{", "is no preprocessing"),
        ("[]", "is no preprocessing"),
        ('{"image_size": 32}', "channels"),
        ('{"image_size": 32, "channels": 1, "mean": [0], "std": [1, 2], "class_names": []}', "std="),
        ('{"image_size": 0, "channels": 1, "mean": [0], "std": [1], "class_names": []}', "image_size=0"),
        ('{"image_size": 8, "channels": 1, "mean": ["a"], "std": [1], "class_names": []}', "mean="),
        ('{"image_size": 8, "channels": 1, "mean": [0], "std": [0], "class_names": []}', "std="),
        ('{"image_size": 8, "channels": 1, "mean": [0], "std": [1], "class_names": [7]}', "class_names="),
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
