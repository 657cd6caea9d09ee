"""A manifest or key that isn't the right one: another signer, another owner, an old version, a forged or
edited manifest, a key that the manifest does not commit to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.crypto import Envelope, hkdf
from cloister.errors import Malformed, Untrusted
from cloister.sealed import MANIFEST_TYPE, check_ciphertext, check_dek, open_sealed, verify_manifest
from tests.sealing import ASSET, DEK, OTHER_KEY, OWNER_KEY, Made, make, signer


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return make(tmp_path / "object", {"a": b"plaintext"})


def code(call: Any) -> str:
    with pytest.raises(Untrusted) as info:
        call()
    return info.value.code


def resign(made: Made, payload: bytes, kind: str = MANIFEST_TYPE) -> bytes:
    """What somebody else puts in the manifest's place, signed by that somebody; returns its digest."""
    envelope = signer(OTHER_KEY)(kind, payload)
    (made.folder / "manifest.json").write_bytes(envelope.to_bytes())
    return bytes(envelope.digest)


def test_the_wrong_data_key(made: Made) -> None:
    for wrong in (bytes(32), DEK[::-1], hkdf(DEK, info=b"cloister/file-key/v1")):
        assert code(lambda wrong=wrong: made.open(dek=wrong)) == "sealed.dek_commit"


def test_an_old_versions_key(tmp_path: Path) -> None:
    new = make(tmp_path / "2", {"a": b"new"}, version=2, dek=b"another data key of 32 bytes....")
    assert code(lambda: new.open(dek=DEK)) == "sealed.dek_commit"


def test_the_same_key_for_another_version_is_another_commitment(tmp_path: Path, made: Made) -> None:
    two = make(tmp_path / "2", {"a": b"new"}, version=2)
    assert two.sealed.manifest.dek_commit != made.sealed.manifest.dek_commit
    assert made.sealed.manifest.dek_commit.hex() not in DEK.hex()
    check_dek(two.sealed.manifest, DEK)


def test_a_signer_that_nobody_expects(made: Made) -> None:
    assert code(lambda: made.open(signer_keys=[OTHER_KEY.public])) == "dsse.unsigned"
    assert code(lambda: made.open(signer_keys=[])) == "dsse.unsigned"  # nobody trusted is not everybody trusted


def test_a_manifest_signed_by_somebody_else(made: Made) -> None:
    digest = resign(made, made.sealed.envelope.payload)
    assert digest == made.sealed.digest  # the digest names the document, not the signature
    assert code(made.open) == "dsse.unsigned"
    assert code(lambda: check_ciphertext(made.folder, signer_keys=[OWNER_KEY.public])) == "dsse.unsigned"


def test_the_wrong_owner(made: Made) -> None:
    assert code(lambda: made.open(owner="bank")) == "sealed.owner"


def test_a_validly_signed_older_version_is_a_rollback(tmp_path: Path) -> None:
    old = make(tmp_path / "1", {"a": b"old"})
    new = make(tmp_path / "2", {"a": b"new"}, version=2, previous=old.sealed.digest)
    shutil.rmtree(new.folder)
    shutil.copytree(old.folder, new.folder)
    assert code(new.open) == "sealed.digest"


def test_an_edited_manifest(made: Made) -> None:
    payload = made.sealed.envelope.payload.replace(b'"phi"', b'"pub"')
    assert payload != made.sealed.envelope.payload
    digest = resign(made, payload)
    assert code(made.open) == "sealed.digest"
    assert code(lambda: made.open(expected_digest=digest)) == "dsse.unsigned"


def test_a_signature_over_another_kind_of_document(made: Made) -> None:
    """The owner once signed these very bytes, but not as a manifest."""
    envelope = signer()("application/vnd.cloister.contract+json", made.sealed.envelope.payload)
    relabelled = Envelope(MANIFEST_TYPE, envelope.payload, envelope.signatures)
    (made.folder / "manifest.json").write_bytes(envelope.to_bytes())
    assert code(made.open) == "dsse.type"
    assert code(lambda: check_ciphertext(made.folder)) == "dsse.type"
    (made.folder / "manifest.json").write_bytes(relabelled.to_bytes())
    assert code(made.open) == "dsse.unsigned"


def test_a_root_that_the_thief_computed(tmp_path: Path, made: Made) -> None:
    """Whoever holds the key can seal, but not sign: the object in the owner's name stays refused."""
    forged = make(tmp_path / "forged", {"a": b"poison"}, key=OTHER_KEY)
    assert check_ciphertext(forged.folder).owner == "hospital"  # whole in itself, which says nothing about whose it is
    assert code(lambda: forged.open(signer_keys=[OWNER_KEY.public])) == "dsse.unsigned"
    assert code(lambda: forged.open(expected_digest=made.sealed.digest)) == "sealed.digest"


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"{" * 100_000])
def test_rubbish_instead_of_a_manifest(made: Made, data: bytes) -> None:
    (made.folder / "manifest.json").write_bytes(data)
    for call in (made.open, lambda: check_ciphertext(made.folder)):
        with pytest.raises(Malformed) as info:
            call()
        assert info.value.code in {"json.syntax", "json.depth", "dsse.form"}


def test_a_manifest_without_end(made: Made) -> None:
    with (made.folder / "manifest.json").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    with pytest.raises(Malformed) as info:
        made.open()
    assert info.value.code == "json.size"


def test_no_manifest_at_all(tmp_path: Path) -> None:
    with pytest.raises(Malformed) as info:
        open_sealed(tmp_path, dek=DEK, expected_digest=bytes(32), signer_keys=[OWNER_KEY.public])
    assert info.value.code == "sealed.no_manifest"


def test_a_path_that_climbs_out_is_refused_even_when_signed_by_the_owner(made: Made) -> None:
    document = json.loads(made.sealed.envelope.payload)
    document["files"][0]["path"] = "../../etc/cron.d/x"
    payload = json.dumps(document, separators=(",", ":"), sort_keys=True).encode()
    envelope = signer()(MANIFEST_TYPE, payload)
    with pytest.raises(Malformed) as info:
        verify_manifest(envelope, expected_digest=envelope.digest, signer_keys=[OWNER_KEY.public])
    assert info.value.code == "manifest.path"


@given(data=st.data())
def test_sign_then_change_one_bit_must_fail(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.getbasetemp() / "bit"
    if not folder.exists():
        make(folder, {"a": b"plaintext"})
    envelope = Envelope.from_bytes((folder / "manifest.json").read_bytes())
    payload = bytearray(envelope.payload)
    bit = data.draw(st.integers(0, len(payload) * 8 - 1))
    payload[bit // 8] ^= 1 << bit % 8
    changed = Envelope(envelope.payload_type, bytes(payload), envelope.signatures)
    for digest in (envelope.digest, changed.digest):
        with pytest.raises(Untrusted) as info:
            verify_manifest(changed, expected_digest=digest, signer_keys=[OWNER_KEY.public])
        assert info.value.code in {"sealed.digest", "dsse.unsigned"}


def test_a_commitment_binds_asset_and_version(made: Made) -> None:
    assert made.sealed.manifest.asset_id == ASSET
    check_dek(made.sealed.manifest, DEK)
