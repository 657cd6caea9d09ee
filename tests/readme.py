"""Reads the commands out of a Markdown page, so that tests can run what the page promises."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["commands", "console_blocks", "fenced", "printed", "tables"]


def fenced(text: str) -> list[tuple[str, str]]:
    """Every fenced block as (language, body). Raises ValueError for one that is never closed."""
    blocks: list[tuple[str, str]] = []
    language: str | None = None
    body: list[str] = []
    for line in text.splitlines():
        fence = re.match(r"^\s*```(\S*)\s*$", line)
        if fence is None:
            body.append(line)
        elif language is None:
            language, body = fence[1], []
        else:
            blocks.append((language, "\n".join(body)))
            language = None
    if language is not None:
        raise ValueError("a fenced block is never closed")
    return blocks


def printed(page: Path, name: str) -> str:
    """The block of a page that follows the comment ``<!-- tested: NAME -->``."""
    _, _, rest = page.read_text(encoding="utf-8").partition(f"<!-- tested: {name} -->")
    assert rest, f"{page.name} has no tested block {name}"
    return fenced(rest)[0][1]


def commands(block: str) -> list[str]:
    """The commands of one console block: the lines after ``$``, continued where a line ends in a backslash."""
    joined = re.sub(r"\\\n\s*(?:> )?", "", block)
    return [line[2:].strip() for line in joined.splitlines() if line.startswith("$ ")]


def console_blocks(page: Path) -> list[list[str]]:
    """The commands of each ```console block of a page, in order. Lines without ``$`` are expected output."""
    return [commands(body) for language, body in fenced(page.read_text(encoding="utf-8")) if language == "console"]


def tables(text: str) -> list[list[list[str]]]:
    """Every pipe table as rows of cells, the header first, without the line of dashes."""
    found: list[list[list[str]]] = []
    rows: list[list[str]] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]
            if not all(re.fullmatch(r":?-+:?", cell) for cell in cells):
                rows.append(cells)
        elif rows:
            found.append(rows)
            rows = []
    return found
