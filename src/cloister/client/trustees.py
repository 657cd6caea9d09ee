"""An owner's keys for its stock key broker, as files in the layout of its repository."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from ..errors import Malformed, Misuse
from ..fields import Fields
from .agreements import find_contract
from .supervisor import Home

__all__ = ["trustee_keys"]

_PATH = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}/asset-key/[0-9a-f]{64}")
_DOCUMENT = 4096


def trustee_keys(home: Home, reference: str, folder: Path, *, party: str) -> dict[str, Any]:
    """Write what ``party`` is to store at its stock key broker under this contract: one file a key, 0600, below
    ``folder``, whose names are the resources' paths. The party's broker logs it first. Raises Misuse, Denied."""
    digest = find_contract(home.control(party), reference).contract.digest
    written = []
    for key in home.agent(party).open_secret_trustee_keys(digest):
        f = Fields(key, "key for a stock key broker")
        name, path = f.asset("name"), f.text("path", limit=256)
        document = f.text("document", limit=_DOCUMENT)
        f.done()
        if not _PATH.fullmatch(path):
            raise Malformed("trustee.path", "The broker named a resource in another form than a stock key broker's.")
        _write(folder / path, document.encode())
        written.append({"name": name, "path": path})
    return {"contract": digest.hex(), "folder": str(folder), "keys": written, "party": party}


def _write(path: Path, data: bytes) -> None:
    """A new file that only this user may read."""
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            file.write(data)
    except OSError:
        raise Misuse("file.write", f"{path} can't be written; choose another place.") from None
