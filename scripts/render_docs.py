"""Renders every Markdown page, and the tour of each package from its docstring, to build/docs."""

from __future__ import annotations

import ast
import html
import re
import shutil
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "build" / "docs"
# Pages must open from a disk without a network: no script, no font, nothing from elsewhere.
PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{title}</title><style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 52rem; margin: 2rem auto; padding: 0 1rem; }}
pre {{ overflow-x: auto; padding: .8rem; background: #f4f4f2; }} code {{ font-size: .92em; }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; }}
td, th {{ border: 1px solid #bbb; padding: .3rem .5rem; }}
</style><p><a href="{index}">Cloister: all pages</a></p>
{body}"""


def pages() -> list[Path]:
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def tours() -> str:
    """The docstrings of the packages, in the order of their names, as Markdown."""
    parts = ["# Packages\n"]
    for path in sorted((ROOT / "src" / "cloister").rglob("__init__.py")):
        name = ".".join(path.parent.relative_to(ROOT / "src").parts)
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        parts.append(f"## `{name}`\n\n{doc}\n")
    return "\n".join(parts)


def write(target: Path, title: str, body: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    index = "../" * (len(target.relative_to(OUT).parts) - 1) + "index.html"
    target.write_text(PAGE.format(title=html.escape(title), index=index, body=body), encoding="utf-8")


def main() -> None:
    shutil.rmtree(OUT, ignore_errors=True)
    markdown = MarkdownIt("commonmark").enable("table")
    rows = []
    for page in pages():
        relative = page.relative_to(ROOT).with_suffix(".html")
        text = page.read_text(encoding="utf-8")
        title = (re.search(r"^# (.+)$", text, re.MULTILINE) or [None, page.stem])[1]
        body = re.sub(r'(href="[^":]+)\.md(["#])', r"\1.html\2", markdown.render(text))
        write(OUT / relative, title, body)
        rows.append(f'<li><a href="{relative.as_posix()}">{html.escape(title)}</a></li>')
    write(OUT / "packages.html", "Packages", markdown.render(tours()))
    rows.append('<li><a href="packages.html">Packages</a></li>')
    write(OUT / "index.html", "Cloister", f"<h1>Cloister</h1><ul>{''.join(rows)}</ul>")
    print(f"{len(rows)} pages in {OUT.relative_to(ROOT)}/index.html")


if __name__ == "__main__":
    main()
