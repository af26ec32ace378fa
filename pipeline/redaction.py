"""What is secret in settings and texts, and masking it before it is shown, written or sent.

Credentials come from the environment alone: a user and password inside an address are refused where settings are
checked, because Hydra, the sweep's files and the tracking store all keep what was typed. Masking is for what comes
from elsewhere, such as the text of an error.
"""

from __future__ import annotations

import re
from typing import Any

from pipeline.errors import UserError

MASK = "***"
_SECRET = r"(?:pass(?:word|wd|phrase)|secret|token|credential|api[_-]?key|access[_-]?key|private[_-]?key)"
_SECRET_KEY = re.compile(_SECRET, re.IGNORECASE)
_ASSIGNED = re.compile(rf"([\w.-]*{_SECRET}[\w.-]*=)(?!\s)(?:'[^']*'|\"[^\"]*\"|\S+)", re.IGNORECASE)
# user@, user:password@ after the scheme; a password that is not encoded may hold / and @. host:5000/a@b is none.
_USER_INFO = re.compile(
    r"(?P<scheme>\b[a-z][\w+.-]*://)(?:[^\s/'\"]*|[^\s/:'\"]*:(?!\d+[/?#])[^\s'\"]*)@", re.IGNORECASE
)


def mask_text(text: str) -> str:
    """`text` with the user and password of every URL, and the value of every `password=…`, masked."""
    return _ASSIGNED.sub(rf"\1{MASK}", _USER_INFO.sub(rf"\g<scheme>{MASK}@", text))


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

    Raises:
        UserError: which does not repeat them.
    """
    found = _USER_INFO.search(value)
    if found is None:
        return
    if found["scheme"].lower() in ("http://", "https://") or ":" in found[0].removeprefix(found["scheme"]):
        raise UserError(
            f"{key}={mask_text(value)}: a user and password in an address would be kept with the run; allowed: the "
            "address without them; a tracking server's are MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in "
            "the environment"
        )
