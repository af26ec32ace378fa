"""Searches: the thin logic with a launcher that computes, and the real command, killed and resumed."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
import yaml
from filelock import FileLock
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from pipeline.commands.composition import CONFIG_FOLDER, check_command_line
from pipeline.host.errors import UserError
from pipeline.host.files import PROJECT_ROOT
from pipeline.reports.results import compared
from pipeline.run.artifact_store import Store
from pipeline.sweeps.search import Search
from pipeline.sweeps.search_space import read_search_space
from pipeline.tasks import ACCURACY
from tests import forked
from tests.conftest import SMALL

RATE = "qat.learning_rate=tag(log,interval(1e-5,1e-3))"
SPACE = ["seed=3", RATE, "qat.epochs=range(1,4)", "backend=fbgemm,qnnpack"]
OBJECTIVES = {"val/int8_accuracy_pct": "maximize", "int8/latency_ms": "minimize"}
Values = dict[str, str]


class Killed(BaseException):
    """Ends a search where SIGKILL would: no code of it runs afterwards."""


class ComputingLauncher:
    """Launches jobs by computing their metrics from their overrides, and remembers them."""

    def __init__(self, compute: Callable[[Values], dict[str, float]]) -> None:
        self.compute = compute
        self.batches: list[list[list[str]]] = []

    def launch(self, job_overrides: Sequence[list[str]], initial_job_idx: int) -> list[JobReturn]:
        self.batches.append(list(job_overrides))
        return [self._run(job) for job in job_overrides]

    def _run(self, job: list[str]) -> JobReturn:
        try:
            result: Any = self.compute(dict(override.split("=", 1) for override in job))
        except Exception as error:
            result = error
        status = JobStatus.FAILED if isinstance(result, Exception) else JobStatus.COMPLETED
        return JobReturn(overrides=job, status=status, _return_value=result)

    @property
    def jobs(self) -> list[list[str]]:
        return [job for batch in self.batches for job in batch]


def plain_metrics(values: Values) -> dict[str, float]:
    """Accuracy grows with the rate, latency with the epochs."""
    return {
        "val/int8_accuracy_pct": float(values["qat.learning_rate"]) * 1e4,
        "int8/accuracy_pct": 50
        - float(values["qat.learning_rate"]) * 1e4,  # the best on validation is the worst on test
        "int8/latency_ms": float(values["qat.epochs"]),
    }


Searcher = Callable[..., ComputingLauncher]


@pytest.fixture
def search(outputs: Path) -> Searcher:
    """Run a search over SPACE in `outputs`, by `compute`, and give its launcher, which knows the jobs."""

    def run(
        compute: Callable[[Values], dict[str, float]] = plain_metrics, folder: Path = outputs, **settings: Any
    ) -> ComputingLauncher:
        folder.mkdir(exist_ok=True)
        storage = f"sqlite:///{folder / 'optuna.db'}"
        sweeper = Search(**{"objectives": OBJECTIVES, "n_trials": 4, "storage": storage, **settings})
        typed = SimpleNamespace(overrides=SimpleNamespace(hydra=[]))
        sweeper.config = SimpleNamespace(outputs=str(folder), task="classification", hydra=typed)  # type: ignore[assignment]
        sweeper.hydra_context = SimpleNamespace(config_loader=None)  # type: ignore[assignment]
        launcher = ComputingLauncher(compute)
        sweeper.launcher = launcher  # type: ignore[assignment]
        run.launcher = launcher  # type: ignore[attr-defined]
        sweeper.sweep(SPACE)
        return launcher

    return run


def killed_at(trial: int) -> Callable[[Values], dict[str, float]]:
    """Computes like `plain_metrics`, until the given job, counted from 1."""
    calls = []

    def compute(values: Values) -> dict[str, float]:
        calls.append(values)
        if len(calls) == trial:
            raise Killed
        return plain_metrics(values)

    return compute


def trials(outputs: Path) -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{outputs / 'optuna.db'}"
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage).trials


def states(outputs: Path) -> list[str]:
    return [trial.state.name for trial in trials(outputs)]


@pytest.mark.parametrize(
    ("override", "distribution"),
    [
        (RATE, FloatDistribution(1e-5, 1e-3, log=True)),
        ("qat.freeze_bn_epoch=interval(0,2)", FloatDistribution(0, 2)),
        ("dataset.max_train_samples=interval(100,200)", IntDistribution(100, 200)),
        ("dataset.max_train_samples=tag(log,interval(100,200))", IntDistribution(100, 200, log=True)),
        ("qat.epochs=range(1,5)", IntDistribution(1, 4)),
        ("qat.epochs=range(5,1,-2)", IntDistribution(3, 5, step=2)),
        ("qat.freeze_bn_epoch=range(0,0.3,0.1)", FloatDistribution(0, 0.2, step=0.1)),
        ("qat.freeze_bn_epoch=null,1", CategoricalDistribution(["null", "1"])),
        ("backend=fbgemm,qnnpack", CategoricalDistribution(["fbgemm", "qnnpack"])),
    ],
)
def test_distribution_is_that_of_the_setting_when_an_override_sweeps(override: str, distribution: object) -> None:
    space = read_search_space(OverridesParser.create().parse_overrides(["seed=1", override]))
    assert list(space.distributions.values()) == [distribution]
    assert space.fixed == ["seed=1"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["seed=1"], "nothing to search"),
        (["qat.learnin_rate=interval(1,2)"], "did you mean 'qat.learning_rate'?"),
        (["qat.learning_rate=interval(1,200)"], "qat.learning_rate=200.0: allowed: more than 0 and at most 100"),
        (["qat.learning_rate=interval(0,1)"], "qat.learning_rate=0.0: allowed: more than 0"),
        (["qat.learning_rate=interval(2,1)"], "low less than high"),
        (["qat.learning_rate=tag(log,interval(0,1))"], "bounds above 0"),
        (["qat.learning_rate=tag(lgo,interval(1,2))"], "tag(log,interval(low,high))"),
        (["qat.epochs=interval(0.5,2)"], "'qat.epochs' is a whole number"),
        (["qat.epochs=interval(1,inf)"], "allowed: interval(low,high)"),
        (["qat.epochs=range(1,1)"], "no number is in this range"),
        (["qat.optimizer=interval(0,1)"], "'qat.optimizer' is not a number; allowed: choice(a,b)"),
        (["qat.optimizer=adam,sdg"], "did you mean 'sgd'?"),
        (["backend=fbgemm,qnnpac"], "did you mean 'qnnpack'?"),
        ([RATE, "stages=[train]"], "stages=[train]: allowed in a search: with evaluate"),
        ([RATE, "hydra.sweeper.n_trials=0"], "hydra.sweeper.n_trials=0: allowed: at least 1"),
        ([RATE, "hydra.sweeper.n_trials=few"], "hydra.sweeper.n_trials: Value 'few'"),
        ([RATE, "hydra.sweeper.n_trial=3"], "did you mean 'hydra.sweeper.n_trials'?"),
        ([RATE, "hydra.sweeper=basic"], "hydra.sweeper=basic: allowed: hydra/sweeper=name"),
        ([RATE, "hydra.sweeper.study_name=a/b"], "hydra.sweeper.study_name=a/b: allowed: a name"),
        (
            [RATE, "hydra.sweeper.objectives={int8/acuracy_pct: maximize}"],
            ".objectives.int8/accuracy_pct'?",
        ),
        ([RATE, "hydra.sweeper.objectives={speedup: maximise}"], "did you mean 'maximize'?"),
        ([RATE, "hydra.sweeper.objectives=speedup"], "allowed: {metric: direction}"),
        (
            [RATE, "hydra.sweeper.objectives={val/int8_accuracy_pct: null, int8/latency_ms: null}"],
            "none has a direction; allowed: ",
        ),
    ],
)
def test_search_is_refused_in_one_line_when_the_command_is_wrong(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError) as refused:
        check_command_line(["hydra/sweeper=optuna", *overrides], multirun=True)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_search_is_refused_with_the_line_to_install_when_optuna_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match=r"optuna is not installed here; pip install -e '\.\[search\]'"):
        check_command_line(["hydra/sweeper=optuna", RATE], multirun=True)


def test_every_bound_and_choice_is_checked_when_a_search_is_asked_for() -> None:
    jobs = [job for _, job in check_command_line(["hydra/sweeper=optuna", RATE, "backend=fbgemm,qnnpack,x86"], True)]
    assert {job.backend.name for job in jobs} == {"fbgemm", "qnnpack", "x86"}
    assert {job.qat.learning_rate for job in jobs} == {1e-5, 1e-3}


def test_objectives_of_the_configuration_are_the_known_metrics() -> None:
    written = yaml.safe_load((CONFIG_FOLDER / "hydra" / "sweeper" / "optuna.yaml").read_text())["objectives"]
    assert {name: direction for name, direction in written.items() if direction} == OBJECTIVES
    assert set(written) == set(compared(ACCURACY))


def test_suggestions_repeat_when_the_seed_does(search: Searcher, tmp_path: Path) -> None:
    first, again, other = (
        search(folder=tmp_path / name, seed=seed).jobs for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again != other
    assert len({tuple(job) for job in first}) == 4


def test_search_goes_on_as_if_undisturbed_when_killed(
    search: Searcher, outputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # More trials than TPE draws at random, so that what it learned counts as well.
    undisturbed = search(folder=tmp_path / "undisturbed", n_trials=13).jobs
    jobs = []
    for trial in (2, 4, 7):
        with pytest.raises(Killed):
            search(killed_at(trial), n_trials=13)
        jobs += search.launcher.jobs[:-1]  # type: ignore[attr-defined]
    assert states(outputs).count("RUNNING") == 1
    jobs += search(n_trials=13).jobs
    assert jobs == undisturbed
    assert sorted(states(outputs)) == ["COMPLETE"] * 13 + ["FAIL"] * 3
    assert "trial 12 was interrupted: marked FAIL, its settings run again" in capsys.readouterr().out


def test_batch_is_queued_again_when_killed_in_its_midst(search: Searcher, outputs: Path, tmp_path: Path) -> None:
    undisturbed = search(folder=tmp_path / "undisturbed", n_jobs=2).batches
    with pytest.raises(Killed):
        search(killed_at(4), n_jobs=2)
    assert [len(batch) for batch in undisturbed] == [2, 2]
    assert search(n_jobs=2).batches == undisturbed[1:]
    assert states(outputs).count("COMPLETE") == 4


def test_trial_is_given_up_when_it_is_interrupted_time_and_again(
    search: Searcher, capsys: pytest.CaptureFixture[str]
) -> None:
    attempts = []
    for _ in range(5):
        with pytest.raises(Killed):
            search(killed_at(1))
        attempts += search.launcher.jobs  # type: ignore[attr-defined]
    assert attempts == [attempts[0]] * 5
    finished = search().jobs
    assert "trial 4 was interrupted: marked FAIL, given up after 5 of 5 attempts" in capsys.readouterr().out
    assert len(finished) == 4
    assert attempts[0] not in finished


def test_nothing_is_launched_when_the_total_is_reached(search: Searcher) -> None:
    search()
    assert search().jobs == []
    assert len(search(n_trials=5).jobs) == 1


def test_other_trials_go_on_and_the_status_is_not_zero_when_one_fails(
    search: Searcher, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail_at_first(values: Values) -> dict[str, float]:
        if len(search.launcher.jobs) == 1:  # type: ignore[attr-defined]
            raise UserError("device=cuda: there is none")
        return plain_metrics(values)

    with pytest.raises(SystemExit, match="1 of 4 trials failed, the first with: device=cuda: there is none"):
        search(fail_at_first)
    assert states(outputs) == ["FAIL", *["COMPLETE"] * 3]
    assert trials(outputs)[0].user_attrs["error"] == "device=cuda: there is none"
    assert "trial 0 failed: device=cuda: there is none" in capsys.readouterr().err
    # The same command makes up for it with other settings.
    assert search().jobs[0] not in search.launcher.jobs[1:]  # type: ignore[attr-defined]
    assert states(outputs).count("COMPLETE") == 4


@pytest.mark.parametrize(
    ("metrics", "words"),
    [
        ({"val/int8_accuracy_pct": 90.0}, "no 'int8/latency_ms'"),
        (
            {"val/int8_accuracy_pct": float("nan"), "int8/latency_ms": 1.0},
            "val/int8_accuracy_pct=nan: allowed: a finite",
        ),
    ],
)
def test_trial_fails_when_its_run_reports_no_number(
    search: Searcher, outputs: Path, metrics: dict[str, float], words: str
) -> None:
    with pytest.raises(SystemExit, match=words):
        search(lambda values: metrics, n_trials=1)
    assert states(outputs) == ["FAIL"]


def test_front_is_shown_and_written_with_the_lines_to_type_when_the_search_ends(
    search: Searcher, outputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = search(n_trials=6).jobs
    (path,) = outputs.glob("search/*/pareto.csv")
    with path.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    every = [plain_metrics(dict(override.split("=", 1) for override in job)) for job in jobs]
    points = {(metrics["val/int8_accuracy_pct"], metrics["int8/latency_ms"]) for metrics in every}
    best = {point for point in points if not any(o != point and o[0] >= point[0] and o[1] <= point[1] for o in points)}
    assert {(float(row["val/int8_accuracy_pct"]), float(row["int8/latency_ms"])) for row in rows} == best
    shown = capsys.readouterr().out
    for row in rows:
        assert row["command"] == " ".join(["python -m pipeline", *jobs[int(row["trial"])]])
        assert row["command"] in shown
        assert row["qat.learning_rate"] in shown


def test_one_objective_is_enough_when_the_others_have_no_direction(search: Searcher, outputs: Path) -> None:
    search(objectives={"val/int8_accuracy_pct": "maximize", "int8/latency_ms": None})
    (path,) = outputs.glob("search/*/pareto.csv")
    assert len(path.read_text().splitlines()) == 2


def test_named_study_is_refused_when_it_is_another_search(search: Searcher) -> None:
    search(study_name="night", n_trials=1)
    with pytest.raises(UserError, match=r"hydra\.sweeper\.study_name=night: is another search, with seed 0; allowed"):
        search(study_name="night", n_trials=1, seed=1)


def test_search_is_refused_when_another_process_is_at_it(search: Searcher, outputs: Path) -> None:
    search(study_name="night", n_trials=1)
    with FileLock(outputs / "search" / "night" / ".lock"), pytest.raises(UserError, match="study night: another"):
        search(study_name="night", n_trials=2)


@pytest.mark.parametrize("storage", ["nonsense", "sqlite:////no/such/folder/optuna.db"])
def test_search_is_refused_when_its_storage_cannot_be_opened(search: Searcher, storage: str) -> None:
    with pytest.raises(UserError, match=r"hydra\.sweeper\.storage=.*cannot be opened"):
        search(storage=storage)


@pytest.mark.operations
def test_real_search_reaches_its_total_when_killed_and_typed_again(outputs: Path) -> None:
    command = [sys.executable, "-m", "pipeline", "-m", "hydra/sweeper=optuna", *SMALL, f"outputs={outputs}"]
    command += ["tracking=off", "hydra.sweeper.n_trials=3", RATE, "qat.freeze_bn_epoch=interval(0.2,1)"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=PROJECT_ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as killed:
        assert killed.stdout is not None
        lines = iter(killed.stdout.readline, "")
        assert any(line.startswith("trial 0 finished: val/int8_accuracy_pct") for line in lines)
        assert any(line.startswith("train     cached") for line in lines)  # the second trial has begun
        killed.send_signal(signal.SIGKILL)
    assert states(outputs) == ["COMPLETE", "RUNNING"]

    done = forked.run(command, env=environment)
    assert done.returncode == 0, done.stderr
    assert "1 of 3 trials finished" in done.stdout
    assert "trial 1 was interrupted: marked FAIL" in done.stdout
    assert states(outputs) == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
    found = trials(outputs)
    assert found[2].params == found[1].params
    assert len({trial.params["qat.learning_rate"] for trial in found}) == 3
    assert done.stdout.count("train     cached") == 2
    assert "Pareto front of 3 trials" in done.stdout
    (path,) = outputs.glob("search/*/pareto.csv")
    assert path.read_text().startswith(
        "trial,val/int8_accuracy_pct,int8/latency_ms,qat.learning_rate,qat.freeze_bn_epoch"
    )
    # And every metric that may be an objective is one that a run reports.
    evaluation = Store(outputs / "artifacts").find(next(outputs.glob("artifacts/evaluate-*")).name)
    assert evaluation is not None
    assert set(compared(ACCURACY)) <= {name for name, _, _ in evaluation.metrics}
