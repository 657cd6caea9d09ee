"""For whoever publishes the workload: a release key, and releases signed with it. It needs no home and no broker."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..contracts.releases import Release, read_release, release_envelope
from ..crypto import Envelope, SigningKey, fingerprint
from ..errors import Malformed, Misuse

__all__ = [
    "create_secret_key",
    "key_fingerprint",
    "make_release",
    "public_key",
    "read_secret_key",
    "show_release",
    "write_file",
]

_LIMIT = 1 << 20


def create_secret_key(path: Path) -> dict[str, Any]:
    """A new Ed25519 key in a file that is its user's alone; never overwrites. Returns the public half."""
    key = SigningKey.generate()
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    except FileExistsError:
        raise Misuse("release.key-exists", f"{path} exists; a key is never overwritten.") from None
    except OSError:
        raise Misuse("release.key-file", f"{path} can't be written; choose another folder.") from None
    with os.fdopen(fd, "wb") as file:
        file.write(key.export_secret_seed().hex().encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return {"file": str(path), "fingerprint": fingerprint(key.public), "public": key.public.hex()}


def read_secret_key(path: Path) -> SigningKey:
    """The key in a file that ``create_secret_key`` made. Raises Misuse for a file that others may read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise Misuse(
                    "release.key-mode", f"Others may read the key file {path}; make it yours alone (mode 0600)."
                )
            text = file.read(129).strip()
        return SigningKey(bytes.fromhex(text.decode("ascii")))
    except (OSError, ValueError, Malformed):
        raise Misuse("release.key-file", f"{path} is no key file; 'cloister measurement key' makes one.") from None


def public_key(text: str) -> bytes:
    """A public key as people pass it on: 64 hex digits. Raises Misuse."""
    try:
        key = bytes.fromhex(text.strip())
    except ValueError:
        key = b""
    if len(key) != 32:
        raise Misuse("release.key", "A release key is given as 64 hex digits.")
    return key


def key_fingerprint(text: str) -> str:
    """What people compare aloud, of a public key in hex."""
    return fingerprint(public_key(text))


def write_file(path: Path, data: bytes) -> None:
    """Write a file that may be published, whole or not at all. Raises Misuse."""
    try:
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), 0o644)
        os.rename(name, path)
    except OSError:
        raise Misuse("file.write", f"{path} can't be written; choose another place.") from None


def make_release(
    *,
    version: str,
    measurements: Sequence[str],
    agents: Sequence[str],
    notes: str,
    fixes: Sequence[str],
    vulnerable: Sequence[str],
    previous: bytes | None,
    key: SigningKey,
) -> bytes:
    """A signed release, as the file to publish. ``previous``: the file of the release before; None for the first."""
    before = None if previous is None else _read(previous, key.public)
    envelope = release_envelope(
        version=version,
        number=1 if before is None else before.number + 1,
        previous=None if before is None else before.digest,
        measurements=measurements,
        agents=agents,
        notes=notes,
        fixes=fixes,
        vulnerable=vulnerable,
        key=key,
        now=int(time.time()),
    )
    return envelope.to_bytes()


def _read(data: bytes, key: bytes) -> Release:
    return read_release(Envelope.from_bytes(data, limit=_LIMIT), key)


def show_release(data: bytes, key: bytes) -> dict[str, Any]:
    """What a release says, if ``key`` signed it. Raises Untrusted otherwise."""
    release = _read(data, key)
    return {
        "agents": list(release.agents),
        "digest": release.digest.hex(),
        "fixes": list(release.fixes),
        "issued": release.issued,
        "measurements": list(release.measurements),
        "notes": release.notes,
        "number": release.number,
        "previous": None if release.previous is None else release.previous.hex(),
        "version": release.version,
        "vulnerable": list(release.vulnerable),
    }
