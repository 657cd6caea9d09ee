"""Whoever runs the servers changes what they store: the workload's image, ciphertext, the directory of brokers."""

from __future__ import annotations

import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cloister.client import Agreement, ControlClient
from cloister.crypto import random_bytes
from cloister.crypto.tls import make_certificate, server_context
from tests.control_world import Party
from tests.e2e.operator import address, catalogue, replaced
from tests.e2e.story import Story, refused
from tests.e2e.story import story as story

_WORKLOAD = "image/opt/cloister/lib/cloister/workload/job.py"


@pytest.fixture(scope="module")
def agreement(story: Story) -> Agreement:
    return story.agree()


def _released_for(story: Story, digest: str) -> int:
    return len([e for party in story.passphrases for e in story.log(party, "key.released") if e["job"] == digest])


def test_one_byte_of_the_workload_is_changed(story: Story, agreement: Agreement) -> None:
    path = story.home.path / _WORKLOAD
    changed = path.read_bytes().replace(b"Start reading here", b"Start reading herE", 1)
    assert changed != path.read_bytes()
    with replaced(path, changed):
        run = story.submit(agreement)
        assert run.ended() == ("denied", "appraisal.measurement")
    assert _released_for(story, run.digest) == 0
    refusals = [e for e in story.log("hospital", "attest.refused") if e["job"] == run.digest]
    assert {e["code"] for e in refusals} == {"appraisal.measurement"}


def test_the_image_is_what_was_measured_again(story: Story, agreement: Agreement) -> None:
    """Put back, it gets its keys. All its telemetry is dropped on the way, which changes nothing."""
    catalogue(story, "CREATE TRIGGER deaf BEFORE INSERT ON events BEGIN SELECT RAISE(IGNORE); END")
    try:
        run = story.submit(agreement)
        assert run.ended() == ("succeeded", None)
    finally:
        catalogue(story, "DROP TRIGGER deaf")
    assert run.events() == []
    assert story.pull("deaf").verified.job == run.digest


@contextmanager
def _in_the_cache(story: Story, digest: str) -> Iterator[Path]:
    """A node's copy of a sealed object; what is done to it is undone."""
    folder = story.home.path / "node" / "cache" / digest
    kept = story.folder / "kept"
    shutil.copytree(folder, kept)
    with replaced(folder, kept):
        yield folder
    shutil.rmtree(kept)


def _denied_with(story: Story, agreement: Agreement, code: str) -> None:
    """Keys came, since the evidence is good, but what they open is not what was agreed: nothing leaves."""
    run = story.submit(agreement)
    assert run.ended() == ("denied", code)
    assert not (run.folder / "out" / "release.json").exists()
    assert not [e for party in story.passphrases for e in story.log(party, "permit.issued") if e["job"] == run.digest]
    client = story.home.control("hospital")
    assert refused(lambda: client.release(run.digest)) == ("Misuse", "release.unknown")


def test_the_ciphertext_of_one_asset_is_served_for_another(story: Story, agreement: Agreement) -> None:
    with _in_the_cache(story, story.data.digest) as folder:
        other = story.home.path / "control" / "objects" / story.base.digest
        shutil.copy(other / "0000.sealed", folder / "0000.sealed")
        _denied_with(story, agreement, "sealed.size")


def test_ciphertext_is_cut_short(story: Story, agreement: Agreement) -> None:
    with _in_the_cache(story, story.base.digest) as folder:
        largest = max(folder.glob("*.sealed"), key=lambda p: p.stat().st_size)
        data = largest.read_bytes()
        largest.write_bytes(data[:-20])
        _denied_with(story, agreement, "sealed.size")


def test_an_old_version_is_served_for_the_newest(story: Story) -> None:
    """Its manifest is genuine, signed by the owner; it is not the one that the contract names."""
    table = story.sources / "versions.csv"
    shutil.copy(story.table, table)
    old = story.seal(table, "hospital/versions")
    new = story.seal(table, "hospital/versions")
    assert (old.version, new.version) == (1, 2)
    agreement = story.agree(data="hospital/versions")
    objects, cache = story.home.path / "control" / "objects", story.home.path / "node" / "cache"
    target = cache / new.digest
    shutil.copytree(objects / old.digest, target)
    owner = cache.stat()
    for path in (target, *target.iterdir()):
        shutil.chown(path, owner.st_uid, owner.st_gid)
    run = story.submit(agreement, data="hospital/versions")
    assert run.ended() == ("denied", "sealed.digest")
    assert not [e for e in story.log("hospital", "permit.issued") if e["job"] == run.digest]
    shutil.rmtree(target)


def test_the_key_of_a_version_that_was_replaced_is_not_given(story: Story) -> None:
    table = story.sources / "twice.csv"
    shutil.copy(story.table, table)
    first = story.seal(table, "hospital/twice")
    agreement = story.agree(data="hospital/twice")
    story.seal(table, "hospital/twice")
    run = story.submit(agreement, data="hospital/twice")
    assert run.ended() == ("denied", "asset.old")
    assert not [e for e in story.log("hospital", "key.released") if e["resource"] == first.digest]


def test_the_store_serves_another_object_than_was_asked_for(story: Story, agreement: Agreement) -> None:
    """Here the node is honest and the store is not: the node's own check of the download finds it."""
    name = "hospital/served"
    table = story.sources / "served.csv"
    shutil.copy(story.table, table)
    sealed = story.seal(table, name)
    stored = story.home.path / "control" / "objects" / sealed.digest / "0000.sealed"
    data = bytearray(stored.read_bytes())
    data[1000] ^= 1
    other = story.agree(data=name)
    with replaced(stored, bytes(data)):
        run = story.submit(other, data=name)
        state, code = run.ended()
    assert (state, code) == ("failed", "sealed.root")
    assert _released_for(story, run.digest) == 0
    assert not (story.home.path / "node" / "cache" / sealed.digest).exists()
    assert story.in_force("lab", agreement)


@contextmanager
def _impostor(folder: Path) -> Iterator[int]:
    """A broker's place, taken by somebody with another TLS key; what it is asked is kept."""
    certificate, key = make_certificate(random_bytes(32), "lab")
    (folder / "certificate.pem").write_bytes(certificate)
    (folder / "key.pem").write_bytes(key)
    context = server_context(str(folder / "certificate.pem"), str(folder / "key.pem"))
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    sock, _ = listener.accept()
                except OSError:
                    return
                # Whoever notices the wrong key hangs up, in whatever moment.
                with suppress(OSError), context.wrap_socket(sock, server_side=True) as tls:
                    asked.append(tls.recv(65536))

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(60)
    assert not any(asked)  # the workload told it nothing


def test_the_directory_names_an_impostor_for_a_broker(story: Story, agreement: Agreement, tmp_path: Path) -> None:
    with _impostor(tmp_path) as port, address(story, "lab", port):
        run = story.submit(agreement)
        assert run.ended() == ("denied", "tls.pin")
    assert _released_for(story, run.digest) == 0


def test_a_name_in_the_directory_is_not_taken_over(story: Story) -> None:
    """Another card under a known name, published with that card's own key."""
    mallory = Party("lab")
    client = ControlClient(story.status["control"]["url"], mallory)
    before = story.home.control("hospital").directory()
    assert refused(lambda: client.publish(mallory.card, "127.0.0.1:1")) == ("Untrusted", "directory.taken")
    client.close()
    assert story.home.control("hospital").directory() == before
