"""Hydra's side of a search: the Sweeper behind `hydra/sweeper=optuna`.

Thin on purpose: the space is read from Hydra's override grammar, the jobs go through Hydra's launcher, and
suggestions, memory and Pareto front are Optuna's (`study.py`). docs/search.md says why it is not the published
plugin. A Sweeper implements Hydra's interface, hence the import.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from pipeline.host import terminal
from pipeline.host.errors import UserError, suggestion
from pipeline.host.files import in_project
from pipeline.reports.pareto import front_table, write_front
from pipeline.reports.results import METRICS
from pipeline.settings.config import Config
from pipeline.settings.schema import is_number
from pipeline.settings.setting import check_settings, setting
from pipeline.sweeps import search_space, study
from pipeline.sweeps.search_space import SearchSpace

_PREFIX = "hydra.sweeper."


@dataclass
class SearchConfig:
    """The settings of conf/hydra/sweeper/optuna.yaml."""

    objectives: dict[str, str | None] = field(default_factory=dict)
    n_trials: int = setting(20, minimum=1, maximum=1_000_000)
    n_jobs: int = setting(1, minimum=1, maximum=1024)
    seed: int = setting(0, minimum=0, maximum=2**32 - 1)
    study_name: str | None = setting(None)
    storage: str = setting()


def read_settings(node: Mapping[Any, Any]) -> SearchConfig:
    """The typed, checked settings of the sweeper; of the objectives, those that have a direction.

    Raises:
        UserError: for the first that is wrong.
        OmegaConfBaseException: for a value of the wrong type.
    """
    given = {str(name): value for name, value in node.items() if name != "_target_"}
    typed = OmegaConf.create({"hydra": {"sweeper": OmegaConf.structured(SearchConfig)}})
    settings = OmegaConf.to_object(OmegaConf.merge(typed, {"hydra": {"sweeper": given}}).hydra.sweeper)
    assert isinstance(settings, SearchConfig)
    check_settings(settings, _PREFIX)
    _check_objectives(settings.objectives)
    settings.objectives = {name: direction for name, direction in settings.objectives.items() if direction is not None}
    if not settings.objectives:
        raise UserError(f"{_PREFIX}objectives: none has a direction; {suggestion('', METRICS)}")
    if settings.study_name is not None and Path(settings.study_name).name != settings.study_name:
        raise UserError(f"{_PREFIX}study_name={settings.study_name}: allowed: a name that a folder can have, or null")
    return settings


def _check_objectives(objectives: Mapping[Any, Any]) -> None:
    for name, direction in objectives.items():
        if name not in METRICS:
            raise UserError(f"{_PREFIX}objectives: no run reports '{name}'; {suggestion(str(name), METRICS)}")
        if direction not in ("maximize", "minimize", None):
            allowed = suggestion(str(direction), ("maximize", "minimize", "null"))
            raise UserError(f"{_PREFIX}objectives: {name}: {direction}; {allowed}")


def check_names(overrides: Iterable[Override]) -> None:
    """Refuse a setting or an objective of the sweeper that there is not, and a search without Optuna.

    Raises:
        UserError: for the first.
    """
    study.import_optuna()
    names = [_PREFIX + name for name in SearchConfig.__dataclass_fields__]
    for override in overrides:
        key, value = override.key_or_group, override.value()
        if f"{key}.".startswith(_PREFIX) and key not in names:
            raise UserError(f"{override.input_line}: no such setting; {suggestion(key, names)}")
        if key == f"{_PREFIX}objectives":
            if not isinstance(value, dict):
                raise UserError(f"{override.input_line}: allowed: {{metric: direction}}; {suggestion('', METRICS)}")
            _check_objectives(value)


def check_reports(job: Config) -> None:
    """Refuse a run that cannot report objectives.

    Raises:
        UserError: when it does not evaluate.
    """
    if "evaluate" not in job.stages:
        raise UserError(
            f"stages=[{','.join(job.stages)}]: allowed in a search: with evaluate, which reports objectives"
        )


def read_search_space(overrides: Iterable[Override]) -> SearchSpace:
    """The space that a command line spans; of a key that is given twice, the last counts.

    Raises:
        UserError: for a sweep that cannot be searched, or when there is nothing to search.
    """
    distributions: dict[str, Any] = {}
    fixed: dict[str, str] = {}
    for override in overrides:
        key = override.get_key_element()
        distributions.pop(key, None)
        fixed.pop(key, None)
        if override.is_sweep_override():
            distributions[key] = _distribution(override)
        else:
            fixed[key] = f"{key}={override.get_value_element_as_str()}"
    if not distributions:
        raise UserError(
            "hydra/sweeper=optuna: nothing to search; allowed: at least one key=interval(low,high), "
            "key=tag(log,interval(low,high)), key=range(start,stop,step) or key=choice(a,b)"
        )
    return SearchSpace(distributions, list(fixed.values()))


def _distribution(override: Override) -> Any:
    if override.is_choice_sweep():
        return search_space.choice(list(override.sweep_string_iterator()))
    text, key, value = str(override.input_line), override.key_or_group, override.value()
    assert isinstance(value, IntervalSweep | RangeSweep)
    if not is_number(key):
        raise UserError(f"{text}: '{key}' is not a number; allowed: choice(a,b)")
    if isinstance(value, IntervalSweep) and value.tags <= {"log"}:
        assert value.start is not None
        assert value.end is not None
        return search_space.interval(text, key, value.start, value.end, log="log" in value.tags)
    if isinstance(value, RangeSweep) and not value.tags:
        assert value.start is not None
        assert value.stop is not None
        return search_space.number_range(text, key, value.start, value.stop, value.step)
    raise UserError(f"{text}: allowed: no tag, or tag(log,interval(low,high))")


class Search(Sweeper):
    """Ask, launch, tell, until `n_trials` have finished; then show the Pareto front."""

    def __init__(self, **settings: Any) -> None:
        self.settings = read_settings(settings)

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what a sweep needs; Hydra calls this."""
        self.config = config
        self.hydra_context = hydra_context
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> list[JobReturn]:
        """Run the trials that the study lacks, and give what the launcher returned for them.

        Raises:
            UserError: when the study cannot be opened, is another search's, or is being searched already.
            SystemExit: with status 1 when a trial failed.
        """
        assert self.config is not None
        assert self.hydra_context is not None
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        space = read_search_space(parser.parse_overrides(arguments))
        settings = self.settings
        objectives = [list(pair) for pair in settings.objectives.items()]  # as they come back from the database
        asked = {"overrides": sorted(arguments), "objectives": objectives, "seed": settings.seed}
        name = settings.study_name or study.study_name(asked)
        for objective in settings.objectives:
            if objective.endswith("accuracy_pct") and not objective.startswith("val/"):
                terminal.warn(
                    f"{_PREFIX}objectives: {objective} is of the test part, which then says too much good of what is "
                    "chosen: val/int8_accuracy_pct is of the validation part"
                )
        folder = in_project(self.config.outputs) / "search" / name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # What another process has running must not be taken for interrupted.
            with FileLock(folder / ".lock", timeout=0):
                return self._search(study.open_study(settings.storage, name, asked), space, folder / "pareto.csv")
        except Timeout as error:
            raise UserError(f"study {name}: another process is at it; wait for its end, then go on") from error

    def _search(self, memory: Any, space: SearchSpace, front_file: Path) -> list[JobReturn]:
        total, before = self.settings.n_trials, study.finished(memory)
        terminal.say(f"search {memory.study_name}: {before} of {total} trials finished, in {self.settings.storage}")
        for line in study.requeue_interrupted(memory):
            terminal.say(line)
        returns: list[JobReturn] = []
        failures: list[str] = []
        while (left := total - before - len(returns)) > 0:
            batch = [study.suggest(memory, space, self.settings.seed) for _ in range(min(left, self.settings.n_jobs))]
            results = self.launcher.launch([job for _, job in batch], initial_job_idx=len(returns))
            for (trial, _), result in zip(batch, results, strict=True):
                returns.append(result)
                try:
                    objectives = study.tell(memory, trial, result.return_value)
                except Exception as error:  # whatever ended the run ends this trial alone
                    failures.append(_reason(error))
                    study.tell_failure(memory, trial, failures[-1])
                    terminal.warn(f"trial {trial.number} failed: {failures[-1]}")
                else:
                    reached = ", ".join(f"{name} {value:.4g}" for name, value in objectives.items())
                    terminal.say(f"trial {trial.number} finished: {reached}")
        self._show_front(memory, front_file)
        if failures:
            raise SystemExit(
                f"error: {len(failures)} of {len(returns)} trials failed, the first with: {failures[0]}; "
                "the same command tries others in their place"
            )
        return returns

    def _show_front(self, memory: Any, path: Path) -> None:
        front, objectives = study.front(memory), list(self.settings.objectives)
        if not front:
            return
        write_front(front, objectives, path)
        goals = ", ".join(f"{name} {direction}" for name, direction in self.settings.objectives.items())
        terminal.say(f"\nPareto front of {study.finished(memory)} trials ({goals}), in {path}\n")
        terminal.say(front_table(front, objectives))


def _reason(error: Exception) -> str:
    first = next(iter(str(error).splitlines()), "")
    return first if isinstance(error, UserError) else f"{type(error).__name__}: {first}"
