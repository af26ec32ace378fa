"""Random command lines: each ends as a run that could begin, or as one clear line; nothing else, and leaving nothing.

`make test-operations` asks for 2,000 of them. The real entry is called; what is exchanged is the run alone, which ends
where its training would begin. An audit hook refuses every write outside the test's folder, as a user without rights
sees it.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import typing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra_plugins.hydra_joblib_launcher import joblib_launcher as hydra_joblib_launcher
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from pipeline.commands import composition
from pipeline.run import runner
from pipeline.settings.config import Config
from pipeline.sweeps import jobs, search

pytestmark = pytest.mark.operations

EXAMPLES = int(os.environ.get("PIPELINE_FUZZ", "60"))
# Which command lines: without a number, always the same.
SEED = os.environ.get("PIPELINE_FUZZ_SEED")
# A user's line is read in a terminal.
LONGEST_LINE = 1000
# More than any of them needs, on a busy machine.
SECONDS = 60


def settings_of(schema: Any = Config, prefix: str = "") -> Iterator[str]:
    for name, kind in typing.get_type_hints(schema).items():
        if dataclasses.is_dataclass(kind):
            yield from settings_of(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


KEYS = sorted(settings_of())
GROUPS = {
    "model": ["resnet18", "mobilenet_v2", "blog_resnet18"],
    "dataset": ["digits", "mnist", "image_folder"],
    "backend": ["fbgemm", "qnnpack", "x86"],
    "train": ["adamw_one_cycle", "sgd_cosine"],
    "qat": ["default", "adam_constant"],
    "runtime": ["default", "all"],
    "tracking": ["mlflow", "off"],
    "experiment": ["resnet18_mnist", "blog_defective", "blog_right"],
    "controls": ["full"],
    "hydra/sweeper": ["optuna", "basic"],
    "hydra/launcher": ["basic", "joblib"],
    "hydra/job_logging": ["none", "default"],
    "hydra/help": ["default"],
}
HYDRA_KEYS = [
    "hydra.run.dir",
    "hydra.sweep.dir",
    "hydra.sweep.subdir",
    "hydra.job.name",
    "hydra.job.num",
    "hydra.job.id",
    "hydra.job.chdir",
    "hydra.job.env_copy",
    "hydra.mode",
    "hydra.output_subdir",
    "hydra.launcher.n_jobs",
    "hydra.launcher._target_",
    "hydra.sweeper._target_",
    "hydra.sweeper.n_trials",
    "hydra.sweeper.n_jobs",
    "hydra.sweeper.objectives",
    "hydra.sweeper.storage",
    "hydra.sweeper.study_name",
    "hydra.callbacks",
    "hydra.hydra_logging",
    "hydra.job_logging",
    "hydra.runtime.cwd",
    "hydra.overrides.task",
    "hydra.help.template",
    "hydra.nowhere",
]
VALUES = [
    *("0", "1", "2", "-1", "0.5", "1e-3", "true", "false", "null", "cpu", "adam", "best", "[train]", "[train,fuse]"),
    *("[0.5]", "[0.1,0.2,0.3]", "32", "all", "data", "outputs", "", "''", '""', " ", "{}", "[]", "{a:1}", "[[1]]"),
    *("nan", "-nan", "inf", "-inf", "1e400", "1e-400", "-0", "0x10", "1_000", "9" * 30, "1e308", "1.5"),
    *("1,2", "0,0", "1,2,x", "range(1,3)", "range(3,1)", "range(0,1,0.25)"),
    *("choice(1,2)", "choice()", "choice(1)", "choice([1],{a:2})"),
    *("interval(0,1)", "interval(1,0)", "interval(0,inf)", "tag(log,interval(1e-5,1e-3))", "tag(log,interval(0,1))"),
    *("glob(*)", "glob([a*,b*],exclude=c)", "glob()", "sort(3,1,2)", "shuffle(1,2,3)", "sort(1,a)", "int(3.5)"),
    *("float(x)", "str(1)", "bool(maybe)", "json_str({a:1})", "tag()", "nope(1)", "extend_list(1)", "extend_list()"),
    *("${seed}", "${nope}", "${.}", "${..seed}", "${", "${}", "$", "${${seed}}", "${oc.env:HOME}", "${oc.env:NOPE_X}"),
    *("${oc.env:X,1}", "${oc.decode:1}", "${oc.create:{a:1}}", "${oc.select:seed}", "${now:%Y}", "${nope:1}"),
    *("${absolute:x}", "${absolute:}", "${hydra:runtime.cwd}", "${hydra:nope}", "${seed:}"),
    *("${train.epochs}", "${qat.epochs}", "${train}", "${qat}", "${stages}", "${outputs}", "${force}", "${model}"),
    *(
        "~",
        "~nobody/x",
        "../..",
        "/",
        "/dev/null",
        "/proc/nowhere",
        "a/b c",
        "x" * 300,
        "x" * 4100,
    ),
    *("'", '"', "\\", "'a\"", "\"a'", "\\'", "'\\'", "a'b", "[1", "1]", "{", "}", "{a}", "{a:}", "{:1}", "a:b", "a=b"),
    *(
        "=",
        "==",
        "a\nb",
        "a\tb",
        "é",
        "日本",
        "🙂",
        "\u202e",
        "\ufeff",
        "\x1b[31m",
    ),
    *(
        "!!python/object/apply:os.system [true]",
        "&a [*a]",
        "- a",
        "%s",
        "{0}",
        "$(true)",
        "`true`",
        "!x",
        "#x",
        "@x",
        "???",
    ),
    *(
        "'???'",
        "_global_",
        "None",
        "yes",
        "on",
        "1:30",
        "2001-01-01",
        "[a,null]",
        "[null]",
        "{a:null}",
        "{seed:1}",
        "[???]",
    ),
]
FLAGS = [
    *("-m", "--multirun", "-r", "--run", "--cfg", "--cfg=job", "--cfg=all", "--cfg=nope", "--resolve", "--info"),
    *("--info=searchpath", "--info=nope", "--help", "--hydra-help", "--package", "--package=qat", "--package=nope"),
    *("--config-name=config", "--config-dir=.", "--experimental-rerun=nope", "--nope", "--", "---", "-", "-x", "-mx"),
    *("--version", "-sc", "--seed=1"),
]

letters = st.characters(codec="utf-8", exclude_characters="\x00")
any_text = st.text(st.one_of(letters, st.sampled_from("=,[]{}()'\"\\$:~+@. \n")), max_size=30)
values = st.one_of(
    st.sampled_from(VALUES), st.sampled_from(VALUES), any_text, st.integers().map(str), st.floats().map(str)
)
valid_groups = st.sampled_from([f"{group}={option}" for group, options in GROUPS.items() for option in options])
PLAIN = [
    *("seed=1", "seed=0,1", "train.epochs=2", "qat.epochs=1,2", "stages=[train]", "stages=[train,fuse]", "device=cpu"),
    *("train.learning_rate=0.01", "dataset.root='a b'", "outputs=é", "tracking.run_name='a,b'", "force=true"),
    *("qat.freeze_bn_epoch=null", "benchmark.threads=[1,2]", "qat.learning_rate=${train.learning_rate}"),
    *("train.weight_decay=range(0,1,0.5)", "qat.learning_rate=interval(1e-5,1e-3)", "hydra.job.name=x"),
]
plain = st.sampled_from(PLAIN)
all_keys = st.sampled_from([*KEYS, *KEYS, *KEYS, *GROUPS, *HYDRA_KEYS])


@st.composite
def mutated_keys(draw: st.DrawFn) -> str:
    key = draw(all_keys)
    tail = st.sampled_from(
        ["", "", "", "", "@", "@x", "@_global_", "@a:b", ":", ".", ".x", ".0", "[0]", "/", "/x", " ", "\n"]
    )
    return draw(st.one_of(st.just(key), st.just(key[:-1]), st.just(key.upper()), any_text)) + draw(tail)


@st.composite
def mutated(draw: st.DrawFn) -> str:
    sign = draw(st.sampled_from(["", "", "", "+", "++", "~", "+++", "-"]))
    key = draw(st.one_of(all_keys, mutated_keys()))
    equals = draw(st.sampled_from(["=", "=", "=", "=", "=", "", "==", ":", " = "]))
    return f"{sign}{key}{equals}{draw(values)}" if equals else f"{sign}{key}"


strange = st.builds("{}={}".format, all_keys, st.sampled_from(VALUES))
joined = st.builds("{}={}".format, all_keys, st.lists(st.sampled_from(VALUES), min_size=2, max_size=3).map(",".join))
of_hydra = st.builds("{}{}={}".format, st.sampled_from(["", "+", "++"]), st.sampled_from(HYDRA_KEYS), values)
arguments = st.one_of(
    plain, plain, plain, strange, strange, joined, of_hydra, mutated(), valid_groups, valid_groups, any_text
)
flags = st.one_of(
    st.just([]), st.just([]), st.just(["-m"]), st.just(["-m"]), st.lists(st.sampled_from(FLAGS), min_size=1, max_size=3)
)
command_lines = st.builds(lambda some, others: [*some, *others], flags, st.lists(arguments, min_size=1, max_size=3))


class Guard:
    """While it is on, a write outside `folder` fails as it does for a user without the right to it."""

    folder: Path | None = None


def _refuse_writes(event: str, given: tuple[Any, ...]) -> None:
    if Guard.folder is None or event not in (
        "open",
        "os.mkdir",
        "os.rename",
        "os.remove",
        "os.symlink",
        "shutil.rmtree",
    ):
        return
    path, flags = given[0], given[2] if event == "open" else os.O_WRONLY
    if isinstance(path, int) or not flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        return
    path = os.path.realpath(os.fsdecode(path))
    if not path.startswith((str(Guard.folder), "/dev/null")) and "__pycache__" not in path:
        raise PermissionError(13, "Permission denied", path)


sys.addaudithook(_refuse_writes)


class Begun(BaseException):
    """The run or sweep could begin."""


class Hung(BaseException):
    """Too long."""


def begin(request: Any, *_: Any) -> None:
    runner.check_parts(request.config)
    raise Begun


def begin_search(self: search.Search, arguments: list[str]) -> None:
    raise Begun


def begin_in_processes(self: Any, job_overrides: Any, initial_job_idx: int) -> None:
    raise Begun


def _ring(*_: Any) -> None:
    raise Hung


@contextmanager
def exchanged(folder: Path) -> Iterator[None]:
    """The working directory is `folder`, and no run goes further than its checks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(runner, "run", begin)
        patch.setattr(jobs, "run_job", begin)
        patch.setattr(search.Search, "sweep", begin_search)
        patch.setattr(hydra_joblib_launcher.JoblibLauncher, "launch", begin_in_processes)
        patch.setattr(jobs.parents, "open_parent", lambda *_: None)
        patch.setenv("HYDRA_FULL_ERROR", "1")
        patch.setenv("X", "1")
        patch.chdir(folder)
        before = signal.signal(signal.SIGALRM, _ring)
        signal.alarm(SECONDS)
        Guard.folder = folder
        try:
            yield
        finally:
            Guard.folder = None
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)


def end_of(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """How `python -m pipeline ARGUMENTS` ends: begun, shown, or the line that refuses it."""
    capsys.readouterr()
    with exchanged(folder), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["pipeline", *arguments])
        try:
            composition.main()
        except Begun:
            return "begun"
        except SystemExit as ended:
            status = ended.code
        else:
            status = 0
    printed = capsys.readouterr()
    if status in (0, None):
        return "shown"
    assert status == 2, printed.err
    return printed.err


def check(arguments: list[str], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    end = end_of(arguments, folder, capsys)
    if end in ("begun", "shown"):
        return end
    assert end.startswith("error: "), end
    assert end.endswith("\n"), end
    line = end[len("error: ") : -1]
    assert line.strip(), end
    assert len(line.splitlines()) == 1, end
    assert line.isprintable(), repr(end)
    assert len(line) <= LONGEST_LINE, f"{len(line)} characters: {end}"
    assert "Traceback" not in line
    # Hydra's and the sweep's record of what was asked for may stay, and what is known of files.
    recorded = {
        ".hydra",
        ".seen",
        "multirun.yaml",
        *(["sweep.json"] if any("hydra" in text for text in arguments) else []),
    }
    left = [path for path in folder.rglob("*") if path.is_file() and not recorded.intersection(path.parts)]
    assert left == [], left
    return "refused"


# Each of these once ended in a traceback, in a hang, or in more than one line.
FOUND = [
    ["-m", "runtime.names=${train}"],
    ["runtime.names=${train}", "stages=[train]"],
    ["hydra=2"],
    ["-m", "hydra.sweeper.n_jobs=$"],
    ["hydra.mode=MULTIRUN"],
    ["hydra.run.dir=/proc/nowhere"],
    ["-r", "-m", "seed=1"],
    ["--cfg=job", "-m"],
    ["--resolve"],
    ["--config-path=nope", "-m"],
    ["--config-name=model/resnet18"],
    ["--experimental-rerun=nope"],
    ["benchmark.pin\n=-14508"],
    ["+evaluate.threads=\x1b[31m"],
]


@pytest.mark.parametrize("arguments", FOUND, ids=lambda given: ascii(" ".join(given))[1:50])
def test_command_line_ends_in_one_line_where_it_once_did_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert check(arguments, tmp_path, capsys) == "refused"


ENDS: dict[str, int] = {}


@pytest.fixture(scope="module", autouse=True)
def count() -> Iterator[None]:
    """Say at the end how many there were, and how they ended: `make test-operations` shows it."""
    yield
    ends = ", ".join(f"{number} {end}" for end, number in sorted(ENDS.items()))
    print(f"\n{sum(ENDS.values())} random command lines: {ends}")


def seeded(test: Callable[..., None]) -> Callable[..., None]:
    return seed(int(SEED))(test) if SEED else test


@seeded
@settings(
    max_examples=EXAMPLES,
    # Without explaining a failure: for that every line is traced, and a sweep of thousands of jobs never ends.
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    derandomize=not SEED,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)
@given(command_lines)
def test_command_line_ends_in_a_run_or_in_one_line_whatever_it_is(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    end = check(arguments, tmp_path_factory.mktemp("fuzz"), capsys)
    ENDS[end] = ENDS.get(end, 0) + 1
