"""The flows, found by their declaration `FLOW`, and the one that a backend names."""

from __future__ import annotations

import functools

from pipeline.flows.contract import Flow
from pipeline.host.declared import choose, declared_in
from pipeline.settings.config import BackendConfig


@functools.cache
def registry() -> dict[str, Flow]:
    """Every flow of this project by its name, which is that of its package."""
    return declared_in("pipeline.flows", "FLOW")


def find(backend: BackendConfig) -> Flow:
    """The flow that a backend names, one of these or the user's own.

    Raises:
        UserError: when there is none.
    """
    return choose("backend.flow", backend.flow, registry(), Flow)
