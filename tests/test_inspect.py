"""`python -m pipeline.inspect`: what it says of each runtime's files, what it refuses, and what it does not import."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import inspect
from pipeline.commands.composition import compose_request
from pipeline.datasets.preprocessing import PREPROCESSING_FILE
from pipeline.host.files import PROJECT_ROOT
from pipeline.runtimes import eager, registry
from pipeline.runtimes.contents import int8_pct
from tests.onnx_models import write_brightness_model
from tests.tiny_exports import export, models

for needed in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(needed)

ALL = ["torchscript", "onnxruntime", "openvino"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`<form>/<runtime>/` of each. Read them alone."""
    folder = tmp_path_factory.mktemp("files")
    for form, model in models().items():
        for runtime in ALL:
            export(model, runtime, folder / form / runtime)
    return folder


Command = Callable[..., tuple[object, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process: exit status, standard output, standard error."""

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["inspect", *map(str, arguments)])
        status: object = 0
        try:
            inspect.main()
        except SystemExit as exit:
            status = exit.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def line(out: str, name: str) -> str:
    return next(one.removeprefix(name).strip() for one in out.splitlines() if one.startswith(name))


def time_pct(out: str, arithmetic: str) -> float:
    found = re.search(rf"{arithmetic} ([\d.]+) %.* of the time of one image on one thread", out)
    assert found, out
    return float(found[1])


@pytest.mark.parametrize("runtime", ALL)
def test_inspect_tells_weights_and_time_in_int8_when_a_file_is_int8(
    command: Command, files: Path, runtime: str
) -> None:
    status, out, _ = command(files / "int8" / runtime)
    assert status == 0
    assert line(out, "runtime") == runtime
    assert line(out, "weights in int8") == "100.00 % of their numbers"
    # A byte for each of the weights, and what goes with them in float.
    assert 9 < float(line(out, "int8 constants").split()[0]) < 13
    assert "32, 32" in line(out, "input")
    assert line(out, "classes") == "10: 0, 1, 2, 3, 4, …"
    assert time_pct(out, "int8") > 60
    assert time_pct(out, "float") < 10


@pytest.mark.parametrize("runtime", ALL)
def test_inspect_tells_no_int8_when_a_file_is_float(command: Command, files: Path, runtime: str) -> None:
    status, out, _ = command(files / "fp32" / runtime / registry()[runtime].file)
    assert status == 0
    assert line(out, "weights in int8") == "0.00 % of their numbers"
    assert line(out, "int8 constants") == "0 B"
    assert time_pct(out, "int8") == 0
    assert time_pct(out, "float") == 100


def test_inspect_names_the_weights_that_stay_float_when_a_layer_is_skipped(command: Command, tmp_path: Path) -> None:
    int8 = models("backend.skip_layers=[fc]")["int8"]
    _, out, _ = command(export(int8, "onnxruntime", tmp_path / "skipped"))
    share = int8_pct(eager.weights(int8))
    assert share is not None
    assert 97 < share < 100  # the classifier's 160 weights of 11,088
    assert line(out, "weights in int8") == f"{share:.2f} % of their numbers"
    assert line(out, "weights in float").endswith("10×16")


def test_inspect_says_what_it_does_not_know_when_no_preprocessing_lies_beside_a_file(
    command: Command, tmp_path: Path
) -> None:
    folder = write_brightness_model(tmp_path / "model")
    (folder / PREPROCESSING_FILE).unlink()
    status, out, _ = command(folder)
    assert status == 0
    assert line(out, "classes").startswith("not told")
    assert line(out, "made by").startswith("not known")
    assert "of the time" not in out


def test_inspect_takes_the_int8_model_exported_last_and_says_what_made_it(
    command: Command, finished_export: Path
) -> None:
    status, out, _ = command("--outputs", finished_export)
    assert status == 0
    assert re.fullmatch(
        r"export-[0-9a-f]{16}: model Tiny, dataset digits, backend fbgemm, torch \S+", line(out, "made by")
    )
    assert line(out, "runtime") == "torchscript"


@pytest.fixture(scope="module")
def finished_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline.run.runner import run
    from tests.conftest import SMALL

    outputs = tmp_path_factory.mktemp("exported") / "outputs"
    asked = ["tracking=off", "method=ptq", "stages=[train,ptq,export]", "export.min_agreement=0"]
    run(compose_request([*SMALL, *asked, f"outputs={outputs}"]))
    return outputs


def test_inspect_refuses_in_one_line_when_a_file_cannot_be_read(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(*arguments: object) -> str:
        status, out, err = command(*arguments)
        assert (status, out) == (2, "")
        (told,) = err.splitlines()
        return told

    assert "MODEL" in refusal(tmp_path / "nowhere")
    assert "no exported model" in refusal(tmp_path)
    assert "stage export makes one" in refusal("--outputs", tmp_path)
    folder = write_brightness_model(tmp_path / "model")
    (folder / "model.onnx").write_bytes(b"damaged")
    assert f"{folder / 'model.onnx'}: onnxruntime cannot load it" in refusal(folder)
    for name in ("model.torchscript.pt", "model.pt2", "model.xml"):
        (tmp_path / name).write_bytes(b"damaged")
        assert f"{tmp_path / name}: " in refusal(tmp_path / name)
    assert "traced does not tell what is in its files" in refusal(
        "--runtime", "tests.planted.runtime:RUNTIME", write_traced(tmp_path)
    )
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxruntime" else real(name))
    assert "onnxruntime is not installed here" in refusal(folder)


def write_traced(folder: Path) -> Path:
    (folder / "model.traced").write_bytes(b"")
    return folder / "model.traced"


def test_inspect_imports_neither_torch_nor_mlflow_when_the_model_is_onnx(tmp_path: Path) -> None:
    probe = (
        "import sys; sys.argv = ['inspect', sys.argv[1]]\n"
        "from pipeline.inspect import main\n"
        "main()\n"
        "heavy = {'torch', 'torchvision', 'mlflow', 'hydra', 'omegaconf', 'scipy', 'pandas'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    model = write_brightness_model(tmp_path / "model")
    done = subprocess.run([sys.executable, "-c", probe, str(model)], cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "MatMul" in done.stdout


@pytest.mark.operations  # a store of its own, and a network of full size
def test_inspect_names_the_run_when_a_model_is_registered(command: Command, tmp_path: Path) -> None:
    from tests.shipped_models import ship

    shipped = ship("onnxruntime", tmp_path)
    status, out, _ = command(shipped.uri, "--tracking-uri", shipped.store)
    assert status == 0
    assert re.fullmatch(r"run [0-9a-f]{32}", line(out, "made by"))
    assert line(out, "weights in int8") == "100.00 % of their numbers"
