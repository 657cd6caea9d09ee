"""The benchmark of sealed files runs and reports what its page says. Nothing is timed: sizes are as small as can be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import sealed_io

PROMISED = {
    "read_vs_limit", "read_vs_limit_2t", "read_vs_touched_map", "read_vs_tink", "read_vs_tink_2t",
    "read_vs_tink_in_pieces", "read_vs_tink_in_pieces_2t",
    "read_untrusted_vs_limit",
    "read_untrusted_vs_limit_2t", "read_with_roots_vs_limit", "read_with_roots_vs_limit_2t", "write_vs_limit",
    "write_vs_limit_2t", "random_read_ratio", "random_read_1t_ratio", "random_read_untrusted_ratio",
    "random_read_untrusted_1t_ratio", "random_read_4k_ratio", "parquet_overhead", "parquet_overhead_small_groups",
    "parquet_overhead_untrusted", "parquet_overhead_small_groups_untrusted",
    "parquet_blocks_share",
    "parquet_asked_share", "model_load_overhead", "rss_growth_mb", "rss_peak_mb", "rss_large_object_mib",
    "read_gb_s", "read_limit_gb_s", "read_tink_gb_s", "write_gb_s", "write_limit_gb_s",
}  # fmt: skip


@pytest.mark.slow
def test_a_small_run_reports_all_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sealed_io.main(["--size", "16", "--large", "110", "--rows", "20000", "--rounds", "1", "--folder", str(tmp_path)])
    body = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert body["name"] == "sealed_io"
    assert set(body["metrics"]) >= PROMISED
    assert all(value > 0 for key, value in body["metrics"].items() if key != "rss_growth_mb")
    assert 0 < body["metrics"]["parquet_asked_share"] < 1
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_is_the_median_of_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second pair met a busy machine, and both of it did; the first is the warm-up and doesn't count."""
    clock = iter([0, 100, 0, 1, 0, 2, 0, 1, 0, 20, 0, 10, 0, 3, 0, 3])
    monkeypatch.setattr(sealed_io.time, "perf_counter", lambda: next(clock))
    cleaned: list[int] = []
    bench = sealed_io.Bench(3)
    found = bench.pair(lambda: None, lambda: None, after=lambda: cleaned.append(1))
    assert found == (0.5, 3, 3)
    assert len(cleaned) == 8


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="too full"):
        sealed_io.main(["--size", str(1 << 40), "--folder", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
