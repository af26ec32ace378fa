"""A search's memory: Optuna's study, in a database under `outputs`.

The sampler is TPE: it takes mixed spaces (logarithmic, whole, choices) and several objectives, and learns from
tens of trials, which is what a night of training gives; a genetic sampler needs generations of them. It is seeded
afresh for each trial, by the seed and how many trials went before. One seeded once would, after a kill, suggest
again what it suggested first.
"""

from __future__ import annotations

import hashlib
import json
import math
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pipeline.host.errors import UserError, suggestion
from pipeline.reports.pareto import FrontTrial
from pipeline.sweeps.search_space import SearchSpace, plain

if TYPE_CHECKING:
    import optuna

_ASKED = "asked"
_OVERRIDES = "overrides"
_ERROR = "error"
_ATTEMPT = "attempt"
_ATTEMPTS = 5


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
        raise UserError("hydra/sweeper=optuna: needs optuna; install with pip install -e '.[search]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    # Of Optuna 4: constant_liar and metric names, as they are since.
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


def study_name(asked: Mapping[str, Any]) -> str:
    """The name of the study of a search: the same whenever the same is asked."""
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:8]


def open_study(storage: str, name: str, asked: Mapping[str, Any]) -> optuna.Study:
    """The study of that name, created where it is missing.

    Args:
        storage: URL of the database, as SQLAlchemy reads it.
        name: of the study.
        asked: overrides, `objectives` (pairs of metric and direction) and seed of the search.

    Raises:
        UserError: when the database cannot be opened, or holds another search under this name.
    """
    optuna = import_optuna()
    from sqlalchemy.exc import SQLAlchemyError

    objectives = dict(asked["objectives"])
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, directions=list(objectives.values()), load_if_exists=True
        )
    except (SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, RuntimeError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"hydra.sweeper.storage={storage}: cannot be opened: {reason}; allowed: the URL of a database"
        ) from error
    earlier = study.user_attrs.get(_ASKED)
    if earlier is None:
        study.set_metric_names(list(objectives))
        study.set_user_attr(_ASKED, dict(asked))
    elif earlier != asked:
        differs = next(key for key in asked if earlier.get(key) != asked[key])
        raise UserError(
            f"hydra.sweeper.study_name={name}: is another search, with {differs} {earlier.get(differs)}; "
            "allowed: a name that is not taken, or null"
        )
    return study


def finished(study: optuna.Study) -> int:
    """How many trials have their objectives."""
    return sum(trial.state.name == "COMPLETE" for trial in study.get_trials(deepcopy=False))


def requeue_interrupted(study: optuna.Study) -> Iterator[str]:
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
        yield f"trial {trial.number} was interrupted: marked FAIL, {then}"


def suggest(study: optuna.Study, space: SearchSpace, seed: int) -> tuple[optuna.Trial, list[str]]:
    """The next trial and the overrides of its job."""
    from numpy.random import SeedSequence
    from optuna.samplers import TPESampler
    from optuna.trial import TrialState

    # Second attempts do not count: what is suggested next is what it would have been without the kill.
    before = [
        trial
        for trial in study.get_trials(deepcopy=False)
        if trial.state is not TrialState.WAITING and _ATTEMPT not in trial.user_attrs
    ]
    mixed = int(SeedSequence([seed, len(before)]).generate_state(1)[0])
    # constant_liar: trials of one batch keep away from each other.
    study.sampler = TPESampler(seed=mixed, constant_liar=True)
    trial = study.ask(space.distributions)
    job = space.job(trial.params)
    trial.set_user_attr(_OVERRIDES, job)
    return trial, job


def tell(study: optuna.Study, trial: optuna.Trial, metrics: Mapping[str, float]) -> dict[str, float]:
    """Finish a trial with the final metrics of its run, and give its objectives.

    Raises:
        UserError: when the run did not report one of them, or no finite number; the trial is still open.
    """
    objectives = {}
    for name, _ in study.user_attrs[_ASKED]["objectives"]:
        if name not in metrics:
            raise UserError(f"the run reports no '{name}'; {suggestion(name, metrics)}")
        if not math.isfinite(metrics[name]):
            raise UserError(f"{name}={metrics[name]}: allowed: a finite number")
        objectives[name] = metrics[name]
    study.tell(trial, list(objectives.values()))
    return objectives


def tell_failure(study: optuna.Study, trial: optuna.Trial, reason: str) -> None:
    """Finish a trial whose run failed."""
    from optuna.trial import TrialState

    trial.set_user_attr(_ERROR, reason)
    study.tell(trial, state=TrialState.FAIL)


def front(study: optuna.Study) -> list[FrontTrial]:
    """The trials that no other beats in every objective."""
    return [
        FrontTrial(
            trial.number,
            trial.values,
            {name: plain(value) for name, value in trial.params.items()},
            trial.user_attrs[_OVERRIDES],
        )
        for trial in study.best_trials
    ]
