"""Routes for sealed objects: ciphertext and manifests in and out."""

from __future__ import annotations

from pathlib import Path

from starlette.responses import FileResponse, Response

from .endpoint import Answer, Call
from .ranged import ranged

__all__ = ["commit", "get_file", "get_manifest", "list_assets", "put_file", "put_manifest"]

_WRITE = 1 << 20
_OPAQUE = "application/octet-stream"


async def put_manifest(call: Call) -> Answer:
    """The body may be streamed: its digest stands in the path, which is signed."""
    await call.signed_stream()
    data = await call.read(2 * call.plane.limits.manifest)
    digest, now = call.path("digest"), call.plane.now()
    return await call.run(lambda: call.plane.objects.begin(digest, data, call.party, now=now))


async def put_file(call: Call) -> Answer:
    """Bytes go to the disk as they come; they count only once ``commit`` has checked them against the manifest."""
    await call.signed_stream()
    sink = await call.run(lambda: call.plane.objects.receive(call.path("digest"), call.path("index"), call.party))
    try:
        buffer = bytearray()
        async for chunk in call.request.stream():
            buffer += chunk
            if len(buffer) >= _WRITE:
                whole, buffer = bytes(buffer), bytearray()
                await call.run(lambda data=whole: sink.write(data))  # type: ignore[misc]
        await call.run(lambda: sink.write(bytes(buffer)))
        await call.run(sink.finish)
    finally:
        sink.discard()
    return {"stored": True}


async def commit(call: Call) -> Answer:
    await call.signed()
    digest, now = call.path("digest"), call.plane.now()
    return await call.run(lambda: call.plane.objects.commit(digest, call.party, now=now))


async def get_manifest(call: Call) -> Answer:
    await call.signed()
    data = await call.run(lambda: call.plane.objects.manifest(call.path("digest"), call.party))
    return Response(data, media_type="application/json")


async def get_file(call: Call) -> Answer:
    """Ciphertext; honours Range."""
    await call.signed()
    digest, index = call.path("digest"), call.path("index")
    found = await call.run(lambda: call.plane.objects.file(digest, index, call.party))
    if isinstance(found, Path):
        return FileResponse(found, media_type=_OPAQUE)
    return await ranged(found, call.request.headers.get("range"), _OPAQUE)


async def list_assets(call: Call) -> Answer:
    (await call.signed()).only_party()
    name = call.request.query_params.get("name")
    return {"assets": await call.run(lambda: call.plane.objects.listing(call.party, name))}
