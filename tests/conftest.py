"""What holds for every test: no network but loopback, no hub, no telemetry, few threads."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from tests.egress import Egress

# Before any test module imports a training library: they read these once.
OFFLINE = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # Without it, threads that spin at a barrier starve whatever else runs on a shared machine.
    "OMP_WAIT_POLICY": "PASSIVE",
}
os.environ.update(OFFLINE)
# Whoever chose a number of threads keeps it.
os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))


def _patiently(install: Callable[[Any], None]) -> Callable[[Any], None]:
    """Python 3.11 lets one thread install a tracer at a time and fails for another, whose thread then never runs. Only
    coverage traces, so no thread of the product meets this outside the tests."""

    def settrace(function: Any) -> None:
        for _ in range(1000):
            try:
                return install(function)
            except RuntimeError:
                time.sleep(0.001)
        return install(function)

    return settrace


sys.settrace = _patiently(sys.settrace)

# Nothing timed is a test: on a busy machine a slow example is no failure. CI draws the same examples every time, so
# that a red run says something about the change; everyone else keeps searching.
settings.register_profile(
    "house", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize="CI" in os.environ
)
settings.load_profile("house")

_EGRESS = Egress()
_EGRESS.install()


@pytest.fixture(autouse=True)
def egress() -> Iterator[Egress]:
    """Fails the test that tried to leave the machine, also where the code under test swallowed the refusal."""
    _EGRESS.take()
    yield _EGRESS
    attempts = _EGRESS.take()
    assert not attempts, f"this test tried to leave the machine: {attempts}"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and vectors beside the checkout; the test is skipped where it is missing."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip("the shared folder of data and vectors is not beside this checkout")
    return folder
