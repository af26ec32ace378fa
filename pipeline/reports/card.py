"""A card: one page to read and sign, as Markdown and as HTML, of sections that are text and a table each."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, field

from tabulate import tabulate

from pipeline.reports.html_page import document


@dataclass(frozen=True)
class Section:
    """A heading, lines of text, a table where there are rows, and lines to type where there are any."""

    heading: str
    text: Sequence[str] = ()
    headers: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = field(default_factory=list)
    code: Sequence[str] = ()


def markdown(title: str, sections: Sequence[Section]) -> str:
    """The card as Markdown, for a run's page and for reading in a terminal."""
    parts = [f"# {title}"]
    for section in sections:
        parts += [f"## {section.heading}", *section.text]
        if section.rows:
            rows = [[cell.replace("|", "\\|") for cell in row] for row in section.rows]
            parts.append(tabulate(rows, section.headers, tablefmt="github", disable_numparse=True))
        if section.code:
            parts.append("\n".join(["```", *section.code, "```"]))
    return "\n\n".join(parts) + "\n"


def page(title: str, sections: Sequence[Section]) -> str:
    """The card as HTML, in one file that fetches nothing."""
    parts = [f"<h1>{html.escape(title)}</h1>"]
    for place, section in enumerate(sections):
        parts.append(f"<h2>{html.escape(section.heading)}</h2>")
        css = "first" if place == 0 else "note"
        parts += [f'<p class="{css}">{html.escape(line)}</p>' for line in section.text]
        if section.rows:
            parts.append(tabulate(section.rows, section.headers, tablefmt="html", disable_numparse=True))
        if section.code:
            parts.append(f"<pre>{html.escape(chr(10).join(section.code))}</pre>")
    return document(title, parts)
