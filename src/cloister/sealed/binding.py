"""What ties a file to its object, and an object to its owner: PROTOCOL §5's constructions, in this one place.

All of it is pure: values in, a value or an exception out.
"""

from __future__ import annotations

from collections.abc import Iterable

from ..crypto import Envelope, constant_time_equal, frame, hkdf, sha256
from ..errors import Misuse, Untrusted
from .models import MANIFEST_TYPE, SUITE, Manifest, SealIdentity

__all__ = ["associated_data", "check_dek", "dek_commitment", "file_key", "parents_digest", "verify_manifest"]

DEK_SIZE = 32
_NONE = bytes(32)


def _checked(dek: bytes) -> bytes:
    if len(dek) != DEK_SIZE:
        raise Misuse("sealed.dek", f"A data key has exactly {DEK_SIZE} bytes.")
    return dek


def file_key(dek: bytes) -> bytes:
    """The streaming input key of all files of an object; each file's own key comes from it by a random salt."""
    return hkdf(_checked(dek), info=b"cloister/file-key/v1")


def dek_commitment(dek: bytes, asset_id: bytes, version: int) -> bytes:
    """32 bytes that only this DEK gives. HKDF-SHA256 is collision resistant where GCM is not, so that whoever signs
    a manifest can't later open its files with a second key."""
    return hkdf(_checked(dek), info=frame("cloister/dek-commit/v1", asset_id, version))


def parents_digest(parents: Iterable[bytes]) -> bytes:
    """H(frame(parent, parent, …)) in the manifest's order; H of nothing when there is none."""
    return sha256(frame(*parents))


def associated_data(identity: SealIdentity, dek_commit: bytes, path: str, index: int) -> bytes:
    """Binds one file to its object, its version, its place and its origin: a file that was moved to
    another path, index, version, asset, owner, job or contract does not open there."""
    described = frame(
        SUITE,
        identity.owner,
        identity.asset_id,
        identity.version,
        identity.asset_class,
        path,
        index.to_bytes(4, "big"),
        identity.contract or _NONE,
        identity.job or _NONE,
        parents_digest(identity.parents),
        dek_commit,
    )
    return b"cloister/sealed/v1\0" + sha256(described)


def verify_manifest(
    envelope: Envelope, *, expected_digest: bytes, signer_keys: Iterable[bytes], owner: str | None = None
) -> Manifest:
    """The manifest, once it is known to be the expected one and to carry an expected signature.

    Raises Untrusted (another digest, no signature by one of ``signer_keys``, another owner) or Malformed. No signer
    keys means that nobody is trusted. A signature alone says nothing about freshness: that is what the digest
    is for, which comes from a contract or from the owner's broker.
    """
    # 1. It is the document that was asked for: an older or foreign manifest has another digest.
    if not constant_time_equal(envelope.digest, expected_digest):
        raise Untrusted("sealed.digest", "The manifest is not the one that was asked for: its digest differs.")
    # 2. One of the expected keys signed it, as a manifest.
    envelope.verify(MANIFEST_TYPE, signer_keys)
    # 3. Only now is it parsed: before, it is just bytes that a stranger sent.
    manifest = Manifest.from_payload(envelope.payload)
    # 4. It speaks for the party that the caller means.
    if owner is not None and manifest.owner != owner:
        raise Untrusted("sealed.owner", "The manifest names another owner than the one that was asked for.")
    return manifest


def check_dek(manifest: Manifest, dek: bytes) -> None:
    """Raise Untrusted unless ``dek`` is the one key that the manifest commits to."""
    if not constant_time_equal(dek_commitment(dek, manifest.asset_id, manifest.version), manifest.dek_commit):
        raise Untrusted(
            "sealed.dek_commit", "The key is not the one that the manifest commits to; ask for its own key."
        )
