"""Small sealed objects and vaults for tests."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloister.crypto import Argon2Params, Envelope, SigningKey
from cloister.sealed import Sealed, SealedObject, SealIdentity, open_sealed, seal_object
from cloister.sealed.folder import FolderSource, MemberFile

OWNER_KEY = SigningKey(b"owner's signing seed, 32 bytes..")
OTHER_KEY = SigningKey(b"somebody else's seed, 32 bytes..")
DEK = b"a data key of exactly 32 bytes.."
ASSET = b"asset id, 16 b.."
CHEAP = Argon2Params(8 * 1024, 1, 1)
MIB = 1024 * 1024
# Sizes that touch one segment, its border and several segments.
FILES = {
    "README.md": b"what the data is",
    "data/train.csv": bytes(i * 31 % 256 for i in range(2 * MIB + 12345)),
    "data/empty": b"",
    "model/weights.safetensors": bytes(i * 7 % 251 for i in range(MIB - 56)),
}


def identity(**changes: Any) -> SealIdentity:
    fields: dict[str, Any] = {
        "owner": "hospital",
        "asset_id": ASSET,
        "name": "hospital/visits",
        "version": 1,
        "asset_class": "dataset",
        "created": 1_760_000_000,
    }
    return SealIdentity(**{**fields, **changes})


def signer(key: SigningKey = OWNER_KEY) -> Any:
    def sign(payload_type: str, payload: bytes) -> Envelope:
        return Envelope(payload_type, payload).signed_by(key)

    return sign


@dataclass
class Made:
    """A sealed object on disk and what opens it."""

    folder: Path
    sealed: Sealed
    dek: bytes = DEK
    files: dict[str, bytes] = field(default_factory=dict)

    def open(self, **changes: Any) -> SealedObject:
        arguments: dict[str, Any] = {
            "dek": self.dek,
            "expected_digest": self.sealed.digest,
            "signer_keys": [OWNER_KEY.public],
        }
        return open_sealed(self.folder, **{**arguments, **changes})


def make(
    folder: Path,
    files: Mapping[str, bytes] | None = None,
    *,
    dek: bytes = DEK,
    key: SigningKey = OWNER_KEY,
    terms: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Made:
    contents = dict(FILES if files is None else files)
    sealed = seal_object(
        [(path, io.BytesIO(data)) for path, data in contents.items()],
        folder,
        dek=dek,
        identity=identity(**changes),
        sign=signer(key),
        terms=terms if terms is not None else {"sensitivity": "phi", "columns": ["text", "label"]},
    )
    return Made(folder, sealed, dek, contents)


class CountingSource(FolderSource):
    """Remembers which blocks of ciphertext were fetched, of all its files together."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.blocks: set[int] = set()

    def open(self, name: str, size: int) -> MemberFile:
        file = super().open(name, size)
        read_at = file.read_at

        def counted(offset: int, buffer: memoryview) -> int:
            self.blocks.add(offset // MIB)
            return read_at(offset, buffer)

        file.read_at = counted  # type: ignore[method-assign]
        return file


def opened(source: Any, made: Made, **changes: Any) -> SealedObject:
    """``made`` read from elsewhere than its own folder."""
    arguments: dict[str, Any] = {"dek": made.dek, "expected_digest": made.sealed.digest}
    return open_sealed(source, **{**arguments, "signer_keys": [OWNER_KEY.public], **changes})
