"""The flows, by the name of their module or package in this room, which declares `FLOW`; or the user's own."""

from __future__ import annotations

import importlib
import pkgutil

from pipeline import flows
from pipeline.flows.contract import Flow
from pipeline.host.declared import choose, declared_in
from pipeline.settings.config import BackendConfig


def find(backend: BackendConfig) -> Flow:
    """The flow that a backend names, one of these or the user's own.

    Only its own package is imported: each has libraries that take seconds.

    Raises:
        UserError: when there is none.
    """
    found: Flow | None = None
    if backend.flow in {module.name for module in pkgutil.iter_modules(flows.__path__)}:
        found = getattr(importlib.import_module(f"{flows.__name__}.{backend.flow}"), "FLOW", None)
    return found or choose("backend.flow", backend.flow, declared_in(flows.__name__, "FLOW"), Flow)
