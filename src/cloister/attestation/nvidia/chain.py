"""The certificates of an NVIDIA device: who it is, which firmware its key belongs to, and whether it was revoked.

Five certificates, leaf first: the attestation key, which the boot ROM certified for the firmware it had measured; the
boot ROM's own key; a provisioner; the generation's identity authority; NVIDIA's root. The firmware's id (FWID) stands
in the leaf: in generations up to Hopper as a CompositeDeviceID (TCG DICE Layering, 2.23.133.5.4.1), in Blackwell as a
DiceTcbInfo (TCG DICE Attestation Architecture 1.1 §6.1, under 2.23.133.5.4.1.1).
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from ...crypto.der import Der, read_der
from ...crypto.ocsp import ocsp_request
from ...crypto.x509 import Certificate, check_usage, read_certificates, verify_chain
from ...errors import Malformed, Untrusted
from ..collateral import Collateral, Staleness
from .revocation import answered_for, check_revocation
from .roots import DEVICE_ROOTS

__all__ = ["ARCHITECTURES", "Architecture", "DeviceChain", "revocation_requests", "verify_device_chain"]

_MAX_PEM: Final = 32 * 1024
_MIN_CHAIN, _MAX_CHAIN = 4, 8
_COMPOSITE: Final = "2.23.133.5.4.1"
_TCB_INFO: Final = "2.23.133.5.4.1.1"
_FWIDS, _FLAGS = 0xA6, 0x87  # fields of DiceTcbInfo, by context tag
_SHA384: Final = "2.16.840.1.101.3.4.2.2"
_MAX_EXTENSION: Final = 4096
_SERIAL: Final = re.compile(r"[0-9A-F]{2}([0-9A-F]{16})")
_NOT_SECURE, _RECOVERY, _DEBUG = 1, 2, 3  # DiceTcbInfo's OperationalFlags, bit numbers


@dataclass(frozen=True)
class Architecture:
    """``products``: how chips of it are called in certificates and manifests. ``fwid``: the extension that has the
    firmware's id. ``switch``: an NVSwitch, not a GPU."""

    name: str
    products: tuple[str, ...]
    fwid: str
    switch: bool = False


ARCHITECTURES: Final = {
    "HOPPER": Architecture("HOPPER", ("GH",), _COMPOSITE),
    "BLACKWELL": Architecture("BLACKWELL", ("GB",), _TCB_INFO),
    "LS10": Architecture("LS10", ("LS_10", "LS10"), _COMPOSITE, switch=True),
}


@dataclass(frozen=True)
class DeviceChain:
    """What the verified certificates say.

    ``model``: the boot ROM's name, as "GH100 A01 GSP BROM". ``identity``: SHA-256 of the boot ROM's public key, which
    stays with the chip; ``ueid``: the leaf's serial number in decimal, which NVIDIA's tokens carry; it changes with
    firmware. ``pdi``: the chip's id as switches and GPUs name each other, "" where there is none. ``flags``: what
    the boot ROM said of the firmware it started (debug, not_secure, recovery), None where its leaf has no such field.
    ``unrevoked``: whether NVIDIA's fresh word was at hand that none of the certificates is revoked.
    """

    architecture: Architecture
    leaf: Certificate
    model: str
    product: str
    identity: str
    ueid: str
    pdi: str
    fwids: tuple[bytes, ...]
    flags: frozenset[str] | None
    unrevoked: bool


def verify_device_chain(
    pem: bytes,
    architecture: Architecture | None,
    *,
    roots: Collection[str],
    now: int,
    collateral: Collateral | None = None,
    staleness: Staleness | None = None,
    require_revocation: bool = False,
) -> DeviceChain:
    """Return what a chain says, if it is good at ``now``, leads to one of ``roots`` and is of this generation (any that
    is known, where None is given).

    What ``collateral`` says of revocation counts in any case; with ``require_revocation`` it must say that none of the
    certificates but leaf and root is revoked, see ``revocation.check_revocation``. Raises Malformed (``x509.*``,
    ``crl.*``, ``ocsp.*``, ``nvidia.chain``) or Untrusted (the same, ``collateral.*``, ``nvidia.*``).
    """
    chain = _open_chain(pem, roots, now)
    known = check_revocation(chain, collateral, staleness or Staleness(), required=require_revocation, now=now)
    leaf, brom = chain[0], chain[1]
    model = brom.subject_attributes.get("CN", "")
    product = model.partition(" ")[0]
    # NVIDIA's authorities certify devices of all generations under one root, so the chain has to be of this one.
    found = _generation(brom)
    # A boot ROM is an authority, and nothing limits the path below it: with the key of one chip any number of others
    # could be made up, each with its own identity.
    if any(_generation(above) for above in chain[2:]):
        raise Untrusted("nvidia.chain", "A device stands above another one in a GPU's certificate chain.")
    if found is None or architecture not in (None, found):
        raise Untrusted("nvidia.architecture", "A device's certificates are of another generation than its evidence.")
    # RFC 5280 §4.2.1.3: the leaf's key may sign what is no certificate.
    why = "A GPU's attestation certificate doesn't allow its key to sign."
    check_usage(leaf, "digital_signature", "x509.usage", why, stated=True)
    fwids, flags = _firmware(leaf, found)
    return DeviceChain(
        architecture=found,
        leaf=leaf,
        model=_printable(model),
        product=product,
        identity=brom.key_fingerprint,
        ueid=str(leaf.serial),
        pdi=_pdi(brom),
        fwids=fwids,
        flags=flags,
        unrevoked=known,
    )


def _generation(certificate: Certificate) -> Architecture | None:
    """Of which generation's boot ROM it is by its name; None for NVIDIA's authorities, whose names begin otherwise."""
    model = certificate.subject_attributes.get("CN", "")
    return next((a for a in ARCHITECTURES.values() if model.startswith(a.products)), None)


def revocation_requests(pem: bytes, *, now: int, roots: Collection[str] = tuple(DEVICE_ROOTS)) -> dict[str, bytes]:
    """What to ask NVIDIA's OCSP service about a device's chain (PEM): for each name of a piece of collateral
    (``nvidia-ocsp``) the DER of the request that it is the answer to. Pure; whoever fetches sends them.

    The chain is verified first: nobody is asked about certificates that only somebody sent. Raises as
    ``verify_device_chain``, but for revocation.
    """
    chain = _open_chain(pem, roots, now)
    return {chain[at].fingerprint: ocsp_request(chain[at], chain[at + 1]) for at in answered_for(chain)}


def _open_chain(pem: bytes, roots: Collection[str], now: int) -> tuple[Certificate, ...]:
    if len(pem) > _MAX_PEM:
        raise Malformed("x509.size", "A certificate bundle is too long.")
    chain = read_certificates(pem, limit=_MAX_CHAIN)
    if len(chain) < _MIN_CHAIN:
        raise Malformed("nvidia.chain", "A GPU's certificate chain is cut short; collect its evidence again.")
    verify_chain(chain, roots=roots, now=now)
    return chain


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:64]


def _pdi(brom: Certificate) -> str:
    """The chip's id, 8 bytes in lower-case hex: the boot ROM's serial number without its first byte, which is how
    GPUs and switches name each other in their reports. "" where the name has another form."""
    found = _SERIAL.fullmatch(brom.subject_attributes.get("SN", ""))
    return found[1].lower() if found else ""


def _firmware(leaf: Certificate, architecture: Architecture) -> tuple[tuple[bytes, ...], frozenset[str] | None]:
    value = leaf.extension(architecture.fwid)
    if value is None:
        raise Untrusted("nvidia.fwid", "A GPU's attestation certificate doesn't say which firmware its key belongs to.")
    whole = read_der(value, "GPU's attestation certificate", code="nvidia.chain", limit=_MAX_EXTENSION)
    if architecture.fwid == _COMPOSITE:
        # SEQUENCE { version, deviceID SubjectPublicKeyInfo, FWID }
        _, _, fwid = whole.children(count=3)
        return (_fwid(fwid),), None
    # DiceTcbInfo: all fields optional, by context tag.
    parts = whole.children()
    by_tag = {part.tag: part for part in parts}
    if len(by_tag) != len(parts) or _FWIDS not in by_tag:
        raise whole.bad("doesn't say which firmware its key belongs to")
    fwids = tuple(_fwid(fwid) for fwid in by_tag[_FWIDS].children(_FWIDS))
    if not fwids:
        raise whole.bad("doesn't say which firmware its key belongs to")
    return fwids, _flags(by_tag[_FLAGS]) if _FLAGS in by_tag else frozenset()


def _fwid(fwid: Der) -> bytes:
    """FWID ::= SEQUENCE { hashAlg OBJECT IDENTIFIER, digest OCTET STRING }, SHA-384 only."""
    algorithm, digest = fwid.children(count=2)
    if algorithm.oid() != _SHA384:
        raise fwid.bad("names its firmware by another hash than SHA-384")
    return digest.octets(48)


def _flags(flags: Der) -> frozenset[str]:
    first = flags.bits(_FLAGS)[0]
    names = {_NOT_SECURE: "not_secure", _RECOVERY: "recovery", _DEBUG: "debug"}
    return frozenset(name for bit, name in names.items() if first & (0x80 >> bit))
