"""Sealing that goes on where it was killed: finished files are kept once they are verified, everything else is anew."""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.crypto import Envelope, SigningKey
from cloister.errors import Misuse, Unavailable
from cloister.sealed import MANIFEST_NAME, MANIFEST_TYPE, SealIdentity, check_ciphertext, open_sealed
from cloister.sealed.resume import ResumableSeal, SourceFile

KEY = SigningKey(b"k" * 32)
DEK = b"d" * 32
TERMS: dict[str, Any] = {"terms": {}}
IDENTITY = SealIdentity(
    owner="hospital", asset_id=b"a" * 16, name="hospital/q", version=2, asset_class="dataset", created=5,
    previous=b"p" * 32,
)  # fmt: skip
CONTENT = {"a.bin": b"first " * 1000, "b/c.bin": b"", "d.bin": os.urandom(2_500_000)}


def sources(opened: list[str], content: dict[str, bytes] = CONTENT) -> list[SourceFile]:
    def one(path: str, data: bytes) -> SourceFile:
        @contextmanager
        def source() -> Iterator[io.BytesIO]:
            opened.append(path)
            yield io.BytesIO(data)

        return SourceFile(path, len(data), source)

    return [one(path, data) for path, data in content.items()]


def attempt(work: Path, opened: list[str], dek: bytes = DEK, content: dict[str, bytes] = CONTENT) -> bytes:
    with ResumableSeal(work) as seal:
        return seal.write(sources(opened, content), dek=dek, identity=IDENTITY, terms=TERMS, progress=lambda _: None)


def publish(work: Path, dest: Path) -> Envelope:
    with ResumableSeal(work) as seal:
        payload = seal.draft()
        assert payload is not None
        envelope = Envelope(MANIFEST_TYPE, payload).signed_by(KEY)
        seal.publish(envelope, dest)
        return envelope


def check(dest: Path, digest: bytes, dek: bytes = DEK) -> None:
    check_ciphertext(dest, signer_keys=[KEY.public])
    with open_sealed(dest, dek=dek, expected_digest=digest, signer_keys=[KEY.public]) as sealed:
        assert {path: sealed.read(path) for path in sealed.paths()} == CONTENT
        sealed.check_roots()
        sealed.require_complete()


def test_all_at_once(tmp_path: Path) -> None:
    opened: list[str] = []
    done: list[int] = []
    with ResumableSeal(tmp_path / "work") as seal:
        seal.write(sources(opened), dek=DEK, identity=IDENTITY, terms=TERMS, progress=done.append)
    assert opened == list(CONTENT)
    assert done == sorted(done)
    assert done[-1] == sum(map(len, CONTENT.values()))
    check(tmp_path / "done", publish(tmp_path / "work", tmp_path / "done").digest)
    assert not (tmp_path / "work").exists()


class Dead(BaseException):
    pass


def dies(monkeypatch: pytest.MonkeyPatch, number: int) -> list[str]:
    """Every call that changes the disk is a step; the ``number``-th one is the last, and not done."""
    steps: list[str] = []

    def wrap(name: str) -> None:
        real = getattr(os, name)

        def step(*args: Any, **more: Any) -> Any:
            steps.append(name)
            if len(steps) == number:
                raise Dead
            return real(*args, **more)

        monkeypatch.setattr(os, name, step)

    for name in ("fsync", "replace", "rename"):
        wrap(name)
    return steps


def test_killed_at_every_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    number, kept = 0, 0
    while True:
        number += 1
        work, dest, opened = tmp_path / f"work-{number}", tmp_path / f"done-{number}", list[str]()
        with monkeypatch.context() as patch:
            dies(patch, number)
            try:
                attempt(work, opened)
                publish(work, dest)
                break
            except Dead:
                again = list[str]()
        if not dest.exists():
            if not (work / MANIFEST_NAME).exists():  # else it was signed, and only its name is missing
                attempt(work, again)
                assert again == list(CONTENT)[len(CONTENT) - len(again) :], "only what was not finished is made again"
                assert len(again) + len(opened) <= len(CONTENT) + 1
                kept += len(CONTENT) - len(again)
            publish(work, dest)
        check(dest, check_digest(dest))
    assert number > 20
    assert kept > 0


def check_digest(dest: Path) -> bytes:
    return Envelope.from_bytes((dest / MANIFEST_NAME).read_bytes(), limit=1 << 24).digest


def test_two_attempts_never_use_a_key_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same file under the same data key: the salt, and so the AES key, differs."""
    headers = []
    for _ in range(2):
        with monkeypatch.context() as patch:
            dies(patch, 3)
            with pytest.raises(Dead):
                attempt(tmp_path / "work", [])
        headers.append((tmp_path / "work" / "file.part").read_bytes()[:40])
    assert headers[0] != headers[1]


@settings(max_examples=12)
@given(st.integers(0, 2), st.data())
def test_a_finished_file_that_changed_is_not_kept(
    tmp_path_factory: pytest.TempPathFactory, index: int, data: Any
) -> None:
    work = tmp_path_factory.mktemp("resume") / "work"
    attempt(work, [])
    path = work / f"{index:04d}.sealed"
    raw = bytearray(path.read_bytes())
    how = data.draw(st.sampled_from(["flip", "cut", "remove", "extend"]))
    if how == "flip":
        raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    raw = raw[:-1] if how == "cut" else raw + b"\0" if how == "extend" else raw
    path.unlink() if how == "remove" else path.write_bytes(raw)
    again: list[str] = []
    attempt(work, again)
    assert again == list(CONTENT)[index:]
    dest = work.parent / "done"
    check(dest, publish(work, dest).digest)


@pytest.mark.parametrize("torn", [b"{", b"null\n", b'{"commit": 1}\n', b"\xff\n", b'{"path": "a.bin"}\n'])
def test_a_torn_record_counts_as_nothing(tmp_path: Path, torn: bytes) -> None:
    attempt(tmp_path / "work", [])
    record = tmp_path / "work" / "finished.jsonl"
    lines = record.read_bytes().splitlines(keepends=True)
    record.write_bytes(lines[0] + torn + lines[2])
    again: list[str] = []
    attempt(tmp_path / "work", again)
    assert again == list(CONTENT)[1:]


def test_another_key_keeps_nothing(tmp_path: Path) -> None:
    attempt(tmp_path / "work", [])
    again: list[str] = []
    attempt(tmp_path / "work", again, dek=b"e" * 32)
    assert again == list(CONTENT)
    check(tmp_path / "done", publish(tmp_path / "work", tmp_path / "done").digest, dek=b"e" * 32)


def test_a_full_disk_is_said_and_gone_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.fsync, [0]

    def full(fd: int) -> None:
        calls[0] += 1
        if calls[0] == 6:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(fd)

    opened: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(Unavailable) as refused:
            attempt(tmp_path / "work", opened)
    assert refused.value.code == "storage.full"
    assert "the same command again" in refused.value.message
    again: list[str] = []
    attempt(tmp_path / "work", again)
    assert 0 < len(again) < len(CONTENT)
    check(tmp_path / "done", publish(tmp_path / "work", tmp_path / "done").digest)


def test_two_writers_do_not_mix(tmp_path: Path) -> None:
    with ResumableSeal(tmp_path / "work"), pytest.raises(Misuse) as refused:
        ResumableSeal(tmp_path / "work")
    assert refused.value.code == "sealed.busy"


def test_a_source_of_another_length(tmp_path: Path) -> None:
    lying = [SourceFile("a", 5, sources([], {"a": b"four"})[0].open)]
    with ResumableSeal(tmp_path / "work") as seal, pytest.raises(Misuse) as refused:
        seal.write(lying, dek=DEK, identity=IDENTITY, terms=TERMS, progress=lambda _: None)
    assert refused.value.code == "sealed.source"


def test_publishing_nothing_but_this_folders_manifest(tmp_path: Path) -> None:
    attempt(tmp_path / "work", [])
    with ResumableSeal(tmp_path / "work") as seal:
        other = Envelope(MANIFEST_TYPE, b"{}").signed_by(KEY)
        with pytest.raises(Misuse) as refused:
            seal.publish(other, tmp_path / "done")
        assert refused.value.code == "sealed.draft"
        (tmp_path / "taken").mkdir()
        payload = seal.draft()
        assert payload is not None
        with pytest.raises(Misuse) as taken:
            seal.publish(Envelope(MANIFEST_TYPE, payload).signed_by(KEY), tmp_path / "taken")
        assert taken.value.code == "sealed.exists"
    assert not (tmp_path / "done").exists()


@pytest.mark.parametrize("step", ["draft", "write", "discard"])
def test_a_storage_that_fails_is_said_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    attempt(tmp_path / "work", [])

    def fails(*_: object, **__: object) -> Any:
        raise OSError(errno.EIO, "input/output error")

    with ResumableSeal(tmp_path / "work") as seal, monkeypatch.context() as patch:
        patch.setattr(Path, "iterdir" if step == "discard" else "read_bytes", fails)
        calls = {"draft": seal.draft, "discard": seal.discard}
        with pytest.raises(Unavailable) as refused:
            calls[step]() if step in calls else seal.write(
                sources([]), dek=DEK, identity=IDENTITY, terms=TERMS, progress=lambda _: None
            )
    assert refused.value.code == "storage.write"
    opened: list[str] = []
    attempt(tmp_path / "work", opened)
    assert opened == [], "nothing was lost"
