"""The vault's format is fixed: one that was written when it was, opens for ever, by code and by the specification."""

from __future__ import annotations

import base64
import hmac
import json
import shutil
from pathlib import Path
from typing import Any

import shamir_mnemonic
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from cloister.crypto import Argon2Params, argon2id
from cloister.keys import WrappedKey, open_vault, restore_root

VECTORS = Path(__file__).resolve().parents[1] / "vectors" / "vault"
KNOWN: dict[str, Any] = json.loads((VECTORS / "expected.json").read_text())
BODY: dict[str, Any] = json.loads((VECTORS / "vault-v1.json").read_text())


def check(path: Path, passphrase: bytes) -> None:
    with open_vault(path, passphrase) as vault:
        assert (vault.owner, list(vault.epochs())) == (KNOWN["owner"], KNOWN["epochs"])
        assert {name: vault.secret(name).hex() for name in vault.secret_names()} == KNOWN["secrets"]
        assert {name: vault.signing_key(name).public.hex() for name in KNOWN["signing"]} == KNOWN["signing"]
        wrapped = WrappedKey.from_document(KNOWN["wrapped"])
        assert vault.unwrap(wrapped, bytes.fromhex(KNOWN["manifest_digest"])).hex() == KNOWN["dek"]


def test_a_vault_of_format_1_opens_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "vault.json"
    shutil.copy(VECTORS / "vault-v1.json", path)
    check(path, KNOWN["passphrase"].encode())
    with open_vault(path, KNOWN["passphrase"].encode()) as vault:
        assert vault.revision == KNOWN["revision"]


def test_its_shares_restore_it_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "vault.json"
    shutil.copy(VECTORS / "vault-v1.json", path)
    restore_root(path, KNOWN["shares"][1:], b"another passphrase")
    check(path, b"another passphrase")


def frame(*parts: bytes) -> bytes:
    return b"".join(len(part).to_bytes(8, "big") + part for part in parts)


def hkdf(key: bytes, info: bytes) -> bytes:
    return hmac.digest(hmac.digest(bytes(32), key, "sha256"), info + b"\1", "sha256")


def unbox(key: bytes, box: bytes, aad: bytes) -> bytes:
    return AESGCM(key).decrypt(box[:12], box[12:], aad)


def raw(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def eight(number: int) -> bytes:
    return number.to_bytes(8, "big")


def master() -> bytes:
    unlock, vault = BODY["unlock"], bytes.fromhex(BODY["vault"])
    costs = [unlock[name] for name in ("memory_kib", "iterations", "lanes")]
    outer = argon2id(KNOWN["passphrase"].encode(), raw(unlock["salt"]), Argon2Params(*costs))
    context = frame(b"cloister/vault/master/v1", vault, b"hospital", raw(unlock["salt"]), *map(eight, costs))
    return unbox(outer, raw(unlock["box"]), context)


def test_the_constructions_are_as_specified() -> None:
    """Opened by hand, from docs/spec/vault.md, with nothing of Cloister but Argon2id."""
    vault, key = bytes.fromhex(BODY["vault"]), master()
    body = {name: value for name, value in BODY.items() if name != "mac"}
    canonical = json.dumps(body, separators=(",", ":"), sort_keys=True).encode()
    assert hmac.digest(hkdf(key, b"cloister/vault/mac/v1"), canonical, "sha256").hex() == BODY["mac"]
    seal = hkdf(key, b"cloister/vault/seal/v1")
    receipt, tls = BODY["secrets"]
    entry = frame(b"cloister/vault/entry/v1", vault, b"secret", b"tls", eight(tls["epoch"]))
    assert unbox(seal, raw(tls["box"]), entry).hex() == KNOWN["secrets"]["tls"]
    entry = frame(b"cloister/vault/entry/v1", vault, b"signing", b"receipt", eight(receipt["epoch"]))
    seed = Ed25519PrivateKey.from_private_bytes(unbox(seal, raw(receipt["box"]), entry))
    assert seed.public_key().public_bytes_raw().hex() == KNOWN["signing"]["receipt"]


def test_the_file_drivers_handles_are_as_specified() -> None:
    handle, kek_id = raw(BODY["keks"][1]["handle"]), bytes.fromhex(BODY["kek_id"])
    assert (handle[:16], handle[16:24], len(handle)) == (kek_id, eight(2), 84)
    key = hkdf(master(), b"cloister/vault/file-driver/v1")
    kek = unbox(key, handle[24:], frame(b"cloister/vault/kek/v1", kek_id, eight(2)))
    wrap = frame(b"cloister/wrap/v1", bytes(32), kek_id, eight(2))
    assert unbox(kek, raw(KNOWN["wrapped"]["box"]), wrap).hex() == KNOWN["dek"]


def test_recovery_is_as_specified() -> None:
    """With the standard's reference implementation for the words."""
    recovery, vault = BODY["recovery"], bytes.fromhex(BODY["vault"])
    secret = shamir_mnemonic.combine_mnemonics(KNOWN["shares"][:2])
    counts = [recovery[name] for name in ("set", "threshold", "shares")]
    context = frame(b"cloister/vault/recovery/v1", vault, b"hospital", *map(eight, counts))
    key = hkdf(secret, frame(b"cloister/vault/recovery-key/v1"))
    assert unbox(key, raw(recovery["box"]), context) == master()
