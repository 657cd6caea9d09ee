"""Writes requirements/lock.txt from the environment that runs this script.

    .venv/bin/python scripts/lock.py

The lock holds the exact version of everything that `cloister` with all its extras needs, found by walking the
metadata of what is installed here. What lies in the environment and is needed by nothing is named on stderr and
left out: so a package that was installed to try something never reaches another machine by accident.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib.metadata import Distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "requirements" / "lock.txt"
HEADER = """\
# Every package of the development and operator's environment, at the version that the tests ran with.
# Made by scripts/lock.py; don't edit. Installed with `pip install --no-deps`: the list is complete, so nothing
# can be resolved differently, and nothing can bring gigabytes of CUDA libraries along.
#
# Why no hashes: torch is built once for the processor and once for each GPU platform, under one version number.
# Which file an index serves for torch==2.13.0 differs between machines, so one list of hashes can't fit all of
# them. Whoever needs hashes keeps an own mirror and runs pip in --require-hashes mode against it.
# The local part of a version ("+cpu") is left out for the same reason: ==2.13.0 accepts either build.
"""
# pip and its kin belong to the environment, not to the project.
TOOLS = {"pip", "setuptools", "wheel"}


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def needs(dist: Distribution, extras: frozenset[str]) -> list[Requirement]:
    """The requirements of one installed package that hold on this machine, with the given extras."""
    wanted = []
    for text in dist.requires or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
            wanted.append(requirement)
    return wanted


def closure(roots: list[Requirement], installed: dict[str, Distribution]) -> set[str]:
    """Names of everything reachable from ``roots``. Raises SystemExit where something is missing."""
    seen: set[tuple[str, frozenset[str]]] = set()
    todo = [(normal(r.name), frozenset(r.extras)) for r in roots]
    while todo:
        item = todo.pop()
        if item in seen:
            continue
        seen.add(item)
        name, extras = item
        if name not in installed:
            raise SystemExit(f"{name} is needed but not installed here: install it, run the tests, then lock again.")
        todo += [(normal(r.name), frozenset(r.extras)) for r in needs(installed[name], extras)]
    return {name for name, _ in seen}


def main() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = list(project["dependencies"])
    for extra in project["optional-dependencies"].values():
        texts += extra
    installed = {normal(d.metadata["Name"]): d for d in distributions()}
    wanted = closure([Requirement(text) for text in texts], installed)
    lines = [f"{name}=={installed[name].version.split('+')[0]}" for name in sorted(wanted)]
    LOCK.parent.mkdir(exist_ok=True)
    LOCK.write_text(HEADER + "\n".join(lines) + "\n")
    idle = sorted(set(installed) - wanted - TOOLS - {normal(project["name"])})
    print(
        f"{LOCK.relative_to(ROOT)}: {len(lines)} packages; not needed by anything: {', '.join(idle) or 'none'}",
        file=sys.stderr,
    )


if __name__ == "__main__":
    main()
