"""A disk that is really full: a small file system, filled to its last page. It is said in one clear sentence, nothing
that was there is lost, nothing half-made is left, and with room again the same work goes on."""

from __future__ import annotations

import errno
import io
import os
import random
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloister.audit import check_log
from cloister.broker import Limits
from cloister.client import operations
from cloister.crypto import Envelope
from cloister.errors import CloisterError, Unavailable
from cloister.keys import Vault, create_vault, open_vault, rekey
from cloister.sealed import MANIFEST_TYPE, check_ciphertext, open_sealed
from cloister.sealed.resume import ResumableSeal, SourceFile
from cloister.sealed.stores import LocalStore
from cloister.workload.checkpoints import SealedCheckpoints
from cloister.workload.identity import WorkloadIdentity
from cloister.workload.key_session import RunContext
from tests.broker_party import FakeClock, Party, insecure_judges
from tests.bundles import INSTANCE, make_contract, make_job
from tests.client_home import OPTIONS, LocalHome
from tests.key_chores import deks, many
from tests.sealing import CHEAP, DEK, MIB, OWNER_KEY, Made, identity, make

pytest_plugins = ["tests.client_fixtures"]

PASSPHRASE = b"correct horse battery"
DIGEST = b"manifest digest of 32 bytes....."
KIB = 1024


@dataclass
class Disk:
    """A file system of its own at ``place``."""

    place: Path

    @property
    def _filler(self) -> Path:
        return self.place / ".filler"

    @contextmanager
    def full(self, *, but: int = 0) -> Iterator[None]:
        """Nothing fits any more, or only that many bytes."""
        with self._filler.open("wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(64 * KIB) if free(self.place) >= 64 * KIB else bytes(4 * KIB))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
            file.truncate(max(0, file.tell() - but))
        assert free(self.place) <= but + 4 * KIB
        try:
            yield
        finally:
            self._filler.unlink()

    def snapshot(self) -> dict[str, bytes]:
        files = (p for p in self.place.rglob("*") if p.is_file() and p != self._filler)
        return {str(p.relative_to(self.place)): p.read_bytes() for p in files}


def free(place: Path) -> int:
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    place = tmp_path / "disk"
    place.mkdir()
    options = ["-t", "tmpfs", "-o", "size=12m,mode=700", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(["mount", *options], capture_output=True, check=False).returncode != 0:
        pytest.skip("only root can mount a tiny file system here")
    try:
        yield Disk(place)
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def refused(call: Callable[[], object], code: str = "storage.full") -> str:
    with pytest.raises(Unavailable) as info:
        call()
    assert info.value.code == code
    assert "disk" in info.value.message or "storage" in info.value.message
    assert "free space" in info.value.message
    return info.value.message


# -- sealing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 8 * KIB, MIB, 2 * MIB + 200 * KIB])
def test_sealing(disk: Disk, room: int) -> None:
    """It breaks off at the first folder, at a file's first byte, between files, in the midst of one."""
    old = make(disk.place / "1", {"a": b"the old version"})
    files = {"a": bytes(MIB), "b": b"", "c": bytes(2 * MIB)}
    before = disk.snapshot()
    with disk.full(but=room):
        refused(lambda: make(disk.place / "2", files, version=2, previous=old.sealed.digest))
        assert disk.snapshot() == before
        assert sorted(p.name for p in disk.place.iterdir()) == [".filler", "1"]
        with old.open() as sealed:
            assert sealed.read("a") == b"the old version"
    new = make(disk.place / "2", files, version=2, previous=old.sealed.digest)
    with new.open() as sealed:
        assert {path: sealed.read(path) for path in sealed.paths()} == files


CONTENT = {"a": b"a" * MIB, "b": b"b" * (MIB + 5), "c": b"", "d": b"d" * (3 * MIB)}


def go_on(work: Path, dest: Path, opened: list[str]) -> Envelope:
    """What re-encryption does on its owner's disk."""

    def source(path: str, data: bytes) -> SourceFile:
        @contextmanager
        def reading() -> Iterator[io.BytesIO]:
            opened.append(path)
            yield io.BytesIO(data)

        return SourceFile(path, len(data), reading)

    with ResumableSeal(work) as seal:
        files = [source(path, data) for path, data in CONTENT.items()]
        payload = seal.write(files, dek=DEK, identity=identity(), terms={}, progress=lambda _: None)
        envelope = Envelope(MANIFEST_TYPE, payload).signed_by(OWNER_KEY)
        seal.publish(envelope, dest)
    return envelope


def test_re_encryption_fills_the_disk_again_and_again(disk: Disk) -> None:
    """A little more room each time: what is finished stays finished, and in the end it is whole."""
    work, dest = disk.place / ".work", disk.place / "done"
    made: list[str] = []
    for room in (0, 40 * KIB, MIB + 300 * KIB, 2 * MIB, MIB):
        with disk.full(but=room):
            message = refused(lambda: go_on(work, dest, made))
            assert "the same command again: it goes on" in message
            assert not dest.exists()
    envelope = go_on(work, dest, made)
    assert made.count("a") <= 3, "once it was whole, it was not made again"
    assert made.index("d") > made.index("b") > made.index("a")
    check_ciphertext(dest, signer_keys=[OWNER_KEY.public])
    with open_sealed(dest, dek=DEK, expected_digest=envelope.digest, signer_keys=[OWNER_KEY.public]) as sealed:
        assert {path: sealed.read(path) for path in sealed.paths()} == CONTENT


@pytest.mark.parametrize("room", [0, 8 * KIB, MIB])
def test_a_store(disk: Disk, tmp_path: Path, room: int) -> None:
    old, new = make(tmp_path / "1", {"a": b"old"}), make(tmp_path / "2", {"a": bytes(3 * MIB)}, version=2)
    store = LocalStore(disk.place / "store")
    store.put(old.folder, old.sealed.digest)
    elsewhere = LocalStore(tmp_path / "elsewhere")
    elsewhere.put(new.folder, new.sealed.digest)
    before = disk.snapshot()
    with disk.full(but=room):
        refused(lambda: store.put(new.folder, new.sealed.digest), "store.full")
        refused(lambda: elsewhere.fetch(new.sealed.digest, disk.place / "copy"), "store.full")
        assert (list(store.digests()), disk.snapshot()) == ([old.sealed.digest], before)
        with Made(store.path(old.sealed.digest), old.sealed).open() as sealed:
            assert sealed.read("a") == b"old"
    store.put(new.folder, new.sealed.digest)
    check_ciphertext(store.path(new.sealed.digest))


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_checkpoints(disk: Disk) -> None:
    """The recorded one stays the newest and opens; the next save is taken when there is room."""
    contract = make_contract()
    run = RunContext(contract, make_job(contract), INSTANCE, "tpm", WorkloadIdentity(), None)  # type: ignore[arg-type]
    recorded: list[int] = []

    def record(text: str) -> None:
        recorded.append(Envelope.from_bytes(text.encode()).document()["step"])

    def sink(known: tuple[int, bytes] | None) -> SealedCheckpoints:
        return SealedCheckpoints(run, b"s" * 32, disk.place, known=known, record=record)

    one = sink(None)
    one.save(2, [("state.json", io.BytesIO(b"two"))])
    before = disk.snapshot()
    for room in (0, 8 * KIB, MIB):
        with disk.full(but=room):
            refused(lambda: one.save(4, [("state.json", io.BytesIO(b"four")), ("w", io.BytesIO(bytes(3 * MIB)))]))
            assert (recorded, disk.snapshot()) == ([2], before)
            newest = one.latest()
            assert newest is not None
            with newest[1] as sealed:
                assert (newest[0], sealed.read("state.json")) == (2, b"two")
    one.save(4, [("state.json", io.BytesIO(b"four")), ("w", io.BytesIO(bytes(3 * MIB)))])
    newest = one.latest()
    assert newest is not None
    with newest[1] as sealed:
        assert (newest[0], recorded, sealed.read("state.json")) == (4, [2, 4], b"four")


# -- vaults ------------------------------------------------------------------------------------------------------------

CHORES: dict[str, Callable[[Vault], object]] = {
    "rotate": lambda vault: vault.rotate_kek(),
    "secret": lambda vault: vault.put_secret("s", b"new", replace=True),
    "key": lambda vault: vault.create_signing_key("receipt", replace=True),
    "destroy": lambda vault: vault.destroy_epoch(vault.epochs()[0]),
    "rekey": lambda vault: rekey(vault, PASSPHRASE),
}


@pytest.mark.parametrize("chore", sorted(CHORES))
def test_a_change_of_a_vault(disk: Disk, chore: str) -> None:
    path = disk.place / "v" / "vault.json"
    with create_vault(path, PASSPHRASE, "hospital", params=CHEAP) as vault:
        vault.put_secret("s", b"old")
        first = vault.wrap(DEK, DIGEST)
        vault.rotate_kek()
        second = vault.wrap(DEK, DIGEST)
        before, epochs, revision = disk.snapshot(), vault.epochs(), vault.revision
        with disk.full():
            refused(lambda: CHORES[chore](vault))
            assert disk.snapshot() == before
            assert (vault.epochs(), vault.revision) == (epochs, revision)
            assert (vault.unwrap(first, DIGEST), vault.unwrap(second, DIGEST)) == (DEK, DEK)
            assert vault.secret("s") == b"old"
            open_vault(path, PASSPHRASE).close()
        CHORES[chore](vault)
        assert vault.revision > revision
    with open_vault(path, PASSPHRASE) as vault:
        assert vault.unwrap(second, DIGEST) == DEK
        assert vault.secret("s") == (b"new" if chore == "secret" else b"old")
        assert (first.epoch in vault.epochs()) is (chore != "destroy")
    assert os.listdir(path.parent) == ["vault.json"]


def test_a_vault_that_finds_no_room_to_be_made(disk: Disk) -> None:
    with disk.full():
        refused(lambda: create_vault(disk.place / "vault.json", PASSPHRASE, "hospital", params=CHEAP))
        assert os.listdir(disk.place) == [".filler"]
    create_vault(disk.place / "vault.json", PASSPHRASE, "hospital", params=CHEAP).close()


# -- a re-encryption of its owner's ------------------------------------------------------------------------------------


@pytest.mark.parametrize("room", [0, 300 * KIB, 2 * MIB, 3 * MIB])
def test_re_encryption_at_its_owners(agreed: LocalHome, disk: Disk, tmp_path: Path, room: int) -> None:
    """Through the client, from the store and back, against a real broker and control plane: the old version's file does
    not fit, or the new one's beside it. Then the same command goes on, and both versions open."""
    name, folder, outbox = f"hospital/full-{room}", tmp_path / "sources", agreed.folder / "outbox"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"w" * (2 * MIB))
    first = operations.seal(agreed.home, folder, name, OPTIONS.__class__(licences=("MIT",)))
    shutil.rmtree(outbox)
    outbox.symlink_to(disk.place, target_is_directory=True)
    try:
        with disk.full(but=room):
            assert "goes on" in refused(lambda: operations.reencrypt(agreed.home, name))
            assert [row["version"] for row in agreed.home.agent("hospital").assets() if row["name"] == name] == [1]
        done = operations.reencrypt(agreed.home, name)
        assert (done.asset.version, done.resumed, done.asset.digest != first.digest) == (2, True, True)
        assert list(disk.place.iterdir()) == []
    finally:
        outbox.unlink()


# -- a broker ----------------------------------------------------------------------------------------------------------


def test_a_broker_with_its_keys(disk: Disk, tmp_path: Path) -> None:
    """Rotation, a new asset, a shredding: at more and more room none is half done, and later each is done."""
    clock, home = FakeClock(), disk.place / "home"
    party = Party("hospital", home, clock, insecure_judges(), Limits(heads_interval=3600.0, rewrap_batch=2))
    many(party, tmp_path, 4)
    before, refusals, chance = deks(party), [], random.Random(1)
    (doomed,) = (row["digest"] for row in party.tables()["assets"] if row["name"] == "hospital/set-0")
    chores: list[Callable[[], Any]] = [
        lambda: party.broker.lifecycle.rotation.rotate(),
        lambda: party.broker.lifecycle.shredder.shred("hospital/set-0", None, "withdrawn"),
        # Another name each time: what was refused once the log had it is made when the next turn begins.
        lambda: many(party, tmp_path, 1, f"hospital/late-{len(refusals)}"),
    ]
    for chore in chores:
        for room in (0, 4 * KIB, 12 * KIB, chance.randrange(16, 60) * KIB):
            with disk.full(but=room):
                try:
                    chore()
                except CloisterError as error:
                    refusals.append((error.code, error.message))
                now = deks(party)
                assert {d: k for d, k in before.items() if now.get(d) != k}.keys() <= {doomed}
    party.restart()
    party.broker.lifecycle.rotation.finish()
    if doomed in deks(party):
        chores[1]()
    chores[0]()
    chores[2]()
    now = deks(party)
    logged = {str(f.details.get("digests0")) for f in party.log() if f.kind == "asset.shredded"}
    assert (set(before) - set(now), logged) == ({doomed}, {doomed})
    assert all(now[digest] == key for digest, key in before.items() if digest != doomed)
    assert len(party.broker.lifecycle.vault.epochs()) == 1
    name, key = party.broker.card.log_origin, party.broker.core.keys.receipt.public
    party.broker.close()
    check_log(home / "log", name, key)
    assert {code for code, _ in refusals} <= {"storage.full", "audit.unwritable"}
    assert len(refusals) > 5
    assert all("disk" in message for _, message in refusals)


# -- without root: a limit on the length of files ----------------------------------------------------------------------


def test_a_vault_and_a_limit_on_the_length_of_files(tmp_path: Path) -> None:
    """The kernel's other way to say no (EFBIG), in a child, since nothing raises such a limit again."""
    path = tmp_path / "vault.json"
    create_vault(path, PASSPHRASE, "hospital", params=CHEAP).close()
    before = path.read_bytes()
    child = os.fork()
    if child == 0:
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, len(before) // 2))
            with open_vault(path, PASSPHRASE) as vault:
                vault.rotate_kek()
        except Unavailable as error:
            os._exit(7 if "disk" in error.message else 8)
        finally:
            os._exit(9)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
    assert (path.read_bytes(), os.listdir(tmp_path)) == (before, ["vault.json"])
    with open_vault(path, PASSPHRASE) as vault:
        assert vault.rotate_kek() == 2
