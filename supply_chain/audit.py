"""Asks for known vulnerabilities of every package of requirements.lock; `make audit` calls it.

pip-audit passes over what its service does not know and ends well all the same. Here a package that could not be
audited is no package that is safe: it ends in one line and exit status 1.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LOCK = Path(__file__).resolve().parents[1] / "requirements.lock"


def main() -> int:
    asked = ["--requirement", str(LOCK), "--disable-pip", "--require-hashes", "--progress-spinner", "off"]
    command = [sys.executable, "-m", "pip_audit", *asked, "--format", "json", *sys.argv[1:]]
    ended = subprocess.run(command, capture_output=True, text=True)
    try:
        packages = json.loads(ended.stdout)["dependencies"]
    except (ValueError, KeyError):
        last = (ended.stderr.strip().splitlines() or ["no answer"])[-1]
        print(f"error: pip-audit could not ask its advisory service: {last[:300]}", file=sys.stderr)
        return 1
    skipped = [one["name"] for one in packages if "skip_reason" in one]
    found = [(one, vulnerability) for one in packages for vulnerability in one.get("vulns", [])]
    for one, vulnerability in found:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no version"
        print(f"{one['name']} {one['version']}: {vulnerability['id']}, mended in {fixed}")
    audited = f"{len(packages) - len(skipped)} of {len(packages)} packages audited, {len(found)} vulnerabilities known"
    if skipped:
        print(f"error: {audited}: the advisory service does not answer for {', '.join(skipped)[:200]}", file=sys.stderr)
    else:
        print(audited)
    return 1 if skipped or found else 0


if __name__ == "__main__":
    sys.exit(main())
