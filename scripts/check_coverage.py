"""The floor under the line coverage of the packages that decide about keys.

Two ways in. As a pytest plugin (``-p scripts.check_coverage``, what ``make test`` does) it prints one line a
package before pytest's own summary and makes the run fail below the floor. As a script it reads the report of an
earlier run: ``python scripts/check_coverage.py build/coverage.json``.

Together, and not each by itself: a package of forty lines would swing by whole percents at one line.

Before that, the plugin removes what can't be read: tests kill processes, and let them run out of space, while they save
what they measured. Coverage would stop at such a file, or warn of it. What the others measured counts.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path

import pytest
from coverage.data import CoverageData, combinable_files

FLOOR = 90.0
GUARDED = ("crypto", "sealed", "keys", "contracts", "audit", "attestation", "broker")
REPORT = Path("build/coverage.json")
DATA = Path("build/coverage.data")  # as in pyproject.toml; each process adds a suffix of its own


@dataclass(frozen=True)
class Row:
    package: str
    covered: int
    lines: int

    @property
    def percent(self) -> float:
        return 100.0 * self.covered / self.lines if self.lines else 0.0


def rows(report: dict) -> list[Row]:
    """One row per package under ``cloister``, by name; modules directly in it count as ``(top)``."""
    covered: dict[str, int] = defaultdict(int)
    lines: dict[str, int] = defaultdict(int)
    for name, entry in report["files"].items():
        parts = Path(name).parts
        inside = parts[len(parts) - parts[::-1].index("cloister") :]
        package = inside[0] if len(inside) > 1 else "(top)"
        covered[package] += entry["summary"]["covered_lines"]
        lines[package] += entry["summary"]["num_statements"]
    return [Row(package, covered[package], lines[package]) for package in sorted(lines)]


def guarded(table: list[Row]) -> Row:
    """The sum over the guarded packages. One that is missing from the report counts as not covered at all."""
    chosen = [row for row in table if row.package in GUARDED]
    if {row.package for row in chosen} != set(GUARDED):
        return Row("guarded", 0, 1)
    return Row("guarded", sum(r.covered for r in chosen), sum(r.lines for r in chosen))


def text(table: list[Row]) -> list[str]:
    """The lines to print, the verdict last."""
    out = [
        f"  {row.package:<14}{row.percent:6.1f} %  of {row.lines} lines{' *' if row.package in GUARDED else ''}"
        for row in table
    ]
    total = guarded(table)
    verdict = "holds" if total.percent >= FLOOR else "FAILS"
    return [*out, f"  the packages with * together: {total.percent:.1f} %; the floor of {FLOOR:.0f} % {verdict}"]


def remove_torn(data: Path) -> list[str]:
    """Delete the processes' files that can't be combined; their names. Each is tried alone, with what combines them."""
    torn = []
    for path in combinable_files(str(data)):
        try:
            one, into = CoverageData(path, read_only=True), CoverageData(no_disk=True)
            one.read()
            into.update(one)
            one.close()
        except Exception:  # noqa: BLE001  half a file fails in whatever way
            Path(path).unlink(missing_ok=True)
            torn.append(Path(path).name)
    return torn


class Gate:
    """What pytest calls. The report is written before the session ends, so it can still change the exit status."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtestloop(self) -> Generator[None, object, object]:
        """As the innermost one: after the last test, and before pytest-cov combines."""
        result = yield
        remove_torn(DATA)
        return result

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if not REPORT.exists():
            self.lines = ["  no coverage report was written: the run measured nothing"]
            passed = False
        else:
            table = rows(json.loads(REPORT.read_text()))
            self.lines = text(table)
            passed = guarded(table).percent >= FLOOR
        if not passed and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("coverage of src/cloister")
        for line in self.lines:
            terminalreporter.line(line)


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """An old report must not stand in for one that this run failed to write."""
    REPORT.unlink(missing_ok=True)
    config.pluginmanager.register(Gate(), "coverage-floor")
    return (yield)


def main() -> int:
    table = rows(json.loads(Path(sys.argv[1]).read_text()))
    print("\n".join(text(table)))
    return 0 if guarded(table).percent >= FLOOR else 1


if __name__ == "__main__":
    raise SystemExit(main())
