"""Bad input gives one line on standard error, exit status 2, and leaves nothing half-made behind.

The line names the key, the value, what is allowed and the nearest right name. Every case goes through
the command's own `main`; `shrunk` keeps a run small should one start by accident.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import pipeline.host.torchvision_operators  # noqa: F401  (before torchvision)
from pipeline.commands import composition
from pipeline.flows.eager import engines
from pipeline.host.files import PROJECT_ROOT
from tests import forked
from tests.conftest import shrunk

Refuse = Callable[..., str]

# A stage has to begin before these are seen; no tracking, because a failed run would be recorded.
IN_TRAIN = ("stages=[train]", "tracking=off")
MNIST_ARCHIVES = (
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
)

BEFORE_ANYTHING = [
    (
        ["hydra/launcher=submitit_slurm"],
        ["hydra/launcher=submitit_slurm: it starts the jobs of a sweep; allowed: with -m"],
    ),
    (["--config-dir=elsewhere"], ["--config-dir elsewhere: no such folder"]),
    (["outputs=~/here and there"], ["allowed: key=value, quoted where needed: \"outputs='~/here and there'\""]),
    (["-m", "hydra/launcher=submitit_loca", "seed=1,2"], ["hydra/launcher=submitit_loca:", "'submitit_local'?"]),
    (["hydra.job.env_set.KEY=x"], ["hydra.job.env_set.KEY", "use +hydra.job.env_set.KEY=x"]),
    # misspelt keys
    (["qat.epoch=5"], ["qat.epoch:", "no such setting", "qat.batch_size", "did you mean 'qat.epochs'"]),
    (["+qat.epoch=5"], ["qat.epoch:", "no such setting", "did you mean 'qat.epochs'"]),
    (["++qat.epoch=5"], ["qat.epoch:", "no such setting", "did you mean 'qat.epochs'"]),
    (["qta.epochs=1"], ["qta: no such setting", "allowed: model, dataset", "did you mean 'qat'"]),
    (["sed=1"], ["sed:", "no such setting", "did you mean 'seed'"]),
    (["qat.epochs.x=1"], ["qat.epochs.x=1", "allowed: a whole number"]),
    (["~train"], ["~train: settings and groups cannot be removed; allowed: train=value"]),
    (["~qat.epochs=1"], ["~qat.epochs=1: settings and groups cannot be removed; allowed: qat.epochs=value"]),
    (["--multrun"], ["--multrun", "--multirun"]),
    # unknown options of a group
    (
        ["model=resnet81"],
        ["model=resnet81", "allowed: blog_resnet18, compact_resnet, mobilenet_v2", "did you mean 'resnet18'"],
    ),
    (["backend=fbgem"], ["backend=fbgem", "allowed: executorch, fbgemm, inductor, onednn", "did you mean 'fbgemm'"]),
    (["dataset=/data/flowers"], ["dataset=/data/flowers", "dataset=image_folder dataset.root=FOLDER"]),
    (["dataset=mnsit"], ["dataset=mnsit", "allowed: cifar10, digits", "did you mean 'mnist'"]),
    (["+experiment=resnet18_mnits"], ["experiment=resnet18_mnits", "did you mean 'resnet18_mnist'"]),
    (["experiment=resnet18_mnist"], ["'experiment'", "use +experiment=resnet18_mnist"]),
    # wrong types
    (["qat.epochs=two"], ["qat.epochs", "two", "allowed: a whole number"]),
    (["qat.epochs=1.5"], ["qat.epochs", "1.5", "allowed: a whole number"]),
    (["train.batch_size=[1]"], ["train.batch_size", "[1]", "allowed: a whole number"]),
    (["dataset.horizontal_flip=maybe"], ["dataset.horizontal_flip", "maybe", "allowed: true or false"]),
    (["dataset.mean=[a]"], ["dataset.mean", "'a'", "allowed: a list, each a number"]),
    (["dataset.mean=high"], ["dataset.mean", "high", "allowed: a list, each a number"]),
    (["stages=train"], ["stages=train", "allowed: a list, each text: 'stages=[…]'"]),
    (["tracking.experiment="], ["tracking.experiment=''", "allowed: a name"]),
    (["tracking.uri=mlruns"], ["tracking.uri=mlruns", "allowed: null", "sqlite:///FILE", "http://HOST:PORT"]),
    (["qat.epochs=${nope}"], ["qat.epochs", "nope", "allowed: a whole number"]),
    # null where it is not allowed
    (["qat.epochs=null"], ["qat.epochs", "null", "allowed: a whole number"]),
    (["train.optimizer=null"], ["train.optimizer", "null", "allowed: adamw, adam, sgd"]),
    # out of range
    (["qat.epochs=0"], ["qat.epochs=0", "allowed: at least 1 and at most 10000"]),
    (["train.learning_rate=-1"], ["train.learning_rate=-1", "allowed: more than 0"]),
    (["train.learning_rate=0"], ["train.learning_rate=0", "allowed: more than 0"]),
    (["train.learning_rate=nan"], ["train.learning_rate=nan", "allowed: a finite number"]),
    (["train.learning_rate=inf"], ["train.learning_rate=inf", "allowed: a finite number"]),
    (["evaluate.threads=0"], ["evaluate.threads=0", "allowed: at least 1"]),
    (["dataset.validation_fraction=1"], ["dataset.validation_fraction=1", "more than 0 and less than 1"]),
    (["dataset.image_size=0"], ["dataset.image_size=0", "allowed: at least 8"]),
    (["seed=-1"], ["seed=-1", "allowed: at least 0"]),
    (["seed=4294967296"], ["seed=4294967296", "at most 4294967295"]),
    # no such choice
    (["train.optimizer=adamx"], ["train.optimizer=adamx", "allowed: adamw, adam, sgd", "did you mean 'adam"]),
    (["train.schedule=onecycle"], ["train.schedule=onecycle", "did you mean 'one_cycle'"]),
    (["device=gpu"], ["device=gpu", "allowed: auto, cpu, cuda"]),
    (["train.precision=fp16"], ["train.precision=fp16", "allowed: auto, fp32, bf16"]),
    # values that do not fit together
    (["dataset.mean=[0.1,0.2]"], ["dataset.mean=[0.1, 0.2]", "allowed: 1 value (grey) or 3 values (RGB)"]),
    (["dataset.std=[0.1,0.2,0.3]"], ["dataset.std=[0.1, 0.2, 0.3]", "as many values as dataset.mean has (1)"]),
    (["dataset.std=[0]"], ["dataset.std", "=0", "allowed: more than 0"]),
    (["dataset.std=[-0.3]"], ["dataset.std", "=-0.3", "allowed: more than 0"]),
    (["dataset.mean=[127.5]", "dataset.std=[127.5]"], ["dataset.mean=[127.5]", "0 … 1", "127.5 / 255 = 0.5"]),
    (
        ["dataset.mean=[123.7]", "dataset.std=[0.2]"],
        ["dataset.mean=[123.7]", "allowed: 0 to 1", "123.7 / 255 = 0.4851"],
    ),
    (["dataset.std=[58]"], ["dataset.std=[58", "allowed: 0 to 1", "58 / 255 = 0.2275"]),
    (["dataset.mean=[-0.1]"], ["dataset.mean=[-0.1]", "allowed: 0 to 1"]),
    (["dataset.max_image_megapixels=0"], ["dataset.max_image_megapixels=0", "allowed: more than 0"]),
    (["benchmark.threads=[1,0]"], ["benchmark.threads=0", "allowed: at least 1"]),
    (["benchmark.batch_sizes=[]"], ["benchmark.batch_sizes=[]", "allowed: one value or more, each at least 1"]),
    (["stages=[]"], ["stages=[]", "allowed: at least one stage"]),
    (["train.epochs=0"], ["train.epochs=0", "allowed: 1 or more", "model.weights"]),
    (["train.warmup_epochs=1"], ["train.warmup_epochs=1", "one_cycle", "allowed: 0"]),
    (["qat.warmup_epochs=1.5", "qat.epochs=1"], ["qat.warmup_epochs=1.5", "allowed: less than qat.epochs (1)"]),
    (["qat.warmup_epochs=-1"], ["qat.warmup_epochs=-1", "allowed: at least 0"]),
    (
        ["qat.init=fresh", "qat.freeze_observer_epoch=0"],
        ["qat.freeze_observer_epoch=0", "allowed: more than 0, or qat.init=ptq"],
    ),
    (["qat.init=ptp"], ["qat.init=ptp", "allowed: fresh, ptq", "did you mean 'ptq'"]),
    (["qat.distill_weight=1.5"], ["qat.distill_weight=1.5", "at most 1"]),
    # sweeps
    (["backend=fbgemm,qnnpack"], ["backend=fbgemm,qnnpack", "allowed: one value", "-m backend=fbgemm,qnnpack"]),
    (["backend=[fbgemm, qnnpack]"], ["allowed: one option", "-m backend=fbgemm,qnnpack"]),
    (["seed=0,1"], ["seed=0,1", "allowed: a whole number", "-m seed=0,1"]),
    (["-m", "qat.epochs=1,0"], ["qat.epochs=0", "allowed: at least 1"]),
    (["-m", "backend=fbgemm,qnnpak"], ["backend=qnnpak", "did you mean 'qnnpack'"]),
    # what is no override at all
    (["qat.epochs=[1"], ["qat.epochs=[1"]),
    (["stages=[train,"], ["stages=[train,", "quoted where needed", "cut it at a blank: 'stages=[train, …]'"]),
    (["epochs=5"], ["epochs: no such setting", "did you mean train.epochs or qat.epochs?"]),
    (["qat.epochs"], ["qat.epochs", "allowed"]),
]

BEFORE_THE_FIRST_STAGE = [
    (["model.name=resnet81"], ["model.name=resnet81", "allowed: blog_resnet18", "did you mean 'resnet18'"]),
    (["dataset.name=cifar"], ["dataset.name=cifar", "allowed: cifar10", "did you mean 'cifar10'"]),
    (["register.input=picture"], ["register.input=picture", "allowed: with register.name"]),
    (["model.stem=smal"], ["model.stem=smal", "allowed: imagenet, small", "did you mean 'small'"]),
    (
        ["model=blog_resnet18", "dataset.image_size=65", "model.stem=small"],
        ["model.stem=small", "allowed: null"],
    ),
    (["model=blog_resnet18"], ["dataset.image_size=32", "allowed: at least 65", "blog_resnet18"]),
    (["stages=[train,evalute]"], ["stages=[train,evalute]", "'evalute'", "did you mean 'evaluate'"]),
    (["stages=[train,train]"], ["stages=[train,train]", "allowed: each stage once"]),
    (["stages=[[train]]"], ["stages=[[train]]", "allowed"]),
    (["stages=[qat,fuse]"], ["stages=[qat,fuse]", "qat needs fused", "allowed: fuse before qat"]),
    (["stages=[train,evaluate,convert]"], ["evaluate needs int8", "allowed: convert before evaluate"]),
    (["force=qta"], ["force=qta", "allowed: true, false, train", "did you mean 'qat'"]),
    (["stages=[fuse]", "force=qat"], ["force=qat", "allowed: true, false, fuse"]),
    (["stages=[convert,evaluate]"], ["train and fuse and qat", "run stage train first", "stages=[train,fuse,qat]"]),
    (["stages=[fuse]"], ["stages=[fuse]", "run stage train first", "stages=[train]"]),
    (["backend.qconfig=fbgem"], ["backend.qconfig=fbgem", "allowed: fbgemm, qnnpack", "did you mean 'fbgemm'"]),
    (["backend.flow=eagr"], ["backend.flow=eagr", "allowed: eager", "did you mean 'eager'"]),
    (["model.weights=nowhere/resnet.pt"], ["model.weights=nowhere/resnet.pt", "no such file", "allowed"]),
    (
        ["model.weights=IMAGENET1K_V11"],
        ["model.weights=IMAGENET1K_V11", "allowed: IMAGENET1K_V1, DEFAULT", "did you mean 'IMAGENET1K_V1'"],
    ),
    (
        ["model=blog_resnet18", "dataset.image_size=65", "model.weights=IMAGENET1K_V1"],
        ["model.weights=IMAGENET1K_V1", "blog_resnet18 has no torchvision weights"],
    ),
]


@pytest.fixture(autouse=True)
def no_outside_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a test asks for, torchvision's mirrors are never asked."""
    from torchvision.datasets import CIFAR10, MNIST

    monkeypatch.delenv("DATASET_MIRROR", raising=False)
    monkeypatch.setattr(MNIST, "mirrors", [])
    monkeypatch.setattr(CIFAR10, "url", "http://127.0.0.1:9/cifar-10-python.tar.gz")


@pytest.fixture
def refuse(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], outputs: Path) -> Refuse:
    """Give `main` its arguments, see that it refuses them as it must, and return the one line it says."""
    # main sets this variable for its process; restored as it was after the test.
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    monkeypatch.delenv("HYDRA_FULL_ERROR")

    def call(*arguments: str) -> str:
        options = [argument for argument in arguments if argument.startswith("-")]
        overrides = [argument for argument in arguments if not argument.startswith("-")]
        monkeypatch.setattr(sys, "argv", ["pipeline", *options, f"outputs={outputs}", *shrunk(*overrides)])
        with pytest.raises(SystemExit) as ended:
            composition.main()
        return one_line(capsys.readouterr().err, ended.value.code)

    return call


def one_line(stderr: str, status: object) -> str:
    assert status == 2, stderr
    lines = stderr.splitlines()
    assert len(lines) == 1, stderr
    assert lines[0].startswith("error: "), stderr
    return lines[0]


def left_behind(outputs: Path) -> list[Path]:
    """Every file under `outputs` except Hydra's record of what was asked for, locks, and what is known of files."""
    hidden = {".hydra", ".locks", ".seen", "multirun.yaml"}
    return [path for path in outputs.rglob("*") if path.is_file() and not hidden.intersection(path.parts)]


def pictures(folder: Path, *classes: str, count: int = 4) -> Path:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(np.full((9, 9, 3), index, np.uint8)).save(folder / name / f"{index}.png")
    return folder


def assert_names(line: str, fragments: list[str]) -> None:
    missing = [fragment for fragment in fragments if fragment not in line]
    assert not missing, f"{missing} not in: {line}"


@pytest.mark.parametrize(
    ("arguments", "fragments"), BEFORE_ANYTHING, ids=[" ".join(given) for given, _ in BEFORE_ANYTHING]
)
def test_configuration_is_refused_in_one_line_when_it_is_wrong(
    arguments: list[str], fragments: list[str], refuse: Refuse, outputs: Path
) -> None:
    assert_names(refuse(*arguments), fragments)
    assert not outputs.exists()


@pytest.mark.parametrize(
    ("overrides", "fragments"), BEFORE_THE_FIRST_STAGE, ids=[" ".join(given) for given, _ in BEFORE_THE_FIRST_STAGE]
)
def test_run_is_refused_in_one_line_when_its_parts_do_not_fit(
    overrides: list[str], fragments: list[str], refuse: Refuse, outputs: Path
) -> None:
    assert_names(refuse(*overrides), fragments)
    assert left_behind(outputs) == []


def test_cuda_is_refused_when_torch_sees_no_gpu(refuse: Refuse, monkeypatch: pytest.MonkeyPatch, outputs: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert_names(refuse("device=cuda"), ["device=cuda", "no CUDA device", "allowed: auto, cpu"])
    assert left_behind(outputs) == []


def test_backend_is_refused_when_the_machine_lacks_its_engine(
    refuse: Refuse, monkeypatch: pytest.MonkeyPatch, outputs: Path
) -> None:
    monkeypatch.setattr(engines, "supported_engines", lambda: ["fbgemm", "onednn"])
    line = refuse("backend=qnnpack")
    assert_names(line, ["backend.engine=qnnpack", "not supported", torch.__version__, "allowed: fbgemm, onednn"])
    assert left_behind(outputs) == []


def test_sweep_is_refused_before_its_first_job_when_the_model_of_the_last_cannot_be_had(
    refuse: Refuse, outputs: Path
) -> None:
    line = refuse("-m", "model=resnet18,blog_resnet18", *IN_TRAIN)
    assert_names(line, ["dataset.image_size=32", "at least 65"])
    assert left_behind(outputs) == []


# --- weights


class Trap:
    """Runs code when it is unpickled without a guard."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.marker), "w")


@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_weights_do_not_run_code_when_they_are_a_pickle_that_would(
    container: str, refuse: Refuse, tmp_path: Path, outputs: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path, marker = tmp_path / "weights.pt", tmp_path / "code-ran"
    if container == "torch":
        torch.save({"conv1.weight": Trap(marker)}, path)
    else:
        path.write_bytes(pickle.dumps({"conv1.weight": Trap(marker)}))
    line = refuse(*IN_TRAIN, f"model.weights={path}")
    assert not marker.exists()
    assert_names(line, [f"model.weights={path}", "cannot be read (", "never unpickled"])
    # torch advises to switch the guard off, with terminal colours; the line must not pass that on.
    assert [advice for advice in ("weights_only", "can still be loaded", "\x1b") if advice in line] == []
    # Outside pytest a warning is further lines on standard error.
    assert [str(warning.message) for warning in recwarn if "pickle" in str(warning.message)] == []
    assert left_behind(outputs) == []


def resnet18_state() -> dict[str, torch.Tensor]:
    from torchvision.models import resnet18

    return resnet18(num_classes=10).state_dict()


def nothing_like_it(path: Path) -> None:
    path.write_bytes(b"these are no weights")


def empty(path: Path) -> None:
    path.touch()


def cut_in_half(path: Path) -> None:
    torch.save(resnet18_state(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def list_of_tensors(path: Path) -> None:
    torch.save([torch.zeros(1)], path)


def checkpoint_with_more(path: Path) -> None:
    torch.save({"epoch": 3, "state_dict": {"conv1.weight": torch.zeros(1)}}, path)


def numbered_tensors(path: Path) -> None:
    torch.save({1: torch.zeros(1)}, path)


def another_network(path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), path)


def another_shape(path: Path) -> None:
    torch.save({**resnet18_state(), "layer1.0.conv1.weight": torch.zeros(64, 64, 5, 5)}, path)


@pytest.mark.parametrize(
    ("write", "fragments"),
    [
        (nothing_like_it, ["cannot be read (", "never unpickled"]),
        (empty, ["cannot be read (", "never unpickled"]),
        (cut_in_half, ["cannot be read (", "never unpickled"]),
        (list_of_tensors, ["not a state_dict", "allowed: a file with one mapping of tensors"]),
        (checkpoint_with_more, ["not a state_dict of resnet18", "keys differ", "looked at 'state_dict'"]),
        (numbered_tensors, ["not a state_dict"]),
        (another_network, ["not a state_dict of resnet18", "'bias'"]),
        (another_shape, ["'layer1.0.conv1.weight'", "(64, 64, 5, 5)", "(64, 64, 3, 3)"]),
    ],
)
def test_weights_are_refused_when_they_are_not_this_networks(
    write: Callable[[Path], None], fragments: list[str], refuse: Refuse, tmp_path: Path, outputs: Path
) -> None:
    path = tmp_path / "weights.pt"
    write(path)
    assert_names(refuse(*IN_TRAIN, f"model.weights={path}"), [f"model.weights={path}", *fragments])
    assert left_behind(outputs) == []


@pytest.mark.parametrize("server", ["refuses the connection", "has another file"])
def test_torchvision_weights_are_refused_when_they_cannot_be_downloaded(
    server: str, refuse: Refuse, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outputs: Path
) -> None:
    from torchvision.models import ResNet18_Weights

    name = ResNet18_Weights.IMAGENET1K_V1.url.rsplit("/", 1)[-1]  # ends with the hash that torch.hub checks
    (tmp_path / name).write_bytes(b"another file")
    url = f"http://127.0.0.1:9/{name}" if server == "refuses the connection" else (tmp_path / name).as_uri()
    monkeypatch.setattr(ResNet18_Weights.IMAGENET1K_V1.value, "url", url)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    line = refuse(*IN_TRAIN, "model.weights=IMAGENET1K_V1")
    assert_names(line, ["model.weights=IMAGENET1K_V1", "could not be downloaded", url])
    assert left_behind(outputs) == []


# --- data


def test_mnist_names_its_files_and_digits_when_it_cannot_be_had(refuse: Refuse, tmp_path: Path, outputs: Path) -> None:
    root, mirror = tmp_path / "data", tmp_path / "mirror"
    mirror.mkdir()
    line = refuse("dataset=mnist", f"dataset.root={root}", f"dataset.mirror={mirror}")
    folder = str(root / "MNIST" / "raw")
    assert_names(line, ["dataset=mnist", *MNIST_ARCHIVES, folder, "dataset.mirror", "DATASET_MIRROR", "dataset=digits"])
    assert left_behind(outputs) == []


def test_mnist_is_refused_when_the_mirrors_archive_is_truncated(refuse: Refuse, tmp_path: Path, outputs: Path) -> None:
    root, mirror = tmp_path / "data", tmp_path / "mirror"
    mirror.mkdir()
    for archive in MNIST_ARCHIVES:
        (mirror / archive).write_bytes(b"\x1f\x8b\x08\x00")
    line = refuse("dataset=mnist", f"dataset.root={root}", f"dataset.mirror={mirror}")
    assert_names(line, [(mirror / MNIST_ARCHIVES[0]).as_uri(), "truncated or altered", "MD5", "dataset=digits"])
    assert [path for path in root.rglob("*") if path.is_file() and path.name != ".lock"] == []
    assert left_behind(outputs) == []


@pytest.mark.parametrize("mirror", ["http://127.0.0.1:9", "http://127.0.0.1:80o0", "htp://127.0.0.1"])
def test_mnist_is_refused_when_the_mirror_is_no_address_that_answers(
    mirror: str, refuse: Refuse, tmp_path: Path, outputs: Path
) -> None:
    line = refuse("dataset=mnist", f"dataset.root={tmp_path / 'data'}", f"dataset.mirror={mirror}")
    assert_names(line, ["dataset=mnist", mirror, "dataset.mirror", "dataset=digits"])
    assert left_behind(outputs) == []


def test_mnist_is_refused_when_its_folder_cannot_be_written(refuse: Refuse, tmp_path: Path, outputs: Path) -> None:
    (tmp_path / "file").touch()
    line = refuse("dataset=mnist", f"dataset.root={tmp_path / 'file' / 'data'}")
    assert_names(line, ["dataset.root", str(tmp_path / "file"), "cannot be written"])
    assert left_behind(outputs) == []


def test_image_folder_asks_for_its_root_when_none_is_set(refuse: Refuse, outputs: Path) -> None:
    line = refuse("dataset=image_folder")
    assert_names(line, ["dataset.root", "train/<class>/*"])
    # The other data sets' folder must not be taken for the user's.
    assert str(PROJECT_ROOT / "data") not in line
    assert left_behind(outputs) == []


@pytest.mark.parametrize(
    ("made", "fragments"),
    [
        ([], ["no such folder", "train/<class>/*"]),
        (["cat/"], ["1 class folder", "at least 2"]),
        (["cat/", "dog/"], ["no images", "train/<class>/*", ".png"]),
        (["cat/readme.txt", "dog/readme.txt"], ["no images", ".png"]),
        (["train/cat/", "train/dog/", "test/cat/", "test/dog/"], ["no images"]),
    ],
)
def test_image_folder_is_refused_when_it_holds_no_classes_of_images(
    made: list[str], fragments: list[str], refuse: Refuse, tmp_path: Path, outputs: Path
) -> None:
    root = tmp_path / "images"
    for name in made:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).mkdir(parents=True) if name.endswith("/") else (root / name).touch()
    line = refuse("dataset=image_folder", f"dataset.root={root}")
    assert_names(line, ["dataset.root=", str(root), *fragments])
    assert left_behind(outputs) == []


def test_image_folder_is_refused_when_a_class_is_in_test_alone(refuse: Refuse, tmp_path: Path, outputs: Path) -> None:
    pictures(tmp_path / "images" / "train", "cat", "dog")
    pictures(tmp_path / "images" / "test", "cat", "cow")
    line = refuse("dataset=image_folder", f"dataset.root={tmp_path / 'images'}")
    assert_names(line, ["dataset.root=", "'cow'", "train/"])
    assert left_behind(outputs) == []


def test_image_folder_is_refused_when_it_exceeds_the_memory_bound_and_is_not_to_be_streamed(
    refuse: Refuse, tmp_path: Path, outputs: Path
) -> None:
    root = pictures(tmp_path / "images", "cat", "dog")
    overrides = ("dataset.max_memory_gb=0.001", "dataset.loading=memory")
    line = refuse("dataset=image_folder", f"dataset.root={root}", *overrides)
    assert_names(line, ["dataset.max_memory_gb=0.001", "8 images of 224 px need 1.2 MB", "dataset.loading=auto"])
    assert left_behind(outputs) == []


def truncated_png(folder: Path) -> Path:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "x.png")
    (folder / "x.png").write_bytes((folder / "x.png").read_bytes()[:1000])
    return folder / "x.png"


def text_as_jpeg(folder: Path) -> Path:
    (folder / "x.jpg").write_text("no picture")
    return folder / "x.jpg"


def broken_pgm_header(folder: Path) -> Path:
    # Pillow raises a plain ValueError for this one.
    (folder / "x.pgm").write_bytes(b"P5\n9x 9\n255\n" + bytes(81))
    return folder / "x.pgm"


def dangling_link(folder: Path) -> Path:
    (folder / "x.png").symlink_to(folder / "moved-away.png")
    return folder / "x.png"


@pytest.mark.parametrize("spoil", [truncated_png, text_as_jpeg, broken_pgm_header, dangling_link])
def test_image_folder_names_the_file_when_one_image_cannot_be_read(
    spoil: Callable[[Path], Path], refuse: Refuse, tmp_path: Path, outputs: Path
) -> None:
    root = pictures(tmp_path / "images", "cat", "dog")
    path = spoil(root / "dog")
    line = refuse("dataset=image_folder", f"dataset.root={root}", "dataset.image_size=32", *IN_TRAIN)
    assert_names(line, ["dataset.root", str(path), "cannot be read"])
    assert left_behind(outputs) == []


@pytest.mark.parametrize(
    "override", ["dataset.max_train_samples=5", "dataset.validation_fraction=0.001", "dataset.test_fraction=0.001"]
)
def test_split_is_refused_when_a_side_cannot_hold_every_class(override: str, refuse: Refuse, outputs: Path) -> None:
    assert_names(refuse(override, *IN_TRAIN), [override, "too few", "stratified"])
    assert left_behind(outputs) == []


# --- folders


def test_outputs_are_refused_when_they_cannot_be_written(refuse: Refuse, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for folder in (Path("/proc/nowhere"), file, file / "below"):
        assert_names(refuse(f"outputs={folder}"), [f"outputs={folder}", "cannot be written"])
    assert file.read_text() == "mine"


# --- the command itself


@pytest.mark.parametrize(
    ("override", "fragments"),
    [
        ("qat.epoch=5", ["qat.epoch:", "did you mean 'qat.epochs'"]),
        ("model.weights=nowhere/resnet.pt", ["model.weights=nowhere/resnet.pt", "no such file"]),
    ],
)
def test_command_exits_with_2_and_one_line_when_it_is_refused(
    override: str, fragments: list[str], outputs: Path
) -> None:
    command = [sys.executable, "-m", "pipeline", f"outputs={outputs}", *shrunk(override)]
    ended = forked.run(command)
    assert_names(one_line(ended.stderr, ended.returncode), fragments)
    assert ended.stdout == ""
    assert left_behind(outputs) == []
