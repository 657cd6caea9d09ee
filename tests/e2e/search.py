"""Looking for a secret everywhere that a run could have left it, in every form that a program would give it."""

from __future__ import annotations

import base64
import json
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from cloister.client import operations
from tests.e2e.story import Story

__all__ = ["forms", "places", "search"]

_TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm", "/run")


def forms(secret: bytes) -> set[bytes]:
    """The bytes themselves, hex, and base64 at each of its three alignments; of text also UTF-16."""
    plain = {secret}
    if secret.isascii():
        plain |= {secret.decode().encode("utf-16-le"), secret.decode().encode("utf-16-be")}
    found = set(plain)
    for value in plain:
        found |= {value.hex().encode(), value.hex().upper().encode()}
        for shift in range(3):
            text = base64.b64encode(bytes(shift) + value)
            # What depends on the bytes before and after it is cut off.
            inner = text[-(-shift * 4 // 3) + (shift > 0) : len(text) // 4 * 4 - 4]
            found |= {inner, inner.replace(b"+", b"-").replace(b"/", b"_")}
    return {form for form in found if len(form) >= 8}


def search(story: Story) -> list[str]:
    """Where one of the story's secrets is found outside the owners' folders and what recipients have pulled."""
    secrets = {name: forms(value) for name, value in story.secrets().items()}
    pattern = re.compile(b"|".join(re.escape(f) for f in sorted(set().union(*secrets.values()))))
    found = []
    for place, data in places(story):
        for hit in set(pattern.findall(data)):
            names = [name for name, values in secrets.items() if hit in values]
            found.append(f"{', '.join(names)} in {place}")
    return found


def places(story: Story) -> Iterator[tuple[str, bytes]]:
    """Everything outside memory: files, arguments and environments, and what the services tell."""
    yield from _files(story.folder, (story.sources, story.home.path / "image", *story.pulled))
    yield from _temporary(story)
    strangers = {str(pid) for pid in story.strangers}
    for process in Path("/proc").iterdir():
        for name in ("cmdline", "environ"):
            if process.name.isdigit() and process.name not in strangers and (data := _read(process / name)):
                yield f"/proc/{process.name}/{name}", data
    for party in story.passphrases:
        if story.home.parties()[party]["state"] == "running":
            told = operations.show_log(story.home, party, last=100_000)
            yield f"the log that {party} reads", json.dumps(told, ensure_ascii=False).encode()
            yield from _jobs(story, party)


def _jobs(story: Story, party: str) -> Iterator[tuple[str, bytes]]:
    client = story.home.control(party)
    for job in client.jobs():
        told = {"job": job, "events": client.events(job["digest"], 0, wait=0)}
        yield f"what {party} is told of job {job['digest'][:8]}", json.dumps(told, ensure_ascii=False).encode()


def _files(root: Path, without: tuple[Path, ...]) -> Iterator[tuple[str, bytes]]:
    for folder, folders, names in os.walk(root):
        folders[:] = [f for f in folders if Path(folder, f) not in without]
        for path in (Path(folder, name) for name in names):
            if path.is_file() and (data := _read(path)):
                yield str(path), data


def _temporary(story: Story) -> Iterator[tuple[str, bytes]]:
    """Files outside the home that a part of it has made."""
    users = {path.lstat().st_uid for path in (story.home.path / "parties").iterdir()}
    users |= {(story.home.path / part).stat().st_uid for part in ("control", "node")}
    for root in map(Path, _TEMPORARY):
        for folder, folders, names in os.walk(root):
            folders[:] = [f for f in folders if _may_write(Path(folder, f), users) and Path(folder, f) != story.folder]
            for path in (Path(folder, name) for name in names):
                if _made_by(path, users, story.started) and (data := _read(path)):
                    yield str(path), data


def _may_write(folder: Path, users: set[int]) -> bool:
    try:
        info = folder.lstat()
    except OSError:  # gone
        return False
    return info.st_uid in users or bool(info.st_mode & stat.S_IWOTH)


def _made_by(path: Path, users: set[int], since: float) -> bool:
    try:
        info = path.lstat()
    except OSError:  # gone
        return False
    return info.st_uid in users and info.st_mtime >= since and path.is_file()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # a process or file that ended meanwhile
        return b""
