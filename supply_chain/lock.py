"""Writes requirements.lock: every package of the tested set, pinned, with the hashes of its files.

`make lock` calls it. pip-compile resolves; what it cannot know is mended here: the project itself is no package of
the lock, and torch's version is named without the build that the configured indexes gave it, whose hash it has.
"""

from __future__ import annotations

import platform
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements.lock"
# As Makefile's install-locked asks for it: what belongs to the set differs between Pythons and systems.
WHERE = f"{platform.python_implementation()} {sys.version_info.major}.{sys.version_info.minor} on {platform.system()}"
HEADER = f"""# The tested set with the hashes of its files. `make lock` writes it; install-locked and audit read it.
# For {WHERE} {platform.machine()}.
"""
# The lock names the packages and not where they come from.
OPTIONS = [
    *("--quiet", "--generate-hashes", "--allow-unsafe", "--strip-extras", "--no-header", "--no-build-isolation"),
    *("--no-emit-index-url", "--no-emit-find-links", "--no-emit-trusted-host", "--no-emit-options", "--no-annotate"),
]


def compiled() -> str:
    """What pip-compile makes of pyproject.toml's extra `dev`, within constraints.txt."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "requirements.txt"
        asked = ["--extra", "dev", "--constraint", str(ROOT / "constraints.txt"), "--output-file", str(out)]
        command = [sys.executable, "-m", "piptools", "compile", *OPTIONS, *asked, str(ROOT / "pyproject.toml")]
        subprocess.run(command, cwd=ROOT, check=True)
        return out.read_text()


def hashes(requirement: str) -> list[str]:
    """The hashes of every file of one version, local builds among them, as the configured indexes know them."""
    from pip._internal.req.constructors import install_req_from_line
    from piptools.repositories import PyPIRepository

    with tempfile.TemporaryDirectory() as folder:
        found = PyPIRepository([], cache_dir=folder).get_hashes(install_req_from_line(requirement))
    return sorted(found)


def mended(text: str) -> str:
    """Without the project itself, and with torch's version as any index has it."""
    blocks = re.split(r"\n(?=[A-Za-z0-9])", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE).strip())
    kept = []
    for block in blocks:
        name = re.split(r"[ =@]", block, maxsplit=1)[0]
        if name == "qat-pipeline":
            continue
        if local := re.match(r"(torch(?:vision)?==[\d.]+)\+\w+", block):
            block = " \\\n    --hash=".join([local[1], *hashes(local[1])])
        kept.append(block)
    return HEADER + "\n".join(kept) + "\n"


if __name__ == "__main__":
    LOCK.write_text(mended(compiled()))
    print(f"{LOCK}: {LOCK.read_text().count('==')} packages")
