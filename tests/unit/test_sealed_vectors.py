"""What was fixed once: constructions computed independently (from the spec, with hashlib and hmac alone), documents
that must be refused and why, and one object and one vault that every later version must open."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto import canonical_json
from cloister.errors import Malformed
from cloister.keys import FileVault, WrappedKey
from cloister.sealed import (
    Manifest,
    SealIdentity,
    associated_data,
    check_ciphertext,
    dek_commitment,
    file_key,
    open_sealed,
    parents_digest,
)

VECTORS = Path(__file__).resolve().parents[1] / "vectors"


def load(name: str) -> Any:
    return json.loads((VECTORS / name).read_text())


@pytest.mark.parametrize("case", load("sealed/bindings.json"), ids=lambda case: case["note"])
def test_the_constructions(case: dict[str, Any]) -> None:
    dek, parents = bytes.fromhex(case["dek"]), tuple(map(bytes.fromhex, case["parents"]))
    identity = SealIdentity(
        owner=case["owner"],
        asset_id=bytes.fromhex(case["asset"]),
        name=f"{case['owner']}/anything",
        version=case["version"],
        asset_class=case["class"],
        created=0,
        contract=case["contract"] and bytes.fromhex(case["contract"]),
        job=case["job"] and bytes.fromhex(case["job"]),
        parents=parents,
    )
    assert file_key(dek).hex() == case["file_key"]
    assert parents_digest(parents).hex() == case["parents_digest"]
    commit = dek_commitment(dek, identity.asset_id, identity.version)
    assert commit.hex() == case["dek_commit"]
    assert associated_data(identity, commit, case["path"], case["index"]).hex() == case["associated_data"]


@pytest.mark.parametrize("case", load("sealed/manifests-refused.json"), ids=lambda case: case["reason"])
def test_manifests_that_must_be_refused(case: dict[str, Any]) -> None:
    with pytest.raises(Malformed) as info:
        Manifest.from_payload(canonical_json(case["document"]))
    assert info.value.code == case["code"]


def test_an_object_of_format_1_opens_for_ever() -> None:
    known, folder = load("sealed/object-v1.json"), VECTORS / "sealed" / "object-v1"
    check_ciphertext(folder)
    with open_sealed(
        folder,
        dek=bytes.fromhex(known["dek"]),
        expected_digest=bytes.fromhex(known["digest"]),
        signer_keys=[bytes.fromhex(known["signer"])],
        owner="hospital",
    ) as sealed:
        assert {path: sealed.read(path).hex() for path in sealed.paths()} == known["files"]
        sealed.require_complete()


def test_its_root_is_rfc_6962_over_the_blocks_as_they_lie_on_disk() -> None:
    """One block: the root is SHA-256(0x00 ‖ the whole file), header included."""
    folder = VECTORS / "sealed" / "object-v1"
    for index, entry in enumerate(check_ciphertext(folder).files):
        data = (folder / f"{index:04d}.sealed").read_bytes()
        assert hashlib.sha256(b"\0" + data).digest() == entry.root


def test_a_vault_of_format_1_opens_for_ever(tmp_path: Path) -> None:
    known = load("vault/expected.json")
    shutil.copy(VECTORS / "vault" / "vault-v1.json", tmp_path / "vault.json")
    with FileVault.unlock(tmp_path / "vault.json", known["passphrase"].encode()) as vault:
        assert (vault.owner, list(vault.epochs()), vault.revision) == (
            known["owner"],
            known["epochs"],
            known["revision"],
        )
        assert {name: vault.secret(name).hex() for name in vault.secret_names()} == known["secrets"]
        wrapped = WrappedKey.from_document(known["wrapped"])
        assert vault.unwrap(wrapped, bytes.fromhex(known["manifest_digest"])).hex() == known["dek"]


def test_the_vaults_constructions_are_as_specified() -> None:
    """Opened by hand, from docs/spec/vault.md, with nothing of Cloister but Argon2id."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from cloister.crypto import Argon2Params, argon2id

    def frame(*parts: bytes) -> bytes:
        return b"".join(len(part).to_bytes(8, "big") + part for part in parts)

    def hkdf(key: bytes, info: bytes) -> bytes:
        prk = hmac.digest(bytes(32), key, "sha256")
        return hmac.digest(prk, info + b"\1", "sha256")

    def unbox(key: bytes, box: bytes, aad: bytes) -> bytes:
        return AESGCM(key).decrypt(box[:12], box[12:], aad)

    def raw(text: str) -> bytes:
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))

    def eight(number: int) -> bytes:
        return number.to_bytes(8, "big")

    known, body = load("vault/expected.json"), load("vault/vault-v1.json")
    kdf, vault = body["kdf"], bytes.fromhex(body["vault"])
    costs = [kdf[name] for name in ("memory_kib", "iterations", "lanes")]
    outer = argon2id(known["passphrase"].encode(), raw(kdf["salt"]), Argon2Params(*costs))
    context = frame(b"cloister/vault/master/v1", vault, b"hospital", raw(kdf["salt"]), *map(eight, costs))
    master = unbox(outer, raw(body["master"]), context)
    mac = body.pop("mac")
    canonical = json.dumps(body, separators=(",", ":"), sort_keys=True).encode()
    assert hmac.digest(hkdf(master, b"cloister/vault/mac/v1"), canonical, "sha256").hex() == mac
    seal, secret, kek = hkdf(master, b"cloister/vault/seal/v1"), body["secrets"][0], body["keks"][1]
    entry = frame(b"cloister/vault/entry/v1", vault, b"secret", b"signing", eight(secret["epoch"]))
    assert unbox(seal, raw(secret["box"]), entry).hex() == known["secrets"]["signing"]
    entry = frame(b"cloister/vault/entry/v1", vault, b"kek", body["kek_id"].encode(), eight(kek["epoch"]))
    wrap = frame(b"cloister/wrap/v1", bytes(32), bytes.fromhex(body["kek_id"]), eight(2))
    assert unbox(unbox(seal, raw(kek["box"]), entry), raw(known["wrapped"]["box"]), wrap).hex() == known["dek"]
