"""Writes docs/licenses.md: the licence of every package that is installed, run time and development apart.

`make licenses` calls it. A licence that is unknown, or that asks for more than a notice (GPL, AGPL), ends in one line
and exit status 1, unless its package is listed below with the reason why it may stay.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "licenses.md"
SHIPPED_EXTRAS = ("search", "onnxruntime", "openvino", "slurm", "server", "timm")
FREE = re.compile(
    r"\b(MIT|BSD|Apache|ISC|PSF|PSFL|Python Software Foundation|MPL|Mozilla|HPND|Zlib|The Unlicense|Unlicense|CC0|0BSD|"
    r"CMU|Historical)\b",
    re.IGNORECASE,
)
COPYLEFT = re.compile(r"(?<!L)(?<!Lesser )\bA?GPL|General Public", re.IGNORECASE)
# Packages that may stay, whatever their licence is called, and why.
LISTED = {
    "huey": "MIT by the LICENSE file in its package; its metadata names none",
    "skops": "MIT by the LICENSE file in its package; its metadata names none",
    "torchao": "BSD 3-Clause by the LICENSE file in its package; its metadata names none",
    "psycopg2-binary": "LGPL with exceptions: imported as it is, not changed and not shipped with this project",
}


def is_free(licence: str) -> bool:
    """Whether a licence is known, and asks for no more than a notice."""
    return FREE.search(licence) is not None and COPYLEFT.search(licence) is None


def plain(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needed(name: str, extras: tuple[str, ...]) -> set[str]:
    """The installed packages that `name` with `extras` asks for, and what those ask for."""
    found: set[str] = set()
    waiting = [(name, frozenset(extras))]
    done = set()
    while waiting:
        one, chosen = waiting.pop()
        if (one, chosen) in done:
            continue
        done.add((one, chosen))
        try:
            requires = importlib.metadata.requires(one) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # for another platform
        found.add(plain(one))
        for text in requires:
            asked = Requirement(text)
            if asked.marker is None or any(asked.marker.evaluate({"extra": extra}) for extra in ("", *chosen)):
                waiting.append((asked.name, frozenset(asked.extras)))
    return found


def table(packages: list[dict[str, str]]) -> str:
    rows = [f"| {one['Name']} | {one['Version']} | {one['License']} |" for one in packages]
    return "\n".join(["| package | version | licence |", "| --- | --- | --- |", *rows])


def main() -> int:
    command = [sys.executable, "-m", "piplicenses", "--format=json", "--from=mixed", "--with-system"]
    listed = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    packages = {plain(one["Name"]): one for one in listed}
    for one in packages.values():  # some put the whole text where its name belongs
        one["License"] = re.sub(r"\s+", " ", one["License"].replace("|", "/"))[:100]
    shipped = needed("qat-pipeline", SHIPPED_EXTRAS) - {"qat-pipeline"}
    working = needed("qat-pipeline", ("dev",)) - shipped - {"qat-pipeline"}
    wrong = [
        f"{name}: {packages[name]['License']}"
        for name in sorted(shipped | working)
        if name not in LISTED and not is_free(packages[name]["License"])
    ]
    if wrong:
        print(
            f"error: licences to look at, and to list in supply_chain/licenses.py: {'; '.join(wrong)}", file=sys.stderr
        )
        return 1
    reasons = [f"- {name}: {reason}." for name, reason in LISTED.items() if name in shipped | working]
    exceptions = "\n".join(["", "Listed by hand:", "", *reasons, ""]) if reasons else ""
    PAGE.write_text(
        "# Licences\n\nWritten by `make licenses`, which fails on a licence that is unknown or is the (A)GPL.\n"
        f"{exceptions}\n## At run time, extras among it ({len(shipped)})\n\n"
        f"{table([packages[name] for name in sorted(shipped)])}\n\n## Development alone ({len(working)})\n\n"
        f"{table([packages[name] for name in sorted(working)])}\n"
    )
    print(f"{PAGE.relative_to(ROOT)}: {len(shipped)} packages at run time, {len(working)} for development")
    return 0


if __name__ == "__main__":
    sys.exit(main())
