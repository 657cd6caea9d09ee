"""A store that fails: killed in mid-upload, hanging, dripping, cutting answers, full, or refusing credentials."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloister.errors import CloisterError, Denied, Misuse, Unavailable
from cloister.sealed import check_ciphertext
from cloister.sealed.stores import FsspecStore, Patience, open_store
from tests.patience import PATIENCE, until
from tests.s3_server import HASTY, SECRET, S3Server, proxied, s3_server
from tests.sealing import FILES, Made, make, opened

MIB = 1 << 20


@pytest.fixture
def server(tmp_path: Path) -> Iterator[S3Server]:
    with s3_server(tmp_path) as running:
        yield running


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make(tmp_path / "object")


def code_of(work: object, kind: type[CloisterError]) -> str:
    with pytest.raises(kind) as caught:
        work()  # type: ignore[operator]
    assert SECRET not in caught.value.message
    assert "127.0.0.1" not in caught.value.message
    return caught.value.code


def uses(store: FsspecStore, made: Made, dest: Path) -> list[object]:
    digest = made.sealed.digest
    return [
        store.check,
        lambda: store.put(made.folder, digest),
        lambda: store.has(digest),
        lambda: list(store.digests()),
        lambda: opened(store.source(digest), made),
        lambda: store.fetch(digest, dest),
        lambda: store.delete(digest),
        lambda: store.sweep(before=1),
    ]


def test_wrong_credentials(server: S3Server, made: Made, tmp_path: Path) -> None:
    with server.store(secret="wrong") as store:
        for use in uses(store, made, tmp_path / "back"):
            assert code_of(use, Denied) == "store.denied"
    assert not (server.root / "sealed" / "p").exists()


def test_a_bucket_that_is_not_there(server: S3Server, made: Made) -> None:
    with open_store("s3://no-such-bucket/p", credentials=server.credentials(), patience=HASTY) as store:
        assert code_of(store.check, Misuse) == "store.bucket"
        assert code_of(lambda: store.put(made.folder, made.sealed.digest), Misuse) == "store.bucket"
        assert code_of(lambda: opened(store.source(made.sealed.digest), made), Misuse) == "store.bucket"


def test_a_server_killed_in_mid_upload(server: S3Server, tmp_path: Path) -> None:
    """SIGKILL while parts go up: nothing shows, before or after it starts again; then the put goes on."""
    made = make(tmp_path / "big", {"small": b"x", "big.bin": os.urandom(60 * MIB)})
    digest = made.sealed.digest
    with proxied(server) as proxy:
        proxy.at_bytes = 25 * MIB

        def kill() -> None:
            proxy.reached.wait(PATIENCE)
            server.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        with server.store(endpoint=proxy.endpoint) as store:
            assert code_of(lambda: store.put(made.folder, digest), Unavailable) in ("store.unreachable", "store.lost")
        killer.join()
        assert proxy.reached.is_set()
    server.start()
    with server.store() as store:
        assert (store.has(digest), list(store.digests())) == (False, [])
        found = store._bucket.listing(digest.hex())
        assert "0001.sealed" not in found
        assert "0000.sealed" in found
        store.put(made.folder, digest)
        store.sweep(before=int(time.time()) + 60)
        assert list(store.digests()) == [digest]
        store.fetch(digest, tmp_path / "back")
    check_ciphertext(tmp_path / "back")


def test_a_server_that_comes_back_in_time_is_not_noticed(server: S3Server, made: Made) -> None:
    with server.store() as direct:
        direct.put(made.folder, made.sealed.digest)
    patience = Patience(attempts=120, first_wait=0.2, longest_wait=1)
    with server.store(patience=patience) as store, opened(store.source(made.sealed.digest), made) as sealed:
        server.kill()
        starter = threading.Timer(1.0, server.start)
        starter.start()
        assert sealed.read("data/train.csv") == FILES["data/train.csv"]
        starter.join()


@pytest.mark.parametrize("behave", ["hang", "drip", "refuse"])
def test_a_server_that_gives_no_answer_ends_in_time(server: S3Server, made: Made, tmp_path: Path, behave: str) -> None:
    """Each use ends with one clear sentence, after a bounded number of bounded tries."""
    with server.store() as direct:
        direct.put(made.folder, made.sealed.digest)
    # Silence is ended by ``read``, however late a busy machine asks; only what drips needs the bound on the whole.
    whole = 2 if behave == "drip" else 60
    patience = Patience(attempts=2, first_wait=0.01, longest_wait=0.01, connect=60, read=1, request=whole)
    with proxied(server) as proxy, server.store(endpoint=proxy.endpoint, patience=patience) as store:
        proxy.behave = behave
        assert code_of(lambda: store.source(made.sealed.digest).envelope(), Unavailable) == "store.unreachable"
        assert code_of(lambda: store.fetch(made.sealed.digest, tmp_path / "back"), Unavailable) == "store.unreachable"
        assert code_of(lambda: store.put(made.folder, made.sealed.digest), Unavailable) == "store.unreachable"
        if behave == "hang":
            until("the last request to be counted", lambda: proxy.requests >= 3 * 2)
            assert proxy.requests == 3 * 2, "two tries each, no more"
    assert not (tmp_path / "back").exists()


def test_answers_that_break_off_are_noticed(server: S3Server, made: Made, tmp_path: Path) -> None:
    with server.store() as direct:
        direct.put(made.folder, made.sealed.digest)
    with (
        proxied(server) as proxy,
        server.store(endpoint=proxy.endpoint) as store,
        opened(store.source(made.sealed.digest), made) as sealed,
    ):
        proxy.behave = "cut"
        assert code_of(lambda: sealed.read("data/train.csv"), Unavailable) == "store.unreachable"
        proxy.behave = "pass"
        assert sealed.read("data/train.csv") == FILES["data/train.csv"]


def test_a_member_that_changed_under_the_upload_is_not_finished(server: S3Server, tmp_path: Path) -> None:
    """The folder's own file is not what its manifest says: in parts or in one piece, it never becomes visible."""
    made = make(tmp_path / "big", {"big.bin": os.urandom(20 * MIB), "small": b"x" * 100})
    digest = made.sealed.digest
    for name in ("0000.sealed", "0001.sealed"):
        path = made.folder / name
        right = path.read_bytes()
        path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
        with server.store() as store:
            with pytest.raises(CloisterError) as caught:
                store.put(made.folder, digest)
            assert caught.value.code == "sealed.root"
            assert name not in store._bucket.listing(digest.hex())
            assert (store.has(digest), store.sweep(before=1)) == (False, 0)
            path.write_bytes(right)
    with server.store() as store:
        store.put(made.folder, digest)
        assert list(store.digests()) == [digest]


def test_a_process_killed_in_mid_put(server: S3Server, tmp_path: Path) -> None:
    """The other end dies: its half is no object, and the next put takes what is right of it."""
    made = make(tmp_path / "big", {"a": os.urandom(2 * MIB), "b": os.urandom(40 * MIB)})
    digest = made.sealed.digest
    (tmp_path / "c.json").write_text(server.credentials().reveal_json())
    (tmp_path / "c.json").chmod(0o600)
    program = (
        "import os, sys; from pathlib import Path; from cloister.sealed.stores import S3Credentials, open_store\n"
        "from cloister.sealed.stores import s3\n"
        "s3._PartsUpload.finish = lambda self: os.kill(os.getpid(), 9)\n"
        "store = open_store('s3://sealed/p', credentials=S3Credentials.from_file(Path(sys.argv[1])))\n"
        "store.put(Path(sys.argv[2]), bytes.fromhex(sys.argv[3]))\n"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "c.json"), str(made.folder), digest.hex()]
    done = subprocess.run(command, timeout=240)
    assert done.returncode == -9
    with server.store() as store:
        assert (store.has(digest), list(store.digests())) == (False, [])
        first = server.path("p", digest, "0000.sealed").stat().st_mtime_ns
        store.put(made.folder, digest)
        assert server.path("p", digest, "0000.sealed").stat().st_mtime_ns == first
        store.fetch(digest, tmp_path / "back")
