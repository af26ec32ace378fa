"""Addresses of tracking stores: which are servers', and which none at all."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from pipeline.host.errors import UserError

# What SQLAlchemy takes for the end of a file's path, and decodes in it.
_NO_PATH = re.compile(r"\?|%[0-9a-fA-F]{2}")
# Databases besides SQLite, and what MLflow has of others, are its own affair.
_OTHERS = re.compile(r"sqlite:///.|(postgresql|mysql|mssql)(\+\w+)?://|databricks")


def is_server(uri: str) -> bool:
    """Whether a store is asked over the network, and may be away."""
    try:
        parts = urlsplit(uri)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that do not close, a port that is none
        return False


def check_store(key: str, uri: str) -> None:
    """Refuse what is no address of a tracking store.

    Raises:
        UserError: which names the setting.
    """
    if not is_server(uri) and not _OTHERS.match(uri):
        allowed = "null for SQLite under outputs, sqlite:///FILE, http://HOST:PORT, https://HOST"
        raise UserError(f"{key}={uri}: no address of a tracking store; allowed: {allowed}")


def check_sqlite(key: str, path: str) -> None:
    """Refuse a path at which a SQLite address would lead somewhere else.

    Raises:
        UserError: which names the setting.
    """
    found = _NO_PATH.search(path)
    if found is not None:
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
