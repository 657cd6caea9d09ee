"""What a target is, and helpers to make targets of parsers that want something else than bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cloister.crypto import Envelope, Signer, canonical_json, parse_json

__all__ = ["SHARED", "Target", "as_envelope", "as_json", "as_text", "shared_bytes", "wire"]

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "vectors"


@dataclass(frozen=True)
class Target:
    """``call`` must take any bytes and raise only the project's errors. ``make``: valid inputs. ``covers``: the parsers
    that it reaches, as module.name. ``limit``: bytes of the longest input that its caller would hand over."""

    name: str
    call: Callable[[bytes], object]
    make: Callable[[], Iterable[bytes]]
    covers: tuple[str, ...]
    limit: int = 64 * 1024

    @cached_property
    def seeds(self) -> tuple[bytes, ...]:
        return tuple(self.make())


def as_json(read: Callable[[Any], object]) -> Callable[[bytes], object]:
    """For a reader of parsed JSON: what a server does with a body."""
    return lambda data: read(parse_json(data))


def as_text(read: Callable[[str], object]) -> Callable[[bytes], object]:
    """For a reader of text. Whoever hands it over has read it strictly, so that it is Unicode at least."""
    return lambda data: read(data.decode("utf-8", "replace"))


def as_envelope(
    payload_type: str, read: Callable[[Envelope], object], keys: Iterable[Signer] = ()
) -> Callable[[bytes], object]:
    """For a reader of signed documents: the payload, signed by ``keys``, so that the signature stops no input early."""

    def call(data: bytes) -> object:
        envelope = Envelope(payload_type, data, () if keys else (("00" * 32, bytes(64)),))
        for key in keys:
            envelope = envelope.signed_by(key)
        return read(envelope)

    return call


def wire(body: Any) -> bytes:
    return canonical_json(body)


def shared_bytes(*names: str) -> list[bytes]:
    """Real vectors where they lie beside the checkout; the forged seeds do without them."""
    return [(SHARED / name).read_bytes() for name in names if (SHARED / name).is_file()]
