"""Which licences pass."""

from __future__ import annotations

import importlib.util

import pytest

from pipeline.host.files import PROJECT_ROOT


@pytest.mark.parametrize(
    ("licence", "passes"),
    [
        ("MIT License", True),
        ("MIT-CMU", True),
        ("Apache-2.0", True),
        ("BSD-3-Clause", True),
        ("PSF-2.0", True),
        ("MPL-2.0", True),
        ("Apache Software License; BSD License", True),
        ("Proprietary, use permitted by contract", False),
        ("Elastic License; limitations apply", False),
        ("UNLICENSED", False),
        ("UNKNOWN", False),
        ("GPL-3.0-or-later", False),
        ("GNU Affero General Public License v3", False),
        ("MIT or GPL-2.0", False),
    ],
)
def test_licence_passes_when_it_asks_for_a_notice_alone(licence: str, passes: bool) -> None:
    spec = importlib.util.spec_from_file_location("licenses", PROJECT_ROOT / "supply_chain" / "licenses.py")
    assert spec is not None
    assert spec.loader is not None
    licenses = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(licenses)
    assert licenses.is_free(licence) == passes
