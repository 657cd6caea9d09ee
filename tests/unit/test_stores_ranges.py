"""Reading by range requests, patience with a store, and what a URL and a file of credentials may say."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.errors import CloisterError, Denied, Malformed, Misuse, Unavailable, Untrusted
from cloister.sealed.stores import Patience, S3Credentials, open_store
from cloister.sealed.stores.patience import persist
from cloister.sealed.stores.ranges import RangeFile

MIB = 1 << 20
DATA = bytes(i * 17 % 251 for i in range(5 * MIB + 4321))


class Remote:
    def __init__(self, data: bytes = DATA) -> None:
        self.data, self.asked = data, list[tuple[int, int]]()

    def __call__(self, start: int, length: int) -> bytes:
        self.asked.append((start, length))
        return self.data[start : start + length]


def read(file: RangeFile, length: int) -> bytes:
    out = bytearray(length)
    done = 0
    while n := file.readinto(memoryview(out)[done:]):
        done += n
    return bytes(out[:done])


@given(
    st.lists(st.tuples(st.integers(0, len(DATA) + 10), st.integers(1, 3 * MIB)), min_size=1, max_size=8),
    st.booleans(),
)
def test_any_sequence_of_reads_gives_the_files_bytes(reads: list[tuple[int, int]], ahead: bool) -> None:
    with ThreadPoolExecutor(2) as lane:
        file = RangeFile(Remote(), len(DATA), lane if ahead else None)
        for offset, length in reads:
            assert file.seek(offset) == offset
            assert read(file, length) == DATA[offset : offset + length]
        file.close()


def test_one_jump_costs_one_block() -> None:
    remote = Remote()
    file = RangeFile(remote, len(DATA))
    for block in (4, 1, 3):
        file.seek(block * MIB + 77)
        assert read(file, 1000) == DATA[block * MIB + 77 :][:1000]
    assert remote.asked == [(4 * MIB, MIB), (MIB, MIB), (3 * MIB, MIB)]


def test_straight_on_takes_ever_fewer_requests_and_nothing_twice() -> None:
    remote = Remote()
    with ThreadPoolExecutor(1) as lane:
        file = RangeFile(remote, len(DATA), lane)
        assert b"".join(read(file, MIB) for _ in range(6)) == DATA
    assert sum(length for _, length in remote.asked) == len(DATA)
    assert len(remote.asked) < 6


@pytest.mark.parametrize("change", [-1, 1])
def test_an_answer_of_another_length_is_refused(change: int) -> None:
    file = RangeFile(lambda start, length: b"x" * (length + change), 10 * MIB)
    with pytest.raises(Untrusted) as caught:
        read(file, 10)
    assert caught.value.code == "sealed.size"


def test_seeking_and_closing() -> None:
    file = RangeFile(Remote(), len(DATA))
    assert file.seek(0, io.SEEK_END) == len(DATA)
    assert read(file, 5) == b""
    for bad in ((-1, io.SEEK_SET), (0, 7)):
        with pytest.raises(Misuse):
            file.seek(*bad)
    file.close()
    with pytest.raises(Misuse) as caught:
        read(file, 5)
    assert caught.value.code == "stream.closed"


# --- patience --------------------------------------------------------------------------------------------------------


def failing(*errors: BaseException) -> Any:
    left = list(errors)

    def work() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return work


def test_what_passes_is_tried_again_with_growing_waits() -> None:
    waits: list[float] = []
    work = failing(TimeoutError(), ConnectionResetError(), OSError(errno.EBUSY, "slow down"))
    assert persist(work, Patience(attempts=4, first_wait=1, longest_wait=3), sleep=waits.append) == "done"
    assert waits == [1, 2, 3]


def test_patience_ends() -> None:
    waits: list[float] = []
    with pytest.raises(Unavailable) as caught:
        persist(failing(*[ConnectionRefusedError("secret-host")] * 9), Patience(attempts=3), sleep=waits.append)
    assert (caught.value.code, len(waits)) == ("store.unreachable", 2)
    assert "secret-host" not in caught.value.message


class _NoBucket(OSError):
    response = {"Error": {"Code": "NoSuchBucket"}}  # noqa: RUF012


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (PermissionError("AKIA"), Denied, "store.denied"),
        (_NoBucket(), Misuse, "store.bucket"),
        (OSError(errno.ENOSPC, "full"), Unavailable, "store.full"),
        (OSError(errno.EINVAL, "bad"), Unavailable, "store.refused"),
        (Untrusted("a.b", "No."), Untrusted, "a.b"),
    ],
)
def test_what_does_not_pass_is_raised_at_once(error: Exception, kind: type[CloisterError], code: str) -> None:
    with pytest.raises(kind) as caught:
        persist(failing(error), Patience(), sleep=lambda _: pytest.fail("it waited"))
    assert caught.value.code == code


def test_a_bug_stays_a_bug_and_a_missing_file_a_missing_file() -> None:
    for error in (KeyError("x"), FileNotFoundError("path/of/it")):
        with pytest.raises(type(error)):
            persist(failing(error), Patience(), sleep=lambda _: pytest.fail("it waited"))


# --- URLs and credentials --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    ["", "bucket/prefix", "s3://", "s3://user:pw@bucket/p", "s3://b/p?endpoint=x", "s3://b/../c", "s3://b//c", "nope://x/y"],
)  # fmt: skip
def test_a_url_that_names_no_store(url: str) -> None:
    with pytest.raises(Misuse) as caught:
        open_store(url, credentials=S3Credentials(access_key="a", secret_key="b"))
    assert caught.value.code == "store.url"


def test_s3_needs_credentials() -> None:
    with pytest.raises(Misuse) as caught:
        open_store("s3://bucket/p")
    assert caught.value.code == "store.credentials"


def test_credentials_stay_out_of_sight() -> None:
    made = S3Credentials(access_key="AKIAXXXX", secret_key="canary", token="token-canary")
    assert all(word not in repr(made) + str(made) for word in ("AKIAXXXX", "canary"))
    with pytest.raises(TypeError):
        pickle.dumps(made)
    store = open_store("s3://bucket/p", credentials=made)
    assert repr(store) == "FsspecStore(s3://bucket/p)"
    store.close()


@pytest.mark.parametrize(
    "endpoint", ["http://store.example:9000", "ftp://127.0.0.1", "https://user:pw@host", "no url", "http://[::1"]
)
def test_an_endpoint_that_is_not_safe(endpoint: str) -> None:
    with pytest.raises(Misuse) as caught:
        S3Credentials(access_key="a", secret_key="b", endpoint=endpoint)
    assert caught.value.code == "store.endpoint"
    assert "pw" not in caught.value.message


def test_a_file_of_credentials(tmp_path: Path) -> None:
    path = tmp_path / "s3.json"
    path.write_text(json.dumps({"access_key": "a", "secret_key": "b", "endpoint": "https://h:1", "region": "eu"}))
    path.chmod(0o600)
    made = S3Credentials.from_file(path)
    assert (made.access_key, made.secret_key, made.endpoint, made.region) == ("a", "b", "https://h:1", "eu")
    assert S3Credentials.from_json(made.reveal_json().encode()) == made


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "s3.json"
    path.write_text('{"access_key":"a","secret_key":"b"}')
    path.chmod(mode)
    with pytest.raises(Misuse) as caught:
        S3Credentials.from_file(path)
    assert caught.value.code == "store.credentials"


def test_a_file_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "real").write_text('{"access_key":"a","secret_key":"b"}')
    (tmp_path / "real").chmod(0o600)
    (tmp_path / "link").symlink_to("real")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("missing", "link", "pipe"):
        with pytest.raises(Misuse):
            S3Credentials.from_file(tmp_path / name)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"access_key":"canary"}', '{"access_key":"canary","secret_key":""}',
             '{"access_key":"canary","secret_key":"b","x":1}', '{"access_key":"canary","secret_key":5}'],
)  # fmt: skip
def test_credentials_out_of_form(text: str) -> None:
    with pytest.raises(Malformed) as caught:
        S3Credentials.from_json(text.encode())
    assert "canary" not in caught.value.message
