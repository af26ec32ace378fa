"""Hydra's side of a search: the Sweeper behind `hydra/sweeper=optuna`.

Thin on purpose: the space is read from Hydra's override grammar, the jobs go through Hydra's launcher, and
suggestions, memory and Pareto front are Optuna's (`study.py`). docs/search.md says why it is not the published
plugin. A Sweeper implements Hydra's interface, hence the import.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
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
from pipeline.settings.setting import check_settings, setting
from pipeline.sweeps import study
from pipeline.sweeps.search_space import SearchSpace, read_search_space

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
    objectives = given.get("objectives")
    if not isinstance(objectives, Mapping):
        words = suggestion("", METRICS)
        raise UserError(f"{_PREFIX}objectives={objectives}: allowed: {{metric: direction}}; of the metrics {words}")
    typed = OmegaConf.create({"hydra": {"sweeper": OmegaConf.structured(SearchConfig)}})
    settings = OmegaConf.to_object(OmegaConf.merge(typed, {"hydra": {"sweeper": given}}).hydra.sweeper)
    assert isinstance(settings, SearchConfig)
    check_settings(settings, _PREFIX)
    for name, direction in settings.objectives.items():
        if name not in METRICS:
            raise UserError(f"{_PREFIX}objectives: no run reports '{name}'; {suggestion(name, METRICS)}")
        if direction not in ("maximize", "minimize", None):
            allowed = suggestion(direction, ("maximize", "minimize", "null"))
            raise UserError(f"{_PREFIX}objectives: {name}: {direction}; {allowed}")
    settings.objectives = {name: direction for name, direction in settings.objectives.items() if direction is not None}
    if not settings.objectives:
        raise UserError(f"{_PREFIX}objectives: none has a direction; {suggestion('', METRICS)}")
    if settings.study_name is not None and Path(settings.study_name).name != settings.study_name:
        raise UserError(f"{_PREFIX}study_name={settings.study_name}: allowed: a name that a folder can have, or null")
    return settings


def check_reports(job: Config) -> None:
    """Refuse a run that cannot report objectives.

    Raises:
        UserError: when it does not evaluate.
    """
    if "evaluate" not in job.stages:
        raise UserError(
            f"stages=[{','.join(job.stages)}]: allowed in a search: with evaluate, which reports objectives"
        )


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
        # The same whenever the same is asked.
        name = settings.study_name or hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
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
                    reached = study.tell(memory, trial, result.return_value)
                except Exception as error:  # whatever ended the run ends this trial alone
                    first = next(iter(str(error).splitlines()), "")
                    failures.append(first if isinstance(error, UserError) else f"{type(error).__name__}: {first}")
                    study.tell_failure(memory, trial, failures[-1])
                    terminal.warn(f"trial {trial.number} failed: {failures[-1]}")
                else:
                    shown = ", ".join(f"{name} {value:.4g}" for name, value in reached.items())
                    terminal.say(f"trial {trial.number} finished: {shown}")
        front, objectives = study.front(memory), self.settings.objectives
        if front:
            write_front(front, list(objectives), front_file)
            goals = ", ".join(f"{name} {direction}" for name, direction in objectives.items())
            terminal.say(f"\nPareto front of {study.finished(memory)} trials ({goals}), in {front_file}\n")
            terminal.say(front_table(front, list(objectives)))
        if failures:
            raise SystemExit(
                f"error: {len(failures)} of {len(returns)} trials failed, the first with: {failures[0]}; "
                "the same command tries others in their place"
            )
        return returns
