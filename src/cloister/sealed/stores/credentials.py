"""What opens an S3 store: given as an object or read from a file that its owner alone can read."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from ...crypto import parse_json
from ...errors import Malformed, Misuse
from ...fields import Fields

__all__ = ["S3Credentials"]

_LIMIT = 64 * 1024
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True, kw_only=True)
class S3Credentials:
    """Keys and where they hold. ``endpoint`` None is Amazon's own, in ``region``. Secrets stay out of ``repr``.

    Nothing is ever looked for elsewhere: no environment, no profile, no metadata service of a cloud. Raises Misuse
    for an endpoint without TLS that is not on this machine.
    """

    access_key: str = field(repr=False)
    secret_key: str = field(repr=False)
    token: str | None = field(default=None, repr=False)
    endpoint: str | None = None
    region: str = "us-east-1"
    ca_file: str | None = None

    def __post_init__(self) -> None:
        if self.endpoint is None:
            return
        try:
            parts = urlsplit(self.endpoint)
            host = parts.hostname
        except ValueError:
            host = None
        if host is None or parts.username is not None or parts.scheme not in ("http", "https"):
            raise Misuse("store.endpoint", "Give the store's endpoint as https://HOST[:PORT], without credentials.")
        if parts.scheme == "http" and host not in _LOOPBACK:
            raise Misuse("store.endpoint", "The store's endpoint needs https, unless it is on this very machine.")

    @classmethod
    def from_file(cls, path: Path) -> S3Credentials:
        """Read a file that nobody else may read. Raises Misuse (missing, open to others), Malformed."""
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            raise Misuse("store.credentials", "The file of the store's credentials can't be opened.") from None
        with os.fdopen(fd, "rb") as file:
            found = os.fstat(fd)
            mine = found.st_uid == os.geteuid()
            if not stat.S_ISREG(found.st_mode) or not mine or found.st_mode & 0o077:
                raise Misuse(
                    "store.credentials", "The file of the store's credentials must be yours alone: chmod 600 it."
                )
            return cls.from_json(file.read(_LIMIT + 1))

    @classmethod
    def from_json(cls, data: bytes) -> S3Credentials:
        """Raises Malformed, which quotes nothing of it, and Misuse for the endpoint."""
        f = Fields(parse_json(data, limit=_LIMIT), "file of the store's credentials")
        values = {
            "access_key": f.text("access_key", limit=256),
            "secret_key": f.text("secret_key", limit=1024),
            **{name: f.optional_text(name) for name in ("token", "endpoint", "ca_file")},
        }
        region = f.optional_text("region", limit=64)
        f.done()
        if not values["access_key"] or not values["secret_key"]:
            raise Malformed("form.field", "The file of the store's credentials names no keys.")
        return cls(**values, **({} if region is None else {"region": region}))  # type: ignore[arg-type]

    def reveal_json(self) -> str:
        """The secrets themselves, in one line, as ``from_json`` reads them: for a pipe to a process that needs them."""
        return json.dumps({name: value for name, value in vars(self).items() if value is not None})

    def __reduce__(self) -> NoReturn:
        raise TypeError("credentials are not pickled")
