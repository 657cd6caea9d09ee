"""Benchmarks: each module compares Cloister with a peer, or with doing without it, in one run.

``python -m benchmarks.SUBJECT`` (or ``make bench NAME=SUBJECT``) tells its progress on stderr and ends with one line of
JSON on stdout, made by ``result_line``. Modules whose names begin with an underscore are parts of a benchmark.
docs/benchmarks.md says what each measures and what was seen.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Mapping
from pathlib import Path

__all__ = ["machine", "result_line", "say"]

_PLACES = 4


def result_line(name: str, metrics: Mapping[str, float], *, baseline: str, n: int, on: str | None = None) -> str:
    """The last line of every benchmark: name, metrics (ratios first), baseline, n (runs of each side), machine.

    Raises ValueError for a figure that is not a finite number, and for a benchmark that compares nothing.
    """
    bad = [key for key, value in metrics.items() if not math.isfinite(value)]
    ratios = [key for key in metrics if key.endswith("_ratio")]
    if bad or not ratios or n < 1:
        raise ValueError(f"{name}: no finite number in {bad}" if bad else f"{name}: no ratio, or no runs")
    ordered = [*ratios, *(key for key in metrics if key not in ratios)]
    body = {
        "name": name,
        "metrics": {key: round(metrics[key], _PLACES) for key in ordered},
        "baseline": baseline,
        "n": n,
        "machine": on or machine(),
    }
    return json.dumps(body)


def machine() -> str:
    """The processor, how many of its cores this process may use, memory, kernel, and how busy it is right now."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    load = os.getloadavg()[0]
    return f"{_processor()}, {cores} cores, {memory:.0f} GiB, Linux {platform.release()}, load {load:.1f}"


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def say(text: str) -> None:
    """Progress, for people."""
    print(text, file=sys.stderr, flush=True)
