"""The search where Hydra looks for it: Hydra 1.3 instantiates no sweeper from outside this namespace package.

No __init__.py here: the namespace is shared with installed plugins.
"""

from pipeline.sweeps.search import Search


class OptunaSweeper(Search):
    """`hydra/sweeper=optuna`."""
