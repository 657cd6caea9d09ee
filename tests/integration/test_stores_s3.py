"""Sealed objects in S3, over a real server process: parts, ranges, sweeps, many at once, and pandas on top."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cloister.errors import Untrusted
from cloister.sealed import SealedFileSystem, check_ciphertext
from cloister.sealed.stores import BlockCache, CachedStore, FsspecStore, Patience, open_store
from tests.s3_server import BUCKET, S3Server, proxied, s3_server
from tests.sealing import FILES, Made, make, opened

MIB = 1 << 20


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


@pytest.fixture
def prefix(tmp_path: Path) -> str:
    return f"tests/{tmp_path.name}"


@pytest.fixture
def store(server: S3Server, prefix: str) -> Iterator[FsspecStore]:
    with server.store(prefix) as made:
        yield made


def read_all(made: Made, store: FsspecStore | CachedStore) -> dict[str, bytes]:
    with opened(store.source(made.sealed.digest), made) as sealed:
        found = {path: sealed.read(path) for path in sealed.paths()}
        sealed.check_roots()
        sealed.require_complete()
    return found


def test_an_object_comes_back_as_it_was(store: FsspecStore, server: S3Server, prefix: str, tmp_path: Path) -> None:
    made = make(tmp_path / "object")
    digest = made.sealed.digest
    store.check()
    assert (store.has(digest), list(store.digests())) == (False, [])
    store.put(made.folder, digest)
    store.put(made.folder, digest)
    store.put(made.folder, digest, recheck=True)
    assert (store.has(digest), list(store.digests())) == (True, [digest])
    assert read_all(made, store) == FILES
    check_ciphertext(server.path(prefix, digest))
    store.fetch(digest, tmp_path / "back")
    check_ciphertext(tmp_path / "back")
    store.delete(digest)
    assert (store.has(digest), list(store.digests())) == (False, [])
    with pytest.raises(Untrusted) as caught:
        store.fetch(digest, tmp_path / "again")
    assert caught.value.code == "sealed.incomplete"


def test_a_large_file_goes_up_in_parts(server: S3Server, prefix: str, tmp_path: Path) -> None:
    data = os.urandom(37 * MIB + 5)
    made = make(tmp_path / "object", {"big.bin": data})
    with proxied(server) as proxy, server.store(prefix, endpoint=proxy.endpoint) as store:
        store.put(made.folder, made.sealed.digest)
        parts = [line for line in proxy.gets if "partNumber=" in line]
        assert len(parts) == 3
        assert any(line.startswith("POST") and "uploadId=" in line for line in proxy.gets)
        assert read_all(made, store) == {"big.bin": data}
    check_ciphertext(server.path(prefix, made.sealed.digest))


def test_what_is_there_is_not_sent_again(server: S3Server, prefix: str, tmp_path: Path) -> None:
    made = make(tmp_path / "object")
    with proxied(server) as proxy, server.store(prefix, endpoint=proxy.endpoint) as store:
        store.put(made.folder, made.sealed.digest)
        proxy.reset()
        store.put(made.folder, made.sealed.digest)
        assert [line for line in proxy.gets if line.startswith(("PUT", "POST"))] == []
        assert proxy.received < 100_000


def test_without_its_manifest_an_object_is_none(server: S3Server, prefix: str, tmp_path: Path) -> None:
    made = make(tmp_path / "object")
    digest = made.sealed.digest
    with server.store(prefix) as store:
        store.put(made.folder, digest)
        server.path(prefix, digest, "manifest.json").unlink()
        server.changed()
        assert (store.has(digest), list(store.digests())) == (False, [])
        with pytest.raises(Untrusted) as caught:
            opened(store.source(digest), made)
        assert caught.value.code == "sealed.incomplete"
        store.put(made.folder, digest)
        assert read_all(made, store) == FILES


def test_a_sweep_ends_uploads_and_takes_halves(
    store: FsspecStore, server: S3Server, prefix: str, tmp_path: Path
) -> None:
    made = make(tmp_path / "object")
    store.put(made.folder, made.sealed.digest)
    half = b"\x09" * 32
    bucket = store._bucket
    bucket.write(half.hex(), "0000.sealed", b"half")
    bucket.write("notes", "0000.sealed", b"theirs")
    upload = bucket.upload("aa" * 32, "0000.sealed", 100 * MIB)
    upload.write(b"x" * upload.part_size)
    later = int(time.time()) + 60
    assert store.sweep(before=1_000_000_000) == 0, "what is young may be under way"
    assert store.sweep(before=later) == 2
    assert store.sweep(before=later) == 0
    assert bucket.listing(half.hex()) == {}
    assert set(bucket.listing("notes")) == {"0000.sealed"}
    assert read_all(made, store) == FILES


def test_a_sweep_of_an_empty_store(tmp_path: Path) -> None:
    """On a server that never saw an upload in parts, which may say so in words of its own."""
    with s3_server(tmp_path) as fresh, fresh.store("empty") as store:
        assert store.sweep(before=int(time.time()) + 60) == 0
        assert list(store.digests()) == []


def test_a_sweep_leaves_other_prefixes_alone(server: S3Server, prefix: str) -> None:
    with server.store(f"{prefix}/a") as one, server.store(f"{prefix}/ab") as two:
        two._bucket.write("bb" * 32, "0000.sealed", b"half")
        upload = two._bucket.upload("cc" * 32, "0000.sealed", 100 * MIB)
        assert one.sweep(before=int(time.time()) + 60) == 0
        assert two.sweep(before=int(time.time()) + 60) == 2
        upload.abort()  # it is gone already: harmless


def test_many_at_once(server: S3Server, prefix: str, tmp_path: Path) -> None:
    """Two stores put the same object while others read and put theirs."""
    shared = make(tmp_path / "shared", {"a.bin": os.urandom(3 * MIB)})
    own = [make(tmp_path / f"own{n}", {"a.bin": os.urandom(MIB)}) for n in range(3)]
    failures: list[BaseException] = []

    def work(mine: Made) -> None:
        try:
            with server.store(prefix) as store:
                for made in (shared, mine, shared):
                    store.put(made.folder, made.sealed.digest)
                    assert read_all(made, store) == made.files
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(made,)) for made in own]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with server.store(prefix) as store:
        assert set(store.digests()) == {made.sealed.digest for made in (shared, *own)}
    check_ciphertext(server.path(prefix, shared.sealed.digest))


def test_one_store_for_many_threads(store: FsspecStore, tmp_path: Path) -> None:
    made = make(tmp_path / "object")
    store.put(made.folder, made.sealed.digest)
    found: list[bool] = []
    with opened(store.source(made.sealed.digest), made) as sealed:
        threads = [
            threading.Thread(target=lambda p=path: found.append(sealed.read(p) == FILES[p]))  # type: ignore[misc]
            for path in [*FILES] * 2
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == [True] * (2 * len(FILES))


def test_an_object_of_many_files_opens_with_few_requests(server: S3Server, prefix: str, tmp_path: Path) -> None:
    made = make(tmp_path / "object", {f"f{n}": b"%d" % n for n in range(40)})
    with server.store(prefix) as direct:
        direct.put(made.folder, made.sealed.digest)
    with (
        proxied(server) as proxy,
        server.store(prefix, endpoint=proxy.endpoint) as store,
        opened(store.source(made.sealed.digest), made) as sealed,
    ):
        assert proxy.requests <= 3
        assert sealed.read("f7") == b"7"


def table(rows: int) -> pa.Table:
    rng = np.random.default_rng(1)
    return pa.table({f"c{n}": rng.standard_normal(rows) for n in range(8)})


def test_parquet_fetches_only_what_it_needs(server: S3Server, prefix: str, tmp_path: Path) -> None:
    """One column of one row group out of 8 times 8: pandas and pyarrow read it from the server through the seal."""
    rows = 600_000
    data = table(rows)
    pq.write_table(data, tmp_path / "t.parquet", row_group_size=rows // 8, compression="none", use_dictionary=False)
    content = (tmp_path / "t.parquet").read_bytes()
    made = make(tmp_path / "object", {"t.parquet": content})
    with server.store(prefix) as direct:
        direct.put(made.folder, made.sealed.digest)
    with (
        proxied(server) as proxy,
        server.store(prefix, endpoint=proxy.endpoint) as store,
        opened(store.source(made.sealed.digest), made) as sealed,
    ):
        fs = SealedFileSystem(sealed)
        with fs.open("t.parquet") as file:
            group = pq.ParquetFile(file).read_row_group(5, columns=["c3"])
        assert group["c3"].to_numpy().tobytes() == data["c3"].slice(5 * rows // 8, rows // 8).to_numpy().tobytes()
        # Whole segments, and what was asked for ahead before the reader went elsewhere: how much, is a race.
        assert proxy.received < len(content) / 4, "the rest stayed where it was"
        assert proxy.requests < 20
        with fs.open("t.parquet") as file:
            frame = pd.read_parquet(file, columns=["c1"])
        assert frame["c1"].equals(data["c1"].to_pandas())


def test_a_cache_spares_the_server(server: S3Server, prefix: str, tmp_path: Path) -> None:
    made = make(tmp_path / "object")
    with proxied(server) as proxy, server.store(prefix, endpoint=proxy.endpoint) as behind:
        store = CachedStore(behind, BlockCache(tmp_path / "cache", 64 * MIB))
        store.put(made.folder, made.sealed.digest)
        assert read_all(made, store) == FILES
        proxy.reset()
        proxy.behave = "refuse"  # the store is away; what was read once can be read again
        assert read_all(made, store) == FILES
        assert proxy.requests == 0


def test_nothing_else_is_asked_for_credentials(
    server: S3Server, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the environment says, only the given keys and endpoint count, and no other place is contacted
    (a metadata service would be beyond loopback: the tests' guard against that fails this test)."""
    config = tmp_path / "aws-config"
    config.write_text("[default]\nendpoint_url = http://192.0.2.1\n[profile x]\nregion = nowhere\n")
    for name, value in {
        "AWS_ACCESS_KEY_ID": "wrong", "AWS_SECRET_ACCESS_KEY": "wrong", "AWS_SESSION_TOKEN": "wrong",
        "AWS_PROFILE": "no-such-profile", "AWS_CONFIG_FILE": str(config), "AWS_ENDPOINT_URL": "http://192.0.2.1",
        "AWS_SHARED_CREDENTIALS_FILE": str(config),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    made = make(tmp_path / "object")
    with server.store(prefix) as store:
        store.put(made.folder, made.sealed.digest)
        assert read_all(made, store) == FILES


def test_a_bucket_without_a_prefix(server: S3Server, tmp_path: Path) -> None:
    made = make(tmp_path / "object")
    with open_store(f"s3://{BUCKET}", credentials=server.credentials(), patience=Patience(attempts=2)) as store:
        store.put(made.folder, made.sealed.digest)
        assert made.sealed.digest in set(store.digests())
        assert read_all(made, store) == FILES
        store.delete(made.sealed.digest)
