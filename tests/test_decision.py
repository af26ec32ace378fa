"""The ladder of `python -m pipeline.decide`: where it stops, what it says, and how it goes on."""

from __future__ import annotations

import dataclasses
import json
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import decide
from pipeline.decision import deciding, ladder
from pipeline.decision.budget import ERROR_PCT, Measured, confidence_of
from pipeline.host.errors import UserError
from pipeline.host.files import PROJECT_ROOT
from pipeline.measure.statistics import paired_interval
from pipeline.run.runner import run as run_really
from pipeline.settings.config import BenchmarkConfig, TrackingConfig
from pipeline.tracking.reading import read_runs
from tests.conftest import LEARNED, SMALL

# Half of few images for validation: enough that a wide budget can be told.
DATA = [*LEARNED, "dataset.validation_fraction=0.25", "ptq.calibration_samples=20"]
WIDE = "budget.max_drop_pct=20"


def decided(outputs: Path, *overrides: str, monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit status of a decision on the tiny network."""
    monkeypatch.setattr(sys, "argv", ["decide", *SMALL, *DATA, f"outputs={outputs}", *overrides])
    with pytest.raises(SystemExit) as end:
        decide.main()
    return int(str(end.value.code))


@pytest.fixture
def walked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the runs that a decision makes, in their order."""
    monkeypatch.setattr(deciding, "_TIMING", BenchmarkConfig(min_repeats=1, passes=2, max_seconds=1))
    names: list[str] = []

    def note(request):  # type: ignore[no-untyped-def]
        names.append(request.name)
        return run_really(request)

    monkeypatch.setattr(ladder, "run", note)
    return names


def measured_of(lost: int, images: int, confidence: float) -> Measured:
    low, high = paired_interval(lost, 0, images, confidence)
    return Measured(
        100 * lost / images,
        low,
        high,
        confidence,
        lost,
        0,
        images,
        speedup=2,
        latency_ms=1,
        size_mb=1,
        value=90,
        floor=20,
    )


def card_of(outputs: Path) -> str:
    (path,) = (outputs / "decisions").glob("*/card.md")
    return path.read_text()


def test_ladder_stops_at_ptq_and_ships_it_when_that_keeps_the_budget(
    outputs: Path, walked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert decided(outputs, WIDE, monkeypatch=monkeypatch) == 0
    assert walked == ["ptq fbgemm", "ptq fbgemm shipped"]
    said = capsys.readouterr().out
    assert "ship ptq on fbgemm: drop" in said
    assert "not needed: ptq_corrected, worst_layers_float, qat, qat_distilled, qat_longer" in said
    card = card_of(outputs)
    assert "int8/torchscript/model.torchscript.pt" in card
    assert "https://" not in (page := next((outputs / "decisions").glob("*/card.html")).read_text())
    assert "Content-Security-Policy" in page
    # Once more: nothing is made again, and the children in MLflow are those that there were.
    before = {run.run_id for run in read_runs(TrackingConfig(), outputs)}
    artifacts = sorted(path.name for path in (outputs / "artifacts").iterdir())
    monkeypatch.setattr(deciding.latency, "ratio_interval", lambda *_: (1.03, 0.97, 1.09))
    assert decided(outputs, WIDE, monkeypatch=monkeypatch) == 0
    assert "1.03 [0.97, 1.09] times as fast" in (said := capsys.readouterr().out)
    assert "in one loop: it is not shown to be faster" in said
    assert sorted(path.name for path in (outputs / "artifacts").iterdir()) == artifacts
    assert {run.run_id for run in read_runs(TrackingConfig(), outputs)} == before
    assert len(before) == 2


def test_ladder_says_how_many_images_would_do_and_trains_nothing_when_there_are_too_few(
    outputs: Path, walked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert decided(outputs, "budget.max_drop_pct=0.5", "tracking=off", monkeypatch=monkeypatch) == 3
    assert walked == []
    said = capsys.readouterr().out
    assert "cannot be told: with 100 validation images no drop below 3.7 points can be shown" in said
    assert "about 765 would do for 0.5" in said


@pytest.mark.operations
def test_ladder_climbs_every_rung_when_each_loses_too_much(
    outputs: Path, walked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is planted: each rung is said to have lost 40 of 100 validation images, and the last one none."""

    def planted(metrics, evaluated, task, confidence):  # type: ignore[no-untyped-def]
        lost = 0 if "qat_longer" in walked[-1] else 40
        return measured_of(lost, 100, confidence)

    monkeypatch.setattr(ladder, "measured", planted)
    assert decided(outputs, WIDE, "tracking=off", "qat.epochs=1", monkeypatch=monkeypatch) == 0
    rungs = ["ptq", "ptq_corrected", "worst_layers_float", "qat", "qat_distilled", "qat_longer"]
    names = [f"{name} fbgemm" for name in rungs]
    assert walked == [*names[:2], "sensitivity fbgemm", *names[2:], "qat_longer fbgemm shipped"]
    assert "drop: fails: +40.00" in capsys.readouterr().out
    made = json.loads(next((outputs / "artifacts").glob("qat-*/manifest.json")).read_text())
    assert made["hashed"]["qat"]["epochs"] in (1, 3)
    skipped = [
        json.loads(path.read_text())["hashed"]["backend"]["skip_layers"]
        for path in (outputs / "artifacts").glob("ptq-*/manifest.json")
    ]
    assert sorted(map(len, skipped)) == [0, 0, 3]


@pytest.mark.operations
def test_ladder_stops_when_int8_is_too_slow_on_any_rung(
    outputs: Path, walked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert decided(outputs, WIDE, "budget.min_speedup=1000", "tracking=off", monkeypatch=monkeypatch) == 1
    assert walked == ["ptq fbgemm"]
    assert "do not ship int8: fbgemm: speedup: no other rung on this backend is faster" in capsys.readouterr().out


def test_model_is_not_shipped_when_it_names_one_class_as_the_float_one_does(
    outputs: Path, walked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is planted: both name the largest class, and lose nothing against each other."""
    nothing = dataclasses.replace(measured_of(0, 100, 0.95), value=20)
    monkeypatch.setattr(ladder, "measured", lambda *_: nothing)
    assert decided(outputs, WIDE, "train.epochs=1", "tracking=off", "ladder.climb=[ptq]", monkeypatch=monkeypatch) == 1
    assert "worth: fails: 20.00 %, no better than always naming the largest class" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("stages=[train]", "stages=[train]: a decision sets it for each rung"),
        ("budget.max_drop=1", "budget.max_drop: no such setting; allowed: budget.max_drop_pct"),
        ("budgets.max_drop_pct=1", "budgets.max_drop_pct=1: no such setting; did you mean budget.max_drop_pct=1?"),
        ("longer=5", "longer=5: no such setting; did you mean ladder.longer=5?"),
        ("datset=mnist", "datset: no such setting; allowed: model, "),
        ("ladder.rungs={}", "ladder.rungs={}: would take no rung away; allowed: ladder.climb="),
        ("ladder.climb=[ptp]", "ladder.climb=[ptp]: no rung 'ptp'; allowed: ptq, "),
        ("ladder.climb=[]", "ladder.climb=[]: allowed: one rung or more of ptq, "),
        ('ladder.rungs.qat=["backend=x86"]', "ladder.rungs.qat: backend=x86: a decision sets it itself"),
        ("backend=fbgem", "backend=fbgem: no such backend; allowed: "),
    ],
)
def test_decision_is_refused_before_anything_runs_when_it_cannot_be_asked(
    outputs: Path,
    override: str,
    line: str,
    walked: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert decided(outputs, override, "tracking=off", monkeypatch=monkeypatch) == 2
    assert line in capsys.readouterr().err
    assert walked == []
    assert not (outputs / "decisions").exists()


@pytest.mark.operations
def test_decision_cannot_be_told_when_the_minutes_are_over_before_a_rung(
    outputs: Path, walked: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ladder, "measured", lambda *_: measured_of(40, 100, 0.95))
    short = ["budget.max_minutes=0.0001", "tracking=off", "train.epochs=1"]
    assert decided(outputs, WIDE, *short, monkeypatch=monkeypatch) == 3
    assert walked == ["ptq fbgemm"]
    assert "fbgemm: budget.max_minutes=0.0001 are over before rung ptq_corrected" in capsys.readouterr().out


@pytest.mark.parametrize(("broken", "status"), [(("ptq",), 3), (("ptq", "ptq_corrected"), 2)])
def test_decision_is_no_verdict_on_int8_when_rungs_could_not_run(
    broken: tuple[str, ...],
    status: int,
    outputs: Path,
    walked: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = ladder.run

    def run_or_break(request):  # type: ignore[no-untyped-def]
        if request.name.split()[0] in broken:
            raise UserError("the disk is full")
        return run(request)

    monkeypatch.setattr(ladder, "run", run_or_break)
    monkeypatch.setattr(ladder, "measured", lambda *_: measured_of(40, 100, 0.95))
    both = ["ladder.climb=[ptq,ptq_corrected]", "tracking=off", "train.epochs=1"]
    assert decided(outputs, WIDE, *both, monkeypatch=monkeypatch) == status
    assert "the disk is full" in capsys.readouterr().err


@pytest.mark.operations
@pytest.mark.parametrize(
    ("rung", "stage"),
    [("ptq", "evaluate"), ("worst_layers_float", "sensitivity"), ("qat", "qat"), ("qat_distilled", "export")],
)
def test_decision_is_the_same_when_it_was_killed_in_a_rung(tmp_path: Path, rung: str, stage: str) -> None:
    def command(outputs: Path) -> list[str]:
        ladder = [f"ladder.climb=[{rung}]", "ladder.worst_layers=1", "tracking=off", f"outputs={outputs}"]
        return [sys.executable, "-m", "pipeline.decide", *SMALL, *DATA, WIDE, "qat.epochs=3", *ladder]

    def end(outputs: Path) -> list[str]:
        done = subprocess.run(command(outputs), cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
        return [
            line for line in done.stdout.splitlines() if line.startswith(("ship ", "confirmed", "not contradicted"))
        ]

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    with subprocess.Popen(
        command(killed), cwd=PROJECT_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as one:
        while one.poll() is None and not list((killed / "artifacts").glob(f"{stage}-*")):
            time.sleep(0.01)
        one.kill()
    assert one.returncode == -signal.SIGKILL
    made = {path.name: path.stat().st_mtime_ns for path in (killed / "artifacts").glob("train-*/manifest.json")}
    assert end(killed) == end(whole)
    assert {path.name: path.stat().st_mtime_ns for path in (killed / "artifacts").glob("train-*/manifest.json")} == made


def test_error_is_spent_on_all_rungs_and_backends_together_when_they_are_many() -> None:
    one_sided = [(1 - confidence_of(rung, 3)) / 2 for rung in range(50)]
    assert 3 * 100 * sum(one_sided) == pytest.approx(ERROR_PCT)
    assert confidence_of(0, 1) == pytest.approx(0.95)


@pytest.mark.operations
@pytest.mark.parametrize("confirmed", [True, False])
def test_only_what_is_chosen_and_confirmed_is_registered_when_two_backends_pass(
    outputs: Path, walked: list[str], confirmed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deciding, "_confirm", lambda *_: (confirmed, "what the test part says"))
    asked = [WIDE, "backend=fbgemm,onednn", "ladder.climb=[ptq]", "register.name=digits"]
    assert decided(outputs, *asked, monkeypatch=monkeypatch) == (0 if confirmed else 1)
    registered = [run for run in read_runs(TrackingConfig(), outputs) if run.name.endswith("registered")]
    assert [name for name in walked if name.endswith("registered")] == [run.name for run in registered]
    with sqlite3.connect(outputs / "mlflow.db") as store:
        versions = store.execute("select run_id from model_versions").fetchall()
    assert [run_id for (run_id,) in versions] == [run.run_id for run in registered]
    assert len(versions) == confirmed
