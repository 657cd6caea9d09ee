"""The control plane with its objects in S3: upload, read back, ranges, restart, and what it refuses to start with."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloister.client import ControlClient
from cloister.control import ControlPlane, Storage
from cloister.control.storage import store_arguments, store_choice, store_credentials
from cloister.crypto import sha256
from cloister.errors import CloisterError, Misuse, Untrusted
from cloister.sealed import check_ciphertext, read_envelope
from tests.control_world import Party, World
from tests.s3_server import BUCKET, S3Server, s3_server

NODE_KEY = "aa" * 32
URL = f"s3://{BUCKET}/control"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with s3_server(tmp_path_factory.mktemp("s3")) as running:
        yield running


def credentials(server: S3Server, folder: Path, *, secret: str | None = None) -> Path:
    path = folder / "s3.json"
    document = json.loads(server.credentials().reveal_json())
    path.write_text(json.dumps(document if secret is None else {**document, "secret_key": secret}))
    path.chmod(0o600)
    return path


@contextmanager
def control(home: Path, *more: str) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "cloister.control", "--home", str(home), "--node-key", NODE_KEY, *more]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    answer: dict[str, Any] = {"ready": True}
    try:
        answer = json.loads(process.stdout.readline())
        yield answer
    finally:
        if answer["ready"]:  # one that refused to start ends by itself; a signal would hit it while it does
            process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
        assert "Traceback" not in errors


@pytest.fixture
def sealed(tmp_path: Path) -> tuple[Party, Path]:
    party, folder = Party("hospital"), tmp_path / "object"
    World.seal_into(None, folder, party.signing, "hospital", "hospital/queries", "dataset", b"x" * 3_000_000)  # type: ignore[arg-type]
    return party, folder


def test_objects_live_in_s3_over_a_restart(server: S3Server, tmp_path: Path, sealed: tuple[Party, Path]) -> None:
    party, folder = sealed
    digest = read_envelope(folder).digest
    options = ("--objects", URL, "--objects-credentials", str(credentials(server, tmp_path)), "--objects-cache", "64")
    home = tmp_path / "control"
    with control(home, *options) as ready:
        client = ControlClient(ready["url"], party)
        client.publish(party.card, "127.0.0.1:4433")
        assert client.upload(folder) == digest.hex()
        assert client.upload(folder) == digest.hex()
        client.close()
    assert list((home / "objects").iterdir()) == []
    assert list((home / "uploads").iterdir()) == []
    server.changed()
    check_ciphertext(server.path("control", digest))
    with control(home, *options) as ready:
        client = ControlClient(ready["url"], party)
        assert [a["digest"] for a in client.assets()] == [digest.hex()]
        client.download(digest.hex(), tmp_path / "back")
        check_ciphertext(tmp_path / "back")
        check_ranges(ready, party, f"/v1/objects/{digest.hex()}/files/0", (folder / "0000.sealed").read_bytes())
        client.close()
    assert sum(p.stat().st_size for p in (home / "cache" / "blocks").iterdir()) > 3_000_000


def check_ranges(ready: dict[str, Any], party: Party, path: str, data: bytes) -> None:
    """RFC 9110 §14: one range is honoured, what is no range is ignored, what lies beyond the end is refused."""
    for header, status, expected in (
        (None, 200, data),
        ("bytes=0-", 200, data),
        ("bytes=1048570-1048585", 206, data[1048570:1048586]),
        ("bytes=3000000-", 206, data[3000000:]),
        ("bytes=-10", 206, data[-10:]),
        ("bytes=5-99999999999", 206, data[5:]),
        ("bytes=99999999999-", 416, b""),
        ("lines=1-2", 200, data),
        ("bytes=-", 200, data),
    ):
        headers = {"Authorization": party.authorize("GET", path, sha256(b"").hex(), ready["id"])}
        answer = httpx.get(ready["url"] + path, headers=headers | ({} if header is None else {"Range": header}))
        assert (answer.status_code, answer.content == expected) == (status, True), (header, answer.headers)


def test_a_damaged_object_is_an_answer_not_a_stream(
    server: S3Server, tmp_path: Path, sealed: tuple[Party, Path]
) -> None:
    party, folder = sealed
    digest = read_envelope(folder).digest
    url, home = f"s3://{BUCKET}/damaged", tmp_path / "control"
    with control(home, "--objects", url, "--objects-credentials", str(credentials(server, tmp_path))) as ready:
        client = ControlClient(ready["url"], party)
        client.publish(party.card, "127.0.0.1:4433")
        client.upload(folder)
        server.path("damaged", digest, "0000.sealed").unlink()
        server.changed()
        with pytest.raises(Untrusted) as caught:
            client.download(digest.hex(), tmp_path / "back")
        assert caught.value.code == "sealed.incomplete"
        client.close()


def test_it_says_why_it_does_not_start(server: S3Server, tmp_path: Path) -> None:
    right = credentials(server, tmp_path)
    (tmp_path / "w").mkdir()
    wrong = credentials(server, tmp_path / "w", secret="not-it")
    (tmp_path / "o").mkdir()
    wide = credentials(server, tmp_path / "o")
    wide.chmod(0o644)
    for options, code in (
        (("--objects", URL, "--objects-credentials", str(wrong)), "store.denied"),
        (("--objects", "s3://no-such-bucket/x", "--objects-credentials", str(right)), "store.bucket"),
        (("--objects", URL, "--objects-credentials", str(wide)), "store.credentials"),
        (("--objects", URL), "store.credentials"),
        (("--objects", "s3://", "--objects-credentials", str(right)), "store.url"),
        (("--objects", URL, "--objects-credentials", str(right), "--objects-cache", "1"), "store.cache"),
        (("--objects-credentials", str(right)), "control.objects"),
    ):
        with control(tmp_path / "control", *options) as answer:
            assert (answer["ready"], answer["error"]["code"]) == (False, code)
            assert "not-it" not in json.dumps(answer)


def test_another_store_than_the_objects_lie_in_is_refused(
    server: S3Server, tmp_path: Path, sealed: tuple[Party, Path]
) -> None:
    party, folder = sealed
    home = tmp_path / "control"
    with control(home) as ready:
        client = ControlClient(ready["url"], party)
        client.publish(party.card, "127.0.0.1:4433")
        client.upload(folder)
        client.close()
    with pytest.raises(Misuse) as caught:
        ControlPlane(home, node_key=bytes(32), storage=Storage(URL, server.credentials()))
    assert caught.value.code == "control.objects"
    ControlPlane(home, node_key=bytes(32)).close()  # as before: nothing was changed, and the lock is free


def test_the_supervisor_hands_the_credentials_over_a_pipe(server: S3Server, tmp_path: Path) -> None:
    path = credentials(server, tmp_path)
    choice = store_choice(Namespace(objects=URL, objects_credentials=path, objects_cache=64))
    assert choice == {"cache_mib": 64, "credentials": str(path), "url": URL}
    arguments, secret = store_arguments(choice), store_credentials(choice)
    assert secret is not None
    assert all(word not in " ".join(arguments) + json.dumps(choice) for word in ("test-secret-key", "test-access"))
    command = [sys.executable, "-m", "cloister.control", "--home", str(tmp_path / "c"), "--node-key", NODE_KEY]
    process = subprocess.Popen([*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(secret + "\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["ready"] is True
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert (store_arguments(None), store_credentials(None)) == ((), None)
    with pytest.raises(CloisterError):
        store_choice(Namespace(objects=None, objects_credentials=path, objects_cache=64))
