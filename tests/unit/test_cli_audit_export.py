"""``audit export``: entries for a SIEM, whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from cloister.client import OwnerAgent
from tests.client_home import LocalHome, Run

pytest_plugins = ["tests.client_fixtures"]


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_events_go_to_stdout_and_words_to_stderr(agreed: LocalHome, run: Run) -> None:
    ran = run("audit", "export", "--as", "lab")
    assert ran.code == 0
    size = run("audit", "verify", "--as", "lab", "--json").document["size"]
    assert len(lines(ran.out)) == size
    assert f"{size} of {size} entries of lab, whose log is whole." in ran.err
    assert {event["metadata"]["version"] for event in lines(ran.out)} == {"1.9.0-dev"}
    assert (
        lines(run("audit", "export", "--as", "lab", "--from-index", "1", "--to-index", "2").out) == lines(ran.out)[1:3]
    )
    signed = run("audit", "export", "--as", "lab", "--kind", "contract.signed", "--since", "2020-01-01")
    assert {event["unmapped"]["kind"] for event in lines(signed.out)} == {"contract.signed"}
    assert run("audit", "export", "--as", "lab", "--until", "2020-01-01T00:00:00Z").out == ""


def test_a_file_is_its_owners_alone(agreed: LocalHome, run: Run, tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text("an older export")
    ran = run("audit", "export", "--as", "lab", "--to", "events.jsonl", "--json")
    assert (ran.code, ran.document["written"], ran.document["file"]) == (0, ran.document["size"], "events.jsonl")
    assert len(lines((tmp_path / "events.jsonl").read_text())) == ran.document["size"]
    assert (tmp_path / "events.jsonl").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--json"], "name a file with --to"),
        (["--to", "absent/events.jsonl"], "can't be written"),
        (["--from-index", "3", "--to-index", "2"], "the other way round"),
        (["--since", "yesterday"], "Give the time as"),
        (["--since", "20250620"], "Give the time as"),
    ],
)
def test_wrong_usage(agreed: LocalHome, run: Run, words: list[str], said: str) -> None:
    ran = run("audit", "export", "--as", "lab", *words)
    assert ran.code == 2
    assert said in ran.err


def test_what_is_no_plain_file_is_not_replaced(agreed: LocalHome, run: Run, tmp_path: Path) -> None:
    """For root a rename would put the export in the place of a device."""
    precious = tmp_path / "precious"
    precious.write_text("precious")
    link, pipe = tmp_path / "link", tmp_path / "pipe"
    link.symlink_to(precious)
    os.mkfifo(pipe)
    (tmp_path / "dangling").symlink_to("absent")
    for name in ("link", "pipe", "dangling", "."):
        ran = run("audit", "export", "--as", "lab", "--to", name)
        assert (ran.code, "is no plain file" in ran.err) == (2, True)
    assert link.is_symlink()
    assert pipe.is_fifo()
    assert precious.read_text() == "precious"
    assert not (tmp_path / "absent").exists()


def test_a_log_that_is_not_right_leaves_nothing(
    agreed: LocalHome, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = OwnerAgent.audit_entries

    def swapped(self: OwnerAgent, start: int, count: int) -> dict[str, Any]:
        answer = genuine(self, start, count)
        return {**answer, "entries": answer["entries"][::-1]}

    monkeypatch.setattr(OwnerAgent, "audit_entries", swapped)
    (tmp_path / "events.jsonl").write_text("an older export")
    before = sorted(path.name for path in tmp_path.iterdir())
    ran = run("audit", "export", "--as", "lab", "--to", "events.jsonl")
    assert (ran.code, ran.out) == (4, "")
    assert (tmp_path / "events.jsonl").read_text() == "an older export"
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert run("audit", "export", "--as", "lab").out == ""
