"""Where an object lies in a store: ``<digest in hex>/manifest.json`` and its members beside it."""

from __future__ import annotations

import re

from ...crypto import Envelope, constant_time_equal
from ...errors import Misuse, Untrusted
from ..folder import MANIFEST_NAME, MAX_ENVELOPE, member_name, parse_envelope
from ..models import Manifest
from ..ports import ObjectSource
from .ports import Found

__all__ = ["BLOCK", "as_digest", "folder_of", "incomplete", "is_ours", "is_whole", "named_manifest", "stored_envelope"]

BLOCK = 1 << 20  # what one segment of a sealed file takes: the unit of reading and of caching
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MEMBER = re.compile(r"[0-9]{4}\.sealed")


def folder_of(digest: bytes) -> str:
    """It becomes a folder's name, so nothing else may pass. Raises Misuse."""
    if not isinstance(digest, bytes) or len(digest) != 32:
        raise Misuse("store.digest", "A sealed object is named by a digest of exactly 32 bytes.")
    return digest.hex()


def as_digest(folder: str) -> bytes | None:
    return bytes.fromhex(folder) if _DIGEST.fullmatch(folder) else None


def is_ours(folder: str, name: str) -> bool:
    """Whether a store may have written this file: whatever else lies in a bucket is never removed."""
    return as_digest(folder) is not None and (name == MANIFEST_NAME or _MEMBER.fullmatch(name) is not None)


def is_whole(found: dict[str, Found], manifest: Manifest) -> bool:
    """Whether manifest and members are there with the right sizes; what is in them shows when they are read."""
    sizes = {member_name(i): entry.ciphertext_size for i, entry in enumerate(manifest.files)}
    return MANIFEST_NAME in found and all(name in found and found[name].size == size for name, size in sizes.items())


def incomplete() -> Untrusted:
    return Untrusted("sealed.incomplete", "The store does not hold the sealed object, or not all of it; put it again.")


def stored_envelope(source: ObjectSource, digest: bytes) -> Envelope:
    """The object's manifest, checked to be the one that ``digest`` names: an older version under a newer version's
    name stops here. Signature and owner are the reader's to check. Raises Untrusted, Malformed or Unavailable."""
    envelope = parse_envelope(source.envelope()[: MAX_ENVELOPE + 1])
    if not constant_time_equal(envelope.digest, digest):
        raise Untrusted("sealed.digest", "The store holds another object under this digest; do not use that store.")
    return envelope


def named_manifest(source: ObjectSource, digest: bytes) -> tuple[Envelope, Manifest]:
    envelope = stored_envelope(source, digest)
    return envelope, Manifest.from_payload(envelope.payload)
