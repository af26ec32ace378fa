"""Collects what the fault tests saw, as the Markdown table of docs/faults.md."""

from __future__ import annotations

import os
import re
from pathlib import Path

# Where `make test-operations` wants the table; without it nothing is written.
_FILE = os.environ.get("PIPELINE_FAULT_TABLE")


def note(fault: str, stage: str, lost: str, line: str) -> None:
    """One row: the fault, where it struck, what was lost, and what the user saw."""
    if not _FILE:
        return
    path = Path(_FILE)
    if not path.exists():
        path.write_text("| fault | in | lost | what is said |\n| --- | --- | --- | --- |\n")
    plain = re.sub(r"(/[^ :|']+)+/", "…/", line).replace("|", "\\|")
    with path.open("a") as stream:
        stream.write(f"| {fault} | {stage} | {lost} | `{plain}` |\n")
