"""PEM (RFC 7468), strictly: blocks of one kind, white space between them, and nothing else."""

from __future__ import annotations

from base64 import b64decode, b64encode

from ..errors import Malformed

__all__ = ["blocks", "one"]

_BEGIN, _END = b"-----BEGIN ", b"-----END "
_MAX_BLOCKS = 16


def one(data: bytes, label: bytes, limit: int) -> bytes:
    """DER as it is, or the DER of exactly one PEM block; at most ``limit`` bytes. Raises Malformed."""
    if len(data) > 2 * limit:
        raise Malformed("x509.size", "A certificate or revocation list is too long.")
    if data.lstrip()[: len(_BEGIN)] == _BEGIN:
        found = blocks(data, label)
        if len(found) != 1:
            raise Malformed("x509.count", "A file that should hold one certificate or list holds another number.")
        data = found[0]
    if len(data) > limit:
        raise Malformed("x509.size", "A certificate or revocation list is too long.")
    return data


def blocks(pem: bytes, label: bytes) -> list[bytes]:
    """The DER of every PEM block (RFC 7468); anything but white space between them is refused."""
    begin, end = _BEGIN + label + b"-----", _END + label + b"-----"
    found: list[bytes] = []
    rest = pem.rstrip(b"\0").strip()
    while rest:
        if not rest.startswith(begin):
            raise Malformed("x509.pem", "A PEM file has something other than the expected blocks.")
        body, mark, rest = rest[len(begin) :].partition(end)
        if not mark or len(found) >= _MAX_BLOCKS:
            raise Malformed("x509.pem", "A PEM file is cut short, or has too many blocks.")
        text = b"".join(body.split())
        try:
            found.append(b64decode(text, validate=True))
        except ValueError:
            raise Malformed("x509.pem", "A PEM block is not base64.") from None
        if b64encode(found[-1]) != text:  # Python's decoder ignores stray bits before the padding
            raise Malformed("x509.pem", "A PEM block is not canonical base64.")
        rest = rest.lstrip()
    return found
