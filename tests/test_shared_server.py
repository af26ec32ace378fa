"""The server of tools/mlflow_server.sh, with PostgreSQL and users: many writers, outages, no password anywhere.

`make test-server` runs these; they take minutes.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest

from pipeline.host.files import PROJECT_ROOT
from pipeline.settings.config import TrackingConfig
from pipeline.tracking import RunRecord, open_run
from tests.conftest import SMALL
from tests.tracking_server import free_port

pytestmark = pytest.mark.operations

if "PIPELINE_TEST_SERVER" not in os.environ:
    pytest.skip("set PIPELINE_TEST_SERVER=1 (make test-server): minutes, with PostgreSQL", allow_module_level=True)
if not list(Path("/usr/lib/postgresql").glob("*/bin/initdb")):
    pytest.skip("no PostgreSQL in /usr/lib/postgresql", allow_module_level=True)

PASSWORD = 'Corr3ct%horse"battery'
OUTAGE_S = float(os.environ.get("PIPELINE_TEST_OUTAGE_S", "60"))
WRITERS = 16


@dataclass
class Shared:
    """The server's folder and address, and what a process needs to know to reach it."""

    folder: Path
    address: str
    environment: dict[str, str]

    def command(self, action: str) -> subprocess.CompletedProcess[str]:
        command = [str(PROJECT_ROOT / "tools" / "mlflow_server.sh"), action, str(self.folder)]
        # Not through pipes: the server, which goes on, would keep them open.
        with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
            done = subprocess.run(command, env=self.environment, stdout=out, stderr=err)
            out.seek(0), err.seek(0)
            return subprocess.CompletedProcess(command, done.returncode, out.read(), err.read())

    def must(self, action: str) -> None:
        done = self.command(action)
        assert done.returncode == 0, done.stderr

    def pipeline(self, *arguments: str, module: str = "pipeline", **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.Popen(command, cwd=PROJECT_ROOT, env=self.environment, text=True, **options)


@pytest.fixture(scope="module")
def shared() -> Iterator[Shared]:
    folder = Path(tempfile.mkdtemp(prefix="mlflow-server-", dir="/tmp"))
    folder.chmod(0o755)  # PostgreSQL's user, where root runs the tests, has to get in
    port = free_port()
    environment = {
        **os.environ,
        "MLFLOW_PORT": str(port),
        "MLFLOW_WORKERS": "2",
        "PYTHON": sys.executable,
        "OMP_NUM_THREADS": "1",
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
        "MLFLOW_TRACKING_USERNAME": "admin",
        "MLFLOW_TRACKING_PASSWORD": PASSWORD,
    }
    shared = Shared(folder / "server", f"http://127.0.0.1:{port}", environment)
    try:
        shared.must("start")
        yield shared
    finally:
        shared.command("stop")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory, shared: Shared) -> Path:
    """The outputs of a run whose stages are all done."""
    outputs = tmp_path_factory.mktemp("cached") / "outputs"
    assert shared.pipeline(*SMALL, "tracking=server", f"outputs={outputs}").wait(300) == 0
    return outputs


def runs(shared: Shared, experiment: str) -> list[Any]:
    client = mlflow.MlflowClient(shared.address)
    found = client.get_experiment_by_name(experiment)
    assert found is not None
    return list(client.search_runs([found.experiment_id]))


def write(shared: Shared, outputs: Path, number: int) -> None:
    """One of many writers: 300 points of two curves, 40 parameters, a text and a file."""
    record = RunRecord(
        f"writer {number}",
        {f"p{index}": f"{number}.{index}" for index in range(40)},
        {"writer": str(number)},
        f"seed: {number}\n",
        ("digits", "0123", "nowhere"),
    )
    with open_run(TrackingConfig(uri=shared.address, experiment="writers"), outputs, record) as tracker:
        for step in range(150):
            tracker.metric("train/loss", number + step / 1000, step)
            tracker.metric("qat/loss", number - step / 1000, step)
        file = outputs / f"{number}.bin"
        file.write_bytes(bytes([number]) * 100_000)
        tracker.file(file)
        tracker.text(f"text {number}", "results.md")


def test_all_is_there_when_sixteen_processes_write_at_once(shared: Shared, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import tests.test_shared_server as t\n"
        "t.write(t.Shared(Path(), sys.argv[1], {}), Path(sys.argv[2]), int(sys.argv[3]))"
    )
    environment = {**shared.environment, "PIPELINE_TEST_SERVER": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, shared.address, str(tmp_path), str(number)],
            cwd=PROJECT_ROOT,
            env=environment,
        )
        for number in range(WRITERS)
    ]
    assert [process.wait(500) for process in processes] == [0] * WRITERS
    client = mlflow.MlflowClient(shared.address)
    found = {int(run.data.tags["writer"]): run for run in runs(shared, "writers")}
    assert sorted(found) == list(range(WRITERS))
    for number, run in found.items():
        assert run.info.status == "FINISHED"
        assert run.data.params == {f"p{index}": f"{number}.{index}" for index in range(40)}
        for name, sign in (("train/loss", 1), ("qat/loss", -1)):
            history = client.get_metric_history(run.info.run_id, name)
            said = [(step, number + sign * step / 1000) for step in range(150)]
            assert sorted((point.step, point.value) for point in history) == said
        folder = Path(client.download_artifacts(run.info.run_id, "", str(tmp_path)))
        assert (folder / f"{number}.bin").read_bytes() == bytes([number]) * 100_000
        assert (folder / "results.md").read_text() == f"text {number}"
        assert (folder / "config.yaml").read_text() == f"seed: {number}\n"
    assert list((tmp_path / "outbox").iterdir()) == []


def test_all_runs_are_whole_when_sixteen_pipelines_log_at_once(shared: Shared, cached: Path) -> None:
    arguments = [*SMALL, "tracking=server", f"outputs={cached}", "tracking.experiment=at once"]
    processes = [
        shared.pipeline(*arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for _ in range(WRITERS)
    ]
    assert [process.wait(550) for process in processes] == [0] * WRITERS
    (first,) = runs(shared, "pipeline")
    client = mlflow.MlflowClient(shared.address)
    files = {found.path for found in client.list_artifacts(first.info.run_id)}
    found = runs(shared, "at once")
    assert [run.info.status for run in found] == ["FINISHED"] * WRITERS
    for run in found:
        assert run.data.metrics == first.data.metrics
        assert run.data.params == first.data.params | {"tracking.experiment": "at once"}
        assert {one.path for one in client.list_artifacts(run.info.run_id)} == files
        for name in ("train/loss", "qat/val_int8_accuracy_pct"):
            assert len(client.get_metric_history(run.info.run_id, name)) == 1


Epochs = Callable[[int], list[str]]


@dataclass
class Training:
    """A run under way, and what it has printed."""

    process: subprocess.Popen[str]
    log: Path

    def epochs(self) -> int:
        return len(re.findall(r"train epoch \d+/", self.log.read_text()))

    def wait_for(self, epochs: int) -> None:
        while self.epochs() < epochs:
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.2)


@pytest.fixture
def train(shared: Shared, tmp_path: Path) -> Iterator[Callable[..., Training]]:
    started: list[Training] = []

    def start(epochs: int, *arguments: str) -> Training:
        log = tmp_path / "log"
        with log.open("w") as stream:
            process = shared.pipeline(
                *SMALL,
                f"train.epochs={epochs}",
                "tracking=server",
                f"outputs={tmp_path / 'outputs'}",
                *arguments,
                stdout=stream,
                stderr=stream,
            )
        started.append(Training(process, log))
        return started[-1]

    yield start
    for training in started:
        training.process.kill()
        training.process.wait()


def assert_curve(shared: Shared, experiment: str, epochs: int) -> None:
    (run,) = runs(shared, experiment)
    assert run.info.status == "FINISHED"
    client = mlflow.MlflowClient(shared.address)
    for name in ("train/loss", "train/val_accuracy_pct"):
        history = client.get_metric_history(run.info.run_id, name)
        assert sorted(point.step for point in history) == list(range(epochs))
    assert "int8/accuracy_pct" in run.data.metrics
    files = {found.path for found in client.list_artifacts(run.info.run_id)}
    assert files >= {"config.yaml", "results.md", "confusion_matrix_int8.png"}


def test_run_goes_on_when_server_and_database_are_stopped_and_started_again(
    shared: Shared, train: Callable[..., Training]
) -> None:
    epochs = int(OUTAGE_S) + 20
    training = train(epochs, "tracking.experiment=outage")
    training.wait_for(3)
    shared.must("stop")
    before = training.epochs()
    time.sleep(OUTAGE_S)
    during = training.epochs() - before
    shared.must("start")
    assert training.process.wait(500) == 0, training.log.read_text()
    text = training.log.read_text()
    assert during >= 3
    assert text.count("is away: the run goes on") == 1
    assert "is back" in text
    assert_curve(shared, "outage", epochs)
    print(f"{during} epochs during an outage of {OUTAGE_S:.0f} s")


def test_run_ends_well_and_is_sent_later_when_the_server_stays_away(
    shared: Shared, train: Callable[..., Training], tmp_path: Path
) -> None:
    training = train(4, "tracking.experiment=gone", "tracking.patience_s=5")
    training.wait_for(1)
    shared.must("stop")
    try:
        assert training.process.wait(500) == 0, training.log.read_text()
        assert f"python -m pipeline.outbox --outputs {tmp_path / 'outputs'}" in training.log.read_text()
    finally:
        shared.must("start")
    arguments = ["--outputs", str(tmp_path / "outputs")]
    assert shared.pipeline(*arguments, module="pipeline.outbox").wait(200) == 0
    assert_curve(shared, "gone", 4)
    assert list((tmp_path / "outputs" / "outbox").iterdir()) == []


def test_start_is_refused_in_one_line_when_the_credentials_are_missing_or_wrong(shared: Shared, tmp_path: Path) -> None:
    for password in ("", "not the password at all"):
        other = Shared(shared.folder, shared.address, shared.environment | {"MLFLOW_TRACKING_PASSWORD": password})
        process = other.pipeline(
            *SMALL, "tracking=server", f"outputs={tmp_path}", stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        _, error = process.communicate(timeout=200)
        assert process.returncode == 2
        (line,) = error.splitlines()
        assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in line
    nobody = Shared(tmp_path / "other", "", {"PATH": os.environ["PATH"]}).command("start")
    assert nobody.returncode == 2
    assert nobody.stderr.startswith("error: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD")


def test_password_that_is_wrong_in_mid_run_is_told_and_nothing_is_missing(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = RunRecord("a run", {}, {}, "", ("digits", "0123", "nowhere"))
    config = TrackingConfig(uri=shared.address, experiment="credentials")
    with open_run(config, tmp_path, record) as tracker:
        time.sleep(5)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "not the password at all")
        tracker.metric("train/loss", 1.0, 0)
        time.sleep(5)
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    said = capsys.readouterr()
    assert "refuses the user and password (HTTP 401)" in said.err
    assert "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in said.err
    (run,) = runs(shared, "credentials")
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"train/loss": 1.0})


def test_nothing_is_missing_when_the_database_alone_breaks_down(shared: Shared, tmp_path: Path) -> None:
    record = RunRecord("a run", {}, {}, "", ("digits", "0123", "nowhere"))
    with open_run(TrackingConfig(uri=shared.address, experiment="database"), tmp_path, record) as tracker:
        time.sleep(3)
        postmaster = (shared.folder / "postgres" / "data" / "postmaster.pid").read_text().split()[0]
        os.kill(int(postmaster), signal.SIGQUIT)  # at once, and what it does is cut off
        for step in range(5):
            tracker.metric("train/loss", 1.0, step)
            time.sleep(1)
        shared.must("start")
    (run,) = runs(shared, "database")
    assert run.info.status == "FINISHED"
    assert len(mlflow.MlflowClient(shared.address).get_metric_history(run.info.run_id, "train/loss")) == 5
    assert list((tmp_path / "outbox").iterdir()) == []


def test_thing_that_the_database_cannot_take_is_kept_aside(shared: Shared, tmp_path: Path) -> None:
    record = RunRecord("a run", {}, {}, "", ("digits", "0123", "nowhere"))
    with open_run(TrackingConfig(uri=shared.address, experiment="aside"), tmp_path, record) as tracker:
        tracker.describe("PostgreSQL knows no \0")  # and answers 500, each time
        tracker.metric("train/loss", 1.0, 0)
    (run,) = runs(shared, "aside")
    assert (run.info.status, run.data.metrics) == ("FINISHED", {"train/loss": 1.0})
    (refused,) = (tmp_path / "outbox").glob("*/refused.jsonl")
    assert len(refused.read_text().splitlines()) == 1


def test_process_that_has_the_number_of_an_earlier_server_is_left_alone(tmp_path: Path) -> None:
    script = PROJECT_ROOT / "tools" / "mlflow_server.sh"
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as other:
        for noted in (f"{other.pid}", f"{other.pid} 12345"):
            (tmp_path / "mlflow.pid").write_text(f"{noted}\n")
            status = subprocess.run([script, "status", tmp_path], capture_output=True, text=True)
            assert "MLflow: stopped" in status.stdout
            subprocess.run([script, "stop", tmp_path], check=True)
            assert other.poll() is None
        other.kill()


def tells(content: bytes) -> bool:
    """Whether the password is in there, in whatever way it is escaped, or what HTTP makes of it."""
    return any(text in content for text in (b"Corr3ct", base64.b64encode(f"admin:{PASSWORD}".encode())))


def of_processes(what: str) -> dict[str, bytes]:
    """This file of every process in /proc, by the program's name and the process's number."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found[f"{(folder / 'comm').read_text().strip()} {folder.name}"] = (folder / what).read_bytes()
    return found


def test_password_is_in_no_file_no_table_and_no_command_line(shared: Shared, cached: Path) -> None:
    with shared.pipeline(*SMALL, "tracking=server", f"outputs={cached}") as running:
        looks = 0
        while running.poll() is None:
            looks += 1
            assert [name for name, line in of_processes("cmdline").items() if tells(line)] == []
    assert looks > 1
    of_postgres = {name: content for name, content in of_processes("environ").items() if name.startswith("postgres ")}
    assert of_postgres
    assert [name for name, content in of_postgres.items() if tells(content)] == []
    files = [path for path in [*shared.folder.rglob("*"), *cached.rglob("*")] if path.is_file()]
    assert [path for path in files if tells(path.read_bytes())] == []
    dump = max(Path("/usr/lib/postgresql").glob("*/bin/pg_dump"))
    for name in ("mlflow", "mlflow_auth"):
        command = [str(dump), "-h", str(shared.folder / "postgres"), "-U", "mlflow", name]
        tables = subprocess.run(command, check=True, capture_output=True).stdout
        assert b"alembic" in tables
        assert not tells(tables)
    for file in ("auth.ini", "secret_key", "mlflow.log"):
        assert (shared.folder / file).stat().st_mode & 0o077 == 0


def test_sweep_tells_its_results_when_the_server_goes_away_before_its_end(shared: Shared, tmp_path: Path) -> None:
    outputs, log = tmp_path / "outputs", tmp_path / "log"
    arguments = ["-m", *SMALL[:3], *SMALL[4:], "qat.epochs=1,15", "tracking=server", "tracking.experiment=sweep"]
    arguments += [f"outputs={outputs}", "tracking.patience_s=5"]
    with log.open("w") as stream:
        process = shared.pipeline(*arguments, stdout=stream, stderr=stream)
    while "qat epoch 2/15" not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.2)
    shared.must("stop")
    try:
        assert process.wait(500) == 0, log.read_text()
    finally:
        shared.must("start")
    text = log.read_text()
    assert "what they noted here is compared" in text
    assert "comparison: " in text
    assert shared.pipeline("--outputs", str(outputs), module="pipeline.outbox").wait(200) == 0
    found = runs(shared, "sweep")
    assert [run.info.status for run in found] == ["FINISHED"] * 3
    (parent,) = [run for run in found if "sweep.id" in run.data.tags]
    files = {one.path for one in mlflow.MlflowClient(shared.address).list_artifacts(parent.info.run_id)}
    assert "comparison.html" in files
    again = shared.pipeline(*arguments, stdout=subprocess.PIPE)
    assert again.communicate(timeout=300)[0].count("finished already") == 2
    assert len(runs(shared, "sweep")) == 3
