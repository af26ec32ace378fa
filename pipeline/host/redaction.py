"""What is secret in settings and texts, and masking it before it is shown, written or sent.

Credentials come from the environment alone: a user and password inside an address, or a token or signature in its
query, are refused where settings are checked, because Hydra, the sweep's files and the tracking store all keep what
was typed. Masking is for what comes from elsewhere, such as the text of an error.
"""

from __future__ import annotations

import re
from typing import Any

from pipeline.host.errors import UserError

MASK = "***"
# `sig` is Azure's name of a signature, and too short to be looked for within others.
_SECRET = (
    r"(?:pass(?:word|wd|phrase)|secret|token|credential|signature|\bsig\b|api[_-]?key|access[_-]?key|private[_-]?key)"
)
_SECRET_KEY = re.compile(_SECRET, re.IGNORECASE)
# As typed, password=…, and as Python and JSON write it, 'password': '…'.
_ASSIGNED = re.compile(
    rf"([\w.-]{{0,64}}{_SECRET}[\w.-]{{0,64}}(?:=|['\"]\s*:\s*(?=['\"])))(?!\s)(?:'[^']*'|\"[^\"]*\"|\S+)",
    re.IGNORECASE,
)
_HEADER = re.compile(
    r"(\bauthorization['\"]?\s*[:=]\s*['\"]?(?:(?:basic|bearer|token)\s+)?|\bbearer\s+(?=\S{12}))[^\s'\"]+",
    re.IGNORECASE,
)
# A signed address, or one with a token, in its query.
_QUERY = re.compile(rf"\b[a-z][\w+.-]*://\S*[?&][\w.-]*{_SECRET}[\w.-]*=[^\s&]", re.IGNORECASE)
# user@, user:password@ after the scheme; a password that is not encoded may hold / and @. host:5000/a@b is none.
# Nor does it go on behind the end of a quoted text in a list or mapping.
_USER_INFO = re.compile(
    r"(?P<scheme>\b[a-z][\w+.-]*://)(?:(?:(?!['\"][,;:)\]}])[^\s/])*|"
    r"(?:\[[^\]\s]*\]|[^\s/:\[]*):(?!\d+(?:[/?#,;'\")\]}]|$))(?:(?!['\"][,;:)\]}])\S)*)@",
    re.IGNORECASE,
)


def mask_text(text: str) -> str:
    """`text` with the user and password of every URL, the value of every `password=…` and a header's token masked."""
    without_headers = _HEADER.sub(rf"\1{MASK}", text)
    return _ASSIGNED.sub(rf"\1{MASK}", _USER_INFO.sub(rf"\g<scheme>{MASK}@", without_headers))


def mask_value(key: str, value: Any) -> Any:
    """The value of a setting, a parameter or a tag: masked when its key says that it is secret, or within it."""
    if isinstance(value, dict):
        return {name: mask_value(str(name), inner) for name, inner in value.items()}
    if value is not None and value != "" and _SECRET_KEY.search(key):
        return MASK
    if isinstance(value, list):
        return [mask_value(key, inner) for inner in value]
    return mask_text(value) if isinstance(value, str) else value


def mask_yaml(text: str) -> str:
    """A configuration as YAML with what is secret in it masked; the same text where nothing is."""
    from omegaconf import OmegaConf  # not needed by those who only handle texts

    content = OmegaConf.to_container(OmegaConf.create(text))
    masked = mask_value("", content)
    return text if masked == content else OmegaConf.to_yaml(masked)


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
    if found is None:
        return
    if found["scheme"].lower() in ("http://", "https://") or ":" in found[0].removeprefix(found["scheme"]):
        raise UserError(
            f"{key}={mask_text(value)}: a user and password in an address would be kept with the run; allowed: the "
            "address without them; a tracking server's are MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in "
            "the environment"
        )
