"""The file vault: KEKs, epochs, named secrets, passphrases, and durable, exclusive changes."""

from __future__ import annotations

import json
import os
import pickle
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.crypto import Argon2Params, SigningKey, verify_ed25519
from cloister.errors import Denied, Malformed, Misuse, Unavailable, Untrusted
from cloister.keys import (
    HPKE,
    SIGNING,
    KeyInfo,
    KeyVault,
    Vault,
    WrappedKey,
    change_passphrase,
    create_vault,
    hpke_key,
    open_vault,
    provision_party,
    rekey,
    split_root,
)
from cloister.keys import storage as storage_module
from tests.sealing import CHEAP

PASSPHRASE = b"correct horse battery"
DEK = bytes(range(32))
DIGEST = b"manifest digest of 32 bytes....."


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    with create_vault(tmp_path / "v" / "vault.json", PASSPHRASE, "hospital", params=CHEAP) as made:
        yield made


def path_of(vault: Vault) -> Path:
    return vault._path


def again(vault: Vault, **kw: int) -> Vault:
    return open_vault(path_of(vault), PASSPHRASE, **kw)


def test_a_new_vault(vault: Vault) -> None:
    port: KeyVault = vault  # it has all that the port asks for
    assert (port.owner, port.epoch, port.revision, port.epochs(), port.secret_names()) == ("hospital", 1, 1, (1,), ())
    assert len(vault.kek_id) == 32
    assert stat.S_IMODE(path_of(vault).stat().st_mode) == 0o600
    assert stat.S_IMODE(path_of(vault).parent.stat().st_mode) == 0o700
    assert os.listdir(path_of(vault).parent) == ["vault.json"]
    assert again(vault).kek_id == vault.kek_id


def test_wrapping(vault: Vault) -> None:
    wrapped = vault.wrap(DEK, DIGEST)
    assert (wrapped.kek_id, wrapped.epoch, len(wrapped.box)) == (vault.kek_id, 1, 60)
    assert again(vault).unwrap(WrappedKey.from_document(wrapped.to_document()), DIGEST) == DEK
    assert vault.wrap(DEK, DIGEST).box != wrapped.box


def test_rotation_keeps_old_keys_readable_until_they_are_destroyed(vault: Vault) -> None:
    old = vault.wrap(DEK, DIGEST)
    assert vault.rotate_kek() == 2
    new = vault.rewrap(old, DIGEST)
    assert (vault.epoch, new.epoch, vault.epochs()) == (2, 2, (1, 2))
    assert vault.unwrap(old, DIGEST) == vault.unwrap(new, DIGEST) == DEK
    remains = vault.destroy_epoch(1)
    assert remains is not None
    assert "Copies of the vault file" in remains
    for held in (vault, again(vault)):
        assert held.unwrap(new, DIGEST) == DEK
        with pytest.raises(Denied) as info:
            held.unwrap(old, DIGEST)
        assert info.value.code == "wrap.epoch"
    assert vault.rotate_kek() == 3  # an epoch's number is never used again
    for epoch in (1, 3, 9):
        with pytest.raises(Misuse) as misuse:
            vault.destroy_epoch(epoch)
        assert misuse.value.code == "vault.epoch"


def test_secrets(vault: Vault) -> None:
    vault.put_secret("signing", b"s" * 32)
    vault.put_secret("a.b-c", b"")
    assert again(vault).secret("signing") == b"s" * 32
    assert again(vault).secret("a.b-c") == b""
    assert vault.secret_names() == ("a.b-c", "signing")
    with pytest.raises(Misuse) as info:
        vault.put_secret("signing", b"t" * 32)
    assert info.value.code == "vault.secret_exists"
    assert vault.secret("signing") == b"s" * 32
    vault.put_secret("signing", b"t" * 32, replace=True)
    assert again(vault).signing_key("signing").public == SigningKey(b"t" * 32).public
    assert vault.revision == 4


def test_a_signing_key_only_signs(vault: Vault) -> None:
    made = vault.create_signing_key("receipt")
    verify_ed25519(made.public, b"text", again(vault).signing_key("receipt").sign(b"text"))
    calls: list[tuple[Callable[[], object], str]] = [
        (lambda: vault.secret("receipt"), "vault.no_secret"),
        (lambda: vault.put_secret("receipt", b"", replace=True), "vault.kind"),
        (lambda: vault.create_signing_key("receipt"), "vault.secret_exists"),
        (lambda: vault.create_signing_key("Receipt"), "vault.name"),
        (lambda: vault.signing_key("none"), "vault.no_secret"),
    ]
    for call, code in calls:
        with pytest.raises(Misuse) as info:
            call()
        assert info.value.code == code
    assert vault.create_signing_key("receipt", replace=True).public != made.public
    assert again(vault).signing_key("receipt").public == vault.signing_key("receipt").public
    assert vault.secret_names() == ()


def test_what_a_vault_tells_about_its_keys(tmp_path: Path) -> None:
    with create_vault(tmp_path / "v.json", PASSPHRASE, "hospital", params=CHEAP, clock=lambda: 1_700_000_000) as vault:
        vault.put_secret("tls", b"t" * 32)
        vault.create_signing_key("receipt").sign(b"one")
        vault.signing_key("receipt").sign(b"two")
        old = vault.wrap(DEK, DIGEST)
        vault.rotate_kek()
        vault.rewrap(old, DIGEST)
        with pytest.raises(Untrusted):
            vault.unwrap(old, bytes(32))  # a refused use is none
        made = 1_700_000_000
        assert list(vault.keys()) == [
            KeyInfo(vault.kek_id, "kek", 1, "file", True, made, wraps=1, unwraps=1),
            KeyInfo(vault.kek_id, "kek", 2, "file", True, made, wraps=1),
            KeyInfo("receipt", "signing", 1, "file", True, made, signs=2),
            KeyInfo("tls", "secret", 1, "file", True, made),
        ]
        assert (vault.driver, list(vault.warnings)) == ("file", [])


def test_uses_are_counted_by_several_threads(vault: Vault) -> None:
    wrapped = vault.wrap(DEK, DIGEST)
    threads = [threading.Thread(target=lambda: [vault.unwrap(wrapped, DIGEST) for _ in range(50)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (kek,) = vault.keys()
    assert kek.unwraps == 200


def test_secrets_out_of_form(vault: Vault) -> None:
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: vault.secret("none"), "vault.no_secret"),
        (lambda: vault.put_secret("Upper", b""), "vault.name"),
        (lambda: vault.put_secret("", b""), "vault.name"),
        (lambda: vault.put_secret("big", bytes(65537)), "vault.secret_size"),
        (lambda: vault.wrap(bytes(31), DIGEST), "wrap.dek"),
        (lambda: vault.wrap(DEK, bytes(31)), "wrap.digest"),
    ]
    for call, code in cases:
        with pytest.raises(Misuse) as info:
            call()
        assert info.value.code == code
    assert vault.revision == 1


def test_a_vault_can_be_full(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.keys.document.MAX_VAULT", 20_000)
    with pytest.raises(Misuse) as info:
        vault.put_secret("big", bytes(20_000))
    assert info.value.code == "vault.full"
    assert again(vault).secret_names() == vault.secret_names() == ()


def test_provisioning_a_party_is_repeatable(vault: Vault) -> None:
    provision_party(vault)
    assert set(vault.secret_names()) == {"tls", "hpke", "checkpoint-root"}
    keys = vault.keys()
    signing = {key.name for key in keys if key.kind == "signing"}
    assert signing == {"signing", "status", "receipt"}

    def kept() -> dict[str, bytes]:
        secrets = {name: vault.secret(name) for name in vault.secret_names()}
        return secrets | {name: vault.signing_key(name).public for name in signing}

    before, revision = kept(), vault.revision
    provision_party(vault)
    assert kept() == before
    assert vault.revision == revision
    assert len(set(before.values())) == 6
    assert hpke_key(again(vault)).public == hpke_key(vault).public
    assert vault.signing_key(SIGNING).public != vault.signing_key("status").public
    assert len(vault.secret(HPKE)) == 96


def test_changing_the_passphrase(vault: Vault) -> None:
    wrapped = vault.wrap(DEK, DIGEST)
    with pytest.raises(Denied) as info:
        change_passphrase(vault, b"not the passphrase", b"another passphrase")
    assert info.value.code == "vault.passphrase"
    change_passphrase(vault, PASSPHRASE, b"another passphrase")
    with pytest.raises(Denied):
        again(vault)
    assert open_vault(path_of(vault), b"another passphrase").unwrap(wrapped, DIGEST) == DEK
    assert vault.unwrap(wrapped, DIGEST) == DEK


def test_a_new_master_key(vault: Vault) -> None:
    """An old copy with its passphrase opens itself, and nothing of the file from now on."""
    provision_party(vault)
    wrapped, tls, status = vault.wrap(DEK, DIGEST), vault.secret("tls"), vault.signing_key("status").public
    split_root(vault, 2, 2)
    old = vault._held()
    with pytest.raises(Denied) as info:
        rekey(vault, b"not the passphrase")
    assert info.value.code == "vault.passphrase"
    assert path_of(vault).read_bytes() == old.raw
    rekey(vault, PASSPHRASE)
    for held in (vault, again(vault)):
        assert (held.unwrap(wrapped, DIGEST), held.secret("tls")) == (DEK, tls)
        assert held.signing_key("status").public == status
        assert held._held().document.recovery is None
    vault.rotate_kek()
    new = vault._held()
    for call in (
        lambda: old.keys.check(new.document, bytes.fromhex(json.loads(new.raw)["mac"])),
        lambda: old.keys.open(new.document.vault, new.document.secrets[0]),
    ):
        with pytest.raises(Untrusted):
            call()
    with pytest.raises(Denied):
        old.driver.wrap(new.document.keks[-1].handle, DEK, b"")


def test_a_thread_that_unwraps_while_the_master_key_changes(vault: Vault) -> None:
    wrapped, failed, end = vault.wrap(DEK, DIGEST), [], threading.Event()

    def unwrap() -> None:
        while not end.is_set():
            try:
                assert vault.unwrap(wrapped, DIGEST) == DEK
            except Exception as error:
                failed.append(error)
                return

    threads = [threading.Thread(target=unwrap) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(8):
        rekey(vault, PASSPHRASE)
    end.set()
    for thread in threads:
        thread.join()
    assert failed == []


@pytest.mark.parametrize("passphrase", [b"", b"seven77", bytes(4097)])
def test_passphrase_policy(tmp_path: Path, vault: Vault, passphrase: bytes) -> None:
    for call in (
        lambda: create_vault(tmp_path / "x", passphrase, "hospital", params=CHEAP),
        lambda: change_passphrase(vault, PASSPHRASE, passphrase),
    ):
        with pytest.raises(Misuse) as info:
            call()
        assert info.value.code == "vault.passphrase_length"
    assert not (tmp_path / "x").exists()
    again(vault)


def test_creating_never_overwrites(vault: Vault) -> None:
    before = path_of(vault).read_bytes()
    with pytest.raises(Misuse) as info:
        create_vault(path_of(vault), PASSPHRASE, "bank", params=CHEAP)
    assert info.value.code == "vault.exists"
    assert path_of(vault).read_bytes() == before
    assert os.listdir(path_of(vault).parent) == ["vault.json"]


def test_creating_out_of_form(tmp_path: Path) -> None:
    with pytest.raises(Misuse) as info:
        create_vault(tmp_path / "x", PASSPHRASE, "Hospital", params=CHEAP)
    assert info.value.code == "vault.owner"
    with pytest.raises(Malformed) as malformed:
        create_vault(tmp_path / "x", PASSPHRASE, "hospital", params=Argon2Params(1024, 1, 1))
    assert malformed.value.code == "vault.argon2"
    assert not (tmp_path / "x").exists()


def test_the_default_costs_are_the_rfcs(tmp_path: Path) -> None:
    create_vault(tmp_path / "x", PASSPHRASE, "hospital").close()
    assert b'"iterations":3,"lanes":4,"memory_kib":65536' in (tmp_path / "x").read_bytes()


def test_a_missing_vault(tmp_path: Path) -> None:
    with pytest.raises(Misuse) as info:
        open_vault(tmp_path / "none", PASSPHRASE)
    assert info.value.code == "vault.missing"
    with pytest.raises(Unavailable) as unavailable:
        open_vault(tmp_path, PASSPHRASE)
    assert unavailable.value.code == "vault.read"


def test_a_locked_vault_does_nothing(vault: Vault) -> None:
    vault.put_secret("signing", b"s" * 32)
    wrapped = vault.wrap(DEK, DIGEST)
    vault.close()
    calls: list[Callable[[], object]] = [
        lambda: vault.wrap(DEK, DIGEST),
        lambda: vault.unwrap(wrapped, DIGEST),
        lambda: vault.secret("signing"),
        lambda: vault.put_secret("x", b""),
        vault.rotate_kek,
        lambda: change_passphrase(vault, PASSPHRASE, PASSPHRASE),
    ]
    for call in calls:
        with pytest.raises(Misuse) as info:
            call()
        assert info.value.code == "vault.closed"


def test_secrets_hide(vault: Vault) -> None:
    vault.put_secret("signing", b"s" * 32)
    held = vault._held()
    master = held.keys.export_secret_master()
    stored = path_of(vault).read_bytes()
    for text in (repr(vault), repr(held), repr(held.keys), repr(held.driver), str(held.document)):
        assert "ssss" not in text
        assert repr(master)[2:-1] not in text
    assert b"ssss" not in stored
    signer = vault.signing_key("signing")
    assert "ssss" not in repr(signer)
    for value in (vault, held.keys, held.driver, signer):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(value)


def test_two_processes_do_not_lose_each_others_changes(vault: Vault) -> None:
    other = again(vault)
    other.put_secret("theirs", b"1")
    with pytest.raises(Misuse) as info:
        vault.put_secret("mine", b"2")
    assert info.value.code == "vault.stale"
    assert vault.secret_names() == ()
    assert again(vault).secret_names() == ("theirs",)


def test_two_processes_rotate_at_once(vault: Vault) -> None:
    """One does, the other is told; nothing that either wrapped is lost."""
    other = again(vault)
    wrapped = other.wrap(DEK, DIGEST)
    assert other.rotate_kek() == 2
    with pytest.raises(Misuse) as info:
        vault.rotate_kek()
    assert info.value.code == "vault.stale"
    assert again(vault).epochs() == (1, 2)
    assert vault.unwrap(wrapped, DIGEST) == again(vault).unwrap(wrapped, DIGEST) == DEK


def test_two_threads_rotate_at_once(vault: Vault) -> None:
    made: list[int] = []
    threads = [threading.Thread(target=lambda: made.append(vault.rotate_kek())) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == [2, 3, 4, 5, 6, 7]
    assert again(vault).epochs() == (1, 2, 3, 4, 5, 6, 7)


def test_threads_may_share_a_vault(vault: Vault) -> None:
    threads = [threading.Thread(target=vault.put_secret, args=(f"s{i}", bytes([i]))) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {vault.secret(f"s{i}") for i in range(12)} == {bytes([i]) for i in range(12)}
    assert again(vault).revision == 13


@pytest.mark.parametrize(("number", "code"), [(28, "storage.full"), (5, "vault.write")])
def test_a_failed_write_changes_nothing(vault: Vault, monkeypatch: pytest.MonkeyPatch, number: int, code: str) -> None:
    def fail(fd: int) -> None:
        raise OSError(number, os.strerror(number))

    before = path_of(vault).read_bytes()
    monkeypatch.setattr(storage_module.os, "fsync", fail)
    with pytest.raises(Unavailable) as info:
        vault.rotate_kek()
    assert info.value.code == code
    monkeypatch.undo()
    assert path_of(vault).read_bytes() == before
    assert vault.epoch == 1
    assert os.listdir(path_of(vault).parent) == ["vault.json"]
    assert vault.rotate_kek() == 2


def test_what_a_crash_left_is_swept(vault: Vault) -> None:
    left = path_of(vault).parent / ".vault.json.0123456789abcdef.tmp"
    left.write_bytes(b"half a vault")
    vault.rotate_kek()
    assert not left.exists()
    again(vault)


def test_a_link_to_the_vault_stays_a_link(vault: Vault, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(path_of(vault))
    with open_vault(link, PASSPHRASE) as through:
        through.put_secret("x", b"1")
    assert link.is_symlink()
    assert again(vault).secret("x") == b"1"


@given(dek=st.binary(min_size=32, max_size=32), data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
def test_wrap_then_change_one_bit_must_fail(vault: Vault, dek: bytes, data: st.DataObject) -> None:
    wrapped = vault.wrap(dek, DIGEST)
    box, digest = bytearray(wrapped.box), bytearray(DIGEST)
    target = data.draw(st.sampled_from([box, digest]))
    bit = data.draw(st.integers(0, len(target) * 8 - 1))
    target[bit // 8] ^= 1 << bit % 8
    with pytest.raises(Untrusted) as info:
        vault.unwrap(WrappedKey(wrapped.kek_id, wrapped.epoch, "A256GCM", bytes(box)), bytes(digest))
    assert info.value.code == "wrap.changed"


@pytest.mark.parametrize(
    "change",
    [
        {"kek_id": "AB" * 16},
        {"kek_id": "00" * 15},
        {"kek_id": 1},
        {"alg": ""},
        {"alg": None},
        {"alg": "A256GCM\n"},
        {"alg": "A" * 65},
        {"box": ""},
        {"box": "A" * 2732},
        {"epoch": 0},
        {"epoch": True},
        {"epoch": 2**53},
        {"box": "!"},
        {"box": None},
        {"extra": 1},
    ],
)
def test_wrapped_keys_out_of_form(vault: Vault, change: dict[str, object]) -> None:
    with pytest.raises(Malformed) as info:
        WrappedKey.from_document({**vault.wrap(DEK, DIGEST).to_document(), **change})
    assert info.value.code == "wrap.form"


@pytest.mark.parametrize("document", [None, [], "text", {}, {"box": "", "epoch": 1}])
def test_wrapped_keys_that_are_no_objects(document: object) -> None:
    with pytest.raises(Malformed) as info:
        WrappedKey.from_document(document)
    assert info.value.code == "wrap.form"


_CHANGES_SLOWLY = """
import select, sys
from pathlib import Path
from cloister.keys import open_vault, vault
replace = vault.replace_file
def slow(path, data):  # the file was compared, and is not written yet
    print("inside", flush=True)
    select.select([sys.stdin], [], [], 1.0)  # until the other one is done, if nothing holds it up
    replace(path, data)
vault.replace_file = slow
with open_vault(Path(sys.argv[1]), sys.argv[2].encode()) as mine:
    mine.put_secret("theirs", b"1")
print("done", flush=True)
"""


def test_two_processes_that_write_in_the_same_moment(vault: Vault) -> None:
    """Between one's comparison and its rename the other waits; then it is told, so no change is lost."""
    command = [sys.executable, "-c", _CHANGES_SLOWLY, str(path_of(vault)), PASSPHRASE.decode()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "inside\n"
        with pytest.raises(Misuse) as info:
            vault.put_secret("mine", b"2")
        said, _ = other.communicate("go\n", timeout=30)
    assert (said, other.returncode, info.value.code) == ("done\n", 0, "vault.stale")
    assert again(vault).secret_names() == ("theirs",)
    again(vault).put_secret("mine", b"2")
    assert again(vault).secret_names() == ("mine", "theirs")
