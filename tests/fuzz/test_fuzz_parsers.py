"""Whatever the bytes: a parser returns, or raises one of the project's own errors. And every parser is among those."""

from __future__ import annotations

import ast
import contextlib
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.errors import CloisterError
from tests.fuzz.mutation import large, mutations
from tests.fuzz.registry import Target
from tests.fuzz.targets import ELSEWHERE, TARGETS

ROOT = Path(__file__).resolve().parents[2]
FEW, SOME = 200, 12  # inputs a parser in the normal suite: mutated, and drawn
RUNS = 13_000  # in the slow suite, guided by coverage
MOST = 0.050  # seconds of processor time for one input
_NAME = re.compile(r"(parse|read|decode)(_\w+)?|from_(wire|bytes|document|payload|words)|open_signed_xml")
_TYPES = {"bytes", "str", "Any", "object", "str | bytes", "Envelope", "dict[str, Any]"}

each = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS.keys())


def attempt(target: Target, data: bytes) -> None:
    with contextlib.suppress(CloisterError):
        target.call(data)


def parsers() -> Iterator[str]:
    """Public functions and methods in the source that look like a parser of something from outside."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        module = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts)
        tree = ast.parse(path.read_text())
        owners = [("", tree.body), *((f"{n.name}.", n.body) for n in tree.body if isinstance(n, ast.ClassDef))]
        for owner, body in owners:
            for node in body:
                if isinstance(node, ast.FunctionDef) and _NAME.fullmatch(node.name) and not owner.startswith("_"):
                    given_to = [a for a in node.args.args if a.arg not in ("self", "cls")][:1]
                    if given_to and given_to[0].annotation and ast.unparse(given_to[0].annotation) in _TYPES:
                        yield f"{module}.{owner}{node.name}"


def test_every_parser_is_fuzzed_or_has_its_reason() -> None:
    covered = {name for target in TARGETS.values() for name in target.covers}
    there = set(parsers())
    assert sorted(there - covered - set(ELSEWHERE)) == []
    assert sorted(set(ELSEWHERE) & covered) == []
    assert sorted(set(ELSEWHERE) - there) == []


@each
def test_the_seeds_reach_the_parser(target: Target) -> None:
    """One at least is accepted whole, so that its mutations get past the first checks."""
    accepted = 0
    for seed in target.seeds:
        with contextlib.suppress(CloisterError):
            target.call(seed)
            accepted += 1
    assert accepted


@each
def test_mutated_inputs_raise_our_errors_only(target: Target) -> None:
    for data in islice(mutations(target.seeds, target.limit, seed=1), FEW):
        attempt(target, data)


@settings(max_examples=SOME, suppress_health_check=list(HealthCheck))
@given(data=st.data())
@each
def test_drawn_inputs_raise_our_errors_only(target: Target, data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(target.seeds))
    at = data.draw(st.integers(0, len(seed)))
    attempt(target, seed[:at] + data.draw(st.binary(max_size=24)) + seed[at + data.draw(st.integers(0, 9)) :])


def test_the_slow_suite_runs_a_million_inputs() -> None:
    assert RUNS * len(TARGETS) >= 1_000_000


@pytest.mark.slow
@each
def test_guided_inputs_raise_our_errors_only_and_take_no_time(
    target: Target, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Under atheris; then all that it kept, and the longest inputs, in this process, which nothing instruments."""
    pytest.importorskip("atheris")
    command = [sys.executable, "-m", "tests.fuzz.guided", target.name, str(RUNS), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    ran = int(re.findall(r"stat::number_of_executed_units:\s*(\d+)", done.stderr)[-1])
    assert ran >= RUNS
    kept = [path.read_bytes() for path in sorted(tmp_path.iterdir())]
    tried, worst = 0, 0.0
    for data in chain(kept, large(target.seeds, target.limit), islice(mutations(kept, target.limit, seed=2), 300)):
        tried += 1
        worst = max(worst, taken(target, data))
    with capsys.disabled():
        print(f"\n{target.name}: {ran:,} guided inputs, {tried} timed, the slowest {worst * 1000:.1f} ms")
    assert worst <= MOST


def taken(target: Target, data: bytes) -> float:
    """Processor seconds; the least of three where one seems long: this machine runs other things, too."""
    least = float("inf")
    for _ in range(3):
        start = time.process_time()
        attempt(target, data)
        least = min(least, time.process_time() - start)
        if least <= MOST / 2:
            break
    return least
