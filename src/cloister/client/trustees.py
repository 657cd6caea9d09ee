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
    ``folder``, whose names are the resources' paths. The party's broker logs it first. Nothing is written where a file
    holds something else: another contract's key for the same asset has the same path. Raises Misuse, Denied."""
    contract, agent = find_contract(home.control(party), reference).contract, home.agent(party)
    digest = contract.digest
    agent.store_contract(contract.envelope)  # who signed before the others has not seen their signatures
    documents: dict[Path, bytes] = {}
    written = []
    for key in agent.open_secret_trustee_keys(digest):
        f = Fields(key, "key for a stock key broker")
        name, path = f.asset("name"), f.text("path", limit=256)
        document = f.text("document", limit=_DOCUMENT)
        f.done()
        if not _PATH.fullmatch(path):
            raise Malformed("trustee.path", "The broker named a resource in another form than a stock key broker's.")
        documents[folder / path] = document.encode()
        written.append({"name": name, "path": path})
    for place, data in documents.items():
        _check_free(place, data)
    for place, data in documents.items():
        _write(place, data)
    return {"contract": digest.hex(), "folder": str(folder), "keys": written, "party": party}


def _check_free(path: Path, data: bytes) -> None:
    """A key that is replaced unseen here is replaced in the key broker next, and the runs of its contract end."""
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            found = file.read(_DOCUMENT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return  # whether it can be made is said where it is
    except OSError:
        found = None  # a link, a folder, or nothing that may be read
    if found != data:
        raise Misuse(
            "trustee.exists",
            f"{path} holds something else, such as the key for another contract; name an empty folder, and in the "
            "contract another repository if both are to be used.",
        )


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
