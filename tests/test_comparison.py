"""The comparison: the rule, the front, the files, and the command on a real MLflow store with made-up runs."""

from __future__ import annotations

import html
import math
import subprocess
import sys
from collections.abc import Callable, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest

import pipeline.compare
from pipeline.host.errors import UserError
from pipeline.host.files import PROJECT_ROOT
from pipeline.reports.comparison import write_comparison
from pipeline.reports.comparison.plots import epoch_lines
from pipeline.reports.comparison.table import compare, pareto_front
from pipeline.reports.comparison.text import text_table
from pipeline.reports.tracked_run import TrackedRun
from pipeline.settings.config import TrackingConfig
from pipeline.tracking.parents import Summary, close_parent
from pipeline.tracking.reading import read_runs
from tests import forked

NASTY = "<img src=http://example.org/x onerror=alert(1)>|</script>&"


def metrics(accuracy: float = 98.8, latency: float = 2.0, **others: float) -> dict[str, float]:
    fp32 = {"accuracy": 99.0, "latency": 9.0, "size": 44.8}
    return {
        "fp32/accuracy_pct": fp32["accuracy"],
        "int8/accuracy_pct": accuracy,
        "accuracy_drop_pct": fp32["accuracy"] - accuracy,
        "accuracy_drop_ci_low_pct": fp32["accuracy"] - accuracy - 0.2,
        "accuracy_drop_ci_high_pct": fp32["accuracy"] - accuracy + 0.2,
        "val/fp32_accuracy_pct": fp32["accuracy"],
        "val/int8_accuracy_pct": accuracy,
        "val/accuracy_drop_pct": fp32["accuracy"] - accuracy,
        "val/largest_class_pct": 11.0,
        "val/images": 6_000.0,
        "fp32/latency_ms": fp32["latency"],
        "int8/latency_ms": latency,
        "fp32/latency_p90_ms": 9.9,
        "int8/latency_p90_ms": 1.1 * latency,
        "fp32/size_mb": fp32["size"],
        "int8/size_mb": 11.3,
        "speedup": fp32["latency"] / latency,
        "compression": fp32["size"] / 11.3,
        "test_images": 10_000.0,
        **others,
    }


def tracked(name: str, values: Mapping[str, float] | None = None, **others: Any) -> TrackedRun:
    parameters = {"backend.name": "fbgemm", "qat.epochs": "1", **others.pop("parameters", {})}
    title, status, tags = others.pop("title", name), others.pop("status", "FINISHED"), others.pop("tags", {})
    return TrackedRun(name, title, status, parameters, values or metrics(), tags)


def order(runs: list[TrackedRun], **settings: float) -> list[str]:
    return list(compare(runs, **settings).frame["run_id"])


def test_runs_within_the_drop_come_first_by_latency_and_the_others_by_accuracy() -> None:
    runs = [
        tracked("beyond and worst", metrics(96.0, 1.0)),
        tracked("slow", metrics(98.9, 5.0)),
        tracked("beyond", metrics(97.0, 3.0)),
        tracked("fast", metrics(98.6, 2.0)),
    ]
    assert order(runs) == ["fast", "slow", "beyond", "beyond and worst"]
    assert order(runs, max_drop_pct=5.0)[0] == "beyond and worst"
    assert "lose at most 0.5 points" in text_table(compare(runs))


def on_validation(accuracy: float) -> dict[str, float]:
    return {"val/int8_accuracy_pct": accuracy, "val/accuracy_drop_pct": 99.0 - accuracy}


def test_run_that_is_best_on_test_and_worst_on_validation_is_not_first() -> None:
    good = tracked("good", metrics(98.7, 2.0))
    lucky = tracked("lucky", metrics(99.5, 2.0, **on_validation(98.6)))
    harmed = tracked("harmed", metrics(99.5, 1.0, **on_validation(90.0)))
    assert order([lucky, good, harmed]) == ["good", "lucky", "harmed"]
    assert compare([good, harmed]).frame.set_index("run_id")["within_max_drop"].to_dict() == {
        "good": True,
        "harmed": False,
    }


def test_run_that_always_names_the_largest_class_is_beyond_however_little_it_loses() -> None:
    nothing_learned = {"val/int8_accuracy_pct": 11.0, "val/fp32_accuracy_pct": 11.0, "val/accuracy_drop_pct": 0.0}
    assert order([tracked("nothing", metrics(11.0, 1.0, **nothing_learned)), tracked("good")]) == ["good", "nothing"]


def test_run_is_left_out_and_why_is_said_when_it_knows_no_validation() -> None:
    old = {name: value for name, value in metrics().items() if not name.startswith("val/")}
    comparison = compare([tracked("a"), tracked("old", old)])
    assert comparison.counted == "1 run compared; 1 left out (1 without val/ metrics: run again)"


def test_drop_of_just_the_limit_is_within_when_floating_point_makes_it_a_little_more() -> None:
    values = metrics(**{"val/accuracy_drop_pct": 100 * 644 / 1000 - 100 * 639 / 1000})
    assert values["val/accuracy_drop_pct"] > 0.5
    assert compare([tracked("a", values)]).frame["within_max_drop"].tolist() == [True]


def test_ties_are_broken_by_accuracy_then_size_then_name_whatever_the_order_they_come_in() -> None:
    runs = [
        tracked("d", metrics(98.7, 2.0), title="same"),
        tracked("c", metrics(98.7, 2.0), title="same"),
        tracked("b", metrics(98.7, 2.0, **{"int8/size_mb": 5.0}), title="z"),
        tracked("a", metrics(98.9, 2.0), title="z"),
    ]
    assert order(runs) == order(runs[::-1]) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("broken", [{}, {"int8/latency_ms": math.nan}, {"int8/accuracy_pct": math.inf}])
def test_run_is_counted_and_left_out_when_it_has_not_all_metrics(broken: dict[str, float]) -> None:
    partial = {**metrics(), **broken} if broken else {"train/loss": 0.5}
    comparison = compare([tracked("a"), tracked("b", partial), tracked("c", status="FAILED")])
    assert list(comparison.frame["run_id"]) == ["a"]
    assert comparison.counted == "1 run compared; 2 left out (1 failed, 1 without all metrics)"


def test_result_is_compared_once_when_several_runs_have_its_artifacts() -> None:
    same, other = ({"artifact.evaluate": key, "artifact.train": "train-0", "cpu": "a"} for key in ("e-0", "e-1"))
    runs = [
        tracked("killed", status="KILLED", tags=same),
        tracked("newest", tags={**same, "cpu": "b"}),
        tracked("other", tags=other),
        tracked("oldest", tags=same),
        tracked("with more", tags={**same, "artifact.ptq": "ptq-0"}),
    ]
    comparison = compare(runs)
    assert sorted(comparison.frame["run_id"]) == ["newest", "other", "with more"]
    assert comparison.counted == "3 runs compared; 2 left out (1 killed, 1 repeated)"
    assert len(compare([tracked("a"), tracked("b")]).frame) == 2  # whose artifacts are not known


def test_one_line_says_why_when_nothing_can_be_compared() -> None:
    with pytest.raises(UserError, match=r"nothing to compare: 2 left out \(1 killed, 1 running\)"):
        compare([tracked("a", status="KILLED"), tracked("b", status="RUNNING")])
    with pytest.raises(UserError, match="no run was found"):
        compare([])


def test_only_what_differs_stands_in_front_of_the_metrics() -> None:
    runs = [
        tracked(str(epochs), parameters={"qat.epochs": str(epochs), "outputs": f"o{epochs}", "seed": "0"})
        for epochs in (2, 10)
    ]
    comparison = compare(runs)
    assert comparison.varying == ("qat.epochs",)
    assert list(comparison.frame.columns[:2]) == ["qat.epochs", "run"]
    assert sorted(comparison.frame["qat.epochs"]) == [2, 10]
    assert comparison.shared == {"backend.name": "fbgemm", "seed": "0"}


def test_nothing_stands_in_front_when_all_parameters_are_equal(tmp_path: Path) -> None:
    runs = [tracked("a"), tracked("b", metrics(98.9, 3.0))]
    comparison = compare(runs)
    assert comparison.varying == ()
    assert comparison.frame.columns[0] == "run"
    assert "a " in text_table(comparison)
    assert len(write_comparison(compare(runs), tmp_path)) == 4


def test_setting_that_only_some_runs_have_differs() -> None:
    comparison = compare([tracked("a"), tracked("b", parameters={"model.stem": "small"})])
    assert comparison.varying == ("model.stem",)
    assert comparison.frame["model.stem"].isna().tolist() == [True, False]


def test_qconfig_and_engine_are_shown_only_when_the_backend_does_not_tell_them() -> None:
    def run(name: str, engine: str) -> TrackedRun:
        return tracked(f"{name}-{engine}", parameters={"backend.name": name, "backend.engine": engine})

    assert compare([run("x86", "x86"), run("fbgemm", "fbgemm")]).varying == ("backend.name",)
    assert compare([run("x86", "x86"), run("x86", "onednn")]).varying == ("backend.engine",)


def test_processor_stands_in_front_when_runs_were_measured_on_several() -> None:
    runs = [TrackedRun(cpu, cpu, "FINISHED", {}, metrics(), {"cpu": cpu}) for cpu in ("one", "two")]
    assert compare(runs).varying == ("cpu",)


def test_columns_stay_distinct_when_a_parameter_has_the_name_of_one() -> None:
    comparison = compare([tracked(name, parameters={"run": name}) for name in "ab"])
    assert comparison.varying == ("run (parameter)",)
    assert comparison.frame.columns.is_unique


@pytest.mark.parametrize("seed", range(20))
def test_pareto_front_equals_brute_force_when_points_tie(seed: int) -> None:
    generator = np.random.default_rng(seed)
    points = generator.integers(0, 6, size=(int(generator.integers(1, 25)), 2)).astype(float)

    def beaten(index: int) -> bool:
        latency, accuracy = points[index]
        return any(x <= latency and y >= accuracy and (x < latency or y > accuracy) for x, y in points)

    expected = [not beaten(index) for index in range(len(points))]
    assert pareto_front(points[:, 0], points[:, 1]).tolist() == expected


def test_int8_is_not_on_the_front_when_its_own_fp32_model_is_faster_and_better() -> None:
    comparison = compare([tracked("slow", metrics(98.0, 20.0))])
    assert comparison.frame["on_front"].tolist() == [False]


def test_epoch_line_joins_runs_that_differ_in_epochs_alone() -> None:
    runs = [
        tracked(f"{backend}-{seed}-{epochs}", parameters={"backend.name": backend, "seed": seed, "qat.epochs": epochs})
        for backend, seed in (("fbgemm", "0"), ("fbgemm", "1"), ("qnnpack", "0"))
        for epochs in ("10", "2")
    ]
    lines = epoch_lines(compare(runs))
    assert list(lines) == ["fbgemm, seed=0", "fbgemm, seed=1", "qnnpack, seed=0"]
    assert all(line["epochs"].tolist() == [2, 10] for line in lines.values())


def test_markdown_keeps_whole_rows_when_it_would_be_too_long() -> None:
    comparison = compare([tracked(f"run number {index}") for index in range(200)])
    markdown = text_table(comparison, "github", max_characters=7500)
    assert len(markdown) <= 7500
    assert "of 200 rows" in markdown
    assert markdown.endswith("200 runs compared\n")
    assert len({line.count("|") for line in markdown.splitlines() if line.startswith("|")}) == 1


class Fetches(HTMLParser):
    """Everything in a page that a browser would fetch, and the tags it has."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.feed(content)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attributes if name in ("src", "href", "srcset", "data")]


def test_page_fetches_nothing_and_tells_of_each_model_where_it_lies(tmp_path: Path) -> None:
    content = write_comparison(compare([tracked("a")]), tmp_path)[0].read_text()
    found = Fetches(content)
    assert [address.partition(",")[0] for address in found.addresses] == ["data:image/png;base64"] * 2
    assert not {"link", "iframe", "object", "base"} & set(found.tags)
    assert "default-src 'none'" in content
    assert content.count("<circle") == 3  # fp32 and int8 by their latency, int8 by its epochs
    assert content.count("int8, validation: 98.80 %\n2.00 ms, 11.30 MB</title>") == 2


def test_values_are_escaped_when_they_hold_html(tmp_path: Path) -> None:
    runs = [tracked(str(n), title=NASTY, parameters={"backend.name": NASTY, NASTY: f"{NASTY}{n}"}) for n in range(2)]
    content = write_comparison(compare(runs), tmp_path, title=NASTY)[0].read_text()
    assert NASTY not in content
    assert f"<h1>{html.escape(NASTY)}</h1>" in content
    assert "img" not in Fetches(content).tags
    assert content.count("<script") - content.count("</script>") == 0
    markdown = text_table(compare(runs), "github")
    assert len({line.replace("\\|", "").count("|") for line in markdown.splitlines() if line.startswith("|")}) == 1
    assert "<" not in markdown


def test_legend_is_cut_and_no_formula_when_a_setting_is_long_and_has_dollars(tmp_path: Path) -> None:
    runs = [tracked(str(n), parameters={"backend.name": f"$\\frac{n}$" * 30}) for n in range(2)]
    assert len(write_comparison(compare(runs), tmp_path)) == 4


def test_csv_gives_the_frame_back_when_pandas_reads_it(tmp_path: Path) -> None:
    runs = [tracked(str(epochs), title=f'a "b", {epochs}', parameters={"qat.epochs": str(epochs)}) for epochs in (1, 2)]
    path = next(path for path in write_comparison(compare(runs), tmp_path) if path.suffix == ".csv")
    expected = compare(runs).frame.astype({"run_id": int})
    pd.testing.assert_frame_equal(pd.read_csv(path), expected, check_dtype=False)


@pytest.mark.parametrize(
    "runs",
    [
        pytest.param([tracked("alone")], id="one run"),
        pytest.param([tracked("a", metrics(test_images=math.nan))], id="no number of images"),
        pytest.param(
            [tracked("a", metrics(latency=0.1)), tracked("b", metrics(latency=60.0))], id="latencies far apart"
        ),
        pytest.param([tracked(str(n), parameters={"seed": str(n), "qat.epochs": str(n)}) for n in range(40)], id="40"),
    ],
)
def test_all_files_are_whole(runs: list[TrackedRun], tmp_path: Path) -> None:
    written = write_comparison(compare(runs), tmp_path / "new")
    assert sorted(path.name for path in written) == sorted(path.name for path in (tmp_path / "new").iterdir())
    assert [path.name for path in written][:2] == ["comparison.html", "comparison.csv"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[2:])


def test_plot_over_epochs_of_an_earlier_comparison_goes_when_no_run_names_its_epochs(tmp_path: Path) -> None:
    write_comparison(compare([tracked("a")]), tmp_path)
    written = write_comparison(compare([TrackedRun("b", "b", "FINISHED", {}, metrics())]), tmp_path)
    assert not (tmp_path / "accuracy_epochs.png").exists()
    assert len(written) == 3


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A store with a sweep of four children (one failed), a run beside it, and an older experiment; ids by name."""
    outputs = tmp_path_factory.mktemp("compared") / "outputs"
    outputs.mkdir()
    client = mlflow.MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    ids: dict[str, str] = {}
    clock = iter(range(1_000, 100_000, 1_000))

    def add(experiment: str, name: str, status: str = "FINISHED", parent: str | None = None, **backend: str) -> None:
        tags = {"mlflow.parentRunId": ids[parent]} if parent else {}
        run = client.create_run(experiment, next(clock), tags, name).info.run_id
        for key, value in backend.items():
            client.log_param(run, key.replace("_", "."), value)
        if backend:
            for key, value in metrics().items():
                client.log_metric(run, key, value)
        client.set_terminated(run, status)
        ids[name] = run

    location = (outputs / "mlartifacts").as_uri()
    older = client.create_experiment("older", artifact_location=location)
    add(older, "old one", backend_name="x86")
    newer = client.create_experiment("pipeline", artifact_location=location)
    add(newer, "backend=fbgemm,qnnpack qat.epochs=1,2")
    for backend in ("fbgemm", "qnnpack"):
        for epochs in ("1", "2"):
            status = "FAILED" if (backend, epochs) == ("qnnpack", "2") else "FINISHED"
            name = f"backend={backend} qat.epochs={epochs}"
            add(newer, name, status, "backend=fbgemm,qnnpack qat.epochs=1,2", backend_name=backend, qat_epochs=epochs)
    add(newer, "alone", backend_name="onednn", qat_epochs="1")
    return outputs, ids


@pytest.fixture
def arguments(store: tuple[Path, dict[str, str]], tmp_path: Path) -> list[str]:
    """Those that point the command at the store and at a folder of the test."""
    return ["--tracking-uri", f"sqlite:///{store[0] / 'mlflow.db'}", "--output", str(tmp_path / "made")]


def run_command(*arguments: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "pipeline.compare", *arguments]
    return forked.run(line)


CHILDREN = ["backend=fbgemm qat.epochs=1", "backend=fbgemm qat.epochs=2", "backend=qnnpack qat.epochs=1"]
SWEEP = "backend=fbgemm,qnnpack qat.epochs=1,2"


def read(store: tuple[Path, dict[str, str]], *selection: str | None) -> list[str]:
    runs = read_runs(TrackingConfig(), store[0], *selection)
    return sorted(run.name for run in runs if run.status == "FINISHED")


def test_children_are_read_and_their_parent_is_no_row_when_a_sweep_is_selected(store: Any) -> None:
    assert read(store, SWEEP) == read(store, store[1][SWEEP]) == CHILDREN


def test_newest_experiment_is_read_when_nothing_is_selected(store: Any) -> None:
    assert read(store) == ["alone", *CHILDREN]
    assert read(store, None, "older") == ["old one"]


def test_matching_runs_are_read_when_the_selection_is_a_filter(store: Any) -> None:
    assert read(store, "params.`backend.name` = 'fbgemm'") == CHILDREN[:2]
    assert read(store, "params.`backend.name` = 'x86'", "older") == ["old one"]


def test_one_run_is_read_when_it_is_selected_itself(store: Any) -> None:
    assert read(store, "alone") == ["alone"]
    assert read(store, "old one") == ["old one"]


def test_files_and_description_are_kept_with_the_parent_when_a_sweep_ends(store: Any, tmp_path: Path) -> None:
    outputs, ids = store
    files = write_comparison(compare(read_runs(TrackingConfig(), outputs, ids[SWEEP])), tmp_path)
    summary = Summary("the table", files, metrics={"over_seeds/speedup_mean": 3.5})
    close_parent(TrackingConfig(), outputs, ids[SWEEP], SWEEP, "FINISHED", summary)
    client = mlflow.MlflowClient(f"sqlite:///{outputs / 'mlflow.db'}")
    assert {found.path for found in client.list_artifacts(ids[SWEEP])} == {path.name for path in files}
    parent = client.get_run(ids[SWEEP])
    assert parent.data.tags["mlflow.note.content"] == "the table"
    assert parent.data.metrics == {"over_seeds/speedup_mean": 3.5}
    assert parent.info.status == "FINISHED"


def test_command_prints_the_table_and_writes_the_files(arguments: list[str], tmp_path: Path) -> None:
    result = run_command(*arguments, SWEEP)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Sorted by the validation part: runs that lose at most 0.5 points")
    assert "3 runs compared; 1 left out (1 failed)" in result.stdout
    assert {path.name for path in (tmp_path / "made").iterdir()} == {
        "comparison.html",
        "comparison.csv",
        "accuracy_latency.png",
        "accuracy_epochs.png",
    }


@pytest.fixture
def refusal(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """The one line with which the command, called in this process, refuses further arguments."""

    def call(*further: str) -> str:
        monkeypatch.setattr(sys, "argv", ["compare", *arguments, *further])
        with pytest.raises(SystemExit) as ended:
            pipeline.compare.main()
        printed = capsys.readouterr()
        assert ended.value.code == 2
        assert printed.out == ""
        (line,) = printed.err.splitlines()
        assert line.startswith("error: ")
        return line

    return call


@pytest.mark.parametrize(
    ("further", "said"),
    [
        (["--experiment", "pipelin"], "did you mean 'pipeline'?"),
        (["alon"], "did you mean 'alone'?"),
        (["params.nothing = 'x'"], "none matches it"),
        (["params.`backend.name` == = 'x'"], "MLflow refuses it"),
        (["--max-drop-pct", "-1"], "allowed: at least 0"),
        (["--max-drop-pct", "nan"], "allowed: at least 0"),
        (["--max-drop-pct", "much"], "invalid float value"),
        (["--ouput", "x"], "did you mean '--output'?"),
        (["backend=qnnpack qat.epochs=2"], "nothing to compare: 1 left out (1 failed)"),
        (["--output", "/proc/nowhere"], "--output=/proc/nowhere: cannot be written"),
    ],
)
def test_command_refuses_in_one_line_when_the_user_is_mistaken(
    refusal: Callable[..., str], further: list[str], said: str
) -> None:
    assert said in refusal(*further)


def test_command_refuses_in_one_line_and_makes_no_store_when_there_is_none(
    refusal: Callable[..., str], tmp_path: Path
) -> None:
    assert "no such database" in refusal("--tracking-uri", f"sqlite:///{tmp_path / 'none.db'}")
    assert not (tmp_path / "none.db").exists()


def test_command_refuses_in_one_line_when_the_store_cannot_be_read(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_text("this is no database " * 100)
    no_database = (f"sqlite:///{tmp_path / 'bad.db'}", "no database of MLflow's")
    for uri, why in (no_database, ("what://is-this", "cannot be opened"), (str(tmp_path), "cannot be opened")):
        result = run_command(*arguments, "--tracking-uri", uri)
        assert (result.returncode, result.stdout) == (2, "")
        assert len(result.stderr.splitlines()) == 1, result.stderr
        assert why in result.stderr


@pytest.mark.operations
def test_torch_and_hydra_are_not_imported_when_runs_are_compared(arguments: list[str]) -> None:
    code = (
        "import sys; from pipeline import compare; compare.main(); print(sorted({'torch', 'hydra'} & set(sys.modules)))"
    )
    line = [sys.executable, "-c", code, *arguments]
    result = subprocess.run(line, cwd=PROJECT_ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
