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
from ...crypto.der import ENUMERATED, Der, read_der
from ...crypto.x509 import Certificate, read_certificate
from ...errors import Malformed, Untrusted

__all__ = ["SGX_EXTENSION", "PlatformCertificate", "platform_certificate", "read_chain"]

SGX_EXTENSION: Final = "1.2.840.113741.1.13.1"

# What follows the extension's own identifier in those of its parts.
_PPID, _TCB, _PCEID, _FMSPC, _TYPE, _INSTANCE, _CONFIGURATION = (f".{n}" for n in range(1, 8))
_PCESVN, _CPUSVN = 17, 18
_FLAGS: Final = {".7.1": "dynamic_platform", ".7.2": "cached_keys", ".7.3": "smt_enabled"}
_TYPES: Final = ("standard", "scalable", "scalable-with-integrity")
_MAX_ELEMENTS: Final = 32
_CODE: Final = "tdx.pck"

# RFC 7468, without what its parsers may forgive: whatever could be changed here without anybody noticing would make two
# quotes of one. Only where lines end, newlines between blocks, and zeros at the end, are free.
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
    fields = _pairs(read_der(value, "PCK certificate", code=_CODE), "")
    svns = _pairs(_of(fields, _TCB), _TCB)
    return PlatformCertificate(
        components=bytes(_of(svns, f"{_TCB}.{n}").unsigned(1) for n in range(1, 17)),
        pcesvn=_of(svns, f"{_TCB}.{_PCESVN}").unsigned(2),
        cpusvn=_of(svns, f"{_TCB}.{_CPUSVN}").octets(16),
        ppid=_of(fields, _PPID).octets(16),
        pceid=_of(fields, _PCEID).octets(2),
        fmspc=_of(fields, _FMSPC).octets(6),
        sgx_type=_sgx_type(_of(fields, _TYPE)),
        authority=kind,
        instance=fields[_INSTANCE].octets(16) if _INSTANCE in fields else None,
        flags=_flags(fields[_CONFIGURATION]) if _CONFIGURATION in fields else {},
    )


def _pairs(whole: Der, under: str) -> dict[str, Der]:
    """SEQUENCE OF (object identifier, value), by what follows the extension's own identifier."""
    found: dict[str, Der] = {}
    for pair in whole.children(most=_MAX_ELEMENTS):
        kind, value = pair.children(count=2)
        name = kind.oid()
        if not name.startswith(f"{SGX_EXTENSION}{under}.") or (name := name[len(SGX_EXTENSION) :]) in found:
            raise whole.bad()
        found[name] = value
    return found


def _of(fields: dict[str, Der], name: str) -> Der:
    if name not in fields:
        raise Malformed(_CODE, "A PCK certificate lacks a part of Intel's SGX extension.")
    return fields[name]


def _sgx_type(value: Der) -> str:
    number = value.of(ENUMERATED)
    if len(number) != 1 or number[0] >= len(_TYPES):
        raise value.bad()
    return _TYPES[number[0]]


def _flags(configuration: Der) -> dict[str, bool]:
    values = {name: value.boolean() for name, value in _pairs(configuration, _CONFIGURATION).items()}
    return {_FLAGS[name]: value for name, value in values.items() if name in _FLAGS}
