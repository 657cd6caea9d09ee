"""Where the vendors give out collateral: the address of each piece, and nothing that is sent.

Names may come from evidence that nobody has verified, so only those of the vendors' own forms become addresses.
"""

from __future__ import annotations

import re
import urllib.parse
from dataclasses import dataclass
from typing import Final

from ..errors import Misuse

__all__ = ["PRODUCTS", "Sources", "Wanted", "request_of"]

Wanted = tuple[str, str]
"""Kind and name of a piece of collateral."""
PRODUCTS: Final = {"milan": "Milan", "genoa": "Genoa", "turin": "Turin"}
"""AMD's products, as its key service writes them."""

_LOCAL: Final = frozenset({"127.0.0.1", "::1", "localhost"})
_VCEK = re.compile(r"([0-9a-f]{128}|[0-9a-f]{16})-([0-9a-f]{16})")
_FMSPC = re.compile(r"([0-9a-f]{12})-(sgx|tdx)")
_RIM = re.compile(r"[0-9A-Za-z_.-]{1,128}")


@dataclass(frozen=True)
class Sources:
    """Base URLs. The defaults are the vendors' public services; a cache in an owner's own network answers the same."""

    amd_kds: str = "https://kdsintf.amd.com"
    intel_pcs: str = "https://api.trustedservices.intel.com"
    intel_roots: str = "https://certificates.trustedservices.intel.com"
    nvidia_rim: str = "https://rim.attestation.nvidia.com"
    nvidia_ocsp: str = "https://ocsp.ndis.nvidia.com"

    def __post_init__(self) -> None:
        for url in (self.amd_kds, self.intel_pcs, self.intel_roots, self.nvidia_rim, self.nvidia_ocsp):
            parts = urllib.parse.urlsplit(url)
            plain = parts.scheme == "http" and parts.hostname in _LOCAL
            if not (parts.scheme == "https" or plain) or not parts.hostname or parts.query or parts.fragment:
                raise Misuse("fetch.url", "Give a source of collateral as an https address without a query.")


def request_of(wanted: Wanted, sources: Sources, *, product: str | None = None) -> str:
    """The URL of a piece. ``product``: the processor that a VCEK is of, which its name does not say. Raises Misuse for
    what no vendor gives out, and for names that no vendor's piece has: names may come from unverified evidence."""
    kind, name = wanted
    if kind in ("amd-chain", "amd-crl"):
        key = "vlek" if name.endswith("-vlek") else "vcek"
        model = PRODUCTS.get(name.removesuffix("-vlek"))
        if model is not None:
            return f"{sources.amd_kds}/{key}/v1/{model}/{'crl' if kind == 'amd-crl' else 'cert_chain'}"
    if kind == "amd-vcek" and product in PRODUCTS and (match := _VCEK.fullmatch(name)):
        return f"{sources.amd_kds}/vcek/v1/{PRODUCTS[product]}/{match[1]}?{_spls(match[2], product)}"
    if kind == "intel-tcb" and (match := _FMSPC.fullmatch(name)):
        return f"{sources.intel_pcs}/{match[2]}/certification/v4/tcb?fmspc={match[1]}"
    if kind == "intel-qe-identity" and name in ("sgx", "tdx"):
        return f"{sources.intel_pcs}/{name}/certification/v4/qe/identity"
    if kind == "intel-pck-crl" and name in ("platform", "processor"):
        return f"{sources.intel_pcs}/sgx/certification/v4/pckcrl?ca={name}&encoding=der"
    if kind == "intel-root-crl" and name == "root":
        return f"{sources.intel_roots}/IntelSGXRootCA.der"
    if kind == "nvidia-rim" and _RIM.fullmatch(name):
        return f"{sources.nvidia_rim}/v1/rim/{name}"
    raise Misuse("fetch.unknown", "No vendor's service gives out such a piece of collateral.")


def _spls(tcb: str, product: str) -> str:
    """AMD 57230: the parts of a TCB version as parameters. ``tcb``: 16 digits, the most significant byte first."""
    value = bytes.fromhex(tcb)[::-1]
    names = {0: "blSPL", 1: "teeSPL", 6: "snpSPL", 7: "ucodeSPL"}
    if product == "turin":
        names = {0: "fmcSPL", 1: "blSPL", 2: "teeSPL", 3: "snpSPL", 7: "ucodeSPL"}
    return "&".join(f"{name}={value[at]:02d}" for at, name in names.items())
