"""Whose endorsement keys are hardware: the manufacturers' roots, pinned by their keys, and the registry of makers.

A pin is the SHA-256 of a root's SubjectPublicKeyInfo: a fact, computed from the certificates that Cedarcode's library
tpm-key_attestation 0.11.0 carries (as Debian packages it, ruby-tpm-key-attestation 0.11.0-1), which takes them from
Microsoft's collection of trusted TPM roots. Each of these certificates is self-signed and was checked to be.

Not pinned, because a chain to them can't be verified here: Infineon's roots under VeriSign (signed with SHA-1), and
Nuvoton's (their names are not valid DER, so no strict reader takes them).

Only this list gives level ``tpm``. An owner may accept further roots when enrolling, a software TPM's for one; whoever
holds such a root can sign any key, so what it vouches for stays at level ``none``, and no setting changes that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

__all__ = ["MANUFACTURERS", "ROOTS", "Root"]


@dataclass(frozen=True)
class Root:
    """``makers``: the ids (8 hex digits) that certificates under this root may name."""

    name: str
    makers: frozenset[str]


MANUFACTURERS: Final[dict[str, str]] = {
    "414d4400": "AMD",
    "414e5400": "Ant Group",
    "41544d4c": "Atmel",
    "4252434d": "Broadcom",
    "4353434f": "Cisco",
    "464c5953": "Flyslice Technologies",
    "474f4f47": "Google",
    "48504500": "HPE",
    "48504900": "HPI",
    "48495349": "Huawei",
    "49424d00": "IBM",
    "49465800": "Infineon",
    "494e5443": "Intel",
    "4c454e00": "Lenovo",
    "4d534654": "Microsoft",
    "4e534d20": "National Semiconductor",
    "4e545a00": "Nationz",
    "4e544300": "Nuvoton",
    "51434f4d": "Qualcomm",
    "524f4343": "Fuzhou Rockchip",
    "534d534e": "Samsung",
    "534d5343": "SMSC",
    "534e5300": "Sinosun",
    "53544d20": "STMicroelectronics",
    "54584e00": "Texas Instruments",
    "57454300": "Winbond",
}
"""TCG TPM Vendor ID Registry, family 2.0: four ASCII characters as hex. swtpm's 00001014 isn't in it, and never will
be: it is a number of PCI's, and swtpm is no manufacturer."""

_AMD = frozenset({"414d4400"})
_INFINEON = frozenset({"49465800"})
_ST = frozenset({"53544d20"})

ROOTS: Final[dict[str, Root]] = {
    "899b9c9d6e926c40aaefbea3905173f00f7b52ad6eb4d2d32e6fcb1979710e2b": Root("AMD fTPM root, RSA", _AMD),
    "5cf1859ffbd2cd18c13345d47692bea4ea2464fbfb74298364fa979e833229f6": Root("AMD fTPM root, ECC", _AMD),
    "95d0d9dd3e6a49bc028476c08fe985c6183bd1fcb575a6d3818061a89a2aa49a": Root(
        "Atmel TPM Root Signing Module", frozenset({"41544d4c"})
    ),
    "8a705088efa28a3845b35c7fcbf9c0f4bf46c77da18a6f1a173eb9074610cbd0": Root(
        "Infineon OPTIGA(TM) RSA Root CA", _INFINEON
    ),
    "ce5183a19d6fe79a6c1b058cfa700379f67d587a8afd0f51621e82d9f00c5a28": Root(
        "Infineon OPTIGA(TM) ECC Root CA", _INFINEON
    ),
    "baf3caf0db083d8155424bb24d6fbbd8ba7487fc5b3ca45d3eb6b2b2e4656ade": Root(
        "Intel TPM EK root", frozenset({"494e5443"})
    ),
    "07e4e5a1d8eab8f9cf05c54beee7897b3bf95f86f386407e3ba205aa620012de": Root(
        "Nationz TPM Root CA", frozenset({"4e545a00"})
    ),
    "0035d2297fe237a636800382cc2c9e205c6930f84b507ceec3608545d273960f": Root(
        "GlobalSign Trusted Platform Module Root CA, for STMicroelectronics", _ST
    ),
    "43679317522d3638ea18936a57c65b33086ba51c77536fe6e1b65492193314cb": Root(
        "GlobalSign Trusted Platform Module ECC Root CA, for STMicroelectronics", _ST
    ),
}
