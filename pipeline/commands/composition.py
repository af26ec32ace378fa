"""From the command line to a checked `Config`; imports hydra, as few others do (`make lint`).

Hydra composes; the typed configuration refuses what it does not have, and every mistake ends as one line and exit
status 2. All jobs of a sweep are composed and checked before the first of them runs.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import re
import sys
import typing
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

import pipeline
from pipeline.commands import composer
from pipeline.commands.arguments import flags_in_front, read_arguments
from pipeline.commands.command_line import INTERRUPTED, fail
from pipeline.commands.hydra_errors import composing, one_line
from pipeline.host import torchrun
from pipeline.host.errors import ProcessLost, UserError
from pipeline.host.faults import fault
from pipeline.host.files import make_writable_folder, resolved
from pipeline.settings import typed
from pipeline.settings.config import Config, check
from pipeline.settings.decision import DecisionConfig
from pipeline.settings.setting import check_settings
from pipeline.sweeps import search, search_space

if typing.TYPE_CHECKING:
    from pipeline.run.request import Request

CONFIG_FOLDER = Path(pipeline.__file__).parent / "conf"
CONFIG_NAME = "config"
_VERSION_BASE = "1.3"

# Once a run or sweep is under way, what it raises is no matter of what was typed.
_begun: list[bool] = []

# Of each of these groups one option is chosen; of experiments and controls several may be.
_SECTIONS = tuple(spec.name for spec in dataclasses.fields(Config) if dataclasses.is_dataclass(spec.default_factory))
# Groups whose choice may be the user's own code, called with what they say.
_OWN = ("model", "dataset")
_TYPED = OmegaConf.structured(Config)  # takes longer to make than to copy, which merging does
_SCHEMA = OmegaConf.structured(Config)
for _group in _OWN:
    OmegaConf.set_struct(_SCHEMA[_group].kwargs, False)
ConfigStore.instance().store(name="schema", node=_SCHEMA)
ConfigStore.instance().store(name="decision_schema", node=OmegaConf.structured(DecisionConfig))
# Hydra checks conf/hydra/launcher/submitit_*.yaml by the plugin's dataclasses, as it should, and regrets that it does.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/submitit_", category=UserWarning)


def _return_value(returned: JobReturn) -> object:
    if returned.status == JobStatus.COMPLETED:
        return returned._return_value
    raise returned._return_value


# Hydra's own prints a line of its own first, and without a setting that would stop it; the end tells every failure.
JobReturn.return_value = JobReturn.return_value.getter(_return_value)  # type: ignore[method-assign, attr-defined]
# The name that stands at the end of an import path.
OmegaConf.register_new_resolver("name_in", lambda path: re.split("[:.]", path or "own")[-1], replace=True)
OmegaConf.register_new_resolver("absolute", lambda path: str(resolved(path)), replace=True)


def main() -> None:
    """The command `python -m pipeline`."""
    _begun.clear()
    try:
        _run_command_line()
    except UserError as error:
        fail(error, status=2)
    except ProcessLost as error:
        fail(str(error), status=1)
    except Exception as error:
        of_what_was_typed = not _begun or isinstance(error, HydraException | OmegaConfBaseException)
        line = fault(error) or (one_line(error) if of_what_was_typed else None)
        if line is None:
            raise
        fail(line, status=2)
    except KeyboardInterrupt:
        forced = any(text.startswith("force=") for text in sys.argv)
        again = "" if forced else "; the same command goes on from the last finished epoch"
        fail(f"interrupted{again}", status=INTERRUPTED)


def _run_command_line() -> None:
    arguments = read_arguments(CONFIG_FOLDER)
    overrides, multirun = with_own(arguments.overrides), arguments.multirun
    sys.argv[1:] = [*flags_in_front(arguments), *overrides]
    jobs = [] if arguments.help or arguments.hydra_help else check_command_line(overrides, multirun)
    if not jobs or arguments.cfg:  # Hydra shows what was asked for
        _run_hydra()
        return
    if not multirun:
        _refuse_settings_of_sweeps(overrides)
    for _, config in jobs:
        make_writable_folder(resolved(config.outputs), "outputs")
    if multirun:
        _run_sweep(overrides, jobs)
    elif torchrun.rank() == 0:
        _run_hydra()
    else:  # rank 0 alone keeps what Hydra keeps of a run
        from pipeline.run.runner import run

        request = compose_request(overrides)
        _begun.append(True)
        run(request)


def with_own(overrides: list[str]) -> list[str]:
    """`overrides`, and before them `model=own` where they name a network of the user's own; likewise a data set.

    What conf/ says of the model or data set that would be chosen else is not said of theirs.

    Raises:
        UserError: when they cannot be composed.
    """
    keys = [text.partition("=")[0].lstrip("+") for text in overrides]
    asked = [group for group in _OWN if f"{group}.target" in keys and group not in keys]
    if not asked:
        return overrides
    chosen = [text for key, text in zip(keys, overrides, strict=True) if "." not in key and "," not in text]
    chosen += typed.config_dirs(overrides)
    with _initialized():
        composed = _compose(chosen)
    # An experiment may have chosen one of theirs, which is then changed.
    return [*(f"{group}=own" for group in asked if composed[group].target is None), *overrides]


@contextmanager
def _initialized() -> Iterator[None]:
    """Composing within the block; what Hydra raises there is one line.

    Raises:
        UserError: for everything but an interruption.
    """
    with composing(), hydra.initialize_config_dir(str(CONFIG_FOLDER), version_base=_VERSION_BASE, job_name="pipeline"):
        yield


def _compose(overrides: list[str]) -> DictConfig:
    return composer.compose(CONFIG_FOLDER, CONFIG_NAME, overrides)


def _refuse_what_hydra_takes(overrides: Iterable[str]) -> None:
    """What Hydra removes, the typed configuration would put back, with other values than conf/ has.

    Of a list of options it would merge all, of which the last one stays.
    """
    for text in overrides:
        key, _, value = text.lstrip("~").partition("=")
        if value.startswith("[") and key in _SECTIONS:
            listed = value.strip("[] ").replace(" ", "")
            raise UserError(f"{text}: allowed: one option; a sweep over several: -m {key}={listed}")
        if text.startswith("~") and not key.startswith("hydra"):
            raise UserError(f"{text}: settings and groups cannot be removed; allowed: {key}=value")


def _refuse_settings_of_sweeps(overrides: Iterable[str]) -> None:
    for text in overrides:
        if text.lstrip("+~").replace("/", ".").startswith(("hydra.launcher", "hydra.sweeper", "hydra.mode")):
            raise UserError(f"{text}: it starts the jobs of a sweep; allowed: with -m")


def _run_hydra() -> None:
    # Hydra then lets exceptions through instead of printing and exiting by itself.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    _job()


def _run_sweep(overrides: list[str], jobs: list[tuple[list[str], Config]]) -> None:
    """Run a sweep: every job checked first, finished ones recognised, failures told at the end."""
    from pipeline.run.runner import check_parts
    from pipeline.sweeps.jobs import sweep_session

    if torchrun.world_size() > 1:
        raise UserError("-m: a sweep of runs on several processes; allowed with torchrun: one run")
    for _, config in jobs:
        check_parts(config)
    with sweep_session(overrides, [job for job, _ in jobs if job], jobs[0][1]) as sweep:
        _begun.append(True)
        # The jobs, in whatever process, find the sweep by its folder.
        sys.argv.append(f"hydra.sweep.dir='{sweep.folder}'")
        _run_hydra()


@hydra.main(config_path=str(CONFIG_FOLDER), config_name=CONFIG_NAME, version_base=_VERSION_BASE)
def _job(composed: DictConfig) -> dict[str, float]:
    _begun.append(True)
    # torch and mlflow are imported only for a run.
    from pipeline.run.runner import run
    from pipeline.sweeps.jobs import run_job

    hydra_config = HydraConfig.get()
    request = to_request(composed, [*typed.config_dirs(hydra_config.overrides.hydra), *hydra_config.overrides.task])
    if hydra_config.mode is RunMode.MULTIRUN:
        # What a job raises ends that job: Hydra goes on with the others, and raises at the end.
        return run_job(request, Path(hydra_config.sweep.dir), hydra_config.launcher.get("n_jobs", 1))
    return run(request).metrics


def check_command_line(overrides: list[str], multirun: bool) -> list[tuple[list[str], Config]]:
    """The overrides and the checked configuration of every job that `overrides` ask for.

    Of a search, these are jobs that hold every bound and every choice, each without overrides.

    Raises:
        UserError: for the first mistake.
    """
    _refuse_what_hydra_takes(overrides)
    with _initialized():
        if not multirun:
            return [(overrides, to_config(_compose(overrides)))]
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
        for one in parsed:
            if one.key_or_group in ("hydra.sweeper", "hydra.launcher"):
                raise UserError(f"{one.input_line}: allowed: {one.key_or_group.replace('.', '/')}=name")
        jobs: list[tuple[list[str], Config]]
        if any(one.key_or_group == "hydra/sweeper" and one.value() == "optuna" for one in parsed):
            jobs = [([], config) for config in _check_search(parsed)]
        else:
            jobs = [(job, to_config(_compose(job))) for job in _jobs_of(parsed)]
        _check_launching([str(one.input_line) for one in parsed if one.is_hydra_override()], loader)
        return jobs


def _jobs_of(overrides: Iterable[Override]) -> list[list[str]]:
    """The overrides of each job of a grid, as Hydra's own sweeper forms them."""
    values: dict[str, list[str]] = {}
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values[key] = [f"{key}={override.get_value_element_as_str()}"]
        elif override.is_discrete_sweep():
            values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            raise UserError(f"{override.input_line}: allowed: with hydra/sweeper=optuna, or choice(…) or range(…)")
    return [list(job) for job in itertools.product(*values.values())]


def _check_launching(of_hydra: list[str], loader: ConfigLoader) -> None:
    """See that sweeper and launcher can be made, before a sweep is noted anywhere."""
    composed = hydra.compose(CONFIG_NAME, of_hydra, return_hydra_config=True)
    # Callbacks are asked when jobs run, and none do here.
    context = HydraContext(config_loader=loader, callbacks=None)  # type: ignore[arg-type]
    Plugins.instance().instantiate_sweeper(config=composed, hydra_context=context, task_function=_job)


def _check_search(overrides: list[Override]) -> list[Config]:
    from pipeline.reports.results import compared
    from pipeline.tasks.catalogue import find as find_task

    search.import_optuna()
    searched = (override for override in overrides if not override.is_hydra_override())
    jobs = search_space.read_search_space(searched).corners()
    checked = [to_config(_compose(job)) for job in jobs]
    for config in checked:
        search.check_reports(config)
    of_hydra = [str(override.input_line) for override in overrides if override.is_hydra_override()]
    sweeper = hydra.compose(CONFIG_NAME, [*of_hydra, *jobs[0]], return_hydra_config=True).hydra.sweeper
    search.read_settings(sweeper, compared(find_task(checked[0].task).primary))
    return checked


def compose_request(overrides: list[str]) -> Request:
    """What `python -m pipeline OVERRIDES` would run, for scripts, benchmarks and tests.

    Raises:
        UserError: as the command would.
    """
    overrides = with_own(overrides)
    _refuse_what_hydra_takes(overrides)
    with _initialized():
        return to_request(_compose(overrides), overrides)


def compose_decision(overrides: list[str]) -> DecisionConfig:
    """The budget and the ladder of `python -m pipeline.decide`.

    Raises:
        UserError: for whatever is wrong with them.
    """
    with _initialized():
        composed = OmegaConf.to_container(hydra.compose("decision", overrides), resolve=True)
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DecisionConfig), composed))
    assert isinstance(found, DecisionConfig)
    check_settings(found)
    return found


def to_request(composed: DictConfig, overrides: list[str]) -> Request:
    """What the runner needs of a composed configuration."""
    from pipeline.run.request import Request

    plain = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(plain, dict)
    return Request(_checked(plain), plain, overrides)


def to_config(composed: DictConfig) -> Config:
    """The typed, checked configuration.

    Raises:
        OmegaConfBaseException: for a key that no dataclass has (`+qat.epoch=5` gets past Hydra), or a wrong type.
        UserError: for a value out of its range.
    """
    return _checked(OmegaConf.to_container(composed, resolve=True))


def _checked(plain: object) -> Config:
    # An interpolation may have brought what no setting of that type can be: all is checked again by value.
    config = OmegaConf.to_object(OmegaConf.merge(_TYPED, plain))
    assert isinstance(config, Config)
    check(config)
    return config
