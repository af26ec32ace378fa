"""The flows, found by their declaration `FLOW`, and the one that a backend names."""

from __future__ import annotations

import functools

from pipeline.flows.contract import Flow
from pipeline.host.declared import modules_of
from pipeline.host.errors import UserError, suggestion
from pipeline.settings.config import BackendConfig


@functools.cache
def registry() -> dict[str, Flow]:
    """Every flow by its name, which is that of its package."""
    return {
        module.__name__.rpartition(".")[2]: module.FLOW
        for module in modules_of("pipeline.flows")
        if hasattr(module, "FLOW")
    }


def find(backend: BackendConfig) -> Flow:
    """The flow that a backend names.

    Raises:
        UserError: when there is none.
    """
    flows = registry()
    if backend.flow not in flows:
        raise UserError(f"backend.flow={backend.flow}: {suggestion(backend.flow, flows)}")
    return flows[backend.flow]
