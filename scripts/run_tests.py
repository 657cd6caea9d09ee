"""What ``make test`` runs: all tests but the slow ones with the coverage floor, and a second look at few failures.

Two processes share the tests, a file at a time; each brings up the services that its files need. Many tests start
processes and wait for them on machines that other work shares. Where one or two of thousands fail,
they run again, by themselves and in a fresh process. If they pass then, the run passes and says FLAKY and their names:
a race, in a test or in the product, to be mended like any other fault. More failures, or the same again, fail the run.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from scripts import check_coverage

CACHE = Path("build/pytest-cache")
MOST = 2
PYTEST = (sys.executable, "-m", "pytest", "-o", f"cache_dir={CACHE}")
SHARED = ("-n", "2", "--dist", "loadfile")
ALL = (*SHARED, "-m", "not slow", "--cov", f"--cov-report=json:{check_coverage.REPORT}", "-p", "scripts.check_coverage")


def again(code: int, failed: list[str], *, covered: bool) -> bool:
    """Whether a run that ended with ``code`` gets a second look: a few tests failed, and nothing else was wrong."""
    return code == 1 and covered and 0 < len(failed) <= MOST


def failures() -> list[str]:
    """The ids of the tests that failed in the run that wrote the cache."""
    path = CACHE / "v" / "cache" / "lastfailed"
    return sorted(json.loads(path.read_text())) if path.exists() else []


def covered() -> bool:
    """Whether the floor held, by the report that the run wrote."""
    path = check_coverage.REPORT
    return path.exists() and check_coverage.guarded(check_coverage.rows(json.loads(path.read_text()))).percent >= (
        check_coverage.FLOOR
    )


def main() -> int:
    shutil.rmtree(CACHE, ignore_errors=True)  # failures of an earlier run must not count as this one's
    code = subprocess.run([*PYTEST, *ALL], check=False).returncode
    failed = failures()
    if not again(code, failed, covered=covered()):
        return code
    print(f"\nA second look, by themselves, at what failed: {', '.join(failed)}\n", flush=True)
    code = subprocess.run([*PYTEST, *failed], check=False).returncode
    if code == 0:
        print(f"\nFLAKY, mend: {', '.join(failed)}", flush=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main())
