"""``Bucket`` over S3: ranges never longer than asked for, and uploads in parts that vanish if they break off."""

from __future__ import annotations

import importlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from ...errors import CloisterError, Misuse, Unavailable, Untrusted
from .bucket import PART, FsspecBucket
from .credentials import S3Credentials
from .patience import Patience, persist
from .ports import Upload

__all__ = ["S3Bucket", "connect"]

_MIB = 1 << 20
_MOST_PARTS = 9_000  # S3 takes 10,000
_IN_FLIGHT = 3
_EMPTY_RANGE = "InvalidRange"  # the file ends before the range begins


def connect(credentials: S3Credentials, patience: Patience) -> Any:
    """An s3fs file system that knows these credentials and looks for no others. No request is made yet."""
    try:
        session = importlib.import_module("aiobotocore.session").AioSession
        file_system = importlib.import_module("s3fs").S3FileSystem
    except ImportError:
        raise Misuse("store.s3", "S3 needs the package s3fs; install Cloister with its extra 's3'.") from None
    # Profiles and files in a home folder could change endpoint, proxy or keys behind the operator's back.
    nothing: dict[str, tuple[Any, Any, Any, Any]] = {
        "profile": (None, None, None, None),
        "config_file": (None, None, os.devnull, None),
        "credentials_file": (None, None, os.devnull, None),
    }
    client: dict[str, Any] = {"region_name": credentials.region}
    if credentials.ca_file is not None:
        client["verify"] = credentials.ca_file
    return file_system(
        key=credentials.access_key,
        secret=credentials.secret_key,
        token=credentials.token,
        endpoint_url=credentials.endpoint,
        session=session(nothing),
        client_kwargs=client,
        config_kwargs={
            "connect_timeout": patience.connect,
            "read_timeout": patience.read,
            "retries": {"mode": "standard", "total_max_attempts": 1},  # ours are counted in one place
            # Checksums of the newer kind are unknown to many servers; every byte is checked against the root anyway.
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
            "s3": {"addressing_style": "virtual" if credentials.endpoint is None else "path"},
        },
        use_listings_cache=False,
        skip_instance_cache=True,  # s3fs would keep the keys for ever, in a table of the process
    )


class S3Bucket(FsspecBucket):
    """``root`` is ``bucket/prefix``."""

    def __init__(
        self, fs: Any, root: str, url: str, patience: Patience, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        super().__init__(fs, root, url, patience, sleep)
        fs.retries = 1
        self._bucket, _, self._prefix = self._root.partition("/")
        self._lane = ThreadPoolExecutor(_IN_FLIGHT, thread_name_prefix="cloister-upload")

    def key(self, folder: str, name: str) -> str:
        return "/".join(part for part in (self._prefix, folder, name) if part)

    def ask(self, method: str, **named: Any) -> Any:
        """One S3 request in the bucket, with patience."""
        return self._call("call_s3", method, Bucket=self._bucket, **named)

    def read(self, folder: str, name: str, start: int, length: int) -> bytes:
        from fsspec.asyn import sync

        if length <= 0:
            return b""
        key, wanted = self.key(folder, name), f"bytes={start}-{start + length - 1}"

        async def ranged() -> bytes:
            answer = await self._fs._call_s3("get_object", Bucket=self._bucket, Key=key, Range=wanted)
            try:
                # A server that ignores ranges would send the whole file, which may be larger than memory.
                if answer["ContentLength"] > length:
                    raise Untrusted("store.range", "The store sent more than was asked for; it does not know ranges.")
                return bytes(await answer["Body"].read())
            finally:
                answer["Body"].close()

        def once() -> bytes:
            try:
                return bytes(sync(self._fs.loop, ranged, timeout=self._patience.request))
            except OSError as error:
                response = getattr(error.__cause__, "response", None) or {}
                if response.get("Error", {}).get("Code") in (_EMPTY_RANGE, "416"):
                    return b""
                raise

        return persist(once, self._patience, sleep=self._sleep)

    def _make(self, folder: str) -> None:
        """S3 has no folders."""

    def write(self, folder: str, name: str, data: bytes) -> None:
        self.ask("put_object", Key=self.key(folder, name), Body=data)

    def upload(self, folder: str, name: str, size: int) -> Upload:
        part = max(PART, -(-size // (_MOST_PARTS * _MIB)) * _MIB)
        if size <= part:
            return _WholeUpload(self, self.key(folder, name), part)
        return _PartsUpload(self, self.key(folder, name), part, self._lane)

    def abort_uploads(self, *, before: int) -> int:
        ended = 0
        for upload in list(self._uploads()):
            if upload["Initiated"].timestamp() < before:
                try:
                    self.ask("abort_multipart_upload", Key=upload["Key"], UploadId=upload["UploadId"])
                    ended += 1
                except FileNotFoundError:
                    continue  # it was finished or ended meanwhile
        return ended

    def _uploads(self) -> Iterator[dict[str, Any]]:
        """Uploads below our prefix that are not finished."""
        prefix = f"{self._prefix}/" if self._prefix else ""
        more: dict[str, str] = {}
        while True:
            try:
                page = self.ask("list_multipart_uploads", Prefix=prefix, **more)
            except FileNotFoundError:  # some servers answer so where there never was an upload
                return
            yield from (upload for upload in page.get("Uploads") or () if upload["Key"].startswith(prefix))
            if not page.get("IsTruncated"):
                return
            more = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def end_quietly(self, key: str, upload: str) -> None:
        """One try, since it follows on another error: what the store keeps of the upload, a sweep ends."""
        once = Patience(attempts=1)
        with suppress(CloisterError, FileNotFoundError):
            named = {"Bucket": self._bucket, "Key": key, "UploadId": upload, "timeout": self._patience.read}
            persist(lambda: self._fs.call_s3("abort_multipart_upload", **named), once)

    def close(self) -> None:
        self._lane.shutdown(cancel_futures=True)
        super().close()


class _WholeUpload:
    """A file of one part: one request, sent only when all of it was found to be right."""

    def __init__(self, bucket: S3Bucket, key: str, part_size: int) -> None:
        self._bucket, self._key, self.part_size = bucket, key, part_size
        self._data = b""

    def write(self, part: bytes) -> None:
        self._data += part

    def finish(self) -> None:
        self._bucket.ask("put_object", Key=self._key, Body=self._data)

    def abort(self) -> None:
        self._data = b""


class _PartsUpload:
    """A file of many parts, some under way at once. S3 shows nothing of it before it is completed."""

    def __init__(self, bucket: S3Bucket, key: str, part_size: int, lane: ThreadPoolExecutor) -> None:
        self._bucket, self._key, self.part_size, self._lane = bucket, key, part_size, lane
        self._id: str | None = str(bucket.ask("create_multipart_upload", Key=key)["UploadId"])
        self._under_way: deque[tuple[int, Future[Any]]] = deque()
        self._etags: list[str] = []
        self._number = 0

    def write(self, part: bytes) -> None:
        if len(self._under_way) >= _IN_FLIGHT:
            self._settle()
        self._number += 1
        self._under_way.append((self._number, self._lane.submit(self._send, self._number, part)))

    def _send(self, number: int, part: bytes) -> Any:
        # Sending a part again replaces it, so it may be tried as often as need be.
        return self._bucket.ask("upload_part", Key=self._key, PartNumber=number, UploadId=self._id, Body=part)

    def _settle(self) -> None:
        _, sent = self._under_way.popleft()
        try:
            self._etags.append(sent.result()["ETag"])
        except FileNotFoundError:  # the server forgot the upload, as after a crash
            raise _lost() from None

    def finish(self) -> None:
        while self._under_way:
            self._settle()
        parts = [{"ETag": etag, "PartNumber": n} for n, etag in enumerate(self._etags, 1)]
        try:
            self._bucket.ask(
                "complete_multipart_upload", Key=self._key, UploadId=self._id, MultipartUpload={"Parts": parts}
            )
        except FileNotFoundError:  # also when an earlier try was done and only its answer was lost: put goes on then
            raise _lost() from None
        self._id = None

    def abort(self) -> None:
        """As far as the store can be reached; what it keeps, a sweep ends."""
        for _, sent in self._under_way:
            sent.cancel()
        for _, sent in self._under_way:
            if not sent.cancelled():
                sent.exception()
        upload, self._id = self._id, None
        if upload is not None:
            self._bucket.end_quietly(self._key, upload)


def _lost() -> Unavailable:
    return Unavailable("store.lost", "The store lost an upload in its midst; put the object again.")
