"""`python -m pipeline.gate`: its three ends and what it refuses, of runs, registered models and files."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from pipeline import gate
from pipeline.datasets.preprocessing import PREPROCESSING_FILE, Preprocessing
from pipeline.host.files import PROJECT_ROOT
from pipeline.measure import latency
from pipeline.measure.latency import Taken
from pipeline.measure.statistics import paired_interval
from pipeline.reports.tracked_run import METRIC_TAG
from pipeline.settings.config import RegisterConfig, TrackingConfig
from pipeline.tracking import RunRecord, open_run
from pipeline.tracking.models import ModelRecord, log_model, register
from tests.onnx_models import write_brightness_model
from tests.test_champion import PRESENT

pytest.importorskip("onnxruntime")

IMAGES = 140
# What runs have recorded of their test part: 10 images that one of the two models alone has right, of so many.
ALONE, OF = 10, 10_000
MACHINE = {
    "cpu": "some",
    "cpu_instructions": "AVX2",
    "torch_version": "2",
    "onnx_version": "1",
    "onnxruntime_version": "1",
}
Command = Callable[..., tuple[object, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process: exit status, standard output, standard error."""

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["gate", *map(str, arguments)])
        status: object = 0
        try:
            gate.main()
        except SystemExit as exit:
            status = exit.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def refusal(command: Command) -> Callable[..., str]:
    """The one line of an error."""

    def run(*arguments: object) -> str:
        status, _, err = command(*arguments)
        assert status == 2
        (line,) = err.splitlines()
        return line

    return run


# --- runs and registered models


def numbers(low: float, high: float, **others: float) -> dict[str, float]:
    found = {"accuracy_drop_pct": (low + high) / 2, "accuracy_drop_ci_low_pct": low, "accuracy_drop_ci_high_pct": high}
    found |= {"test_images": OF, "int8_vs_fp32/won_images": ALONE / 2, "int8_vs_fp32/lost_images": ALONE / 2}
    found |= {"int8/named_classes": 10, "int8/size_mb": 2, "int8/latency_ms": 5}
    return found | {name.replace("__", "/"): value for name, value in others.items()}


def benchmarked(median: float) -> dict[str, float]:
    name = "onnxruntime__int8__latency"
    return {f"{name}_ms": median, f"{name}_ci_low_ms": 0.98 * median, f"{name}_ci_high_ms": 1.02 * median}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with runs by what they are, the model of one of which is registered."""
    outputs = tmp_path_factory.mktemp("gate") / "outputs"
    file = write_brightness_model(tmp_path_factory.mktemp("model")) / "model.onnx"
    runs: dict[str, tuple[dict[str, float], dict[str, str]]] = {
        "good": (numbers(-0.1, 0.3), {}),
        "bad": (numbers(0.6, 0.9), {}),
        "wide": (numbers(-0.2, 0.8), {}),
        "near": (numbers(0.49, 0.51), {}),
        "constant": (numbers(-0.1, 0.3, int8__named_classes=1), {}),
        "error": (
            {"absolute_error_drop": 0.2, "absolute_error_drop_ci_low": 0.1, "absolute_error_drop_ci_high": 0.3}
            | {"test_images": OF},
            {METRIC_TAG: json.dumps({"name": "absolute_error", "higher_is_better": False})},
        ),
        "bare": ({"int8/size_mb": 2.0}, {}),
        "took2ms": (numbers(0, 0, **benchmarked(2)), MACHINE),
        "took3ms": (numbers(0, 0, **benchmarked(3)), MACHINE),
        "elsewhere": (numbers(0, 0, **benchmarked(2)), MACHINE | {"cpu": "other"}),
    }
    for name, (metrics, tags) in runs.items():
        record = RunRecord(name, {}, tags, "", ("digits", "0", "nowhere"))
        with open_run(TrackingConfig(), outputs, record) as tracker:
            for metric, value in metrics.items():
                tracker.metric(metric, value)
            if name == "good":
                model = ModelRecord("onnxruntime", file, 1, "fbgemm")
                with mlflow.start_run(run_id=tracker.run_id):
                    assert register(RegisterConfig("shipped"), outputs, model, log_model(model), PRESENT).verdict.wins
    return outputs


@pytest.mark.parametrize(
    ("run", "status", "verdict"), [("good", 0, "passes"), ("bad", 1, "fails"), ("wide", 3, "cannot be told")]
)
def test_drop_of_a_run_is_judged_by_its_recorded_interval(
    command: Command, outputs: Path, run: str, status: int, verdict: str
) -> None:
    found, out, err = command(run, "--max-drop-pct", 0.5, "--outputs", outputs)
    first, last = out.splitlines()
    assert (found, err) == (status, "")
    assert first.startswith(f"max-drop-pct: {verdict}: ")
    assert "limit 0.5" in first
    assert last == f"{run}: {verdict}"


def test_images_that_would_do_are_told_when_those_of_the_run_cannot_tell(command: Command, outputs: Path) -> None:
    limit = 0.05
    _, out, _ = command("wide", "--max-drop-pct", limit, "--outputs", outputs)
    (told,) = re.findall(r"about ([\d,]+) such images", out)
    needed = int(told.replace(",", ""))
    shown = [paired_interval(each := ALONE / OF * images / 2, each, images)[1] for images in (needed - 1, needed)]
    assert shown[0] > limit >= shown[1]
    _, out, _ = command("near", "--max-drop-pct", 0.5, "--outputs", outputs)
    assert "too near the limit" in out
    _, out, _ = command("wide", "--max-drop-pct", 0, "--outputs", outputs)
    assert "no number of images" in out


def test_drop_is_that_of_the_metric_by_which_a_run_is_judged(command: Command, outputs: Path) -> None:
    status, out, _ = command("error", "--max-drop-pct", 0.3, "--outputs", outputs)
    assert status == 0
    assert "the drop from fp32 to int8 is 0.20 absolute error, 95 % interval [0.10, 0.30], limit 0.3" in out
    status, out, _ = command("error", "--max-drop-pct", 0.2, "--outputs", outputs)
    assert status == 3
    assert "more test images narrow the interval" in out


def test_run_fails_whatever_is_asked_when_it_names_one_class(command: Command, outputs: Path) -> None:
    for asked in (["--max-drop-pct", 0.5], ["--max-size-mb", 10]):
        status, out, _ = command("constant", *asked, "--outputs", outputs)
        assert status == 1
        assert "constant: it names one class for every test image" in out


def test_run_is_refused_when_it_was_not_evaluated(refusal: Callable[..., str], outputs: Path) -> None:
    line = refusal("bare", "--max-drop-pct", 0.5, "--outputs", outputs)
    assert line.startswith(
        "error: MODEL bare: its run has no accuracy_drop_pct; allowed: a run with the stage evaluate"
    )


def test_latency_of_runs_is_compared_when_it_was_measured_alike_and_else_cannot_be_told(
    command: Command, outputs: Path
) -> None:
    def ratio(this: str, that: str, limit: float) -> tuple[object, str]:
        status, out, _ = command(this, "--max-latency-ratio", limit, "--against", that, "--outputs", outputs)
        return status, out

    assert ratio("took2ms", "took3ms", 0.7)[0] == 0
    assert ratio("took3ms", "took2ms", 1.4)[0] == 1
    status, out = ratio("took3ms", "took2ms", 1.5)
    assert status == 3
    assert "1.500 times as long" in out
    status, out = ratio("elsewhere", "took3ms", 10)
    assert status == 3
    assert "measured otherwise: cpu other and some" in out
    status, out = ratio("bad", "took3ms", 10)
    assert status == 3
    assert "no runtime has a recorded interval in both" in out
    status, out = ratio("took2ms", str(outputs / ".." / "nowhere"), 10)
    assert status == 2


def test_latency_and_size_of_a_run_are_those_that_it_has_recorded(command: Command, outputs: Path) -> None:
    status, out, _ = command("took2ms", "--max-latency-ms", 2.1, "--max-size-mb", 2, "--outputs", outputs)
    assert status == 0
    assert "2.000 ms, 95 % interval [1.960, 2.040]" in out
    assert command("took2ms", "--max-latency-ms", 1.9, "--outputs", outputs)[0] == 1
    assert command("bad", "--max-latency-ms", 10, "--outputs", outputs)[0] == 3
    assert command("bad", "--max-size-mb", 1.9, "--outputs", outputs)[0] == 1


def test_registered_model_has_the_numbers_of_its_run_and_a_file_of_its_own(
    command: Command, outputs: Path, tmp_path: Path
) -> None:
    other = write_brightness_model(tmp_path / "other")
    status, out, err = command(
        *("models:/shipped@champion", "--max-drop-pct", 0.5, "--max-latency-ratio", 50, "--max-size-mb", 0.01),
        *("--max-seconds", 0.5, "--against", other, "--outputs", outputs),
    )
    assert (status, err) == (0, "")
    drop, ratio, size, _ = out.splitlines()
    assert "the drop from fp32 to int8 is 0.10 points, 95 % interval [-0.10, 0.30]" in drop
    assert "measured here turn by turn" in ratio
    assert size.startswith("max-size-mb: passes: 0.00 MB")
    # A run's own is the one that it has logged.
    logged = command(
        "good", "--max-latency-ratio", 50, "--against", "models:/shipped/1", "--max-seconds", 0.5, "--outputs", outputs
    )
    assert logged[0] == 0
    assert "measured here turn by turn" in logged[1]


def test_gate_refuses_in_one_line_when_no_model_is_meant_or_several_are(
    refusal: Callable[..., str], outputs: Path
) -> None:
    def line(model: str) -> str:
        return refusal(model, "--max-drop-pct", 0.5, "--outputs", outputs)

    assert "error: MODEL models:/shiped@champion: no model 'shiped' is registered" in line("models:/shiped@champion")
    assert "did you mean '@champion'?" in line("models:/shipped@champio")
    assert "no run has this id or name" in line("goood")
    assert "error: MODEL exported/model.onnx: no such file or folder" in line("exported/model.onnx")
    for _ in range(2):
        with open_run(TrackingConfig(), outputs, RunRecord("twice", {}, {}, "", ("digits", "0", "nowhere"))):
            pass
    assert "MODEL twice: 2 runs are meant by it; allowed: one id" in line("twice")


# --- files


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_brightness_model(tmp_path / "model")


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return write_brightness_model(tmp_path / "other")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name, bright in (("left", slice(0, 10)), ("right", slice(10, 20))):
        (folder / name).mkdir()
        pixels = np.zeros((20, 20), np.uint8)
        pixels[:, bright] = 255
        for index in range(IMAGES // 2):
            Image.fromarray(pixels).save(folder / name / f"{index}.png")
    return folder


def answer(folder: Path, *names: str) -> None:
    """Give the outputs of a model other names, and so other answers."""
    Preprocessing(8, 1, (0.5,), (0.25,), names).write(folder)


def test_drop_of_a_file_is_measured_on_the_same_images(
    command: Command, model: Path, other: Path, images: Path
) -> None:
    def judged(limit: float) -> tuple[object, str]:
        status, out, _ = command(model, "--against", other / "model.onnx", "--images", images, "--max-drop-pct", limit)
        return status, out

    low, high = paired_interval(0, 0, IMAGES)
    status, out = judged(3)
    assert status == 0
    assert (
        f"the drop is 0.00 points of accuracy (100.00 %, against 100.00 %), 95 % interval [{low:.2f}, {high:.2f}]"
        in out
    )
    assert judged(0.5)[0] == 3
    answer(model, "right", "left")
    status, out = judged(50)
    assert status == 1
    assert "the drop is 100.00 points of accuracy (0.00 %, against 100.00 %)" in out


def test_file_that_takes_pictures_is_held_against_one_that_takes_floats(
    command: Command, other: Path, images: Path, tmp_path: Path
) -> None:
    pictures = write_brightness_model(tmp_path / "pictures", takes_pictures=True)
    limits = ("--max-drop-pct", 3, "--max-latency-ratio", 1000, "--max-seconds", 1)
    status, out, _ = command(pictures, "--against", other, "--images", images, *limits)
    assert status == 0
    assert "(100.00 %, against 100.00 %)" in out


def test_answers_are_compared_by_name_when_the_classes_are_in_another_order(
    command: Command, model: Path, other: Path, images: Path
) -> None:
    answer(other, "right", "left")
    _, out, _ = command(model, "--against", other, "--images", images, "--max-drop-pct", 0)
    assert "(100.00 %, against 0.00 %)" in out
    _, out, _ = command(other, "--against", model, "--images", images, "--max-drop-pct", 0)
    assert "(0.00 %, against 100.00 %)" in out


def test_file_fails_when_it_names_one_class_for_every_image_though_nothing_is_lost(
    command: Command, model: Path, other: Path, images: Path
) -> None:
    import onnx
    from onnx import numpy_helper

    for folder in (model, other):
        made = onnx.load(folder / "model.onnx")
        (weight,) = made.graph.initializer
        weight.CopyFrom(numpy_helper.from_array(0 * numpy_helper.to_array(weight), "weight"))
        onnx.save(made, folder / "model.onnx")
    status, out, _ = command(model, "--against", other, "--images", images, "--max-drop-pct", 50)
    assert status == 1
    assert f"classes: fails: it is constant: it names 'left' for each of {IMAGES} images" in out
    assert "max-drop-pct: passes" in out


def test_gate_refuses_in_one_line_when_images_and_models_do_not_match(
    refusal: Callable[..., str], model: Path, other: Path, images: Path, tmp_path: Path
) -> None:
    def line(folder: Path = images) -> str:
        return refusal(model, "--against", other, "--images", folder, "--max-drop-pct", 1)

    assert "no such folder" in line(tmp_path / "nowhere")
    assert "images of 0 classes" in line(tmp_path / "model")
    (tmp_path / "split").mkdir()
    (tmp_path / "split" / "test").symlink_to(images)
    assert f"did you mean --images {tmp_path / 'split' / 'test'}?" in line(tmp_path / "split")
    answer(model, "left", "rigth")
    assert "its classes are left, right; allowed with" in line()
    answer(other, "left", "rigth")
    assert "'right' is no class of the model; allowed: left, rigth; did you mean 'rigth'?" in line()
    answer(model)
    assert "names no classes" in line()


def test_gate_refuses_in_one_line_when_a_file_is_damaged_or_missing(
    refusal: Callable[..., str], model: Path, other: Path, tmp_path: Path
) -> None:
    def line() -> str:
        return refusal(other, "--against", model, "--max-latency-ratio", 2, "--max-seconds", 0.1)

    assert "no run of it is in a store" in refusal(model, "--max-drop-pct", 1)
    Preprocessing(16, 1, (0.5,), (0.25,), ("left", "right")).write(model)
    assert "does not take what preprocessing.json makes" in line()
    (model / "model.onnx").write_bytes(b"damaged")
    assert "onnxruntime cannot load it" in line()
    (model / "model.onnx").unlink()
    assert f"error: --against {model}: no exported model" in line()
    (model / PREPROCESSING_FILE).unlink()
    model.rmdir()
    assert f"error: --against {model}: no such file or folder" in line()


@pytest.mark.parametrize(
    ("passes", "status", "verdict"),
    [
        ([[1.0], [1.01]], 0, "passes"),
        ([[2.0], [2.01]], 1, "fails"),
        ([[0.5], [2.0]], 3, "cannot be told"),
    ],
)
def test_latency_of_files_is_judged_by_the_interval_of_what_was_measured_turn_by_turn(
    command: Command,
    model: Path,
    other: Path,
    monkeypatch: pytest.MonkeyPatch,
    passes: list[list[float]],
    status: int,
    verdict: str,
) -> None:
    def measure(loaders: dict[str, latency.Loader], settings: object) -> Taken:
        for load in loaders.values():
            load()()
        return Taken({"this": passes, "that": [[1.0], [1.0]]}, 0, stable=True, timed_out=False)

    monkeypatch.setattr(latency, "take_turns_afresh", measure)
    asked = ("--max-latency-ratio", 1.1, "--max-latency-ms", 1.1, "--against", other)
    found, out, _ = command(model, *asked)
    assert found == status
    assert [line.split(": ")[1] for line in out.splitlines()] == [verdict] * 3


def test_junit_has_a_case_for_each_criterion_and_says_why(
    command: Command, model: Path, other: Path, images: Path, tmp_path: Path
) -> None:
    report = tmp_path / "reports" / "gate.xml"
    asked = ("--max-drop-pct", 0.5, "--max-size-mb", 0.0001, "--max-latency-ratio", 50, "--max-seconds", 0.5)
    status, _, _ = command(model, "--against", other, "--images", images, *asked, "--junit", report)
    assert status == 1
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    assert {key: suite.get(key) for key in ("tests", "failures", "errors", "skipped")} == {
        "tests": "3",
        "failures": "1",
        "errors": "1",
        "skipped": "0",
    }
    drop, ratio, size = suite.findall("testcase")
    assert [case.get("name") for case in (drop, ratio, size)] == ["max-drop-pct", "max-latency-ratio", "max-size-mb"]
    (error,), (passed,), (failure,) = drop, ratio, size
    assert (error.tag, passed.tag, failure.tag) == ("error", "system-out", "failure")
    assert "such images would show the limit" in str(error.get("message"))
    assert str(failure.get("message")).startswith("fails: ")


def test_gate_imports_neither_torch_nor_mlflow_when_the_models_are_onnx(
    model: Path, other: Path, images: Path, tmp_path: Path
) -> None:
    probe = (
        "import sys; sys.argv = ['gate', *sys.argv[1:]]\n"
        "from pipeline.gate import main\n"
        "try:\n"
        "    main()\n"
        "finally:\n"
        "    heavy = {'torch', 'torchvision', 'mlflow', 'hydra', 'onnx', 'pandas'}\n"
        "    assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    asked = ("--max-drop-pct", "3", "--max-latency-ratio", "50", "--max-latency-ms", "1000", "--max-size-mb", "1")
    command = [sys.executable, "-c", probe, str(model), "--against", str(other), "--images", str(images), *asked]
    command += ["--max-seconds", "0.5", "--outputs", str(tmp_path), "--junit", str(tmp_path / "gate.xml")]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(": passes") == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["m"], "no limit is given; allowed: --max-drop-pct, --max-latency-ratio, --max-latency-ms, --max-size-mb"),
        (["m", "--max-drop-pct", "-1"], "--max-drop-pct -1: allowed: at least 0"),
        (["m", "--max-size-mb", "nan"], "--max-size-mb nan: allowed: above 0"),
        (["m", "--max-drop", "x"], "--max-drop"),
        (["m", "--max-latency-ratio", "1.05"], "--max-latency-ratio 1.05: allowed: with --against"),
        (["m", "--max-drop-pct", "1", "--images", "i"], "--images i: allowed: with --against"),
        (["m", "--max-size-mb", "1", "--images", "i"], "--images i: allowed: with --max-drop-pct"),
        (["m", "--max-drop-pct", "1", "--against", "n"], "--against n: allowed: with --max-latency-ratio or --images"),
        (["m", "--max-drop-pct", "1", "--junit", "/"], "--junit /: is a folder; allowed: a file"),
        (
            ["m", "--max-drop-pct", "1", "--junit", __file__],
            f"--junit {__file__}: is there, and no report; allowed: a new",
        ),
        (["m", "--max-drop-pct", "1", "--max-seconds", "0"], "--max-seconds 0: allowed: above 0"),
        ([], "MODEL"),
    ],
)
def test_gate_refuses_arguments_in_one_line(refusal: Callable[..., str], arguments: list[str], words: str) -> None:
    assert words in refusal(*arguments)
