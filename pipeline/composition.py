"""From the command line to a checked `Config`. Imports hydra, as `search.py` alone does besides.

Hydra composes; here its schema is registered, strays are refused with the nearest right name, and
every mistake ends as one line and exit status 2. All jobs of a sweep are composed and checked before
the first of them runs.
"""

from __future__ import annotations

import dataclasses
import os
import sys
import typing
import warnings
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.utils import get_args_parser
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pipeline import search, torchrun
from pipeline.command_line import fail
from pipeline.config import Config, check
from pipeline.errors import ProcessLost, UserError, suggestion
from pipeline.files import PROJECT_ROOT, in_project, make_writable_folder
from pipeline.schema import allowed_words, check_path, flatten, refuse_strays

if typing.TYPE_CHECKING:
    from pipeline.request import Request

CONFIG_FOLDER = PROJECT_ROOT / "conf"
CONFIG_NAME = "config"
_VERSION_BASE = "1.3"

ConfigStore.instance().store(name="schema", node=Config)
# Hydra checks conf/hydra/launcher/submitit_*.yaml by the plugin's dataclasses, as it should, and regrets that it does.
warnings.filterwarnings("ignore", message=r"\s*'hydra/launcher/submitit_", category=UserWarning)
OmegaConf.register_new_resolver("in_project", lambda path: str(in_project(path)), replace=True)


def main() -> None:
    """The command `python -m pipeline`."""
    try:
        parser = get_args_parser()
        parser.error = _refuse_arguments  # type: ignore[method-assign, assignment]
        arguments = parser.parse_args()
        if not (arguments.help or arguments.hydra_help or arguments.shell_completion):
            jobs = check_command_line(arguments.overrides, arguments.multirun)
            if not (arguments.cfg or arguments.info):
                for _, config in jobs:
                    make_writable_folder(in_project(config.outputs), "outputs")
                if arguments.multirun:
                    _run_sweep(arguments.overrides, jobs)
                    return
                if torchrun.rank() > 0:  # rank 0 alone keeps what Hydra keeps of a run
                    from pipeline.runner import run

                    run(compose_request(arguments.overrides))
                    return
        _run_hydra()
    except UserError as error:
        fail(str(error), status=2)
    except (HydraException, OmegaConfBaseException) as error:
        fail(one_line(error), status=2)
    except ProcessLost as error:
        fail(str(error), status=1)
    except KeyboardInterrupt:
        forced = any(text.startswith("force=") for text in sys.argv)
        fail("interrupted" if forced else "interrupted; the same command goes on from the last finished epoch", 130)


def _refuse_arguments(message: str) -> NoReturn:
    """What argparse cannot read, in one line instead of its usage."""
    unknown = message.removeprefix("unrecognized arguments: ").split(" ")[0]
    flags = ["--multirun", "-m", "--cfg", "--help", "--hydra-help", "--info", "--resolve", "--package", "--config-name"]
    hint = suggestion(unknown, flags) if unknown.startswith("-") else "allowed: flags before the first key=value"
    raise UserError(f"{message}; {hint}")


def _run_hydra() -> None:
    # Hydra then lets exceptions through instead of printing and exiting by itself.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    _job()


def _run_sweep(overrides: list[str], jobs: list[tuple[list[str], Config]]) -> None:
    """Run a sweep: every job checked first, finished ones recognised, failures told at the end."""
    from pipeline.jobs import sweep_session
    from pipeline.runner import check_parts

    if torchrun.world_size() > 1:
        raise UserError("-m: a sweep of runs on several processes; allowed with torchrun: one run")
    for _, config in jobs:
        check_parts(config)
    config = jobs[0][1] if jobs else compose_request([text for text in overrides if "hydra" not in text]).config
    with sweep_session(overrides, [job for job, _ in jobs if job], config) as sweep:
        # The jobs, in whatever process, find the sweep by its folder.
        sys.argv.append(f"hydra.sweep.dir='{sweep.folder}'")
        _run_hydra()


@hydra.main(config_path=str(CONFIG_FOLDER), config_name=CONFIG_NAME, version_base=_VERSION_BASE)
def _job(composed: DictConfig) -> dict[str, float]:
    # torch and mlflow are imported only for a run.
    from pipeline.jobs import run_job
    from pipeline.runner import run

    hydra_config = HydraConfig.get()
    request = to_request(composed, list(hydra_config.overrides.task))
    if hydra_config.mode is RunMode.MULTIRUN:
        # What a job raises ends that job: Hydra goes on with the others, and raises at the end.
        return run_job(request, Path(hydra_config.sweep.dir), hydra_config.launcher.get("n_jobs", 1))
    try:
        return run(request).metrics
    except UserError as error:
        fail(str(error), status=2)


def check_command_line(overrides: list[str], multirun: bool) -> list[tuple[list[str], Config]]:
    """The overrides and the checked configuration of every job that `overrides` ask for.

    Of a search, these are jobs that hold every bound and every choice. Sweeps of sweepers that are not known
    here are checked only as far as their overrides can be read; their jobs are checked when they start.

    Raises:
        UserError: for the first mistake.
    """
    with hydra.initialize_config_dir(str(CONFIG_FOLDER), version_base=_VERSION_BASE, job_name="pipeline"):
        try:
            loader = GlobalHydra.instance().config_loader()
            parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
            for override in parsed:
                _check_override(override, multirun, loader)
            if not multirun:
                return [(overrides, to_config(hydra.compose(CONFIG_NAME, overrides)))]
            sweepers = [override.value() for override in parsed if override.key_or_group == "hydra/sweeper"]
            if sweepers == ["optuna"]:
                return [([], config) for config in _check_search(parsed)]  # its jobs are found as it goes
            if sweepers:
                return []
            jobs = [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
            return [(job, to_config(hydra.compose(CONFIG_NAME, job))) for job in jobs]
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(one_line(error)) from error


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
    from pipeline.request import Request

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
    config = OmegaConf.to_object(composed)
    assert isinstance(config, Config)
    check(config)
    return config


def one_line(error: Exception) -> str:
    """What a Hydra or OmegaConf exception says, in one line, with the override or key and what is allowed there."""
    if isinstance(error, OverrideParseException):
        return f"{error.override}: cannot be read ({_first_line(error)}); allowed: key=value, quoted where needed"
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    override = text.removeprefix("Error merging override ") if text.startswith("Error merging override ") else None
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OmegaConfBaseException) and cause.full_key:
            words = allowed_words(str(cause.full_key))
            return f"{override or cause.full_key}: {_first_line(cause)}" + (f"; allowed: {words}" if words else "")
        cause = cause.__cause__
    return text


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)


def _check_override(override: Override, multirun: bool, loader: ConfigLoader) -> None:
    """Refuse an unknown key or group option before Hydra does, with the nearest right name."""
    key, text = override.key_or_group, str(override.input_line)
    if override.is_sweep_override() and not multirun:
        raise UserError(f"{text}: several values; allowed: one, or all of them in a sweep with -m")
    groups = [group for group in loader.list_groups("") if group != "hydra"]
    if key == "hydra" or key.startswith(("hydra.", "hydra/")):
        return
    if override.is_delete():
        raise UserError(f"{text}: settings and groups cannot be removed; allowed: {key.split('=')[0]}=value")
    if key not in groups:
        check_path(key, text, groups)
        return
    defaults = [spec.name for spec in dataclasses.fields(Config)]
    if key not in defaults and not override.is_add():
        raise UserError(f"{text}: {key} is added, not replaced; allowed: +{text.lstrip('+')}")
    options = loader.get_group_options(key)
    discrete = override.is_sweep_override() and override.is_discrete_sweep()
    values = override.sweep_string_iterator() if discrete else [override.get_value_string()]
    for value in values:
        if value.strip("\"'") not in options:
            raise UserError(f"{key}={value}: no such {key}; {suggestion(value, options)}")
