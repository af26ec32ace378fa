"""Verdicts as JUnit's XML, which the pages of CI systems show."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from pipeline.decision.verdict import Criterion, Verdict
from pipeline.host.errors import presentable
from pipeline.host.files import write_and_rename

# What cannot be told is an error: a test that did not come to its end. Skipped would count as good, beside a command
# that did not end as good.
_ELEMENTS = {Verdict.FAILS: "failure", Verdict.UNKNOWN: "error"}


def write_junit(criteria: Sequence[Criterion], name: str, path: Path) -> None:
    """Write a suite of that name, with a test case for each criterion."""
    counts = {
        f"{element}s": str(sum(one.verdict is verdict for one in criteria)) for verdict, element in _ELEMENTS.items()
    }
    attributes = {"name": presentable(name), "tests": str(len(criteria)), "skipped": "0", **counts}
    suites = ElementTree.Element("testsuites")
    suite = ElementTree.SubElement(suites, "testsuite", attributes)
    for one in criteria:
        case = ElementTree.SubElement(suite, "testcase", {"classname": "pipeline.gate", "name": one.name})
        evidence = presentable(one.evidence)
        if one.verdict in _ELEMENTS:
            said = {"message": f"{one.verdict}: {evidence}", "type": one.verdict}
            ElementTree.SubElement(case, _ELEMENTS[one.verdict], said).text = evidence
        else:
            ElementTree.SubElement(case, "system-out").text = evidence
    ElementTree.indent(suites)
    with write_and_rename(path) as temporary:
        ElementTree.ElementTree(suites).write(temporary, encoding="utf-8", xml_declaration=True)
