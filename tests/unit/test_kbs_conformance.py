"""The table of conformance can't name a test that isn't there, or leave a version out that is spoken."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "spec" / "kbs-conformance.md").read_text(encoding="utf-8")


def test_every_test_that_the_page_names_exists() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 25
    assert sorted(name for name in named if f"def {name}(" not in tests) == []


def test_every_row_says_how_it_was_checked() -> None:
    rows = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith("| rule")]
    for section in ("## As a server", "## As a client of a stock server", "## JWE and JWS"):
        inside = PAGE.split(section, 1)[1].split("\n## ", 1)[0]
        for row in [line for line in inside.splitlines() if line in rows]:
            shown = row.rstrip("|").rpartition("|")[2]
            assert re.search(r"`test|the same|every test above", shown), row
