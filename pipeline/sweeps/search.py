"""Searches: the Sweeper behind `hydra/sweeper=optuna`, whose memory is Optuna's study in a database under `outputs`.

Thin on purpose: the space is read from Hydra's override grammar (`search_space.py`), the jobs go through Hydra's
launcher, and suggestions, memory and Pareto front are Optuna's. docs/search.md says why it is not the published
plugin. A Sweeper implements Hydra's interface, hence the import.

The sampler is TPE: it takes mixed spaces (logarithmic, whole, choices) and several objectives, and learns from
tens of trials, which is what a night of training gives; a genetic sampler needs generations of them.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from pipeline.host.files import how_to_install, resolved
from pipeline.reports.pareto import FrontTrial, front_table, write_front
from pipeline.settings.config import Config
from pipeline.settings.setting import check_settings, setting
from pipeline.settings.typed import config_dirs, config_dirs_content
from pipeline.sweeps.search_space import SearchSpace, plain, read_search_space

if TYPE_CHECKING:
    import optuna

_PREFIX = "hydra.sweeper."
# What a study keeps of itself, and of each trial.
_ASKED, _OVERRIDES, _ERROR, _ATTEMPT = "asked", "overrides", "error", "attempt"
_ATTEMPTS = 5


@dataclass
class SearchConfig:
    """The settings of conf/hydra/sweeper/optuna.yaml."""

    objectives: dict[str, str | None] = field(default_factory=dict)
    n_trials: int = setting(20, minimum=1, maximum=1_000_000)
    n_jobs: int = setting(1, minimum=1, maximum=1024)
    seed: int = setting(0, minimum=0, maximum=2**32 - 1)
    study_name: str | None = setting(None)
    storage: str = setting()


def read_settings(node: Mapping[Any, Any], metrics: Sequence[str] | None = None) -> SearchConfig:
    """The typed, checked settings of the sweeper; of the objectives, those that have a direction.

    Args:
        metrics: what the runs report; None: that was asked before.

    Raises:
        UserError: for the first that is wrong.
        OmegaConfBaseException: for a value of the wrong type.
    """
    given = {str(name): value for name, value in node.items() if name != "_target_"}
    objectives = given.get("objectives")
    if not isinstance(objectives, Mapping):
        words = f"; of the metrics {suggestion('', metrics)}" if metrics else ""
        raise UserError(f"{_PREFIX}objectives={objectives}: allowed: {{metric: direction}}{words}")
    typed = OmegaConf.create({"hydra": {"sweeper": OmegaConf.structured(SearchConfig)}})
    settings = OmegaConf.to_object(OmegaConf.merge(typed, {"hydra": {"sweeper": given}}).hydra.sweeper)
    assert isinstance(settings, SearchConfig)
    check_settings(settings, _PREFIX)
    for name, direction in settings.objectives.items():
        if metrics is not None and name not in metrics and direction is not None:
            raise UserError(f"{_PREFIX}objectives: no run reports '{name}'; {suggestion(name, metrics)}")
        if direction not in ("maximize", "minimize", None):
            allowed = suggestion(str(direction), ("maximize", "minimize", "null"))
            raise UserError(f"{_PREFIX}objectives: {name}: {direction}; {allowed}")
    settings.objectives = {name: direction for name, direction in settings.objectives.items() if direction is not None}
    if not settings.objectives:
        words = f"; {suggestion('', metrics)}" if metrics else ""
        raise UserError(f"{_PREFIX}objectives: none has a direction{words}")
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


def import_optuna() -> Any:
    """Optuna, which says only what is wrong.

    Raises:
        UserError: when it is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        if error.name != "optuna":
            raise
        raise UserError(
            f"hydra/sweeper=optuna: optuna is not installed here; {how_to_install('search')} brings it"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Of Optuna 4: constant_liar and metric names, as they are since.
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


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
        from pipeline.tasks.catalogue import find as find_task  # imports torch, which --help need not wait for

        metric = find_task(self.config.task).primary
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        space = read_search_space(parser.parse_overrides(arguments))
        settings = self.settings
        objectives = [list(pair) for pair in settings.objectives.items()]  # as they come back from the database
        asked = {"overrides": sorted(arguments), "objectives": objectives, "seed": settings.seed}
        if of_folder := config_dirs_content(self.config.hydra.overrides.hydra):
            asked["--config-dir"] = of_folder
        # The same whenever the same is asked.
        name = settings.study_name or hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]
        for objective in settings.objectives:
            if objective.endswith(metric.name) and not objective.startswith("val/"):
                terminal.warn(
                    f"{_PREFIX}objectives: {objective} is of the test part, which then says too much good of what is "
                    f"chosen: val/int8_{metric.name} is of the validation part"
                )
        folder = resolved(self.config.outputs) / "search" / name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            # What another process has running must not be taken for interrupted.
            with FileLock(folder / ".lock", timeout=0):
                study = self._open_study(name, asked)
                returns, failures = self._run_trials(study, space)
                self._show_front(study, folder / "pareto.csv")
        except Timeout as error:
            raise UserError(f"study {name}: another process is at it; wait for its end, then go on") from error
        if failures:
            raise SystemExit(
                f"error: {len(failures)} of {len(returns)} trials failed, the first with: {failures[0]}; "
                "the same command tries others in their place"
            )
        return returns

    def _open_study(self, name: str, asked: dict[str, Any]) -> optuna.Study:
        """The study of that name, created where it is missing."""
        optuna = import_optuna()
        from sqlalchemy.exc import SQLAlchemyError

        storage, objectives = self.settings.storage, self.settings.objectives
        try:
            study = optuna.create_study(
                storage=storage, study_name=name, directions=list(objectives.values()), load_if_exists=True
            )
        except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, RuntimeError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise UserError(
                f"{_PREFIX}storage={storage}: cannot be opened: {reason}; allowed: the URL of a database"
            ) from error
        earlier = study.user_attrs.get(_ASKED)
        if earlier is None:
            study.set_metric_names(list(objectives))
            study.set_user_attr(_ASKED, asked)
        elif earlier != asked:
            differs = next(key for key in {**earlier, **asked} if earlier.get(key) != asked.get(key))
            raise UserError(
                f"{_PREFIX}study_name={name}: is another search, with {differs} {earlier.get(differs)}; "
                "allowed: a name that is not taken, or null"
            )
        return study

    def _run_trials(self, study: optuna.Study, space: SearchSpace) -> tuple[list[JobReturn], list[str]]:
        """What the launcher returned for each trial that the study lacks, and why those failed that did."""
        from optuna.trial import TrialState

        total, before = self.settings.n_trials, _finished(study)
        terminal.say(f"search {study.study_name}: {before} of {total} trials finished, in {self.settings.storage}")
        _requeue_interrupted(study)
        returns: list[JobReturn] = []
        failures: list[str] = []
        while (left := total - before - len(returns)) > 0:
            batch = [_suggest(study, space, self.settings.seed) for _ in range(min(left, self.settings.n_jobs))]
            jobs = [trial.user_attrs[_OVERRIDES] for trial in batch]
            for trial, result in zip(batch, self.launcher.launch(jobs, initial_job_idx=len(returns)), strict=True):
                returns.append(result)
                try:
                    reached = _objectives_of(result.return_value, self.settings.objectives)
                except Exception as error:  # whatever ended the run ends this trial alone
                    first = next(iter(str(error).splitlines()), "")
                    failures.append(first if isinstance(error, UserError) else f"{type(error).__name__}: {first}")
                    trial.set_user_attr(_ERROR, failures[-1])
                    study.tell(trial, state=TrialState.FAIL)
                    terminal.warn(f"trial {trial.number} failed: {failures[-1]}")
                else:
                    study.tell(trial, list(reached.values()))
                    shown = ", ".join(f"{name} {value:.4g}" for name, value in reached.items())
                    terminal.say(f"trial {trial.number} finished: {shown}")
        return returns, failures

    def _show_front(self, study: optuna.Study, path: Path) -> None:
        """Show and write the trials that no other beats in every objective."""
        objectives = list(self.settings.objectives)
        assert self.config is not None
        beside = config_dirs(self.config.hydra.overrides.hydra)
        front = [
            FrontTrial(
                trial.number,
                trial.values,
                {name: plain(value) for name, value in trial.params.items()},
                [*beside, *trial.user_attrs[_OVERRIDES]],
            )
            for trial in study.best_trials
        ]
        if front:
            write_front(front, objectives, path)
            goals = ", ".join(f"{name} {direction}" for name, direction in self.settings.objectives.items())
            terminal.say(f"\nPareto front of {_finished(study)} trials ({goals}), in {path}\n")
            terminal.say(front_table(front, objectives))


def _finished(study: optuna.Study) -> int:
    """How many trials have their objectives."""
    return sum(trial.state.name == "COMPLETE" for trial in study.get_trials(deepcopy=False))


def _requeue_interrupted(study: optuna.Study) -> None:
    """Mark what a killed process left RUNNING as FAIL, queue its settings to be run again, and tell each.

    The settings are the same, so the new trial goes on from the last finished epoch of the old one. What is
    interrupted again and again is given up: it may be what kills the process.
    """
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        attempt = trial.user_attrs.get(_ATTEMPT, 1)
        again = bool(trial.params) and attempt < _ATTEMPTS
        if again:
            study.enqueue_trial(trial.params, user_attrs={_ATTEMPT: attempt + 1})
        then = "its settings run again" if again else f"given up after {attempt} of {_ATTEMPTS} attempts"
        terminal.say(f"trial {trial.number} was interrupted: marked FAIL, {then}")


def _suggest(study: optuna.Study, space: SearchSpace, seed: int) -> optuna.Trial:
    """The next trial, which knows the overrides of its job.

    The sampler is seeded afresh for each, by the seed and how many went before: one that is seeded once would, after
    a kill, suggest again what it suggested first.
    """
    from numpy.random import SeedSequence
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    # Second attempts do not count: what is suggested next is what it would have been without the kill.
    before = sum(
        trial.state is not TrialState.WAITING and _ATTEMPT not in trial.user_attrs
        for trial in study.get_trials(deepcopy=False)
    )
    mixed = int(SeedSequence([seed, before]).generate_state(1)[0])
    # constant_liar: trials of one batch keep away from each other.
    study.sampler = TPESampler(seed=mixed, constant_liar=True)
    trial = study.ask(space.distributions)
    trial.set_user_attr(_OVERRIDES, space.job(trial.params))
    return trial


def _objectives_of(metrics: Mapping[str, float], names: Mapping[str, Any]) -> dict[str, float]:
    """The objectives among the final metrics of a run.

    Raises:
        UserError: when the run did not report one of them, or no finite number.
    """
    for name in names:
        if name not in metrics:
            raise UserError(f"the run reports no '{name}'; {suggestion(name, metrics)}")
        if not math.isfinite(metrics[name]):
            raise UserError(f"{name}={metrics[name]}: allowed: a finite number")
    return {name: metrics[name] for name in names}
