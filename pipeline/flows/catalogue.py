"""The flows, by the name of their module or package in this room, which declares `FLOW`."""

from __future__ import annotations

import importlib
import pkgutil

from pipeline import flows
from pipeline.flows.contract import Flow
from pipeline.host.declared import modules_of
from pipeline.host.errors import UserError, suggestion
from pipeline.settings.config import BackendConfig


def find(backend: BackendConfig) -> Flow:
    """The flow that a backend names; the others, whose libraries are slow to import, are not looked at.

    Raises:
        UserError: when there is none.
    """
    if backend.flow in {found.name for found in pkgutil.iter_modules(flows.__path__)}:
        declared: Flow | None = getattr(importlib.import_module(f"{flows.__name__}.{backend.flow}"), "FLOW", None)
        if declared is not None:
            return declared
    names = [module.__name__.rpartition(".")[2] for module in modules_of(flows.__name__) if hasattr(module, "FLOW")]
    raise UserError(f"backend.flow={backend.flow}: {suggestion(backend.flow, names)}")
