"""What MLflow would take from the environment. Where a run goes and what it is, its settings say alone.

A shell, a scheduler or MLflow's own `mlflow run` leaves such variables behind: a run of today would be written into
the run of yesterday.
"""

from __future__ import annotations

import os

from pipeline.host import terminal
from pipeline.settings.store_address import is_server

_OWN_RUN = "every command makes a run of its own"
_OWN_EXPERIMENT = "tracking.experiment=NAME names another"
_OWN_MODEL = "what is logged belongs to its run"
_UNUSED = {
    "MLFLOW_RUN_ID": _OWN_RUN,
    "MLFLOW_PARENT_RUN_ID": _OWN_RUN,
    "MLFLOW_RUN_NAME": "tracking.run_name=NAME names a run",
    "MLFLOW_RUN_CONTEXT": "the tags of a run are its own",
    "MLFLOW_EXPERIMENT_ID": _OWN_EXPERIMENT,
    "MLFLOW_EXPERIMENT_NAME": _OWN_EXPERIMENT,
    "MLFLOW_ACTIVE_MODEL_ID": _OWN_MODEL,
    "_MLFLOW_ACTIVE_MODEL_ID": _OWN_MODEL,
    "MLFLOW_REGISTRY_URI": "models are registered in the store of their runs, tracking.uri",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "a run waits for its store, or keeps an outbox",
    "MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING": "a run keeps its own metrics alone",
}
# A server may have workspaces, of which the user chooses one; in a file they would be another store.
_SERVERS_OWN = ("MLFLOW_WORKSPACE", "MLFLOW_ENABLE_WORKSPACES")


def forget(uri: str, reads: bool = False) -> None:
    """Take out of the environment, of this process and those that it starts, what would change what is written where.

    Tells each once, except who only `reads`: what this process has forgotten, those that it starts do not see.
    """
    unused = _UNUSED if is_server(uri) else _UNUSED | dict.fromkeys(_SERVERS_OWN, "a file has no workspaces")
    for variable, instead in unused.items():
        if os.environ.pop(variable, "") and not reads:
            terminal.warn(f"{variable} in the environment is not used: {instead}")
