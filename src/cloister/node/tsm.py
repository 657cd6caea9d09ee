"""The attester inside of a confidential guest: SEV-SNP reports and TDX quotes through Linux' configfs-tsm.

**Never run on real hardware.** It was written after the kernel's documentation (Documentation/ABI/testing/
configfs-tsm-report, Linux 6.7 and later) and driver, and is tested against a folder that behaves like them, with
reports that tests make. What hardware signs is judged by ``attestation.snp`` and ``attestation.tdx``, which were tested
with real reports.

The guest's launch measurement covers the kernel and this agent; the report's data covers the agent's event log. So the
log needs no register of its own: whoever could change it in here would be part of what was measured. Reports that
another program of the same guest asks for carry other data and open no log.
"""

from __future__ import annotations

import base64
import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol

from ..attestation import snp, tdx
from ..attestation.binding import report_data
from ..attestation.events import Journal
from ..attestation.models import Evidence
from ..attestation.tdx.pck import platform_certificate, read_chain
from ..crypto import random_bytes
from ..crypto.x509 import Certificate
from ..errors import Malformed, Unavailable, Untrusted

__all__ = ["REPORTS", "ConfigFs", "Files", "Quote", "TsmAttester", "certificate_table", "make_quote"]

REPORTS = Path("/sys/kernel/config/tsm/report")
"""Where Linux shows configfs-tsm, once configfs is mounted and the guest's driver is loaded."""

_DATA: Final = 64
_MAX_BLOB: Final = 32 * 1024  # the kernel's own limit
_MAX_TEXT: Final = 64
_ENTRY: Final = 24  # a GUID, then offset and length of the certificate, 4 bytes each, little-endian
_MAX_ENTRIES: Final = 16
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
        with _errors("make a report; mount configfs and load the guest's attestation driver"):
            (self._folder / entry).mkdir()

    def read(self, entry: str, attribute: str, limit: int) -> bytes | None:
        path = self._folder / entry / attribute
        if not path.exists():
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
    if len(data) != _DATA:
        raise Malformed("tsm.data", f"A report is made over exactly {_DATA} bytes.")
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


def certificate_table(table: bytes) -> list[Certificate]:
    """The certificates of a host's table (AMD 56421, §4.1.8.1), in its order.

    The host fills the table, so nothing in it is trusted, and what can't be read is passed over: the owner's verifier
    has collateral of its own. Entries are told by their certificates and not by their GUIDs, whose byte order differs
    between hosts.
    """
    found: list[Certificate] = []
    for start in range(0, min(len(table), _MAX_ENTRIES * _ENTRY), _ENTRY):
        entry = table[start : start + _ENTRY]
        offset, length = int.from_bytes(entry[16:20], "little"), int.from_bytes(entry[20:24], "little")
        if len(entry) < _ENTRY or not any(entry):
            break
        with contextlib.suppress(Malformed):
            found.append(snp.read_amd(table[offset : offset + length]))
    return found


class TsmAttester:
    """See ``attestation.ports.Attester``, for a SEV-SNP or TDX guest. Thread-safe.

    ``agent_measurement``: 32 bytes, this agent's own word; what counts is the guest's launch measurement. ``boot_log``:
    a TDX guest's CCEL event log, if the verifier shall see it. One report is made at once, to learn which platform and
    which attester this is. Raises Unavailable where there is no configfs-tsm.
    """

    def __init__(self, agent_measurement: bytes, *, files: Files | None = None, boot_log: bytes = b"") -> None:
        self._files = files or ConfigFs()
        self._boot_log = boot_log
        self._lock = threading.Lock()
        self._usable = True
        self._journal = Journal(agent_measurement)
        first = make_quote(self._files, bytes(_DATA))
        self.tee = first.tee
        self._attester_id = _identify(first)

    @property
    def attester_id(self) -> str:
        """64 hex digits: the chip or platform; under a cloud provider's key (VLEK) the provider."""
        return self._attester_id

    def extend_launch(
        self, instance: bytes, measurement: bytes, contract: bytes, job: bytes, *, exclusive: bool = False
    ) -> None:
        """Record a sandbox before it starts. Denied for a used instance id, or where one must be alone and isn't."""
        with self._lock:
            self._check_usable()
            self._journal.commit(self._journal.prepare(instance, measurement, contract, job, exclusive=exclusive))

    def evidence(self, instance: bytes, nonce: str, tee_pubkey: Mapping[str, Any]) -> dict[str, Any]:
        """Evidence in wire form for a running sandbox; Denied for any other, Malformed for a bad nonce or key."""
        with self._lock:
            self._check_usable()
            additional = self._journal.additional(instance)
            data = report_data(nonce, tee_pubkey, additional) + bytes(_DATA // 2)
            quote = make_quote(self._files, data)
        if quote.tee != self.tee:
            raise Unavailable(
                "tsm.provider", "The guest's attestation driver has become another one; restart the agent."
            )
        if data not in quote.report:
            raise Unavailable("tsm.report", "The kernel gave a report over other data than was asked for; try again.")
        return Evidence(self.tee, self._primary(quote), additional).to_wire()

    def _primary(self, quote: Quote) -> dict[str, Any]:
        if quote.tee == "snp":
            chosen = _endorsements(_parsed(quote), certificate_table(quote.auxiliary))
            return {"report": _base64(quote.report), "certificates": [_base64(c.der) for c in chosen]}
        log = {"cc_eventlog": _base64(self._boot_log)} if self._boot_log else {}
        return {"quote": _base64(quote.report), **log}

    def retire(self, instance: bytes) -> None:
        """The sandbox ended: no more evidence for it. Its event stays in the log."""
        with self._lock:
            self._journal.retire(instance)

    def close(self) -> None:
        """No more evidence. Calling it again does nothing."""
        with self._lock:
            self._usable = False

    def _check_usable(self) -> None:
        if not self._usable:
            raise Unavailable("attester.unusable", "The attester is closed; restart the node agent.")

    def __enter__(self) -> TsmAttester:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _parsed(quote: Quote) -> snp.Report:
    try:
        return snp.parse_report(quote.report)
    except Malformed as error:
        raise Unavailable("tsm.report", f"The kernel gave no report of a known form ({error.code}).") from None


def _endorsements(report: snp.Report, table: list[Certificate]) -> list[Certificate]:
    """From the host's table, which may have certificates of several keys: the signing key's, and those above it."""
    leaf = next((c for c in table if c.subject_attributes.get("CN") == f"SEV-{report.signing_key.upper()}"), None)
    if leaf is None:
        return []
    above = [c for c in table if snp.role_of(c) in ("intermediate", "root")]
    intermediate = next((c for c in above if c.subject == leaf.issuer), None)
    root = next((c for c in above if intermediate is not None and c.subject == intermediate.issuer), None)
    return [certificate for certificate in (leaf, intermediate, root) if certificate is not None]


def _identify(quote: Quote) -> str:
    """Which attester signed ``quote``, as a verifier will name it."""
    if quote.tee == "tdx":
        try:
            leaf, authority, _ = read_chain(tdx.parse_quote(quote.report).pck_chain)
            return tdx.attester_id(platform_certificate(leaf, authority).identity)
        except (Malformed, Untrusted) as error:
            raise Unavailable("tsm.report", f"The kernel gave no quote of a known form ({error.code}).") from None
    report = _parsed(quote)
    chosen = _endorsements(report, certificate_table(quote.auxiliary))
    if chosen:
        with contextlib.suppress(Malformed):  # a leaf that isn't AMD's: then the report's own chip id, if it has one
            leaf_of = snp.read_leaf(chosen[0])
            return snp.attester_id(leaf_of.signing_key, leaf_of.hwid.hex() or leaf_of.csp_id)
    if report.signing_key != "vcek" or not any(report.chip_id):
        raise Unavailable(
            "tsm.identity", "The host shows neither chip id nor certificate; let it hand out certificates."
        )
    return snp.attester_id("vcek", snp.vcek_name(report).partition("-")[0])


def _base64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
