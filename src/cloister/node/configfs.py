"""Linux' configfs-tsm: a report of the confidential guest that this is (SEV-SNP, TDX), over given data.

After the kernel's documentation (Documentation/ABI/testing/configfs-tsm-report, Linux 6.7 and later) and driver.
**Never run on real hardware.**
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from ..crypto import random_bytes
from ..errors import Malformed, Unavailable

__all__ = ["DATA", "REPORTS", "ConfigFs", "Files", "Quote", "make_quote"]

REPORTS = Path("/sys/kernel/config/tsm/report")
"""Where Linux shows configfs-tsm, once configfs is mounted and the guest's driver is loaded."""

DATA: Final = 64
"""Bytes that a report is made over."""
_MAX_BLOB: Final = 32 * 1024  # the kernel's own limit
_MAX_TEXT: Final = 64
_PROVIDERS: Final = {"sev_guest": "snp", "tdx_guest": "tdx"}


class Files(Protocol):
    """The entries below configfs-tsm. Every failure is Unavailable."""

    def make(self, entry: str) -> None:
        """A new entry; the kernel fills it with attributes."""
        ...

    def read(self, entry: str, attribute: str, limit: int) -> bytes | None:
        """All of an attribute, at most ``limit`` bytes; None where this kernel or provider doesn't have it."""
        ...

    def write(self, entry: str, attribute: str, value: bytes) -> None:
        """One write. The kernel takes a binary attribute when it is closed, and then can't say that it failed."""
        ...

    def remove(self, entry: str) -> None:
        """The entry and what the kernel keeps for it."""
        ...


class ConfigFs:
    """The real ones, below ``folder``."""

    def __init__(self, folder: Path = REPORTS) -> None:
        self._folder = folder

    def make(self, entry: str) -> None:
        with _errors("show where reports are made"):
            present = self._folder.is_dir()
        if not present:
            raise Unavailable(
                "tsm.absent",
                f"There is no {self._folder} here; in a SEV-SNP or TDX guest mount configfs and load the driver "
                "sev-guest or tdx-guest, and elsewhere choose another attester.",
            )
        with _errors("make a report"):
            (self._folder / entry).mkdir()

    def read(self, entry: str, attribute: str, limit: int) -> bytes | None:
        path = self._folder / entry / attribute
        with _errors(f"read a report's {attribute}"):
            present = path.exists()
        if not present:
            return None
        with _errors(f"read a report's {attribute}"), path.open("rb", buffering=0) as file:
            found = b""
            while len(found) <= limit and (more := file.read(limit + 1)):
                found += more
        if len(found) > limit:
            raise Unavailable("tsm.size", "The kernel gave a report that is longer than reports are.")
        return found

    def write(self, entry: str, attribute: str, value: bytes) -> None:
        with _errors(f"set a report's {attribute}"):
            # For writing alone: these attributes can't be read, and the kernel refuses to open them for both.
            descriptor = os.open(self._folder / entry / attribute, os.O_WRONLY | os.O_CLOEXEC)
            try:
                written = os.write(descriptor, value)
            finally:
                os.close(descriptor)
        if written != len(value):
            raise Unavailable("tsm.write", "The kernel took only a part of what a report is asked for with.")

    def remove(self, entry: str) -> None:
        with _errors("remove a report's entry"):
            (self._folder / entry).rmdir()


@contextlib.contextmanager
def _errors(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        raise Unavailable("tsm.kernel", f"The kernel could not {what}.", errno=number) from None


@dataclass(frozen=True)
class Quote:
    """``tee``: snp or tdx. ``report``: what the hardware signed. ``auxiliary``: on SNP the host's certificate table."""

    tee: str
    report: bytes
    auxiliary: bytes


def make_quote(files: Files, data: bytes) -> Quote:
    """A fresh report over ``data`` (64 bytes), in an entry of its own. Raises Unavailable for every failure.

    The kernel counts writes in ``generation``: if that isn't what it must be after ours, somebody else wrote to this
    entry, or one of our writes was lost, and what was read may be over other data.
    """
    if len(data) != DATA:
        raise Malformed("tsm.data", f"A report is made over exactly {DATA} bytes.")
    entry = f"cloister-{random_bytes(8).hex()}"
    files.make(entry)
    try:
        before = _number(files, entry, "generation")
        writes = _choose_privilege(files, entry)
        files.write(entry, "inblob", data)
        report = _must(files, entry, "outblob", _MAX_BLOB)
        auxiliary = files.read(entry, "auxblob", _MAX_BLOB) or b""
        provider = _must(files, entry, "provider", _MAX_TEXT).decode("ascii", "replace").strip()
        if _number(files, entry, "generation") != before + writes + 1:
            raise Unavailable("tsm.conflict", "Another program changed the report while it was made; try again.")
    finally:
        # An entry that stays behind costs a little kernel memory; the failure that matters is the one above.
        with contextlib.suppress(Unavailable):
            files.remove(entry)
    tee = _PROVIDERS.get(provider)
    if tee is None:
        raise Unavailable("tsm.provider", "This guest's attestation driver is neither SEV-SNP's nor TDX'.")
    return Quote(tee, report, auxiliary)


def _choose_privilege(files: Files, entry: str) -> int:
    """Under a service module the guest may only ask for its own privilege level (VMPL); how many writes that took."""
    floor = files.read(entry, "privlevel_floor", _MAX_TEXT)
    if floor is None or _parse(floor) == 0:
        return 0
    files.write(entry, "privlevel", floor.strip())
    return 1


def _must(files: Files, entry: str, attribute: str, limit: int) -> bytes:
    found = files.read(entry, attribute, limit)
    if not found:
        raise Unavailable(
            "tsm.attribute", f"The kernel shows no {attribute} of a report; Linux 6.7 or newer is needed."
        )
    return found


def _number(files: Files, entry: str, attribute: str) -> int:
    return _parse(_must(files, entry, attribute, _MAX_TEXT))


def _parse(text: bytes) -> int:
    digits = text.strip()
    if not digits.isdigit() or len(digits) > 20:
        raise Unavailable("tsm.attribute", "The kernel shows something other than a number where one belongs.")
    return int(digits)
