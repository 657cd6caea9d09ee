"""What was fixed once: constructions computed independently (from the spec, with hashlib and hmac alone), documents
that must be refused and why, and one object that every later version must open."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cloister.crypto import canonical_json
from cloister.errors import Malformed
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
