"""A file out of a store elsewhere as an answer: piece by piece, and any one range of it (RFC 9110 §14)."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

from anyio.to_thread import run_sync
from starlette.responses import Response, StreamingResponse

from ...crypto.streaming import ReadableFile
from ...errors import Untrusted
from ..objects import StoredFile

__all__ = ["ranged"]

_PIECE = 1 << 20
_RANGE = re.compile(r"bytes=(\d{1,18})?-(\d{1,18})?")


async def ranged(stored: StoredFile, header: str | None, media_type: str) -> Response:
    """All of the file or the range that ``header`` asks for. The first piece is read before anything is answered, so
    that a store that fails is an answer of its own; one that fails later breaks the connection off."""
    start, end = _range(header, stored.size)
    headers = {"Accept-Ranges": "bytes"}
    if start >= end and header is not None:
        return Response(status_code=416, headers={**headers, "Content-Range": f"bytes */{stored.size}"})
    file = await run_sync(stored.open)
    try:
        await run_sync(lambda: file.seek(start))
        first = await run_sync(lambda: _piece(file, end - start))
    except BaseException:
        file.close()
        raise
    headers["Content-Length"] = str(end - start)
    partly = (start, end) != (0, stored.size)
    if partly:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{stored.size}"
    body = _body(file, first, end - start)
    return StreamingResponse(body, status_code=206 if partly else 200, headers=headers, media_type=media_type)


def _range(header: str | None, size: int) -> tuple[int, int]:
    """[start, end); what isn't one range of bytes is ignored, as the RFC wants it."""
    found = _RANGE.fullmatch(header or "")
    if found is None or found.group(1) is found.group(2) is None:
        return 0, size
    first, last = found.groups()
    if first is None:
        return max(0, size - int(last)), size
    return int(first), min(size, int(last) + 1) if last is not None else size


def _piece(file: ReadableFile, left: int) -> bytes:
    piece = memoryview(bytearray(min(_PIECE, left)))
    n = file.readinto(piece) if left else 0
    if left and not n:
        raise Untrusted("sealed.size", "A file in the store has not the size that its manifest names.")
    return bytes(piece[:n])


async def _body(file: ReadableFile, piece: bytes, left: int) -> AsyncIterator[bytes]:
    try:
        while True:
            left -= len(piece)
            yield piece
            if not left:
                return
            piece = await run_sync(lambda rest=left: _piece(file, rest))  # type: ignore[misc]
    finally:
        file.close()
