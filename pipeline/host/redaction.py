"""What is secret in settings and texts: refused where it is typed, masked where it is shown, written or sent.

Credentials come from the environment alone: a user and password inside an address, or a token or signature in its
query, are refused where settings are checked, because Hydra, the sweep's files and the tracking store all keep what
was typed. Masking is for what comes from elsewhere, such as the text of an error.
"""

from __future__ import annotations

import re

from pipeline.host.errors import UserError

MASK = "***"
# `sig` is Azure's name of a signature, and too short to be looked for within others.
_SECRET = (
    r"(?:pass(?:word|wd|phrase)|secret|token|credential|signature|\bsig\b|api[_-]?key|access[_-]?key|private[_-]?key)"
)
_ASSIGNED = re.compile(
    rf"([\w.-]{{0,64}}{_SECRET}[\w.-]{{0,64}}=)(?:'[^']*'|\"[^\"]*\"|\S+?(?=[:;,]?(?:\s|$)))", re.IGNORECASE
)
# A signed address, or one with a token, in its query.
_QUERY = re.compile(rf"\b[a-z][\w+.-]*://\S*[?&][\w.-]*{_SECRET}[\w.-]*=[^\s&]", re.IGNORECASE)
# user@, user:password@ after the scheme; a password that is not encoded may hold / and @. host:5000/a@b is none.
_USER_INFO = re.compile(
    r"(?P<scheme>\b[a-z][\w+.-]*://)(?:[^\s/'\"]*|[^\s/:'\"]*:(?!\d+[/?#,])[^\s'\"]*)@", re.IGNORECASE
)
# A setting that by its name is one.
_NAMED_SO = re.compile(rf"{_SECRET}$", re.IGNORECASE)


def mask_text(text: str) -> str:
    """`text` with the user and password of every URL, and the value of every `password=…`, masked."""
    return _ASSIGNED.sub(rf"\1{MASK}", _USER_INFO.sub(rf"\g<scheme>{MASK}@", text))


def refuse_credentials(key: str, value: str) -> None:
    """Refuse an address with a user and password in it (for http, also with a user alone: it may be a token).

    One with a token or signature in its query is refused too.

    Raises:
        UserError: which does not repeat them.
    """
    if _QUERY.search(value):
        raise UserError(
            f"{key}={mask_text(value)}: a token or signature in an address would be kept with the run; allowed: the "
            "address without it"
        )
    found = _USER_INFO.search(value)
    if found and (found["scheme"].lower().startswith("http") or ":" in found[0].removeprefix(found["scheme"])):
        raise UserError(
            f"{key}={mask_text(value)}: a user and password in an address would be kept with the run; allowed: the "
            "address without them; a tracking server's are MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in "
            "the environment"
        )


def refuse_secret(key: str) -> None:
    """Refuse a setting of the user's own that by its name is a token or password.

    Raises:
        UserError: which does not repeat it.
    """
    if _NAMED_SO.search(key):
        raise UserError(
            f"{key}={MASK}: a token or password would be kept with the run; allowed: none here; libraries find theirs "
            "in the environment, as HF_TOKEN, or where their login keeps it"
        )
