"""What the commands share that take an exported model: their options, and where the model lies."""

from __future__ import annotations

import argparse
from pathlib import Path

from pipeline.host.files import resolved
from pipeline.runtimes import exported

REGISTERED = "models:/"
MODEL_HELP = "models:/NAME@ALIAS, models:/NAME/VERSION, or a path (default: the int8 model exported last)"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say where models lie, and what runs them."""
    parser.add_argument("--runtime", help="which one runs the model; of your own: package.module:name")
    parser.add_argument("--outputs", default="outputs", help="the folder of the runs (default: %(default)s)")
    parser.add_argument("--tracking-uri", help="the store of models:/… (default: mlflow.db in --outputs)")


def locate(key: str, arguments: argparse.Namespace) -> Path:
    """The file or folder of `arguments.model`; `key`: what names it, in an error's line.

    Raises:
        UserError: when it is not there.
    """
    if not (arguments.model or "").startswith(REGISTERED):
        return exported.locate(arguments.model, arguments.outputs, arguments.runtime, key)
    # They import mlflow, which takes seconds.
    from pipeline.settings.config import TrackingConfig
    from pipeline.tracking.registry import find_registered

    store = TrackingConfig(uri=arguments.tracking_uri), resolved(arguments.outputs)
    return find_registered(arguments.model, *store, key)
