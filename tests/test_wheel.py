"""The wheel where the repository is not: the default in an empty folder, and docs/own-network.md word for word."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from pipeline.host.files import PROJECT_ROOT
from tests.conftest import BRIEF

pytestmark = pytest.mark.operations

DOCUMENT = (PROJECT_ROOT / "docs" / "own-network.md").read_text()
QUICK = ["evaluate.warmup=1", "evaluate.repeats=3", "export.min_agreement=95"]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A Python with the wheel, and of what this one has the libraries alone."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout, installed = folder / "checkout", folder / "environment"
    subprocess.run(["git", "clone", "--quiet", str(PROJECT_ROOT), str(checkout)], check=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(checkout)]
    subprocess.run([*pip, *built], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(installed)], check=True)
    (packages,) = installed.glob("lib/python*/site-packages")
    (wheel,) = folder.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", str(packages), str(wheel)], check=True)
    # Behind the wheel's; what links this checkout into it is a file of the kind that only begins there.
    (packages / "libraries.pth").write_text(f"import sys; sys.path.append({sysconfig.get_path('purelib')!r})\n")
    return str(installed / "bin" / "python")


def typed(python: str, folder: Path, line: str, *more: str) -> str:
    """What a command prints that is typed in a folder as it stands in the document, with `more` to make it short."""
    command = [python, *shlex.split(line)[1:], *more]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_default_runs_in_an_empty_folder_and_leaves_its_outputs_there(python: str, tmp_path: Path) -> None:
    where = typed(python, tmp_path, "python -c 'import pipeline; print(pipeline.__file__)'")
    assert "environment" in where
    assert "QAT int8" in typed(python, tmp_path, "python -m pipeline", *BRIEF)
    assert {path.name for path in tmp_path.iterdir()} == {"outputs"}
    assert (tmp_path / "outputs" / "mlflow.db").is_file()


def test_document_on_ones_own_network_can_be_followed_word_for_word(python: str, tmp_path: Path) -> None:
    nets, twin, data = re.findall(r"```python\n(.*?)```", DOCUMENT, re.DOTALL)
    (experiment,) = re.findall(r"```yaml\n(.*?)```", DOCUMENT, re.DOTALL)
    files = {
        "mine/nets.py": f"{nets}\n\n{twin}",
        "mine/data.py": data,
        "my_conf/experiment/mine.yaml": experiment,
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    lines = re.findall(r"^python -m pipeline.*$", DOCUMENT, re.MULTILINE)
    (run,) = [line for line in lines if "export]" in line]
    (predict,) = [line for line in lines if "predict" in line]
    (network,) = [line for line in lines if "model.target=mine" in line]
    assert " done " in typed(python, tmp_path, network, "stages=[train]", "train.epochs=1")
    said = typed(python, tmp_path, run, *QUICK)
    accuracies = [float(found) for found in re.findall(r"^(?:fp32|QAT int8) +[\d.]+ +([\d.]+)", said, re.MULTILINE)]
    assert len(accuracies) == 2
    assert min(accuracies) > 80
    program = (
        "from mine.data import make\ntest = make()[1]\nimage, label = test[0]\n"
        "image.save('seven.png')\nprint(test.classes[label])\n"
    )
    expected = typed(python, tmp_path, f"python -c {shlex.quote(program)}").strip()
    assert expected in typed(python, tmp_path, predict).splitlines()[1]
    changed = tmp_path / "mine" / "nets.py"
    changed.write_text(changed.read_text().replace("return x + y", "return y + x"))
    assert "train     made again: mine/nets.py changed" in typed(python, tmp_path, run, *QUICK)
