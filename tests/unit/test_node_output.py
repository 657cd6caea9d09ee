"""What the agent takes from a sandbox's output folder: plain files only."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cloister.errors import Untrusted
from cloister.node.output import plain_tree, read_plain


def test_plain_files_and_folders_are_listed(tmp_path: Path) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "0000.sealed").write_bytes(b"x")
    assert {p.name for p in plain_tree(tmp_path)} == {tmp_path.name, "output", "0000.sealed"}


@pytest.mark.parametrize("kind", ["symlink", "hard link", "pipe", "link to a folder"])
def test_a_link_or_a_pipe_acts_on_nothing_of_the_host(tmp_path: Path, kind: str) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_bytes(b"of the host")
    out.mkdir()
    trap = out / "trap"
    if kind == "symlink":
        trap.symlink_to(victim)
    elif kind == "hard link":
        os.link(victim, trap)
    elif kind == "pipe":
        os.mkfifo(trap)
    else:
        trap.symlink_to(tmp_path)
    with pytest.raises(Untrusted) as caught:
        plain_tree(out)
    assert caught.value.code == "output.link"


def test_a_record_is_a_plain_file_of_bounded_size(tmp_path: Path) -> None:
    record = tmp_path / "release.json"
    record.write_bytes(b"{}")
    assert read_plain(record, 10) == b"{}"
    for content, limit in ((b"", 10), (b"12345", 4)):
        record.write_bytes(content)
        with pytest.raises(Untrusted):
            read_plain(record, limit)
    record.unlink()
    with pytest.raises(Untrusted):
        read_plain(record, 10)
    record.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").write_bytes(b"{}")
    with pytest.raises(Untrusted):
        read_plain(record, 10)
    record.unlink()
    os.mkfifo(record)
    with pytest.raises(Untrusted):
        read_plain(record, 10)
