"""The independent checker: is this folder a whole sealed object? Needs no key, shares no code with reader and writer
but the manifest's parser and the hash. A store runs it after an upload, and crash tests end with it."""

from __future__ import annotations

import io
import os
from collections.abc import Iterable
from pathlib import Path

from ..crypto.merkle import leaf_hash, root_of
from ..errors import Unavailable, Untrusted
from .folder import open_member, read_envelope
from .models import MANIFEST_TYPE, FileEntry, Manifest

__all__ = ["check_ciphertext"]

_BLOCK = 1 << 20
_HEADER = 40  # length byte, salt 32, prefix 7
_TAG = 16


def check_ciphertext(folder: Path, *, signer_keys: Iterable[bytes] | None = None) -> Manifest:
    """Check structure, names, sizes, headers and roots; returns the manifest.

    Without ``signer_keys`` the manifest's signature is not checked: then this shows that the folder is complete and
    unchanged, not whose it is. Raises Malformed, Untrusted or Unavailable.
    """
    envelope = read_envelope(folder)
    if signer_keys is not None:
        envelope.verify(MANIFEST_TYPE, signer_keys)
    elif envelope.payload_type != MANIFEST_TYPE:
        raise Untrusted("dsse.type", f"The envelope is not of type {MANIFEST_TYPE}.")
    manifest = Manifest.from_payload(envelope.payload)
    names = [f"{index:04d}.sealed" for index in range(len(manifest.files))]
    try:
        found = set(os.listdir(folder))
    except OSError:
        raise Unavailable("storage.read", "The folder can't be listed; check the storage and try again.") from None
    if found - {"manifest.json", *names}:
        raise Untrusted("sealed.foreign", "The folder holds something that its manifest does not name; remove it.")
    for name, entry in zip(names, manifest.files, strict=True):
        _check_file(folder, name, entry)
    return manifest


def _check_file(folder: Path, name: str, entry: FileEntry) -> None:
    segments = max(1, -(-(entry.plaintext_size + _HEADER) // (_BLOCK - _TAG)))
    size = _HEADER + entry.plaintext_size + segments * _TAG
    hashes: list[bytes] = []
    with io.BufferedReader(open_member(folder, name, size), _BLOCK) as file:
        try:
            while block := file.read(_BLOCK):
                if not hashes and block[0] != _HEADER:
                    raise Untrusted("sealed.header", "A file of the object does not start like a sealed file.")
                hashes.append(leaf_hash(block))
        except OSError:
            raise Unavailable("storage.read", "A sealed file can't be read; check the storage and try again.") from None
    if root_of(hashes) != entry.root:
        raise Untrusted("sealed.root", "A sealed file is not the ciphertext that its manifest names; fetch it again.")
