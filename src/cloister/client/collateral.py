"""An owner's collateral: what is in a cache, carrying it into a closed site, and fetching it where that is wanted."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from ..attestation.nvidia.chain import revocation_requests
from ..attestation.tdx import read_collateral
from ..broker.collateral_facts import examine
from ..broker.collateral_store import MAX_BUNDLE, CollateralStore, Kept, read_bundle, write_bundle
from ..broker.fetching import Fetcher, Sources
from ..crypto import parse_json
from ..crypto.x509 import read_certificates
from ..errors import CloisterError, Malformed, Misuse

__all__ = [
    "MAX_FILE",
    "Piece",
    "Sources",
    "export_collateral",
    "fetch_collateral",
    "import_collateral",
    "show_collateral",
]

MAX_FILE: Final = MAX_BUNDLE
_END: Final = b"-----END CERTIFICATE-----"


@dataclass(frozen=True)
class Piece:
    """One piece: from when to when it is good by its own word (POSIX seconds), whether a signature up to a pinned root
    was verified, and why it is not good now (""), where it isn't."""

    kind: str
    name: str
    obtained: int
    begins: int | None
    ends: int | None
    checked: bool
    code: str
    reason: str

    def document(self) -> dict[str, Any]:
        return dict(vars(self))


def show_collateral(folder: Path, *, now: int | None = None) -> tuple[list[Piece], tuple[str, ...]]:
    """Every piece, and the names of files that are damaged. Raises Unavailable."""
    store = CollateralStore(folder)
    at = int(time.time()) if now is None else now
    return _pieces(store, store.kept(), at), store.damaged


def import_collateral(folder: Path, data: bytes, *, now: int | None = None) -> list[Piece]:
    """Take over a bundle that ``export_collateral`` wrote, or a vendor's collateral file. All of it or nothing.

    Raises Malformed for another file, Untrusted for a piece that is forged, or older than the one that is here.
    """
    at = int(time.time()) if now is None else now
    body = parse_json(data, limit=MAX_FILE)
    if isinstance(body, dict) and "tcb_info" in body:
        pieces = [Kept(item) for item in read_collateral(data, obtained=at)]
    elif isinstance(body, dict) and "items" in body:
        pieces = read_bundle(data)
    else:
        raise Malformed("collateral.file", "The file is neither a bundle of collateral nor a vendor's file of it.")
    store = CollateralStore(folder)
    return _pieces(store, store.put(pieces, now=at), at)


def export_collateral(folder: Path) -> bytes:
    """Everything as one file, to be carried into a closed site. Raises Misuse where there is nothing."""
    store = CollateralStore(folder)
    if not store.kept():
        raise Misuse("collateral.empty", "There is no collateral in this folder; fetch or import some first.")
    return write_bundle(store.kept())


def fetch_collateral(
    folder: Path, wanted: Sequence[str], sources: Sources | None = None, *, now: int | None = None
) -> tuple[list[Piece], dict[str, str]]:
    """Ask the vendors for ``wanted`` (each KIND:NAME), or for a newer one of each piece that is here. What came, and
    why the others did not, by KIND:NAME. Raises Misuse for what is no such name."""
    store, fetcher = CollateralStore(folder), Fetcher(sources or Sources())
    at = int(time.time()) if now is None else now
    known = {(kept.item.kind, kept.item.name): kept for kept in store.kept()}
    came: list[Kept] = []
    failed: dict[str, str] = {}
    for kind, name, product in [_wanted(text) for text in wanted] or [(*key, None) for key in known]:
        try:
            piece = fetcher.fetch((kind, name), now=at, known=known.get((kind, name)), product=product)
            came += store.put([piece], now=at)
        except CloisterError as error:
            failed[f"{kind}:{name}"] = error.message
    return _pieces(store, came, at), failed


def fetch_gpu_answers(
    folder: Path, chain: bytes, sources: Sources | None = None, *, now: int | None = None
) -> list[Piece]:
    """Ask NVIDIA whether it revoked a GPU's certificates (``chain``: PEM, the device's first); a broker renews the
    answers afterwards. Raises what the chain and the service fail with."""
    store, fetcher = CollateralStore(folder), Fetcher(sources or Sources())
    at = int(time.time()) if now is None else now
    requests = revocation_requests(chain, now=at)
    above = _from_each(chain)
    came = []
    for name, request in requests.items():
        answer = fetcher.ask(("nvidia-ocsp", name), request, now=at)
        # With the certificates up to the root beside it the cache can check it, and nothing forged displaces it.
        came.append(replace(answer, item=replace(answer.item, chain=above[name])))
    return _pieces(store, store.put(came, now=at), at)


def _from_each(chain: bytes) -> dict[str, bytes]:
    """Of a chain that ``revocation_requests`` took (PEM, strict): from each certificate, by its SHA-256, up to the
    root."""
    blocks = [block + _END + b"\n" for block in chain.rstrip(b"\0").strip().split(_END) if block.strip()]
    return {c.fingerprint: b"".join(blocks[at:]) for at, c in enumerate(read_certificates(chain))}


def _wanted(text: str) -> tuple[str, str, str | None]:
    """KIND:NAME, for a VCEK KIND:NAME:PRODUCT."""
    parts = text.split(":")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise Misuse("collateral.wanted", "Name what to fetch as KIND:NAME, for example amd-crl:milan.")
    return parts[0], parts[1], parts[2] if len(parts) == 3 else None


def _pieces(store: CollateralStore, kept: Sequence[Kept], now: int) -> list[Piece]:
    beside = store.snapshot()
    found = []
    for item in (each.item for each in kept):
        said = examine(item, beside, now=now, pinned=store.pinned)
        code, reason = (said.refusal.code, said.refusal.message) if said.refusal is not None else ("", "")
        found.append(Piece(item.kind, item.name, item.obtained, said.begins, said.ends, said.checked, code, reason))
    return found
