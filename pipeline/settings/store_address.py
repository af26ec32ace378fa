"""Addresses of tracking stores: which are servers', and which none at all."""

from __future__ import annotations

import re

from pipeline.host.errors import UserError

# Databases besides SQLite, and what MLflow has of others, are its own affair.
_STORE = re.compile(r"https?://\w|sqlite:///.|(postgresql|mysql|mssql)(\+\w+)?://|databricks")


def is_server(uri: str) -> bool:
    """Whether a store is asked over the network, and may be away."""
    return uri.startswith(("http://", "https://"))


def check_store(key: str, uri: str) -> None:
    """Refuse what is no address of a tracking store.

    Raises:
        UserError: which names the setting.
    """
    if not _STORE.match(uri):
        allowed = "null for SQLite under outputs, sqlite:///FILE, http://HOST:PORT, https://HOST"
        raise UserError(f"{key}={uri}: no address of a tracking store; allowed: {allowed}")


def check_sqlite(key: str, path: str) -> None:
    """Refuse a path at which a SQLite address would lead somewhere else: SQLAlchemy ends it at ?, and decodes %20.

    Raises:
        UserError: which names the setting.
    """
    if found := re.search(r"\?|%[0-9a-fA-F]{2}", path):
        raise UserError(
            f"{key}={path}: MLflow's SQLite store cannot lie under a path with '{found[0]}'; allowed: another folder, "
            "tracking.uri=http://HOST:PORT, or tracking=off"
        )


def check_server(key: str, uri: str) -> None:
    """Refuse what is no address of a server.

    Raises:
        UserError: which names the option.
    """
    if not is_server(uri):
        raise UserError(f"{key}={uri}: no address of a server; allowed: one like http://127.0.0.1:5000")
