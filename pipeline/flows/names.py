"""Names of layers and modules in settings."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.host.errors import UserError, nearest


def check_names(key: str, names: Sequence[str], known: Sequence[str], lacking: str) -> None:
    """Refuse a name that is not known; `lacking` says of what it is none, as `resnet18 has no module`.

    Raises:
        UserError: for the first one, with the nearest right name, or all where none is near.
    """
    for name in names:
        if name not in known:
            close = nearest(name, known)
            hint = f"did you mean '{close}'?" if close else f"allowed: {', '.join(known)}"
            among = f" among its {len(known)} ({known[0]} to {known[-1]})" if known else ""
            raise UserError(f"{key}=[{','.join(names)}]: {lacking} '{name}'{among}; {hint}")
