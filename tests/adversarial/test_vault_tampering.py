"""Somebody who can write the vault file but doesn't know the passphrase: edits, swaps, removals, replays, rollback,
another vault's entries, guesses. Each must be refused, and the file must be left as it was."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.crypto import canonical_json
from cloister.errors import CloisterError, Denied, Malformed, Untrusted
from cloister.keys import DriverConfig, WrappedKey, create_vault, open_vault
from tests.sealing import CHEAP

PASSPHRASE = b"correct horse battery"
DIGEST = b"manifest digest of 32 bytes....."
Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    with create_vault(tmp_path / "vault.json", PASSPHRASE, "hospital", params=CHEAP) as vault:
        vault.put_secret("signing", b"s" * 32)
        vault.put_secret("status", b"t" * 32)
        vault.rotate_kek()
    return tmp_path / "vault.json"


def edited(path: Path, edit: Edit) -> None:
    body = json.loads(path.read_bytes())
    edit(body)
    path.write_bytes(canonical_json(body))


def refused(path: Path, kind: type[CloisterError], **kw: int) -> str:
    before = path.read_bytes()
    with pytest.raises(kind) as info:
        open_vault(path, PASSPHRASE, **kw)
    assert path.read_bytes() == before
    return info.value.code


@pytest.mark.parametrize(
    "guess", [b"", b"x", b"correct horse batter", b"correct horse battery ", b"Correct horse battery"]
)
def test_a_wrong_passphrase(path: Path, guess: bytes) -> None:
    before = path.read_bytes()
    with pytest.raises(Denied) as info:
        open_vault(path, guess)
    assert info.value.code == "vault.passphrase"
    assert path.read_bytes() == before


def swap_boxes(items: list[dict[str, Any]]) -> None:
    field = "box" if "box" in items[0] else "handle"
    items[0][field], items[1][field] = items[1][field], items[0][field]


EDITS: dict[str, Edit] = {
    "a secret removed": lambda b: b["secrets"].pop(),
    "a secret renamed": lambda b: b["secrets"][1].update(name="tls"),
    "two secrets swapped": lambda b: swap_boxes(b["secrets"]),
    "a secret's count changed": lambda b: b["secrets"][0].update(epoch=2),
    "the newest epoch removed": lambda b: b["keks"].pop(),
    "an old epoch removed": lambda b: b["keks"].pop(0),
    "two epochs swapped": lambda b: swap_boxes(b["keks"]),
    "an old epoch replayed as a new one": lambda b: b["keks"].append({**b["keks"][0], "epoch": 3}),
    "a KEK passed off as a secret": lambda b: b["secrets"][0].update(box=b["keks"][0]["handle"]),
    "a secret passed off as a KEK": lambda b: b["keks"][1].update(handle=b["secrets"][0]["box"]),
    "a secret passed off as a signing key": lambda b: b["secrets"][0].update(kind="signing"),
    "a KEK made younger": lambda b: b["keks"][0].update(created=b["keks"][0]["created"] + 1),
    "a KEK to be destroyed": lambda b: b["destroying"].append(b["keks"][0]["handle"]),
    "a device's key put in": lambda b: b["keys"].append(
        {"created": 0, "epoch": 1, "handle": "AAAA", "name": "tls", "public": "00" * 32}
    ),
    "recovery put in": lambda b: b.update(recovery={"box": b["unlock"]["box"], "set": 1, "shares": 1, "threshold": 1}),
    "the revision raised": lambda b: b.update(revision=b["revision"] + 1),
    "the revision lowered": lambda b: b.update(revision=1),
    "another KEK id": lambda b: b.update(kek_id="00" * 16),
    "another MAC": lambda b: b.update(mac="00" * 32),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
def test_an_edited_body(path: Path, edit: Edit) -> None:
    edited(path, edit)
    assert refused(path, Untrusted) == "vault.changed"


HEADER_EDITS: dict[str, Edit] = {
    "cheaper passphrase hashing": lambda b: b["unlock"].update(iterations=2),
    "another salt": lambda b: b["unlock"].update(salt="A" * 22),
    "another owner": lambda b: b.update(owner="bank"),
    "another vault's id": lambda b: b.update(vault="00" * 16),
    "no master key": lambda b: b["unlock"].update(box=""),
}


@pytest.mark.parametrize("edit", HEADER_EDITS.values(), ids=HEADER_EDITS.keys())
def test_an_edited_header_does_not_open(path: Path, edit: Edit) -> None:
    edited(path, edit)
    assert refused(path, Denied) == "vault.passphrase"


MALFORMED: dict[str, Edit] = {
    "costs that would exhaust memory": lambda b: b["unlock"].update(memory_kib=2**30),
    "costs that protect nothing": lambda b: b["unlock"].update(memory_kib=8),
    "costs that are no integers": lambda b: b["unlock"].update(lanes=True),
    "another derivation": lambda b: b["unlock"].update(method="pbkdf2"),
    "no epoch": lambda b: b.update(keks=[]),
    "an epoch twice": lambda b: b["keks"].append(b["keks"][1]),
    "epochs out of order": lambda b: b["keks"].reverse(),
    "a secret twice": lambda b: b["secrets"].append(b["secrets"][1]),
    "a field more": lambda b: b.update(extra=1),
    "a field more in an entry": lambda b: b["secrets"][0].update(extra=1),
    "a field less": lambda b: b.pop("owner"),
    "another schema": lambda b: b.update(schema="cloister/vault/v2"),
    "no driver": lambda b: b.pop("driver"),
    "a driver that there isn't": lambda b: b["driver"].update(name="cloud"),
    "options that are no texts": lambda b: b["driver"].update(options={"url": 1}),
    "a device that unlocks a file": lambda b: b["unlock"].update(method="driver", handle="AAAA"),
    "a passphrase that unlocks a device": lambda b: b["driver"].update(name="tpm"),
    "a handle of nothing": lambda b: b["keks"][0].update(handle=""),
    "a handle without end": lambda b: b["keks"][0].update(handle="A" * 8192),
    "a secret of another kind": lambda b: b["secrets"][0].update(kind="kek"),
    "a key under a secret's name": lambda b: b["keys"].append(
        {"created": 0, "epoch": 1, "handle": "AAAA", "name": "status", "public": "00" * 32}
    ),
    "more shares needed than there are": lambda b: b.update(
        recovery={"box": "", "set": 1, "shares": 2, "threshold": 3}
    ),
    "a short MAC": lambda b: b.update(mac="00" * 31),
    "an owner that is no name": lambda b: b.update(owner=None),
    "boxes that are no text": lambda b: b["keks"][0].update(handle=7),
    "boxes that are no base64url": lambda b: b["secrets"][0].update(box="+/=="),
}


@pytest.mark.parametrize("edit", MALFORMED.values(), ids=MALFORMED.keys())
def test_a_file_out_of_form(path: Path, edit: Edit) -> None:
    edited(path, edit)
    assert refused(path, Malformed) in {"vault.form", "vault.argon2"}


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\0" * 100, b"[" * 5_000_000])
def test_rubbish(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    assert refused(path, Malformed) in {"vault.form", "json.syntax", "json.size"}


def test_other_spellings(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\n")
    assert refused(path, Malformed) == "json.canonical"


def test_an_old_copy_of_the_whole_file(path: Path) -> None:
    """The file alone can't show it; whoever remembers the revision can."""
    old = path.read_bytes()
    with open_vault(path, PASSPHRASE) as vault:
        vault.destroy_epoch(1)
        newest = vault.revision
    path.write_bytes(old)
    assert refused(path, Untrusted, least_revision=newest) == "vault.rollback"
    open_vault(path, PASSPHRASE).close()


def test_an_old_copy_put_back_under_an_unlocked_vault(path: Path) -> None:
    old = path.read_bytes()
    with open_vault(path, PASSPHRASE) as vault:
        vault.put_secret("receipt", b"r" * 32)
        path.write_bytes(old)
        with pytest.raises(CloisterError) as info:
            vault.put_secret("tls", b"u" * 32)
        assert info.value.code == "vault.stale"
        assert vault.secret_names() == ("receipt", "signing", "status")
        assert path.read_bytes() == old


def test_a_key_relabelled_with_another_algorithm(path: Path) -> None:
    """A downgrade: what comes from outside never chooses how it is opened."""
    with open_vault(path, PASSPHRASE) as vault:
        wrapped = vault.wrap(bytes(32), DIGEST)
        for algorithm in ("A128GCM", "A256KW", "none", "a256gcm", "RSA-OAEP-256"):
            with pytest.raises(Denied) as info:
                vault.unwrap(WrappedKey(wrapped.kek_id, wrapped.epoch, algorithm, wrapped.box), DIGEST)
            assert info.value.code == "wrap.algorithm"
        assert [info.unwraps for info in list(vault.keys())[:2]] == [0, 0]
        assert vault.unwrap(wrapped, DIGEST) == bytes(32)


DRIVERS: dict[str, DriverConfig] = {
    "an attacker's server": DriverConfig("transit", {"url": "https://evil.example"}),
    "an attacker's library": DriverConfig("pkcs11", {"module": "/tmp/evil.so", "token": "t"}),
    "an option more": DriverConfig("file", {"path": "x"}),
}


@pytest.mark.parametrize("driver", DRIVERS.values(), ids=DRIVERS.keys())
def test_a_credential_led_elsewhere(path: Path, driver: DriverConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options are read before anything can authenticate them. So they only count where the caller says the same."""
    asked: list[str] = []
    monkeypatch.setattr("cloister.keys.opening.open_driver", lambda config, credential: asked.append(config.name))

    def lead(body: dict[str, Any]) -> None:
        body["driver"] = {"name": driver.name, "options": dict(driver.options)}
        if driver.name != "file":
            body["unlock"] = {"box": "AAAA", "handle": "AAAA", "method": "driver"}

    edited(path, lead)
    assert refused(path, Denied) == "vault.driver"
    assert asked == []


@pytest.mark.parametrize("part", ["keks", "secrets"])
def test_another_vaults_entries(tmp_path: Path, path: Path, part: str) -> None:
    """Even of a vault with the same owner and passphrase."""
    with create_vault(tmp_path / "other.json", PASSPHRASE, "hospital", params=CHEAP) as vault:
        vault.put_secret("signing", b"e" * 32)
        vault.put_secret("status", b"f" * 32)
        vault.rotate_kek()
    other = json.loads((tmp_path / "other.json").read_bytes())
    edited(path, lambda b: b.update({part: other[part]}))
    assert refused(path, Untrusted) == "vault.changed"


def test_a_key_wrapped_by_another_vault(tmp_path: Path, path: Path) -> None:
    with create_vault(tmp_path / "other.json", PASSPHRASE, "hospital", params=CHEAP) as other:
        wrapped = other.wrap(bytes(32), DIGEST)
    with open_vault(path, PASSPHRASE) as vault, pytest.raises(Denied) as info:
        vault.unwrap(wrapped, DIGEST)
    assert info.value.code == "wrap.kek"


def test_a_wrapped_key_moved_to_another_manifest_or_epoch(path: Path) -> None:
    with open_vault(path, PASSPHRASE) as vault:
        wrapped = vault.wrap(bytes(32), DIGEST)
        relabelled = WrappedKey(wrapped.kek_id, 1, wrapped.algorithm, wrapped.box)
        for call in (lambda: vault.unwrap(wrapped, bytes(32)), lambda: vault.unwrap(relabelled, DIGEST)):
            with pytest.raises(Untrusted) as info:
                call()
            assert info.value.code == "wrap.changed"


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_changed_byte(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    good = tmp_path_factory.getbasetemp() / "good.json"
    if not good.exists():
        with create_vault(good, PASSPHRASE, "hospital", params=CHEAP) as vault:
            vault.put_secret("signing", b"s" * 32)
    raw = bytearray(good.read_bytes())
    position = data.draw(st.integers(0, len(raw) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda v: v != raw[position]))
    raw[position] = value
    bad = good.with_name("bad.json")
    bad.write_bytes(raw)
    with pytest.raises((Untrusted, Denied, Malformed)):
        open_vault(bad, PASSPHRASE)
