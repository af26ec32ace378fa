"""`python -m pipeline.predict`: what it prints, what it refuses, and what it does not import."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline import predict
from pipeline.datasets.preprocessing import PREPROCESSING_FILE, Preprocessing
from pipeline.host.files import PROJECT_ROOT
from tests.onnx_models import write_brightness_model

pytest.importorskip("onnxruntime")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_brightness_model(tmp_path / "model")


@pytest.fixture
def bright_left(tmp_path: Path) -> Path:
    pixels = np.zeros((30, 40), np.uint8)
    pixels[:, :20] = 255
    Image.fromarray(pixels).save(tmp_path / "bright_left.png")
    return tmp_path / "bright_left.png"


Command = Callable[..., tuple[object, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process: exit status, standard output, standard error."""

    def run(*arguments: object) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["predict", *map(str, arguments)])
        status: object = 0
        try:
            predict.main()
        except SystemExit as exit:
            status = exit.code
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_predict_prints_the_classes_by_probability(command: Command, model: Path, bright_left: Path) -> None:
    # Normalized, white is 2 and black -2; each half has half of the weight, so that the logits are 1 and -1.
    Image.open(bright_left).crop((10, 0, 30, 20)).resize((8, 8), Image.Resampling.NEAREST).save(bright_left)
    share = 1 / (1 + np.exp(-2))
    assert command("--model", model, bright_left) == (
        0,
        f"{bright_left}\n  {100 * share:6.2f} %  left\n  {100 * (1 - share):6.2f} %  right\n",
        "",
    )


def test_predict_prints_one_class_when_top_is_one(command: Command, model: Path, bright_left: Path) -> None:
    status, out, _ = command("--model", model / "model.onnx", "--top", 1, bright_left)
    assert status == 0
    assert out.split()[-1] == "left"
    assert len(out.splitlines()) == 2


@pytest.mark.parametrize("channels", [1, 3])
def test_predict_answers_the_same_when_the_model_takes_pictures(
    command: Command, bright_left: Path, tmp_path: Path, channels: int
) -> None:
    floats, pictures = (
        command("--model", write_brightness_model(tmp_path / str(takes), 8, channels, takes), bright_left)
        for takes in (False, True)
    )
    assert floats == pictures
    assert floats[0] == 0


def damage(kind: str, folder: Path) -> tuple[Path, str]:
    """A file that is no image, and what is said of it."""
    path = folder / f"{kind}.png"
    whole = folder / "whole.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)).save(whole)
    if kind == "missing":
        return path, "No such file or directory"
    if kind == "folder":
        path.mkdir()
        return path, "Is a directory"
    if kind == "huge":
        # A header that promises 30,000 × 30,000 pixels: a decompression bomb.
        content = bytearray(whole.read_bytes())
        content[16:24] = (30_000).to_bytes(4, "big") * 2
        import zlib

        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
        path.write_bytes(content)
        return path, "900.0 megapixels; allowed: dataset.max_image_megapixels=179"
    content = {
        "empty": b"",
        "text": b"no image at all",
        "truncated": whole.read_bytes()[:600],
        "header_alone": whole.read_bytes()[:30],
        "zeros": bytes(1000),
    }[kind]
    path.write_bytes(content)
    return path, {"empty": "it is empty", "truncated": "truncated"}.get(kind, "")


@pytest.mark.parametrize("kind", ["missing", "folder", "huge", "empty", "text", "truncated", "header_alone", "zeros"])
def test_predict_says_what_it_cannot_read_and_goes_on_when_another_image_is_good(
    command: Command, model: Path, bright_left: Path, tmp_path: Path, kind: str
) -> None:
    bad, words = damage(kind, tmp_path)
    status, out, err = command("--model", model, bad, bright_left)
    assert status == 2
    assert out.startswith(f"{bright_left}\n")
    (line,) = err.splitlines()
    assert line.startswith(f"error: {bad}: cannot be read as an image: ")
    assert words in line


def test_predict_reads_what_is_transparent_by_a_palette_without_a_warning(
    command: Command, model: Path, bright_left: Path, tmp_path: Path
) -> None:
    path = tmp_path / "palette.png"
    Image.open(bright_left).convert("P").save(path, transparency=bytes([0, 255]))
    status, out, err = command("--model", model, path)
    assert (status, err) == (0, "")
    assert out.split()[3] == "left"


def test_predict_refuses_in_one_line_when_the_model_cannot_be_used(
    command: Command, model: Path, bright_left: Path, tmp_path: Path
) -> None:
    def refusal(path: object) -> str:
        status, out, err = command("--model", path, bright_left)
        assert (status, out) == (2, "")
        (line,) = err.splitlines()
        return line

    assert "no such file or folder" in refusal(tmp_path / "nowhere")
    assert "no exported model" in refusal(bright_left)
    assert "no exported model" in refusal(tmp_path)
    Preprocessing(8, 1, (0.5,), (0.25,), ("left", "right", "middle")).write(model)
    assert "gives 2 outputs, where preprocessing.json names 3" in refusal(model)
    Preprocessing(16, 1, (0.5,), (0.25,), ("left", "right")).write(model)
    assert "does not take what preprocessing.json makes" in refusal(model)
    assert "no such file or folder; allowed: " in refusal("~nobody-of-that-name/model")
    (model / PREPROCESSING_FILE).unlink()
    assert f"{model / PREPROCESSING_FILE}: it is not there" in refusal(model)
    write_brightness_model(model)
    (model / "model.onnx").write_bytes(b"damaged")
    assert f"{model / 'model.onnx'}: onnxruntime cannot load it" in refusal(model)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--top", "0", "a.png"], "--top 0: allowed: at least 1"),
        (["--top", "many", "a.png"], "--top: invalid int value: 'many'"),
        (["--topp", "1", "--modle", "x", "a.png"], "--modle"),
        ([], "IMAGE"),
    ],
)
def test_predict_refuses_arguments_in_one_line(command: Command, arguments: list[str], words: str) -> None:
    status, _, err = command(*arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert words in err
    assert len(err.splitlines()) == 1


def test_predict_takes_the_int8_model_exported_last_when_none_is_named(
    command: Command, bright_left: Path, tmp_path: Path
) -> None:
    outputs = tmp_path / "outputs"
    status, _, err = command("--outputs", outputs, bright_left)
    assert status == 2
    assert "stage export makes one" in err
    export = outputs / "artifacts" / "export-0123"
    write_brightness_model(export / "int8" / "onnxruntime")
    write_brightness_model(export / "fp32" / "onnxruntime")
    status, out, _ = command("--outputs", outputs, "--top", 1, bright_left)
    assert status == 0
    assert out.split()[-1] == "left"


def test_predict_imports_neither_torch_nor_mlflow_when_the_model_is_onnx(model: Path, bright_left: Path) -> None:
    probe = (
        "import sys; sys.argv = ['predict', '--model', sys.argv[1], sys.argv[2]]\n"
        "from pipeline.predict import main\n"
        "main()\n"
        "heavy = {'torch', 'torchvision', 'mlflow', 'hydra', 'omegaconf', 'onnx', 'scipy', 'pandas'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", probe, str(model), str(bright_left)]
    done = subprocess.run(command, cwd=PROJECT_ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "left" in done.stdout


def test_program_of_the_documentation_predicts_without_this_project(
    tmp_path: Path, bright_left: Path, command: Command
) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (PROJECT_ROOT / "docs" / "serving.md").read_text(), re.DOTALL)
    exported = write_brightness_model(tmp_path / "exported")
    bright_left.rename(tmp_path / "seven.png")
    alone = "import sys; assert not {'pipeline', 'torch', 'mlflow'} & set(sys.modules)\nprint(logits.tolist())"
    done = subprocess.run(
        [sys.executable, "-I", "-c", program + alone], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    name, logits = done.stdout.splitlines()
    assert name == "left"
    _, out, _ = command("--model", exported, tmp_path / "seven.png")
    odds = np.exp(json.loads(logits))
    assert float(out.split()[1]) == pytest.approx(100 * odds[0] / odds.sum(), abs=0.006)  # the command says two digits
