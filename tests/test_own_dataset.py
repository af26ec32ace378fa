"""A data set of the user's own, or of another library, by its import path: `dataset.target`."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.commands.command_line import tell_error
from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue
from pipeline.datasets.own_tensors import OwnTensors
from pipeline.datasets.unmade import Unmade
from pipeline.host.errors import UserError
from pipeline.run.request import Request
from pipeline.run.runner import check_parts, run
from pipeline.runtimes import exported
from pipeline.settings.config import DatasetConfig
from tests import own_code
from tests.array_images import all_pixels

_numbers = itertools.count()
PATH = Path("nowhere")

DATA = """
import io
import random

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.utils.data import Dataset

DIGITS = load_digits()


def cut_off(picture):
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return Image.open(io.BytesIO(stream.getvalue()[:-30]))


def lying(picture):
    turned = picture.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # to be turned by 270 degrees, as phones write it
    return turned


class Digits(Dataset):
    classes = [f"digit {place}" for place in range(10)]

    def __init__(self, train, kind="pil"):
        self.part, self.kind = slice(0, 300) if train else slice(300, 400), kind
        if kind == "text":
            self.classes = None

    def __len__(self):
        return len(DIGITS.target[self.part])

    def __getitem__(self, place):
        pixels = np.rint(DIGITS.images[self.part][place] * 255 / 16).astype(np.uint8)
        label, picture = DIGITS.target[self.part][place], Image.fromarray(pixels)
        large = torch.from_numpy(pixels / 255.0).float().repeat_interleave(4, 0).repeat_interleave(4, 1)[None]
        return {
            "pil": (picture, label),
            "text": (picture, "abcdefghij"[label]),
            "lying": (lying(picture), label),
            "palette": (picture.convert("P"), torch.tensor(label)),
            "rgba": (picture.convert("RGBA"), int(label)),
            "deep": (Image.fromarray(pixels.astype(np.uint16) * 257), label),
            "array": (pixels, label),
            "rgb": (np.stack([pixels] * 3, 2), label),
            "tensor": (torch.from_numpy(pixels)[None], label),
            "dict": {"image": picture, "label": int(label)},
            "sizes": (picture.resize((8 + place % 3, 9)), label),
            "floats": (large, label),
            "random floats": (large + 0.1 * torch.rand(()) + 0.1 * random.random(), label),
            "wide floats": (large[:, :, :16], label),
            "random": (pixels + np.uint8(random.randint(0, 9)), label),
            "cut off": (cut_off(picture), label),
            "three": (picture, label, label),
            "other names": {"picture": picture, "label": int(label)},
            "a fraction": (picture, 1.5),
            "strange": ([1, 2], label),
        }[self.kind]


class Raising(Digits):
    def __getitem__(self, place):
        if place == 37:
            raise KeyError("no such picture")
        return super().__getitem__(place)


def pair(kind="pil"):
    return Digits(True, kind), Digits(False, kind)


def named(kind="pil"):
    return {"train": Digits(True, kind), "validation": Digits(False, kind)}


def whole(kind="pil"):
    return Digits(True, kind)


def load(path, split=None):
    if split == "test":
        raise ValueError("Unknown split test")
    return Digits(split == "train")


def three():
    return 1, 2, 3


def number():
    return 5


def renamed(names, kind="pil"):
    parts = pair(kind)
    for part in parts:
        part.classes = names
    return parts
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The dotted name of a module that can be imported."""
    package = f"own_data_{next(_numbers)}"  # a process imports a name once
    own_code.write(tmp_path / "elsewhere", package, data=DATA, nets=own_code.NETS)
    monkeypatch.syspath_prepend(str(tmp_path / "elsewhere"))
    return f"{package}.data"


def settings(*overrides: str) -> DatasetConfig:
    return compose_request([*overrides]).config.dataset


def of_kind(module: str, kind: str, *overrides: str) -> DatasetConfig:
    return settings(f"dataset.target={module}:pair", f"dataset.kwargs.kind='{kind}'", *overrides)


@pytest.mark.parametrize(
    ("target", "counts"),
    [
        ("Digits", (270, 30, 100)),  # called with train, as torchvision's
        ("pair", (270, 30, 100)),
        ("named", (270, 30, 100)),
        ("whole", (216, 24, 60)),  # of which dataset.test_fraction is held out
    ],
)
def test_parts_are_those_of_the_users_code(module: str, target: str, counts: tuple[int, int, int]) -> None:
    config = settings(f"dataset.target={module}:{target}")
    assert (*map(len, catalogue.load_training(config)), len(catalogue.load_test(config))) == counts
    assert catalogue.info(config).class_names[3] == "digit 3"
    assert config.name == target


def test_validation_split_is_the_test_part_and_it_is_said_when_there_is_no_split_test(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(f"dataset.target={module}:load", "dataset.kwargs.path=x")
    assert len(catalogue.load_test(config)) == 100
    assert "Unknown split test; its split validation is the test part" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["text", "lying", "palette", "rgba", "deep", "array", "rgb", "tensor", "dict"])
def test_images_and_labels_are_the_same_in_whatever_form_they_come(module: str, kind: str) -> None:
    expected, part = (catalogue.load_test(of_kind(module, name)) for name in ("pil", kind))
    assert torch.equal(all_pixels(part), all_pixels(expected))
    assert torch.equal(part.labels, expected.labels)


def test_images_of_different_sizes_are_prepared_to_one(module: str) -> None:
    assert all_pixels(catalogue.load_test(of_kind(module, "sizes"))).shape == (100, 3, 32, 32)


def test_streamed_images_are_those_of_memory(module: str) -> None:
    memory, streamed = (catalogue.load_test(of_kind(module, "pil", how)) for how in _WAYS)
    assert isinstance(streamed.pixels, Unmade)
    assert torch.equal(all_pixels(streamed), all_pixels(memory))


_WAYS = ("dataset.loading=memory", "dataset.loading=stream")


def test_float_tensors_come_as_they_are(module: str) -> None:
    config = of_kind(module, "floats")
    part = catalogue.load_test(config)
    assert isinstance(part.pixels, OwnTensors)
    assert catalogue.info(config).channels == 1
    assert catalogue.preprocessing(config) is None
    images = all_pixels(part)
    assert images.dtype == torch.float32
    assert 0 <= images.min() < images.max() <= 1


def test_fingerprint_is_that_of_images_and_labels_and_not_of_their_place(module: str) -> None:
    def print_of(kind: str) -> str:
        return catalogue.fingerprint(of_kind(module, kind), "train", PATH)

    assert print_of("pil") == print_of("array") == print_of("dict")
    assert print_of("random floats") == print_of("random floats")
    assert len({print_of(kind) for kind in ("pil", "text", "rgb", "floats", "random floats")}) == 5


@pytest.mark.parametrize("kind", ["pil", "text"])
def test_fingerprint_is_another_when_the_classes_are_or_stand_in_another_order(module: str, kind: str) -> None:
    letters = "a,b,c,d,e,f,g,h,i,j"
    prints = {
        catalogue.fingerprint(
            settings(
                f"dataset.target={module}:renamed", f"dataset.kwargs.kind={kind}", f"dataset.kwargs.names=[{names}]"
            ),
            part,
            PATH,
        )
        for names in (letters, letters[::-1], f"{letters},k")
        for part in ("train", "test")
    }
    assert len(prints) == 6


@pytest.mark.parametrize(
    ("overrides", "line"),
    [
        (["{t}:pair", "{k}=three"], "image 0 of the train part is a tuple of 3; allowed: a pair"),
        (["{t}:pair", "{k}='other names'"], "has picture, label; allowed: image or img"),
        (["{t}:pair", "{k}='a fraction'"], "a label of type float; allowed: a whole number"),
        (["{t}:pair", "{k}='cut off'"], "image 0 of the train part: OSError: "),
        (["{t}:pair", "{k}=strange"], "is of type list; allowed: a PIL image"),
        (["{t}:pair", "{k}=random"], "is another each time; allowed: images as they are"),
        (["{t}:pair", "{k}='wide floats'"], "float tensors of 1 × 32 × 16; allowed: as high as wide"),
        (["{t}:pair", "{k}=floats", "dataset.image_size=64"], "dataset.image_size=64: .*allowed: 32"),
        (["{t}:pair", "{k}=floats", "dataset.crop_padding=2"], "dataset.crop_padding=2: .*allowed: 0 and false"),
        (["{t}:pair", "dataset.kwargs.kinds=pil"], "dataset.kwargs.kinds: .*did you mean 'kind'?"),
        (["{t}:pairs"], "has no pairs; did you mean 'pair'?"),
        (["{t}:load"], "set dataset.kwargs.path"),
        (["{t}:three"], "it returns 3 things; allowed: a training and a test part"),
        (["{t}:number"], "the train part is of type int; allowed: a training and a test part"),
        (["{t}:pair", "dataset=digits"], "dataset.name=digits is one of ours; allowed: dataset=own"),
        (["{t}:pair", "dataset.unreadable=skip"], "dataset.unreadable=skip: pair has no image files"),
        (["dataset=own"], "dataset.target must be set"),
        (["dataset.kwargs.kind=pil"], "allowed: with dataset.target"),
    ],
)
def test_data_set_is_refused_in_one_line_when_it_cannot_serve(module: str, overrides: list[str], line: str) -> None:
    known = {"t": f"dataset.target={module}", "k": "dataset.kwargs.kind"}
    with pytest.raises(UserError) as caught:
        check_parts(compose_request([text.format(**known) for text in overrides]).config)
    told = str(caught.value)
    assert "\n" not in told
    for part in line.split(".*"):
        assert part in told


def test_users_own_traceback_stands_below_the_line_when_an_image_raises(
    module: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError) as caught:
        check_parts(compose_request([f"dataset.target={module}:Raising"]).config)
    tell_error(caught.value)
    first, *below = [line for line in capsys.readouterr().err.splitlines() if line.startswith(("error", " ", "Key"))]
    assert "image 37 of the train part: KeyError: 'no such picture'" in first
    assert "data.py" in below[0]


def test_run_on_float_tensors_is_repeated_from_the_cache_and_its_export_has_no_preprocessing(
    module: str, small_request: Callable[..., Request], outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = [
        f"dataset.target={module}:pair",
        "dataset.kwargs.kind='random floats'",
        f"model.target={module.replace('.data', '.nets')}:Net",
        f"model.quantizable_target={module.replace('.data', '.nets')}:QuantizableNet",
        "export.min_agreement=50",
    ]
    stages = "stages=[train,fuse,qat,convert,export]"
    with pytest.raises(UserError, match=r"export\.input=uint8: .* does not travel with a model; allowed: float32"):
        run(small_request(*asked, "export.input=uint8", stages))
    with pytest.raises(UserError, match=r"benchmark\.source=file: what prepares the images is code of dataset\.target"):
        run(small_request(*asked, "benchmark.source=file", f"{stages[:-1]},benchmark]"))
    request = small_request(*asked, stages)
    run(request)
    said = capsys.readouterr()
    assert "do not travel with an exported model" in said.err
    (model,) = outputs.glob("artifacts/export-*/int8/torchscript")
    assert [path.name for path in model.iterdir()] == ["model.torchscript.pt"]
    with pytest.raises(UserError, match="which does not travel with a model"):
        exported.load(exported.locate(None, str(outputs)))
    run(request)
    assert capsys.readouterr().out.count(" cached ") == 5


def test_torchvisions_own_data_set_serves_by_import_path(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0)
    folder = tmp_path / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for part, count in (("train", 40), ("t10k", 20)):
        header = (count).to_bytes(4, "big")
        sides = (28).to_bytes(4, "big") * 2
        images, labels = numbers.integers(0, 256, (count, 28, 28), np.uint8), np.arange(count, dtype=np.uint8) % 10
        (folder / f"{part}-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + header + sides + images.tobytes())
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + header + labels.tobytes())
    config = settings("dataset.target=torchvision.datasets:FashionMNIST", f"dataset.kwargs.root={tmp_path}")
    assert catalogue.info(config).class_names[9] == "Ankle boot"
    assert catalogue.load_test(config).labels.tolist() == list(range(10)) * 2
