"""The arithmetic of the checkpoint benchmark, with invented figures. Nothing is timed."""

from __future__ import annotations

import pytest

from benchmarks import result_line
from benchmarks.checkpoint import BASELINE, KINDS, NAME, Seen


def test_standing_still_is_compared_with_the_plain_save_and_the_cost_beside_it_is_told() -> None:
    seen = Seen(durable=[1.0, 2.0, 9.0], beside=[3.0, 3.0], alone=[2.0, 2.0, 50.0], state_bytes=100_000_000)
    seen.still = {"none": [0.0], "plain": [0.5, 0.4, 9.0], "sealed": [0.2, 0.1, 0.05]}
    seen.spans = {"none": [10.0, 10.0], "plain": [10.5, 10.5], "sealed": [11.0, 11.0]}
    found = seen.metrics()
    assert found["blocking_ratio"] == pytest.approx(0.1 / 0.5)
    assert found["step_ratio"] == pytest.approx(1.5)
    assert found["whole_cost_ratio"] == pytest.approx((0.1 + 1.0) / (0.5 + 0.5))
    assert (found["first_blocking_s"], found["worst_blocking_s"]) == (0.2, 0.2)
    assert found["sealed_mb_per_s"] == pytest.approx(50.0)
    assert set(KINDS) == set(seen.still)
    assert "blocking_ratio" in result_line(NAME, found, baseline=BASELINE, n=3)
