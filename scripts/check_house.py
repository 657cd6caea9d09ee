"""The rules of the house that no common linter checks, over src/cloister. Exit 1 with one line a finding.

Size: files that one sitting can read, functions that one screen can hold. Finished: no marks for later, no stubs,
no error that vanishes. Portable: no path of one machine, no name of a package registry (where packages come from is
the business of whoever installs).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
MOST_LINES = 350
MOST_FUNCTION_LINES = 70
UNFINISHED = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|NotImplementedError")
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|root|home|Users)/\w")
# Parts of host names, so that this list doesn't itself name one.
REGISTRY = re.compile(
    r"\b(?:pypi|pythonhosted|npmjs|dockerhub|quay|ghcr)\.\w|\bindex-url\b|\bfind-links\b", re.IGNORECASE
)
# Files outside src/ which may name no registry either: they run on other people's machines.
PORTABLE = ("Makefile", ".ci/run", "requirements/lock.txt", "pyproject.toml", "scripts/install.sh", "README.md")


def finding(path: Path, line: int, text: str) -> str:
    return f"{path.relative_to(ROOT)}:{line}: {text}"


def check_lines(path: Path, source: str) -> Iterator[str]:
    lines = source.splitlines()
    if len(lines) > MOST_LINES:
        yield finding(path, 1, f"{len(lines)} lines; at most {MOST_LINES}: split it by what its parts are for")
    for number, line in enumerate(lines, 1):
        if UNFINISHED.search(line):
            yield finding(path, number, "marked as unfinished")
        if MACHINE_PATH.search(line):
            yield finding(path, number, "a path of one machine")
        if REGISTRY.search(line):
            yield finding(path, number, "names where packages come from")


def is_empty(body: list[ast.stmt]) -> bool:
    """Nothing but ``pass`` or ``...``, a docstring aside."""
    rest = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]
    return all(isinstance(s, ast.Pass) for s in rest)


def check_tree(path: Path, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            if size > MOST_FUNCTION_LINES:
                yield finding(path, node.lineno, f"{node.name} has {size} lines; at most {MOST_FUNCTION_LINES}")
        if isinstance(node, ast.ExceptHandler) and is_empty(node.body):
            yield finding(path, node.lineno, "an error vanishes here: handle it, or say with suppress() why it may")
    if path.name == "__init__.py" and len(ast.get_docstring(tree) or "") < 20:
        yield finding(path, 1, "a package's docstring is its tour; this one has none")


def main() -> int:
    found: list[str] = []
    files = sorted((ROOT / "src" / "cloister").rglob("*.py"))
    for path in files:
        source = path.read_text(encoding="utf-8")
        found += check_lines(path, source)
        found += check_tree(path, ast.parse(source, filename=str(path)))
    for name in PORTABLE:
        path = ROOT / name
        if path.exists():
            found += [f for f in check_lines(path, path.read_text(encoding="utf-8")) if "packages come from" in f]
    print("\n".join(found) if found else f"house rules: {len(files)} files, nothing found")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
