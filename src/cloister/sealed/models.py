"""The manifest of a sealed object: what it says, and the one way in which that is written down.

A manifest is canonical JSON (RFC 8785) in a DSSE envelope. Every field is checked when the object is made, by a
writer as well as by the parser, so a manifest in memory is always one that the parser accepts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..crypto import canonical_json, parse_canonical
from ..crypto.canonical import MAX_DOCUMENT
from ..crypto.streaming import AES256_GCM_HKDF_1MB
from ..errors import Malformed
from .paths import PathSet

__all__ = ["ASSET_CLASSES", "MANIFEST_TYPE", "SCHEMA", "SUITE", "FileEntry", "Limits", "Manifest", "SealIdentity"]

MANIFEST_TYPE = "application/vnd.cloister.manifest+json"
SCHEMA = "cloister/manifest/v1"
SUITE = "AES256_GCM_HKDF_1MB"
ASSET_CLASSES = frozenset({"dataset", "model", "program", "checkpoint", "artifact"})

_PARTY = re.compile(r"[a-z][a-z0-9-]{0,62}")
_ASSET = re.compile(r"[a-z0-9][a-z0-9._-]{0,126}")
_MAX_INT = 2**53 - 1  # what canonical JSON can hold


@dataclass(frozen=True)
class Limits:
    """What a reader is willing to parse."""

    manifest: int = MAX_DOCUMENT
    files: int = 10_000  # the names on disk have four digits
    parents: int = 1024
    terms: int = 1024 * 1024


LIMITS = Limits()


def _refuse(code: str, message: str) -> Malformed:
    return Malformed(f"manifest.{code}", message)


def _check_bytes(value: object, size: int, name: str) -> None:
    if not isinstance(value, bytes) or len(value) != size:
        raise _refuse("digest", f"The manifest's field {name!r} must have exactly {size} bytes.")


def _check_int(value: object, least: int, name: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= _MAX_INT:
        raise _refuse("integer", f"The manifest's field {name!r} must be an integer from {least} to 2^53-1.")


@dataclass(frozen=True, kw_only=True)
class SealIdentity:
    """What an object is and where it comes from. All of it but name, ``created`` and ``previous`` is bound into
    every file's associated data (PROTOCOL §5).

    ``asset_id`` is 16 random bytes that stay the same over all versions; ``created`` is in unix seconds; ``contract``,
    ``job``, ``parents`` and ``previous`` are digests of 32 bytes. Raises Malformed when a field is out of form.
    """

    owner: str
    asset_id: bytes
    name: str
    version: int
    asset_class: str
    created: int
    contract: bytes | None = None
    job: bytes | None = None
    parents: tuple[bytes, ...] = ()
    previous: bytes | None = None

    def __post_init__(self) -> None:
        self._check_names()
        _check_bytes(self.asset_id, 16, "asset")
        _check_int(self.version, 1, "version")
        _check_int(self.created, 0, "created")
        for name in ("contract", "job", "previous"):
            if getattr(self, name) is not None:
                _check_bytes(getattr(self, name), 32, name)
        if len(self.parents) > LIMITS.parents or len(set(self.parents)) != len(self.parents):
            raise _refuse("parents", f"The manifest names a parent twice, or more than {LIMITS.parents} parents.")
        for parent in self.parents:
            _check_bytes(parent, 32, "parents")
        if self.job is not None and self.contract is None:
            raise _refuse("job", "A manifest that names a job must name the job's contract.")
        if self.previous is not None and self.version == 1:
            raise _refuse("previous", "Version 1 of an asset has no previous version; leave it out.")

    def _check_names(self) -> None:
        owner, _, asset = self.name.partition("/")
        if not _PARTY.fullmatch(self.owner) or owner != self.owner or not _ASSET.fullmatch(asset):
            raise _refuse(
                "name",
                "An asset's name is 'party/asset' with its owner's name before the slash, in lower-case letters, "
                "digits, '-' (after the slash also '.' and '_').",
            )
        if self.asset_class not in ASSET_CLASSES:
            raise _refuse("class", "An asset's class is one of dataset, model, program, checkpoint, artifact.")


@dataclass(frozen=True)
class FileEntry:
    """One file: its path, its sizes in bytes, and the RFC 6962 root over the 1 MiB blocks of its ciphertext."""

    path: str
    plaintext_size: int
    ciphertext_size: int
    root: bytes

    def __post_init__(self) -> None:
        _check_int(self.plaintext_size, 0, "plaintext_size")
        _check_int(self.ciphertext_size, 0, "ciphertext_size")
        if AES256_GCM_HKDF_1MB.plaintext_size(self.ciphertext_size) != self.plaintext_size:
            raise _refuse("size", "The manifest's two sizes of a file do not belong together.")
        _check_bytes(self.root, 32, "root")


@dataclass(frozen=True, kw_only=True)
class Manifest(SealIdentity):
    """The whole statement. ``terms`` is an open JSON object (no floats): schema columns, sensitivity, licence,
    lineage, form, recipients; what they mean is the contract's business."""

    dek_commit: bytes
    files: tuple[FileEntry, ...]
    terms: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_bytes(self.dek_commit, 32, "dek_commit")
        if not 1 <= len(self.files) <= LIMITS.files:
            raise _refuse("files", f"An object has from 1 to {LIMITS.files} files.")
        paths = PathSet()
        for entry in self.files:
            paths.add(entry.path)
        if not isinstance(self.terms, dict) or len(canonical_json(self.terms)) > LIMITS.terms:
            raise _refuse("terms", f"The manifest's terms must be a JSON object of at most {LIMITS.terms} bytes.")

    def to_payload(self) -> bytes:
        """Canonical JSON. Raises Malformed if it would be longer than a reader accepts."""
        payload = canonical_json(self._document())
        if len(payload) > LIMITS.manifest:
            raise _refuse("length", f"The manifest would be longer than {LIMITS.manifest} bytes; use fewer files.")
        return payload

    def _document(self) -> dict[str, Any]:
        return {
            "asset": self.asset_id.hex(),
            "class": self.asset_class,
            "contract": self.contract and self.contract.hex(),
            "created": self.created,
            "dek_commit": self.dek_commit.hex(),
            "file_count": len(self.files),
            "files": [{**vars(entry), "root": entry.root.hex()} for entry in self.files],
            "job": self.job and self.job.hex(),
            "name": self.name,
            "owner": self.owner,
            "parents": [parent.hex() for parent in self.parents],
            "previous": self.previous and self.previous.hex(),
            "schema": SCHEMA,
            "suite": SUITE,
            "terms": self.terms,
            "version": self.version,
        }

    @classmethod
    def from_payload(cls, payload: bytes) -> Manifest:
        """Parse strictly: what is accepted encodes to the same bytes again. Raises Malformed."""
        document = parse_canonical(payload, limit=LIMITS.manifest)
        try:
            manifest = cls._from_document(document)
        except (KeyError, TypeError, ValueError, AttributeError):  # no object, a field missing or of another type
            raise _refuse("form", f"The document is not a manifest of the form {SCHEMA}.") from None
        if manifest.to_payload() != payload:  # a field too many, or a second spelling of a value
            raise _refuse("form", f"The document is not a manifest of the form {SCHEMA}.")
        return manifest

    @classmethod
    def _from_document(cls, doc: dict[str, Any]) -> Manifest:
        if (doc["schema"], doc["suite"]) != (SCHEMA, SUITE):
            raise _refuse("schema", f"The manifest is not {SCHEMA} with {SUITE}; use a matching version of Cloister.")
        files = doc["files"]
        if len(files) > LIMITS.files:  # before any is looked at
            raise _refuse("files", f"An object has from 1 to {LIMITS.files} files.")
        names = [f.name for f in fields(FileEntry)]
        return cls(
            owner=_text(doc["owner"]),
            asset_id=bytes.fromhex(doc["asset"]),
            name=_text(doc["name"]),
            version=doc["version"],
            asset_class=_text(doc["class"]),
            created=doc["created"],
            contract=_optional_hex(doc["contract"]),
            job=_optional_hex(doc["job"]),
            parents=tuple(bytes.fromhex(parent) for parent in doc["parents"]),
            previous=_optional_hex(doc["previous"]),
            dek_commit=bytes.fromhex(doc["dek_commit"]),
            files=tuple(_entry(names, entry) for entry in files),
            terms=doc["terms"],
        )


def _entry(names: list[str], entry: dict[str, Any]) -> FileEntry:
    path, plaintext_size, ciphertext_size, root = (entry[name] for name in names)
    return FileEntry(_text(path), plaintext_size, ciphertext_size, bytes.fromhex(root))


def _optional_hex(value: str | None) -> bytes | None:
    return None if value is None else bytes.fromhex(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value
