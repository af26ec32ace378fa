"""A page of HTML in one file that fetches nothing.

Its content security policy has the browser itself refuse any request that leaves the file.
"""

from __future__ import annotations

import html
from collections.abc import Sequence

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; form-action 'none'"

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, "Segoe UI", Roboto, "Liberation Sans", sans-serif; color: #222; background: #fff;
  max-width: 1280px; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .25rem; }
.note, summary { color: #555; font-size: .9rem; max-width: 100ch; margin: .25rem 0; }
.first { border-left: 4px solid #0072B2; padding: .25rem 0 .25rem 1rem; }
svg { display: block; width: 100%; max-width: 1000px; margin-top: 1.5rem; }
svg circle { fill: transparent; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; display: block;
  overflow-x: auto; margin-top: .75rem; }
th, td { padding: .35rem .5rem; border-bottom: 1px solid #e6e6e6; vertical-align: top; overflow-wrap: break-word; }
th { border-bottom: 2px solid #999; vertical-align: bottom; cursor: pointer; min-width: 5ch; }
th:hover, tbody tr:hover { background: #f3f6f9; }
th[aria-sort=ascending]::after { content: " ▲"; }
th[aria-sort=descending]::after { content: " ▼"; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .875rem; max-width: 100ch; }
details { margin-top: 1.5rem; }
"""


def document(title: str, parts: Sequence[str], script: str = "") -> str:
    """The whole page of its parts, which are HTML."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n"
        "<body>\n<main>\n" + "\n".join(parts) + f"\n</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )
