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
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from ..attestation import snp, tdx
from ..attestation.binding import report_data
from ..attestation.events import Journal
from ..attestation.models import Evidence, guest_digest
from ..attestation.tdx.pck import platform_certificate, read_chain
from ..crypto.x509 import Certificate
from ..errors import Malformed, Unavailable, Untrusted
from .boot_logs import explaining_ccel
from .configfs import DATA, ConfigFs, Files, Quote, make_quote
from .devices import Devices, beside
from .stock_evidence import asked, stock_wire

__all__ = ["TsmAttester", "certificate_table"]

_ENTRY: Final = 24  # a GUID, then offset and length of the certificate, 4 bytes each, little-endian
_MAX_ENTRIES: Final = 16
_MAX_CCEL: Final = 96 * 1024  # as of a TPM's: a verifier takes more, but the event log needs room too


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
    where a TDX guest's CCEL event log is, which goes along where it explains the registers. ``devices``: what is handed
    to each sandbox. One report is made at once, to learn which platform and which attester this is. Raises Unavailable
    where there is no configfs-tsm.
    """

    def __init__(
        self,
        agent_measurement: bytes,
        *,
        files: Files | None = None,
        boot_log: Path | None = None,
        devices: Devices | None = None,
    ) -> None:
        self._files = files or ConfigFs()
        self._devices = devices or Devices()
        self._lock = threading.Lock()
        self._usable = True
        self._journal = Journal(agent_measurement)
        first = make_quote(self._files, bytes(DATA))
        self.tee = first.tee
        self._attester_id = _identify(first)
        self._agent, self._booted = _launched(first)
        self._boot_log = b""
        if boot_log is not None and self._booted:
            self._boot_log = explaining_ccel(boot_log, self._booted, limit=_MAX_CCEL)

    @property
    def attester_id(self) -> str:
        """64 hex digits: the chip or platform; under a cloud provider's key (VLEK) the provider."""
        return self._attester_id

    @property
    def agent(self) -> str:
        """64 hex digits: what a contract names as the agent, the digest over this guest's launch measurements."""
        return self._agent

    def extend_launch(
        self, instance: bytes, measurement: bytes, contract: bytes, job: bytes, *, exclusive: bool = False
    ) -> None:
        """Record a sandbox before it starts. Denied for a used instance id, or where one must be alone and isn't."""
        with self._lock:
            self._check_usable()
            gpus = self._devices.hand_out()
            event = self._journal.prepare(instance, measurement, contract, job, gpus=gpus, exclusive=exclusive)
            self._journal.commit(event)

    def evidence(self, instance: bytes, nonce: str, tee_pubkey: Mapping[str, Any]) -> dict[str, Any]:
        """Evidence in wire form for a running sandbox; Denied for any other, Malformed for a bad nonce or key."""
        found = self._devices.evidence(nonce, tee_pubkey)
        with self._lock:
            self._check_usable()
            additional = beside(self._journal.additional(instance), found)
            data = report_data(nonce, tee_pubkey, additional) + bytes(DATA // 2)
            quote = make_quote(self._files, data)
        if quote.tee != self.tee:
            raise Unavailable(
                "tsm.provider", "The guest's attestation driver has become another one; restart the agent."
            )
        if data not in quote.report:
            raise Unavailable("tsm.report", "The kernel gave a report over other data than was asked for; try again.")
        if quote.tee == "snp":
            chosen = _endorsements(_parsed(quote), certificate_table(quote.auxiliary))
            primary = {"report": _base64(quote.report), "certificates": [_base64(c.der) for c in chosen]}
            return Evidence(self.tee, primary, additional).to_wire()
        if self._boot_log and _registers(_trust_domain(quote)) == self._booted:
            # It says more about the boot, but is never the reason why there is no evidence; see ``node.attester``.
            with contextlib.suppress(Malformed):
                log = {"cc_eventlog": _base64(self._boot_log)}
                return Evidence(self.tee, {"quote": _base64(quote.report), **log}, additional).to_wire()
        return Evidence(self.tee, {"quote": _base64(quote.report)}, additional).to_wire()

    @property
    def stock_tee(self) -> str:
        """KBS names these platforms as we do."""
        return self.tee

    def stock_evidence(self, nonce: str, tee_pubkey: Mapping[str, Any], algorithm: str) -> dict[str, Any]:
        """See ``attestation.guests.StockAttester``: about this whole guest, with no word of a sandbox."""
        data = asked(nonce, tee_pubkey, algorithm)
        with self._lock:
            self._check_usable()
            quote = make_quote(self._files, data)
        if quote.tee != self.tee or data not in quote.report:
            raise Unavailable("tsm.report", "The kernel gave a report over other data than was asked for; try again.")
        leaf = _endorsements(_parsed(quote), certificate_table(quote.auxiliary))[:1] if quote.tee == "snp" else []
        return stock_wire(quote, leaf)

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


def _trust_domain(quote: Quote) -> tdx.TdReport:
    try:
        body = tdx.parse_quote(quote.report).body
    except (Malformed, Untrusted) as error:
        raise Unavailable("tsm.report", f"The kernel gave no quote of a known form ({error.code}).") from None
    if not isinstance(body, tdx.TdReport):
        raise Unavailable("tsm.report", "The kernel gave a quote of an enclave where one of this guest belongs.")
    return body


def _registers(body: tdx.TdReport) -> dict[int, bytes]:
    """The RTMRs that a boot log explains."""
    return dict(enumerate(body.rtmrs[:3]))


def _launched(quote: Quote) -> tuple[str, dict[int, bytes]]:
    """The agent's digest as a verifier will name it (``models.guest_digest``), and a trust domain's boot registers."""
    if quote.tee == "snp":
        return guest_digest("snp", {"launch": _parsed(quote).measurement.hex()}), {}
    body = _trust_domain(quote)
    booted = _registers(body)
    measured = {"mrtd": body.mr_td.hex(), **{f"rtmr{number}": value.hex() for number, value in booted.items()}}
    return guest_digest("tdx", measured), booted


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
