"""What firmware measures of UEFI variables: UEFI_VARIABLE_DATA and the signature lists inside (UEFI 2.10 §32.4.1)."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from ...crypto import sha256
from ...errors import Malformed

__all__ = ["GLOBAL", "SECURITY_DATABASE", "Variable", "encode_variable", "parse_variable", "signers"]

GLOBAL: Final = bytes.fromhex("61dfe48bca93d211aa0d00e098032b8c")
"""EFI_GLOBAL_VARIABLE: SecureBoot, PK, KEK (GUIDs in the mixed order that they have in memory)."""
SECURITY_DATABASE: Final = bytes.fromhex("cbb219d73a3d9645a3bcdad00e67656f")
"""EFI_IMAGE_SECURITY_DATABASE_GUID: db, dbx."""
_X509: Final = bytes.fromhex("a159c0a5e494a74a87b5ab155c2bf072")  # EFI_CERT_X509_GUID
_MAX_NAME: Final = 256
_MAX_LISTS: Final = 1024
_MAX_SIGNERS: Final = 64
_VARIABLE: Final = struct.Struct("<16sQQ")
_LIST: Final = struct.Struct("<16sIII")


@dataclass(frozen=True)
class Variable:
    """UEFI_VARIABLE_DATA (PFP §10.2.6): vendor GUID (16 bytes), name, value."""

    vendor: bytes
    name: str
    value: bytes


def _bad() -> Malformed:
    return Malformed("bootlog.variable", "A UEFI variable in the boot log is not of the form that firmware measures.")


def parse_variable(data: bytes) -> Variable:
    """Read one variable strictly; nothing may follow. Malformed ``bootlog.variable``."""
    if len(data) < _VARIABLE.size:
        raise _bad()
    vendor, characters, size = _VARIABLE.unpack_from(data)
    if not 1 <= characters <= _MAX_NAME or _VARIABLE.size + 2 * characters + size != len(data):
        raise _bad()
    end = _VARIABLE.size + 2 * characters
    try:
        name = data[_VARIABLE.size : end].decode("utf-16-le")
    except UnicodeDecodeError:
        raise _bad() from None
    return Variable(vendor, name, data[end:])


def encode_variable(variable: Variable) -> bytes:
    """The bytes that ``parse_variable`` reads."""
    name = variable.name.encode("utf-16-le")
    return _VARIABLE.pack(variable.vendor, len(name) // 2, len(variable.value)) + name + variable.value


def signers(value: bytes) -> list[str]:
    """SHA-256 (hex) of every X.509 certificate in a list of EFI_SIGNATURE_LIST, in order; Malformed for another form.

    Entries of other types (digests of single images) count for nothing here: they let nobody sign.
    """
    found: list[str] = []
    at = 0
    for _ in range(_MAX_LISTS):
        if at == len(value):
            return found
        if len(value) - at < _LIST.size:
            raise _bad()
        kind, total, header, size = _LIST.unpack_from(value, at)
        entries = total - _LIST.size - header
        if total > len(value) - at or size < 16 or entries < 0 or entries % size:
            raise _bad()
        if kind == _X509:
            start = at + _LIST.size + header
            found += [sha256(value[i + 16 : i + size]).hex() for i in range(start, at + total, size)]
        if len(found) > _MAX_SIGNERS:
            raise _bad()
        at += total
    raise _bad()
