"""How long a store may take, what is tried again, and which of our errors its errors become."""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from ...errors import CloisterError, Denied, Misuse, Unavailable

__all__ = ["Patience", "persist"]

T = TypeVar("T")

# Modules whose errors mean that a request failed on its way. Named by their text: none of them need be installed.
_TRANSPORTS = frozenset({"aiobotocore", "aiohttp", "botocore", "urllib3"})
# What trying again does not mend: the disk is full, the name is no file.
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_LASTING = frozenset({errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EISDIR, errno.ENOTDIR, errno.ELOOP, errno.EROFS})


@dataclass(frozen=True)
class Patience:
    """Seconds, but for ``attempts``. A request never takes longer than ``request``, however slowly bytes trickle in."""

    attempts: int = 5
    first_wait: float = 0.2
    longest_wait: float = 5.0
    connect: float = 5.0
    read: float = 20.0
    request: float = 120.0

    def wait(self, attempt: int) -> float:
        """Before the attempt after number ``attempt``, counted from 0."""
        return min(self.longest_wait, self.first_wait * 2.0**attempt)


def persist(work: Callable[[], T], patience: Patience, *, sleep: Callable[[float], None] = time.sleep) -> T:
    """What ``work`` returns, tried again as long as the error may pass and patience lasts.

    Raises FileNotFoundError, Denied, Misuse or Unavailable. None of the messages quotes the store: its words may
    hold names and keys.
    """
    for attempt in range(patience.attempts):
        try:
            return work()
        except CloisterError:
            raise
        except Exception as error:  # noqa: BLE001  every file system of fsspec has errors of its own; see below
            final = _judge(error)
            if final is not None:
                raise final from None
        if attempt + 1 < patience.attempts:
            sleep(patience.wait(attempt))
    raise Unavailable("store.unreachable", "The store does not answer; check its address and network, then try again.")


def _judge(error: Exception) -> Exception | None:
    """What to raise, or None if another attempt may help. A bug of ours stays what it is."""
    if _code(error) == "NoSuchBucket":
        return Misuse("store.bucket", "The store has no such bucket; create it, or correct the store's URL.")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError()
    if isinstance(error, PermissionError):
        return Denied("store.denied", "The store refuses these credentials; check them and what they may do there.")
    if isinstance(error, OSError) and error.errno in _FULL:
        return Unavailable("store.full", "The store is full; free space on it, then try again.")
    if isinstance(error, OSError) and error.errno in _LASTING:
        return Unavailable("store.refused", "The store refuses the request; check its URL and that it is an S3 store.")
    transport = type(error).__module__.partition(".")[0] in _TRANSPORTS
    if isinstance(error, OSError | TimeoutError) or transport:
        return None
    return error


def _code(error: BaseException) -> str | None:
    """The S3 error code behind an error, if there is one."""
    response = getattr(error.__cause__ or error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None
