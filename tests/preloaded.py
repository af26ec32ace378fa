"""What the process imports from which tests/forked.py forks commands: all that a run imports late."""

import gc
import importlib

from tests import migrated_store

for _name in (
    "torch.ao.quantization",
    "sklearn.datasets",
    "scipy.stats",
    "optuna",
    "matplotlib.pyplot",
    "mlflow.store.tracking.sqlalchemy_store",
    "pipeline.commands.composition",
    "pipeline.run.runner",
    "pipeline.sweeps.jobs",
):
    importlib.import_module(_name)
migrated_store.copy_from_now_on()
gc.freeze()
