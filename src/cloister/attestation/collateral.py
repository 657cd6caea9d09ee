"""What a verifier needs beside the evidence: vendors' certificates, revocation lists, TCB levels, reference manifests.

Collateral is data. Whoever brings it, a fetcher, a cache or a file carried into a closed site, isn't trusted: all of it
is signed by its vendor, and verified where it is used. What is decided here is only whether it is still fresh enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from ..errors import Malformed, Untrusted

__all__ = ["KINDS", "MAX_ITEM", "Collateral", "CollateralSet", "Item", "Staleness"]

KINDS: Final = {
    "amd-chain": "ASK or ASVK and ARK of a product, as PEM; the name is milan, genoa or turin, with -vlek for ASVKs",
    "amd-vcek": "a chip's VCEK at one TCB, as DER; the name is the chip id and the TCB version, in hex, with a hyphen",
    "amd-crl": "the revocation list of a product's ARK; named as amd-chain",
    "intel-tcb": "TCB info as the service answers it; the name is the FMSPC in hex and -tdx or -sgx",
    "intel-qe-identity": "the quoting enclave's identity as the service answers it; named tdx or sgx",
    "intel-pck-crl": "the revocation list of the PCK certificates' authority; named processor or platform",
    "intel-root-crl": "the revocation list of Intel's root; named root",
    "nvidia-rim": "a reference integrity manifest; named by its id",
    "nvidia-ocsp": "an OCSP response about a certificate of NVIDIA's devices; named by its SHA-256",
    "nvidia-crl": "a revocation list of NVIDIA's device authorities; named by the SHA-256 of its issuer's key",
}
MAX_ITEM: Final = 1024 * 1024
"""Bytes of one item."""
_MAX_NAME: Final = 256
_DAY: Final = 86_400


@dataclass(frozen=True)
class Item:
    """One piece. ``chain``: the PEM chain that came with it, where the vendor sends it beside the data. ``obtained``:
    when it was fetched or imported (POSIX seconds), by the clock of whoever did."""

    kind: str
    name: str
    data: bytes
    obtained: int
    chain: bytes = b""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise Malformed("collateral.kind", "A piece of collateral is of no kind that is known here.")
        if not 0 < len(self.name) <= _MAX_NAME or not self.name.isprintable():
            raise Malformed("collateral.name", "A piece of collateral has no usable name.")
        if len(self.data) > MAX_ITEM or len(self.chain) > MAX_ITEM:
            raise Malformed("collateral.size", f"A piece of collateral is longer than {MAX_ITEM} bytes.")


class Collateral(Protocol):
    """Where verifiers look for it. Never the network: fetching happens elsewhere, and before."""

    def find(self, kind: str, name: str) -> Item | None:
        """The newest item of that kind and name; None where there is none."""
        ...


class CollateralSet:
    """Items in memory; of two with the same kind and name the one obtained later counts."""

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._items: dict[tuple[str, str], Item] = {}
        for item in items:
            known = self._items.get((item.kind, item.name))
            if known is None or item.obtained >= known.obtained:
                self._items[item.kind, item.name] = item

    def find(self, kind: str, name: str) -> Item | None:
        return self._items.get((kind, name))

    def __iter__(self) -> Iterator[Item]:
        return iter(self._items.values())

    def __len__(self) -> int:
        return len(self._items)


@dataclass(frozen=True)
class Staleness:
    """How old collateral may be. Each piece that states its own end is good until then, and ``grace`` seconds longer
    where an owner would rather bridge a vendor's outage; one that states none is good ``max_age`` seconds after it was
    obtained. A vendor that is down so stops nobody whose collateral is still good."""

    grace: int = 0
    max_age: int = 30 * _DAY

    def check(self, what: str, *, begins: int | None, ends: int | None, obtained: int, now: int) -> None:
        """Return if a piece that is stated to be good from ``begins`` to ``ends`` may be used at ``now``.

        Raises Untrusted: ``collateral.future`` for what begins or was obtained later than now (a clock that was set
        back, or a forgery), ``collateral.stale`` for what has ended.
        """
        if (begins is not None and begins > now) or obtained > now:
            raise Untrusted("collateral.future", f"The {what} is from the future; check the clock, or who brought it.")
        last = ends + self.grace if ends is not None else obtained + self.max_age
        if now >= last:
            raise Untrusted("collateral.stale", f"The {what} has run out; fetch or import a newer one.")
