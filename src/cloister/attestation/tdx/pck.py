"""PCK certificates: the chain that a quote carries, and what Intel says about the platform in it.

Source: Intel, "SGX PCK Certificate and Certificate Revocation List Profile Specification", revision 1.5, §1.3.5
(extension 1.2.840.113741.1.13.1). Every value is signed by Intel; the parser is strict all the same, because it runs on
certificates that nobody has verified yet.
"""

from __future__ import annotations

import binascii
import re
from base64 import b64decode, b64encode
from dataclasses import dataclass
from typing import Final

from ...crypto import frame, sha256
from ...crypto.x509 import Certificate, read_certificate
from ...errors import Malformed, Untrusted
from ..reader import Reader

__all__ = ["SGX_EXTENSION", "PlatformCertificate", "platform_certificate", "read_chain"]

SGX_EXTENSION: Final = "1.2.840.113741.1.13.1"

_PREFIX: Final = bytes.fromhex("2a864886f84d010d01")  # SGX_EXTENSION as the content of a DER OBJECT IDENTIFIER
_PPID, _TCB, _PCEID, _FMSPC, _TYPE, _INSTANCE, _CONFIGURATION = (bytes((n,)) for n in range(1, 8))
_PCESVN, _CPUSVN = 17, 18
_FLAGS: Final = {b"\x07\x01": "dynamic_platform", b"\x07\x02": "cached_keys", b"\x07\x03": "smt_enabled"}
_TYPES: Final = ("standard", "scalable", "scalable-with-integrity")
_BOOLEAN, _INTEGER, _OCTETS, _OID, _ENUMERATED, _SEQUENCE = 0x01, 0x02, 0x04, 0x06, 0x0A, 0x30
_MAX_ELEMENTS: Final = 32
_MAX_DER: Final = 8192
_CODE: Final = "tdx.pck"

# RFC 7468, without what its parsers may forgive: whatever could be changed here without anybody noticing would make two
# quotes of one. Only newlines between blocks, and zeros at the end, are free.
_BLOCK = re.compile(
    rb"-----BEGIN CERTIFICATE-----\r?\n((?:[A-Za-z0-9+/=]{1,128}\r?\n)+)-----END CERTIFICATE-----(?:\r?\n)*"
)
_CHAIN: Final = 3

_LEAF: Final = "Intel SGX PCK Certificate"
_AUTHORITIES: Final = {"Intel SGX PCK Platform CA": "platform", "Intel SGX PCK Processor CA": "processor"}


@dataclass(frozen=True)
class PlatformCertificate:
    """What a PCK certificate says. ``components``: the 16 SGX TCB component SVNs. ``authority``: platform or processor.

    ``ppid`` (16 bytes) names the processor; ``instance`` (16 bytes) the registered platform, which may have several
    processors, or None where the certificate is by the processor authority. ``flags``: the platform's configuration.
    """

    components: bytes
    pcesvn: int
    cpusvn: bytes
    ppid: bytes
    pceid: bytes
    fmspc: bytes
    sgx_type: str
    authority: str
    instance: bytes | None
    flags: dict[str, bool]

    @property
    def identity(self) -> str:
        """Hex that names the platform for good: the platform instance id (32 digits), else a hash of the PPID (64).

        The instance id is made for being told, and names all sockets of a machine at once. The PPID is what Intel keeps
        from services that needn't know it, so only a hash of it is written into contracts and logs.
        """
        if self.instance is not None:
            return self.instance.hex()
        return sha256(frame("cloister/ppid/v1", self.ppid)).hex()


def read_chain(pem: bytes) -> tuple[Certificate, Certificate, Certificate]:
    """PCK certificate, its authority, the root, from a quote's certification data. Raises Malformed ``tdx.pck``."""
    text = pem.rstrip(b"\0")
    certificates: list[Certificate] = []
    at = 0
    while at < len(text) and len(certificates) <= _CHAIN:
        block = _BLOCK.match(text, at)
        if block is None:
            break
        der = _canonical_base64(block.group(1))
        certificates.append(read_certificate(der))
        at = block.end()
    if at != len(text) or len(certificates) != _CHAIN:
        raise Malformed(_CODE, "A quote's PCK certificate chain is not exactly three certificates in PEM.")
    leaf, authority, root = certificates
    return leaf, authority, root


def _canonical_base64(body: bytes) -> bytes:
    text = b"".join(body.split())
    try:
        der = b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise Malformed(_CODE, "A certificate in a quote is not base64.") from None
    if b64encode(der) != text:  # Python's decoder ignores stray bits before the padding
        raise Malformed(_CODE, "A certificate in a quote is not canonical base64.")
    return der


def platform_certificate(leaf: Certificate, authority: Certificate) -> PlatformCertificate:
    """Read a PCK certificate whose chain was verified. Raises Malformed ``tdx.pck``; Untrusted ``tdx.pck-names`` for
    certificates that Intel issued for something else."""
    kind = _AUTHORITIES.get(authority.subject_attributes.get("CN", ""))
    if leaf.subject_attributes.get("CN") != _LEAF or kind is None:
        raise Untrusted("tdx.pck-names", "The certificates in the quote were not issued for provisioning (PCK).")
    value = leaf.extension(SGX_EXTENSION)
    if value is None:
        raise Malformed(_CODE, "A PCK certificate lacks Intel's SGX extension.")
    fields = _pairs(_content(value, _SEQUENCE), b"")
    svns = _svns(_of(fields, _TCB, _SEQUENCE))
    return PlatformCertificate(
        components=bytes(svns[n][0] for n in range(1, 17)),
        pcesvn=int.from_bytes(svns[_PCESVN], "big"),
        cpusvn=svns[_CPUSVN],
        ppid=_octets(fields, _PPID, 16),
        pceid=_octets(fields, _PCEID, 2),
        fmspc=_octets(fields, _FMSPC, 6),
        sgx_type=_sgx_type(_of(fields, _TYPE, _ENUMERATED)),
        authority=kind,
        instance=_octets(fields, _INSTANCE, 16) if _INSTANCE in fields else None,
        flags=_flags(_of(fields, _CONFIGURATION, _SEQUENCE)) if _CONFIGURATION in fields else {},
    )


def _bad() -> Malformed:
    return Malformed(_CODE, "A PCK certificate, or its SGX extension, is not of the expected form.")


def _elements(data: bytes) -> list[tuple[int, bytes]]:
    """The elements of a DER value (X.690): low tag numbers, definite and shortest lengths, nothing left over."""
    reader = Reader(data, "PCK certificate", limit=_MAX_DER, order="big", code=_CODE)
    found: list[tuple[int, bytes]] = []
    while reader.left:
        tag, length = reader.uint(1), reader.uint(1)
        if length in (0x81, 0x82):
            size = length - 0x80
            length = reader.uint(size)
            if length < (0x80 if size == 1 else 0x100):
                raise _bad()
        elif length >= 0x80:
            raise _bad()
        if len(found) >= _MAX_ELEMENTS:
            raise _bad()
        found.append((tag, reader.take(length)))
    return found


def _content(data: bytes, tag: int) -> bytes:
    elements = _elements(data)
    if len(elements) != 1 or elements[0][0] != tag:
        raise _bad()
    return elements[0][1]


def _pairs(data: bytes, under: bytes) -> dict[bytes, tuple[int, bytes]]:
    """SEQUENCE OF (object identifier, value), by what follows the extension's own identifier."""
    found: dict[bytes, tuple[int, bytes]] = {}
    for tag, pair in _elements(data):
        parts = _elements(pair) if tag == _SEQUENCE else []
        if len(parts) != 2 or parts[0][0] != _OID:
            raise _bad()
        name = parts[0][1]
        if not name.startswith(_PREFIX + under) or name[len(_PREFIX) :] in found:
            raise _bad()
        found[name[len(_PREFIX) :]] = parts[1]
    return found


def _of(fields: dict[bytes, tuple[int, bytes]], name: bytes, tag: int) -> bytes:
    if name not in fields or fields[name][0] != tag:
        raise _bad()
    return fields[name][1]


def _octets(fields: dict[bytes, tuple[int, bytes]], name: bytes, size: int) -> bytes:
    value = _of(fields, name, _OCTETS)
    if len(value) != size:
        raise _bad()
    return value


def _svns(data: bytes) -> dict[int, bytes]:
    """1 to 16: component SVNs of one byte; 17: PCESVN, two bytes; 18: CPUSVN, 16 bytes."""
    pairs = _pairs(data, _TCB)
    found: dict[int, bytes] = {}
    for number in range(1, _CPUSVN + 1):
        name = _TCB + bytes((number,))
        if number == _CPUSVN:
            found[number] = _octets(pairs, name, 16)
        else:
            found[number] = _unsigned(_of(pairs, name, _INTEGER), 2 if number == _PCESVN else 1)
    return found


def _unsigned(value: bytes, size: int) -> bytes:
    """A DER INTEGER from 0 to 256**size - 1, in its shortest form, as ``size`` bytes."""
    if not value or value[0] & 0x80 or (len(value) > 1 and not value[0] and not value[1] & 0x80):
        raise _bad()
    number = int.from_bytes(value, "big")
    if number >= 256**size:
        raise _bad()
    return number.to_bytes(size, "big")


def _sgx_type(value: bytes) -> str:
    if len(value) != 1 or value[0] >= len(_TYPES):
        raise _bad()
    return _TYPES[value[0]]


def _flags(data: bytes) -> dict[str, bool]:
    found: dict[str, bool] = {}
    for name, (tag, value) in _pairs(data, _CONFIGURATION).items():
        if tag != _BOOLEAN or value not in (b"\x00", b"\xff"):
            raise _bad()
        if name in _FLAGS:
            found[_FLAGS[name]] = value == b"\xff"
    return found
