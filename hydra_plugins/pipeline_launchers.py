"""The launchers where Hydra looks for them, as pipeline_search.py has the sweeper."""

from pipeline.sweeps.launching import LocalSubmission, SlurmSubmission


class SlurmLauncher(SlurmSubmission):
    """`hydra/launcher=submitit_slurm`."""


class LocalLauncher(LocalSubmission):
    """`hydra/launcher=submitit_local`."""
