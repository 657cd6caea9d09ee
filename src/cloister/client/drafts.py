"""Which contracts were drafted in this home: ``drafts.json``, so that their names can be used here."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..contracts import Contract
from ..crypto import canonical_json, parse_json
from ..errors import CloisterError, Misuse, Unavailable
from ..fields import Fields

__all__ = ["Draft", "drafts", "record_draft"]

_NAME = "drafts.json"
_LIMIT = 4 << 20
_KEPT = 10_000  # the oldest ones are forgotten; their digests still name them


@dataclass(frozen=True)
class Draft:
    """One contract that ``contract new`` made here."""

    digest: str
    name: str
    serial: int


def drafts(home: Path) -> list[Draft]:
    """Oldest first. Raises Misuse for a file that can't be read: guessing would make names unsafe."""
    try:
        fd = os.open(home / _NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return []
    except OSError:
        raise _unreadable() from None
    with os.fdopen(fd, "rb") as file:
        data = file.read(_LIMIT + 1)
    try:
        f = Fields(parse_json(data, limit=_LIMIT), "list of drafts")
        return list(f.items("drafts", _draft, limit=_KEPT))
    except CloisterError:
        raise _unreadable() from None


def record_draft(home: Path, contract: Contract) -> None:
    """Remember a contract before it is offered to anybody."""
    with _alone(home):
        known = [d for d in drafts(home) if d.digest != contract.digest.hex()]
        known.append(Draft(contract.digest.hex(), contract.name, contract.serial))
        _write(home, canonical_json({"drafts": [vars(draft) for draft in known[-_KEPT:]]}))


@contextmanager
def _alone(home: Path) -> Iterator[None]:
    """Two commands at once must not forget each other's drafts."""
    fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _write(home: Path, data: bytes) -> None:
    try:
        fd, name = tempfile.mkstemp(prefix=f".{_NAME}.", dir=home)  # mode 0600, and nobody else's link
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(name, home / _NAME)
    except OSError:
        raise Unavailable(
            "home.drafts", "The home can't take drafts.json; free space or mend its permissions."
        ) from None


def _draft(value: object) -> Draft:
    f = Fields(value, "draft")
    draft = Draft(f.hex("digest", 32).hex(), f.party("name"), f.integer("serial", low=1))
    f.done()
    return draft


def _unreadable() -> Misuse:
    return Misuse("home.drafts", "drafts.json in the home can't be read; remove it and name contracts by their digest.")
