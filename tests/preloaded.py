"""What the process imports from which tests/forked.py forks commands: all that a run imports late."""

import gc
import importlib

from pipeline.commands.composition import compose_request
from tests import migrated_store

for _name in (
    "torch.ao.quantization",
    "sklearn.datasets",
    "scipy.stats",
    "optuna",
    "matplotlib.pyplot",
    "mlflow.store.tracking.sqlalchemy_store",
    "pipeline.run.runner",
    "pipeline.sweeps.jobs",
):
    importlib.import_module(_name)
migrated_store.copy_from_now_on()
for _model in ([], ["model=own"]):
    compose_request(_model)  # the files of conf/ are merged once for all
gc.freeze()
gc.set_threshold(100_000, 20, 50)  # as tests/conftest.py has it
