"""The data layer: where the images come from, how they are split, and what a batch of them is."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import os
import pickle
import shutil
import socketserver
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.commands.composition import compose_request
from pipeline.datasets import catalogue, folder
from pipeline.datasets.catalogue import prepared
from pipeline.datasets.loader import count_batches, evaluation_batches, training_batches
from pipeline.datasets.spec import DatasetInfo, Part
from pipeline.host import remembered
from pipeline.host.errors import UserError
from pipeline.run.request import Request
from pipeline.settings.config import DatasetConfig
from tests.array_images import all_pixels

CPU = torch.device("cpu")
DIGITS = 1797
MNIST_FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
UNREACHABLE = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def no_outside_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test asks for, torchvision's mirrors are never asked."""
    from torchvision.datasets import CIFAR10, MNIST

    monkeypatch.delenv("DATASET_MIRROR", raising=False)
    monkeypatch.setattr(MNIST, "mirrors", [])
    monkeypatch.setattr(CIFAR10, "url", f"{UNREACHABLE}/{CIFAR10.filename}")


@functools.cache
def composed(*overrides: str) -> DatasetConfig:
    return compose_request(list(overrides)).config.dataset


def whole_digits() -> DatasetConfig:
    return composed("dataset=digits")


def images(part: Part) -> set[bytes]:
    """Every image by its content: the digits, and the images made here, are all different."""
    return {image.numpy().tobytes() for image in all_pixels(part)}


def same(one: Part, other: Part) -> bool:
    return torch.equal(all_pixels(one), all_pixels(other)) and torch.equal(one.labels, other.labels)


def class_counts(*parts: Part) -> Tensor:
    return sum((torch.bincount(part.labels, minlength=10) for part in parts), torch.zeros(10))


# --- splits


def test_digits_parts_are_disjoint_and_complete_when_split() -> None:
    config = whole_digits()
    parts = [*catalogue.load_training(config), catalogue.load_test(config)]
    assert sum(len(part) for part in parts) == DIGITS
    assert len(set.union(*(images(part) for part in parts))) == DIGITS
    assert [round(len(part) / DIGITS, 2) for part in parts] == [0.72, 0.08, 0.2]


def test_digits_parts_keep_the_classes_shares_when_split() -> None:
    config = whole_digits()
    training, validation = catalogue.load_training(config)
    test = catalogue.load_test(config)
    for part, of in ((test, (training, validation, test)), (validation, (training, validation))):
        expected = class_counts(*of) * len(part) / sum(len(one) for one in of)
        assert (class_counts(part) - expected).abs().max() <= 1


def test_digits_split_is_the_same_when_the_split_seed_is() -> None:
    config = whole_digits()
    for one, other in zip(catalogue.load_training(config), catalogue.load_training(config), strict=True):
        assert same(one, other)


def test_digits_split_differs_but_not_the_test_part_when_the_split_seed_does(
    small_request: Callable[..., Request],
) -> None:
    (first, second) = (
        small_request(f"dataset.split_seed={seed}", "dataset.max_train_samples=null").config for seed in (0, 1)
    )
    _, validation = catalogue.load_training(first.dataset)
    other_training, other_validation = catalogue.load_training(second.dataset)
    assert images(validation) != images(other_validation)
    test = catalogue.load_test(first.dataset)
    assert same(test, catalogue.load_test(second.dataset))
    assert not images(test) & (images(other_training) | images(other_validation))


def test_samples_are_limited_when_maxima_are_set(small_request: Callable[..., Request]) -> None:
    config = small_request().config.dataset
    training, validation = catalogue.load_training(config)
    test = catalogue.load_test(config)
    assert (len(training), len(validation), len(test)) == (180, 20, 60)
    assert class_counts(training, validation).min() >= 19
    assert images(test) < images(catalogue.load_test(whole_digits()))
    assert not images(test) & (images(training) | images(validation))


@pytest.mark.parametrize(("maximum", "expected"), [(1430, 1430), (1438, 1438), (5000, 1438)])
def test_training_samples_are_as_many_as_allowed_when_the_maximum_is_near_all_of_them(
    maximum: int, expected: int
) -> None:
    # 1430 leaves out 8 images of 10 classes: what is left out need not hold every class.
    config = dataclasses.replace(whole_digits(), max_train_samples=maximum)
    assert sum(len(part) for part in catalogue.load_training(config)) == expected


def test_test_samples_are_all_of_them_when_the_maximum_is_beyond() -> None:
    config = dataclasses.replace(whole_digits(), max_test_samples=5000)
    assert same(catalogue.load_test(config), catalogue.load_test(whole_digits()))


# --- mirrors


@contextmanager
def serving(folder: Path, handler: type[SimpleHTTPRequestHandler] | None = None) -> Iterator[str]:
    """The URL of an HTTP server over `folder`, on this machine."""

    class Quiet(handler or SimpleHTTPRequestHandler):  # type: ignore[misc]
        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def ready(config: DatasetConfig) -> DatasetConfig:
    catalogue.find(config).prepare(config)
    return config


def assert_is_mnist(config: DatasetConfig) -> None:
    config = dataclasses.replace(config, image_size=28)  # as they are
    test = catalogue.load_test(config)
    assert test.pixels.shape == (10_000, 1, 28, 28)
    assert test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    training, validation = catalogue.load_training(config)
    assert (len(training), len(validation)) == (54_000, 6_000)
    mean = (training.pixels.double().sum() + validation.pixels.double().sum()) / (60_000 * 28 * 28 * 255)
    assert float(mean) == pytest.approx(0.1307, abs=5e-5)  # as conf/dataset/mnist.yaml says


def test_mnist_is_read_from_the_mirror_when_dataset_mirror_names_a_folder(mnist_mirror: Path, tmp_path: Path) -> None:
    assert_is_mnist(ready(composed("dataset=mnist", f"dataset.root={tmp_path}", f"dataset.mirror={mnist_mirror}")))


def test_mnist_is_read_from_the_mirror_when_the_environment_names_it(
    mnist_mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASET_MIRROR", str(mnist_mirror))
    config = ready(composed("dataset=mnist", f"dataset.root={tmp_path}"))
    assert len(catalogue.load_test(config)) == 10_000


def test_mnist_falls_through_to_the_next_mirror_when_the_first_is_damaged(
    mnist_mirror: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchvision.datasets import MNIST

    damaged = tmp_path / "damaged"
    shutil.copytree(mnist_mirror, damaged)
    for archive in damaged.iterdir():
        content = bytearray(archive.read_bytes())
        content[len(content) // 2] ^= 1
        archive.write_bytes(content)
    monkeypatch.setattr(MNIST, "mirrors", [mnist_mirror.resolve().as_uri()])
    config = ready(composed("dataset=mnist", f"dataset.root={tmp_path / 'data'}", f"dataset.mirror={damaged}"))
    assert len(catalogue.load_test(config)) == 10_000
    assert not list((tmp_path / "data").rglob("*.tmp"))


class Cifar10:
    """A small CIFAR-10 archive in the official layout, in `mirror`; `train` and `test` are its images."""

    def __init__(self, mirror: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from torchvision.datasets import CIFAR10

        random = np.random.default_rng(0)
        self.mirror = mirror
        self.train = random.integers(0, 256, (100, 3, 32, 32), dtype=np.uint8)
        self.test = random.integers(0, 256, (20, 3, 32, 32), dtype=np.uint8)
        members = {f"data_batch_{index + 1}": self._batch(self.train[20 * index :][:20]) for index in range(5)}
        members["test_batch"] = self._batch(self.test)
        members["batches.meta"] = pickle.dumps({"label_names": [str(label) for label in range(10)]})
        mirror.mkdir()
        self.archive = mirror / CIFAR10.filename
        with tarfile.open(self.archive, "w:gz") as archive:
            for name, content in members.items():
                member = tarfile.TarInfo(f"{CIFAR10.base_folder}/{name}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
        sums = {name: hashlib.md5(content).hexdigest() for name, content in members.items()}
        meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"]}
        monkeypatch.setattr(CIFAR10, "tgz_md5", hashlib.md5(self.archive.read_bytes()).hexdigest())
        monkeypatch.setattr(CIFAR10, "train_list", [[name, sums[name]] for name in members if "data" in name])
        monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
        monkeypatch.setattr(CIFAR10, "meta", meta)

    def _batch(self, pixels: np.ndarray) -> bytes:
        labels = [index % 10 for index in range(len(pixels))]
        return pickle.dumps({"data": pixels.reshape(len(pixels), -1), "labels": labels})


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cifar10:
    return Cifar10(tmp_path / "mirror", monkeypatch)


@pytest.fixture
def cifar10_config(tmp_path: Path) -> Callable[..., DatasetConfig]:
    def compose(**changes: object) -> DatasetConfig:
        return dataclasses.replace(composed("dataset=cifar10"), root=str(tmp_path / "data"), **changes)

    return compose


def test_cifar10_images_are_those_of_the_archive_when_the_mirror_is_a_folder(
    cifar10: Cifar10, cifar10_config: Callable[..., DatasetConfig]
) -> None:
    config = ready(cifar10_config(mirror=str(cifar10.mirror)))
    test = catalogue.load_test(config)
    assert np.array_equal(test.pixels.numpy(), cifar10.test)
    assert test.labels.tolist() == [*range(10), *range(10)]
    training, validation = catalogue.load_training(config)
    assert (len(training), len(validation)) == (90, 10)
    assert images(training) | images(validation) == {image.tobytes() for image in cifar10.train}
    assert catalogue.info(config).class_names[:2] == ("airplane", "automobile")


def test_archive_is_fetched_when_the_mirror_is_a_web_server(
    cifar10: Cifar10, cifar10_config: Callable[..., DatasetConfig]
) -> None:
    with serving(cifar10.mirror) as url:
        config = ready(cifar10_config(mirror=f"{url}/"))
    assert np.array_equal(catalogue.load_test(config).pixels.numpy(), cifar10.test)


def test_archive_is_fetched_when_the_environment_names_the_mirror(
    cifar10: Cifar10, cifar10_config: Callable[..., DatasetConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATASET_MIRROR", str(cifar10.mirror))
    config = ready(cifar10_config())
    assert np.array_equal(catalogue.load_test(config).pixels.numpy(), cifar10.test)


class BreaksOff(SimpleHTTPRequestHandler):
    """Promises a whole archive and closes the connection in its middle."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        self.wfile.write(bytes(1000))


class SaysNothingOfHttp(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(1000)
        self.request.sendall(b"220 mail.example.com ready\r\n")


@contextmanager
def broken_mirror(kind: str, archive: Path, folder: Path) -> Iterator[str]:
    folder.mkdir()
    if kind == "altered":
        content = bytearray(archive.read_bytes())
        content[len(content) // 2] ^= 1
        (folder / archive.name).write_bytes(content)
    if kind == "breaks off":
        with serving(folder, BreaksOff) as url:
            yield url
    elif kind == "web server without it":
        with serving(folder) as url:
            yield url
    elif kind == "no web server":
        with socketserver.TCPServer(("127.0.0.1", 0), SaysNothingOfHttp) as server:
            server.timeout = 10
            thread = threading.Thread(target=server.handle_request)
            thread.start()
            try:
                yield f"http://127.0.0.1:{server.server_address[1]}"
            finally:
                thread.join()
    elif kind == "unreachable":
        yield UNREACHABLE
    else:
        yield str(folder)


@pytest.mark.parametrize(
    "kind", ["empty", "altered", "unreachable", "web server without it", "breaks off", "no web server"]
)
def test_next_mirror_is_asked_when_the_first_is_broken(
    kind: str,
    cifar10: Cifar10,
    cifar10_config: Callable[..., DatasetConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "url", cifar10.archive.as_uri())
    with broken_mirror(kind, cifar10.archive, tmp_path / "broken") as mirror:
        config = ready(cifar10_config(mirror=mirror))
    assert np.array_equal(catalogue.load_test(config).pixels.numpy(), cifar10.test)
    assert not list((tmp_path / "data").glob("*.tmp"))


def test_archive_is_refused_and_not_unpacked_when_it_is_altered(
    cifar10: Cifar10, cifar10_config: Callable[..., DatasetConfig], tmp_path: Path
) -> None:
    with (
        broken_mirror("altered", cifar10.archive, tmp_path / "broken") as mirror,
        pytest.raises(UserError, match="truncated or altered"),
    ):
        ready(cifar10_config(mirror=mirror))
    assert [path.name for path in (tmp_path / "data").iterdir()] == [".lock"]


def test_archive_is_fetched_again_when_the_one_in_the_root_is_truncated(
    cifar10: Cifar10, cifar10_config: Callable[..., DatasetConfig], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / cifar10.archive.name).write_bytes(cifar10.archive.read_bytes()[:500])
    config = ready(cifar10_config(mirror=str(cifar10.mirror)))
    assert np.array_equal(catalogue.load_test(config).pixels.numpy(), cifar10.test)


def test_nothing_is_fetched_when_the_data_are_unpacked(
    cifar10: Cifar10, cifar10_config: Callable[..., DatasetConfig], tmp_path: Path
) -> None:
    ready(cifar10_config(mirror=str(cifar10.mirror)))
    (tmp_path / "data" / cifar10.archive.name).unlink()
    cifar10.archive.unlink()
    config = ready(cifar10_config())
    assert np.array_equal(catalogue.load_test(config).pixels.numpy(), cifar10.test)


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_cifar10_is_unpacked_again_when_a_file_is_missing_or_altered(
    name: str, cifar10: Cifar10, cifar10_config: Callable[..., DatasetConfig], tmp_path: Path
) -> None:
    config = ready(cifar10_config(mirror=str(cifar10.mirror)))
    unpacked = tmp_path / "data" / "cifar-10-batches-py" / name
    for spoil in (unpacked.unlink, lambda: unpacked.write_bytes(b"altered")):
        spoil()
        ready(config)
        assert np.array_equal(catalogue.load_test(config).pixels.numpy(), cifar10.test)


# --- channels


def test_grey_images_become_rgb_when_the_mean_has_three_values() -> None:
    grey = catalogue.load_test(whole_digits())
    config = composed("dataset=digits", "dataset.mean=[0.5,0.5,0.5]", "dataset.std=[0.5,0.5,0.5]")
    part = catalogue.load_test(config)
    assert catalogue.info(config).channels == 3
    assert part.pixels.shape == (len(grey), 3, 32, 32)
    assert torch.equal(all_pixels(part), all_pixels(grey).repeat(1, 3, 1, 1))


def test_rgb_images_become_grey_when_the_mean_has_one_value(
    cifar10: Cifar10, cifar10_config: Callable[..., DatasetConfig]
) -> None:
    config = ready(cifar10_config(mirror=str(cifar10.mirror), mean=[0.5], std=[0.5]))
    part = catalogue.load_test(config)
    assert catalogue.info(config).channels == 1
    expected = np.stack([np.asarray(Image.fromarray(image.transpose(1, 2, 0)).convert("L")) for image in cifar10.test])
    assert np.array_equal(all_pixels(part)[:, 0].numpy(), expected)


# --- image_folder


def image_folder(root: Path, **changes: object) -> DatasetConfig:
    config = composed("dataset=image_folder", "dataset.root=anywhere", "dataset.image_size=16")
    return dataclasses.replace(config, root=str(root), **changes)


def write_greys(folder: Path, greys: range) -> None:
    """One flat PNG for each grey, so that an image is known by its value."""
    folder.mkdir(parents=True)
    for grey in greys:
        Image.new("L", (20, 20), grey).save(folder / f"{grey:03}.png")


def colours(part: Part) -> list[list[int]]:
    return part.pixels[:, :, 8, 8].tolist()


def test_image_folder_reads_every_kind_of_image_when_train_and_test_are_given(tmp_path: Path) -> None:
    for name, greys in {"train/cat": range(0, 20), "train/dog": range(100, 120)}.items():
        write_greys(tmp_path / name, greys)
    cat, dog = tmp_path / "test" / "cat", tmp_path / "test" / "dog"
    cat.mkdir(parents=True)
    dog.mkdir()
    Image.new("RGB", (30, 20), (10, 200, 30)).save(cat / "a.png")
    Image.new("L", (17, 90), 77).save(cat / "b.PNG")
    Image.new("RGBA", (8, 8), (250, 20, 130, 255)).save(cat / "c.png")
    Image.new("RGB", (40, 40), (0, 128, 255)).quantize().save(dog / "a.png")
    Image.new("RGB", (64, 48), (40, 90, 220)).save(dog / "b.jpg", quality=95)
    Image.new("L", (5, 5), 200).save(dog / "c.jpeg", quality=95)
    (dog / "notes.txt").write_text("no image")

    config = image_folder(tmp_path)
    test = catalogue.load_test(config)
    assert catalogue.info(config) == DatasetInfo(3, ("cat", "dog"), image_size=16)
    assert test.pixels.shape == (6, 3, 16, 16)
    assert test.pixels.dtype == torch.uint8
    assert test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = [[10, 200, 30], [77] * 3, [250, 20, 130], [0, 128, 255], [40, 90, 220], [200] * 3]
    assert (torch.tensor(colours(test)) - torch.tensor(expected)).abs().max() <= 3
    training, validation = catalogue.load_training(config)
    assert sorted(grey for grey, _, _ in colours(training) + colours(validation)) == [*range(20), *range(100, 120)]
    assert (training.pixels[training.labels == 1] >= 100).all()


def test_image_folder_reads_grey_when_the_mean_has_one_value(tmp_path: Path) -> None:
    for name in ("train", "test"):
        for index, colour in enumerate([(255, 0, 0), (0, 0, 255)]):
            folder = tmp_path / name / f"class{index}"
            folder.mkdir(parents=True)
            Image.new("RGB", (20, 20), colour).save(folder / "flat.png")
    test = catalogue.load_test(image_folder(tmp_path, mean=[0.5], std=[0.5]))
    assert test.pixels.shape == (2, 1, 16, 16)
    assert colours(test) == [[76], [29]]  # Rec. 601 luma


def test_image_folder_keeps_the_middle_when_an_image_is_not_square(tmp_path: Path) -> None:
    wide = np.zeros((16, 48, 3), np.uint8)
    for third in range(3):
        wide[:, 16 * third : 16 * (third + 1), third] = 255
    for name in ("train/a", "train/b", "test/a", "test/b"):
        (tmp_path / name).mkdir(parents=True)
        Image.fromarray(wide).save(tmp_path / name / "wide.png")
    test = catalogue.load_test(image_folder(tmp_path))
    assert torch.equal(test.pixels[0], torch.tensor([0, 255, 0], dtype=torch.uint8).view(3, 1, 1).expand(3, 16, 16))


def test_image_folder_keeps_the_greys_apart_when_they_have_16_bits(tmp_path: Path) -> None:
    greys = {"dark": 0x1000, "bright": 0xE000}
    for name in ("train", "test"):
        for kind, grey in greys.items():
            (tmp_path / name / kind).mkdir(parents=True)
            Image.fromarray(np.full((20, 20), grey, np.uint16)).save(tmp_path / name / kind / "flat.png")
    for mean in ([0.5], [0.5] * 3):
        test = catalogue.load_test(image_folder(tmp_path, mean=mean, std=mean))
        values = [colour[0] for colour in colours(test)]  # the classes in order: bright, dark
        assert values == [pytest.approx(0xE0, abs=1), pytest.approx(0x10, abs=1)]


def test_image_folder_is_split_when_it_is_one_folder(tmp_path: Path) -> None:
    write_greys(tmp_path / "cat", range(0, 40))
    write_greys(tmp_path / "dog", range(100, 120))
    (tmp_path / ".cache").mkdir()
    config = image_folder(tmp_path, test_fraction=0.25)
    training, validation = catalogue.load_training(config)
    test = catalogue.load_test(config)
    assert catalogue.info(config).class_names == ("cat", "dog")
    assert [torch.bincount(part.labels).tolist() for part in (test, validation)] == [[10, 5], [3, 1]]
    every = [grey for part in (training, validation, test) for grey, _, _ in colours(part)]
    assert sorted(every) == [*range(40), *range(100, 120)]
    other_training, other_validation = catalogue.load_training(dataclasses.replace(config, split_seed=1))
    assert images(other_validation) != images(validation)
    assert images(other_training) | images(other_validation) == images(training) | images(validation)


@pytest.fixture
def two_parts(tmp_path: Path) -> Path:
    for part in ("train", "test"):
        for name, greys in {"cat": range(5), "dog": range(5, 10)}.items():
            write_greys(tmp_path / "images" / part / name, greys)
    return tmp_path / "images"


def fingerprints(root: Path) -> tuple[str, str]:
    catalogue.look_again()  # as every run does
    config, seen = image_folder(root), root.parent / "seen"
    return catalogue.fingerprint(config, "train", seen), catalogue.fingerprint(config, "test", seen)


def rewrite(root: Path) -> None:
    Image.new("RGB", (50, 50), (1, 2, 3)).save(root / "train" / "cat" / "000.png")


def correct_labels(root: Path) -> None:
    """Two pictures of equal size change places, and keep size and times, as a copy with `cp -p` does."""
    cat, dog = (root / "train" / name for name in ("cat/001.png", "dog/005.png"))
    contents, status = (cat.read_bytes(), dog.read_bytes()), cat.stat()
    assert len(contents[0]) == len(contents[1])
    for path, content in zip((cat, dog), reversed(contents), strict=True):
        path.write_bytes(content)
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def add(root: Path) -> None:
    shutil.copy2(root / "train" / "cat" / "000.png", root / "train" / "cat" / "new.png")


def remove(root: Path) -> None:
    (root / "train" / "cat" / "000.png").unlink()


def relabel(root: Path) -> None:
    (root / "train" / "cat" / "000.png").rename(root / "train" / "dog" / "000.png")


@pytest.mark.parametrize("change", [rewrite, correct_labels, add, remove, relabel])
def test_fingerprint_changes_when_a_file_of_the_part_does(
    change: Callable[[Path], None], two_parts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remembered, "_COARSEST_TICK_NS", 0)  # files of this moment are remembered too
    for path in two_parts.rglob("*.png"):
        os.utime(path, ns=(10**18, 10**18))
    train, test = fingerprints(two_parts)
    change(two_parts)
    changed_train, changed_test = fingerprints(two_parts)
    assert changed_train != train
    assert changed_test == test


def test_fingerprint_is_another_when_a_part_is_held_out_of_the_same_files(two_parts: Path) -> None:
    # What was trained on all of them must not be tested on what another run holds out.
    whole, _ = fingerprints(two_parts)
    assert whole not in fingerprints(two_parts / "train")


def test_fingerprint_stays_when_the_folder_is_moved(two_parts: Path, tmp_path: Path) -> None:
    before = fingerprints(two_parts)
    shutil.copytree(two_parts, tmp_path / "elsewhere")  # keeps the times of change
    assert fingerprints(tmp_path / "elsewhere") == before
    two_parts.rename(tmp_path / "moved")
    for path in (tmp_path / "moved").rglob("*.png"):
        path.touch()
    assert fingerprints(tmp_path / "moved") == before


def test_files_are_read_once_when_they_do_not_change(
    two_parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    hash_one = folder._hash_one
    monkeypatch.setattr(folder, "_hash_one", lambda file: [read.append(file.path), hash_one(file)][1])
    fingerprints(two_parts)
    assert len(read) == 20
    fingerprints(two_parts)
    assert len(read) == 40  # so young that another change could bear the same time
    monkeypatch.setattr(remembered, "_COARSEST_TICK_NS", 0)
    before = fingerprints(two_parts)
    read.clear()
    assert fingerprints(two_parts) == before
    assert read == []
    (two_parts / "train" / "cat" / "000.png").touch()
    assert fingerprints(two_parts) == before
    assert [Path(path).name for path in read] == ["000.png"]
    (tmp_path / "images" / ".." / "seen").resolve().rename(tmp_path / "lost")
    assert fingerprints(two_parts) == before


# --- loader

MEAN, STD = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]


def loader_config(**changes: object) -> DatasetConfig:
    plain = {"image_size": 12, "mean": MEAN, "std": STD, "crop_padding": 0, "horizontal_flip": False}
    return dataclasses.replace(whole_digits(), **(plain | changes))


def noise(count: int, height: int = 12, width: int = 12) -> Part:
    """Images of noise; an image's label is its index, so that it is known again in a batch."""
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, height, width), dtype=np.uint8)
    return Part(torch.from_numpy(pixels), torch.arange(count))


def normalized(image: np.ndarray) -> np.ndarray:
    """(3, H, W) in 0…255 as a network gets it, channel by channel."""
    return np.stack([(image[channel] / 255 - MEAN[channel]) / STD[channel] for channel in range(3)])


def resized(image: Tensor, size: int) -> np.ndarray:
    """The middle, by Pillow's bilinear resizing, which averages when it shrinks."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    left, top = ((side - min(picture.size)) / 2 for side in picture.size)
    middle = (left, top, left + min(picture.size), top + min(picture.size))
    return np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, middle)).transpose(2, 0, 1)


def one_epoch(part: Part, config: DatasetConfig, seed: int, batch_size: int = 16) -> tuple[Tensor, Tensor]:
    batches = list(training_batches(part, config, batch_size, CPU, torch.Generator().manual_seed(seed)))
    return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])


def test_evaluation_batches_cover_every_image_once_and_in_order_when_the_last_is_incomplete() -> None:
    part = noise(10)
    config = loader_config(crop_padding=2, horizontal_flip=True)  # for training alone
    batches = list(evaluation_batches(part, config, 4, CPU))
    assert [len(images) for images, _ in batches] == [4, 4, 2]
    assert len(batches) == count_batches(part, 4, training=False)
    assert torch.cat([labels for _, labels in batches]).tolist() == list(range(10))
    got = torch.cat([images for images, _ in batches])
    assert got.dtype == torch.float32
    expected = np.stack([normalized(image) for image in part.pixels.numpy()])
    assert np.allclose(got.numpy(), expected, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "size"), [(8, 8, 12), (30, 30, 12), (20, 10, 12)])
def test_batches_have_the_size_asked_for_when_the_images_have_another(height: int, width: int, size: int) -> None:
    config = loader_config(image_size=size)
    part = noise(4, height, width)
    stages_get = prepared(part, config)
    ((evaluated, _),) = evaluation_batches(stages_get, config, 4, CPU)
    trained, labels = one_epoch(stages_get, config, seed=0, batch_size=4)
    assert evaluated.shape == trained.shape == (4, 3, size, size)
    assert torch.equal(trained, evaluated[labels])
    expected = np.stack([normalized(resized(image, size)) for image in part.pixels])
    assert np.allclose(evaluated.numpy(), expected, atol=1e-5)


def test_training_batches_hold_an_image_at_most_once_and_leave_out_the_rest_when_it_fills_no_batch() -> None:
    part = noise(70)
    sizes = [len(labels) for _, labels in training_batches(part, loader_config(), 16, CPU, torch.Generator())]
    assert sizes == [16] * 4
    assert len(sizes) == count_batches(part, 16, training=True)
    images, labels = one_epoch(part, loader_config(), seed=0)
    assert len(set(labels.tolist())) == 64
    assert labels.tolist() != sorted(labels.tolist())
    for image, label in zip(images, labels, strict=True):
        assert np.allclose(image.numpy(), normalized(part.pixels[label].numpy()), atol=1e-5)


def test_training_images_lie_channel_by_channel_when_they_are_grey() -> None:
    """torch takes other strides of one channel for channels-last, and crashes in some convolutions of such images."""
    config = loader_config(mean=MEAN[:1], std=STD[:1], crop_padding=2, horizontal_flip=True)
    grey = Part(noise(16).pixels[:, :1].contiguous(), torch.arange(16))
    images, _ = next(training_batches(grey, config, 16, CPU, torch.Generator().manual_seed(0)))
    assert images.stride() == torch.empty(images.shape).stride()


def test_training_batch_holds_all_images_when_they_are_fewer_than_a_batch() -> None:
    _, labels = one_epoch(noise(5), loader_config(), seed=0)
    assert sorted(labels.tolist()) == list(range(5))


def test_training_batches_are_the_same_when_the_generator_is_and_differ_when_it_does() -> None:
    part, config = noise(64), loader_config(crop_padding=2, horizontal_flip=True)
    images, labels = one_epoch(part, config, seed=5)
    torch.manual_seed(1)  # the global generator has no say
    again, same_labels = one_epoch(part, config, seed=5)
    _, other_labels = one_epoch(part, config, seed=6)
    assert torch.equal(images, again)
    assert torch.equal(labels, same_labels)
    assert not torch.equal(labels, other_labels)


def test_augmentation_differs_when_the_generator_has_gone_on() -> None:
    part, config = noise(64), loader_config(crop_padding=2, horizontal_flip=True)
    generator = torch.Generator().manual_seed(0)
    first, second = (next(training_batches(part, config, 64, CPU, generator)) for _ in range(2))
    by_label = [images[labels.argsort()] for images, labels in (first, second)]
    changed = [not torch.equal(one, other) for one, other in zip(*by_label, strict=True)]
    assert sum(changed) > 48  # 1 in 50 stays by chance


def ways_to_augment(image: np.ndarray, padding: int, flips: bool) -> dict[tuple[int, int, bool], np.ndarray]:
    """Every image that `image` (3, S, S) may become: each window of it, padded with black, and its mirror image."""
    size = image.shape[-1]
    padded = np.pad(image, ((0, 0), (padding, padding), (padding, padding)))
    ways = {}
    for row in range(2 * padding + 1):
        for column in range(2 * padding + 1):
            window = padded[:, row : row + size, column : column + size]
            ways[row, column, False] = normalized(window)
            if flips:
                ways[row, column, True] = normalized(window[:, :, ::-1])
    return ways


@pytest.mark.parametrize(("padding", "flips"), [(1, False), (0, True), (2, True)])
def test_training_images_are_shifted_and_flipped_one_by_one_when_asked_for(padding: int, flips: bool) -> None:
    part = noise(400)
    images, labels = one_epoch(part, loader_config(crop_padding=padding, horizontal_flip=flips), seed=0, batch_size=200)
    taken = []
    for image, label in zip(images.numpy(), labels, strict=True):
        ways = ways_to_augment(part.pixels[label].numpy(), padding, flips)
        found = [way for way, expected in ways.items() if np.allclose(image, expected, atol=1e-5)]
        assert len(found) == 1, f"image {label} is none of its {len(ways)} ways"
        taken += found
    assert len(set(taken)) == len(ways)  # every way is taken by some image
    if flips:
        assert 0.4 < np.mean([flipped for _, _, flipped in taken]) < 0.6
