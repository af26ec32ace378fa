"""From the command line to a checked `Config`; imports hydra, as few others do (tests/test_conventions.py).

Hydra composes; here its schema is registered, strays are refused with the nearest right name, and
every mistake ends as one line and exit status 2. All jobs of a sweep are composed and checked before
the first of them runs.
"""

from __future__ import annotations

import os
import sys
import typing
import warnings
from pathlib import Path

import hydra
from hydra._internal.callbacks import Callbacks
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
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

from pipeline.commands.arguments import read_arguments
from pipeline.commands.command_line import INTERRUPTED, fail
from pipeline.commands.config_files import check_config_files
from pipeline.commands.typed import (
    check_override,
    check_single,
    check_size,
    check_sweep_settings,
    check_texts,
    composing,
    one_line,
    showing,
)
from pipeline.host import torchrun
from pipeline.host.errors import ProcessLost, UserError
from pipeline.host.faults import fault, told
from pipeline.host.files import PROJECT_ROOT, in_project, make_writable_folder, tell_folder
from pipeline.settings.config import Config, check
from pipeline.settings.schema import flatten, refuse_strays
from pipeline.sweeps import search

if typing.TYPE_CHECKING:
    from pipeline.run.request import Request

CONFIG_FOLDER = PROJECT_ROOT / "conf"
CONFIG_NAME = "config"
_VERSION_BASE = "1.3"
# Of interpolations of interpolations a few lines could fill the memory.
_MOST_INTERPOLATIONS = 16

# Once a run or sweep is under way, what it raises is no matter of what was typed.
_begun: list[bool] = []

ConfigStore.instance().store(name="schema", node=Config)
# Hydra checks conf/hydra/launcher/submitit_*.yaml by the plugin's dataclasses, as it should, and regrets that it does.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/submitit_", category=UserWarning)


def _return_value(returned: JobReturn) -> object:
    if returned.status == JobStatus.COMPLETED:
        return returned._return_value
    raise returned._return_value


# Hydra's own prints a line of its own first, and without a setting that would stop it; the end tells every failure.
JobReturn.return_value = JobReturn.return_value.getter(_return_value)  # type: ignore[method-assign, attr-defined]
OmegaConf.register_new_resolver("in_project", lambda path: str(in_project(path)), replace=True)


def main() -> None:
    """The command `python -m pipeline`."""
    _begun.clear()
    try:
        arguments = read_arguments()
        if not (arguments.help or arguments.hydra_help or arguments.shell_completion):
            jobs = check_command_line(arguments.overrides, arguments.multirun)
            if not (arguments.cfg or arguments.info):
                if not arguments.multirun:
                    check_single(arguments.overrides)
                for _, config in jobs:
                    make_writable_folder(in_project(config.outputs), "outputs")
                if jobs and torchrun.rank() == 0:
                    tell_folder(jobs[0][1].outputs)
                if arguments.multirun:
                    _run_sweep(arguments.overrides, jobs)
                    return
                if torchrun.rank() > 0:  # rank 0 alone keeps what Hydra keeps of a run
                    from pipeline.run.runner import run

                    request = compose_request(arguments.overrides)
                    _begun.append(True)
                    run(request)
                    return
        with showing(arguments.package if arguments.cfg else None):
            _run_hydra()
    except UserError as error:
        fail(str(error), status=2)
    except (HydraException, OmegaConfBaseException) as error:
        fail(one_line(error), status=2)
    except ProcessLost as error:
        fail(str(error), status=1)
    except Exception as error:
        line = fault(error) or (None if _begun else one_line(error))  # Hydra reads its own settings last
        if line is None:
            raise
        fail(line, status=2)
    except KeyboardInterrupt:
        forced = any(text.startswith("force=") for text in sys.argv)
        again = "" if forced else "; the same command goes on from the last finished epoch"
        fail(f"interrupted{again}", status=INTERRUPTED)


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
    config = jobs[0][1] if jobs else compose_request([text for text in overrides if "hydra" not in text]).config
    with sweep_session(overrides, [job for job, _ in jobs if job], config) as sweep:
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
    request = to_request(composed, list(hydra_config.overrides.task))
    if hydra_config.mode is RunMode.MULTIRUN:
        # What a job raises ends that job: Hydra goes on with the others, and raises at the end.
        return run_job(request, Path(hydra_config.sweep.dir), hydra_config.launcher.get("n_jobs", 1))
    try:
        with told():
            return run(request).metrics
    except UserError as error:
        fail(str(error), status=2)
    except ProcessLost as error:
        fail(str(error), status=1)


def check_command_line(overrides: list[str], multirun: bool) -> list[tuple[list[str], Config]]:
    """The overrides and the checked configuration of every job that `overrides` ask for.

    Of a search, these are jobs that hold every bound and every choice. Sweeps of sweepers that are not known
    here are checked only as far as their overrides can be read; their jobs are checked when they start.

    Raises:
        UserError: for the first mistake.
    """
    check_texts(overrides)
    check_config_files(CONFIG_FOLDER)
    with composing(), hydra.initialize_config_dir(str(CONFIG_FOLDER), version_base=_VERSION_BASE, job_name="pipeline"):
        loader = GlobalHydra.instance().config_loader()
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
        for override in parsed:
            check_override(override, multirun, loader)
        if not multirun:
            return [(overrides, to_config(hydra.compose(CONFIG_NAME, overrides)))]
        sweepers = [override.value() for override in parsed if override.key_or_group == "hydra/sweeper"]
        if sweepers == ["optuna"]:  # its jobs are found as it goes
            searched = _check_search(parsed)
        _check_sweeper([str(override.input_line) for override in parsed if override.is_hydra_override()], loader)
        if sweepers == ["optuna"]:
            return [([], config) for config in searched]
        if sweepers:
            return []
        check_size(parsed)
        jobs = [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
        return [(job, to_config(hydra.compose(CONFIG_NAME, job))) for job in jobs]


def _check_sweeper(of_hydra: list[str], loader: ConfigLoader) -> None:
    """See that sweeper and launcher can be made, before a sweep is noted anywhere."""
    composed = hydra.compose(CONFIG_NAME, of_hydra, return_hydra_config=True)
    check_sweep_settings(composed.hydra)
    context = HydraContext(config_loader=loader, callbacks=Callbacks())
    Plugins.instance().instantiate_sweeper(config=composed, hydra_context=context, task_function=_job)


def _check_search(overrides: list[Override]) -> list[Config]:
    search.check_names(overrides)
    jobs = search.read_search_space(override for override in overrides if not override.is_hydra_override()).corners()
    checked = [to_config(hydra.compose(CONFIG_NAME, job)) for job in jobs]
    for config in checked:
        search.check_reports(config)
    of_hydra = [str(override.input_line) for override in overrides if override.is_hydra_override()]
    search.read_settings(hydra.compose(CONFIG_NAME, [*of_hydra, *jobs[0]], return_hydra_config=True).hydra.sweeper)
    return checked


def compose_request(overrides: list[str]) -> Request:
    """What `python -m pipeline OVERRIDES` would run, for scripts, benchmarks and tests.

    Raises:
        UserError: as the command would.
    """
    check_command_line(overrides, multirun=False)
    with hydra.initialize_config_dir(str(CONFIG_FOLDER), version_base=_VERSION_BASE, job_name="pipeline"):
        return to_request(hydra.compose(CONFIG_NAME, overrides), overrides)


def to_request(composed: DictConfig, overrides: list[str]) -> Request:
    """What the runner needs of a composed configuration."""
    from pipeline.run.request import Request

    config = to_config(composed)
    plain = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(plain, dict)
    return Request(config, OmegaConf.to_yaml(plain), dict(flatten(plain)), overrides)


def to_config(composed: DictConfig) -> Config:
    """The typed, checked configuration.

    Raises:
        UserError: for a key that no dataclass has (`+qat.epoch=5` gets past Hydra), or a bad value.
    """
    refuse_strays(composed)
    if OmegaConf.to_yaml(composed).count("${") > _MOST_INTERPOLATIONS:
        raise UserError(f"too many interpolations ${{…}} in all settings; allowed: {_MOST_INTERPOLATIONS}")
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    check(config)
    return config
