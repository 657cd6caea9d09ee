"""Whether secure boot was on, from what the firmware measured before it let anything else run (PFP §3.3.4.8).

The rule that all of this follows: a log's *types* and *data* come from whoever sends the log. So an event counts only
if its digest, which the signed register covers, is that of its data; and only before the separator, which firmware
measures before anything that it does not control can measure anything. What has a fixed text is known by its digest,
whatever type is claimed for it: who runs later could else hide a separator, and pass an own event off as firmware's.

RTMR 0 is weaker than PCR 7: firmware measures into it, before the separator, also what the host gives it (tables,
blobs), and a host could give it the very bytes of a variable. The variable SecureBoot has three values, so three
digests, and two of them in one register are refused: a host can't replace what the firmware itself measured. It could
add other variables, and events that name signers, so an RTMR shows no lists of keys.

Firmware of trust domains measures a second separator into RTMR 0 when it is ready to boot. What counts as firmware's is
what stands before the first, and no separator can be hidden, so a second one lets nobody pass anything off there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from hashlib import new as _hash
from typing import Final

from ...errors import Malformed, Untrusted
from . import format as form
from .efi import GLOBAL, SECURITY_DATABASE, Variable, encode_variable, parse_variable, signers
from .format import BootEvent, BootLog

__all__ = ["SecureBoot", "secure_boot"]

_REGISTER: Final = {"pcr": 7, "rtmr": 1}  # a CCEL log's index 1, RTMR 0, holds what a TPM keeps in PCR 1 and 7
_SEPARATORS: Final = (bytes(4), b"\xff\xff\xff\xff")  # PFP §10.4.2; 00000001 would announce an error
_ERROR: Final = b"\x01\0\0\0"
_DEBUG: Final = b"UEFI Debug Mode"  # PFP §3.3.4.8: a debugger may have changed everything after
_NO_DMA: Final = b"DMA Protection Disabled"
_FLAG: Final = (GLOBAL, "SecureBoot")
_VARIABLES: Final = {
    _FLAG: "enabled",
    (GLOBAL, "PK"): "pk",
    (GLOBAL, "KEK"): "kek",
    (SECURITY_DATABASE, "db"): "db",
    (SECURITY_DATABASE, "dbx"): "dbx",
}
_SIGNER: Final = (SECURITY_DATABASE, "db")  # whom firmware lets start something: it is an entry of db (PFP §3.3.4.8)


@dataclass(frozen=True)
class SecureBoot:
    """What is proven. ``enabled``: None where the firmware measured no such variable. ``pk``, ``kek``, ``db``, ``dbx``:
    SHA-256 of the certificates in them, hex; empty for an RTMR. ``authorities``: events that name who had signed what
    was started."""

    enabled: bool | None
    pk: tuple[str, ...] = ()
    kek: tuple[str, ...] = ()
    db: tuple[str, ...] = ()
    dbx: tuple[str, ...] = ()
    dbx_digest: str = ""
    authorities: int = 0
    dma_protection_disabled: bool = False

    def facts(self) -> dict[str, bool | int | str | list[str]]:
        """Flat, dotted names. ``secure_boot`` is missing where nothing is proven about it."""
        facts: dict[str, bool | int | str | list[str]] = {}
        if self.enabled is not None:
            facts["secure_boot"] = self.enabled
        for name in ("pk", "kek", "db", "dbx"):
            if found := list(getattr(self, name)):
                facts[f"secure_boot.{name}"] = found
        if self.dbx_digest:
            facts["secure_boot.dbx_digest"] = self.dbx_digest
        facts["dma_protection_disabled"] = self.dma_protection_disabled
        return facts


@dataclass
class _Seen:
    separator: bool = False
    variables: dict[tuple[bytes, str], Variable] = field(default_factory=dict)
    authorities: int = 0
    no_dma: bool = False


def _untrusted(why: str) -> Untrusted:
    return Untrusted("bootlog.secure-boot", f"The boot log does not show the state of secure boot: {why}.")


def secure_boot(log: BootLog, algorithm: str) -> SecureBoot:
    """The state of secure boot, from a log that ``check_replay`` has accepted in the same bank.

    Raises Untrusted ``bootlog.secure-boot`` where an event of the register can't be believed, or where the order is one
    that only tampering gives: a variable after the separator, one twice, no separator or two, a debugger.
    """
    if algorithm not in form.SIZES:
        raise Malformed("bootlog.algorithm", "A boot log is replayed with sha1, sha256, sha384 or sha512.")
    seen = _Seen()
    separators = {_hash(algorithm, text).digest() for text in _SEPARATORS}
    alarms = {_hash(algorithm, text).digest() for text in (_ERROR, _DEBUG)}
    no_dma = _hash(algorithm, _NO_DMA).digest()
    flags = {_hash(algorithm, encode_variable(flag)).digest(): flag for flag in _flags()}
    for event in log.events:
        if event.index != _REGISTER[log.registers] or not event.extends:
            continue
        digest = event.digests.get(algorithm)
        if digest is None:
            raise _untrusted("an event lacks a digest of the bank")
        if digest in alarms:
            raise _untrusted("the firmware announced an error, or that a debugger was attached")
        if digest in separators:
            if seen.separator and log.registers == "pcr":
                raise _untrusted("there are two separators")
            seen.separator = True
        elif digest == no_dma:
            seen.no_dma = True
        elif digest in flags and event.kind != form.EV_EFI_VARIABLE_DRIVER_CONFIG:
            _record(seen, flags[digest])
        else:
            _event(seen, event, algorithm, log.registers)
    if not seen.separator:
        raise _untrusted("there is no separator, so the firmware's events can't be told from later ones")
    state = _state(seen)
    if log.registers == "rtmr":
        return SecureBoot(state.enabled, dma_protection_disabled=state.dma_protection_disabled)
    return state


def _flags() -> tuple[Variable, ...]:
    """All that firmware can measure of the variable SecureBoot: that it doesn't exist, off, on."""
    return tuple(Variable(*_FLAG, value) for value in (b"", b"\0", b"\1"))


def _event(seen: _Seen, event: BootEvent, algorithm: str, registers: str) -> None:
    if event.kind == form.EV_EFI_VARIABLE_DRIVER_CONFIG:
        _variable(seen, event, algorithm)
    elif event.kind == form.EV_EFI_VARIABLE_AUTHORITY:
        # Some versions of shim give one byte more than they hash.
        shorter = BootEvent(event.index, event.kind, event.digests, event.data[:-1])
        measured = next((e.data for e in (event, shorter) if e.believed(algorithm)), None)
        if measured is None:
            raise _untrusted("an event that names a signer has data that was not measured")
        seen.authorities += _names_signer(measured)
    elif event.kind in (form.EV_EFI_SPDM_DEVICE_POLICY, form.EV_EFI_SPDM_DEVICE_AUTHORITY):
        # Which devices may be used (PFP 1.06): nothing about what was started, so it only has to be what was measured.
        if not event.believed(algorithm):
            raise _untrusted("an event about devices has data that was not measured")
    elif registers == "pcr":
        raise _untrusted("there is an event of a kind that doesn't belong there")
    # An RTMR 0 also holds what a TPM keeps in PCR 1. None of it is believed, and none can stand for a variable.


def _names_signer(data: bytes) -> bool:
    """Whether it is an entry of db. Types aren't signed: a variable that is shown under this one names nobody. That db
    itself isn't, ``_state`` sees: it would then be missing among the variables."""
    try:
        variable = parse_variable(data)
    except Malformed:
        return False  # shim's own events have other forms; the firmware had checked shim before
    return (variable.vendor, variable.name) == _SIGNER


def _variable(seen: _Seen, event: BootEvent, algorithm: str) -> None:
    if not event.believed(algorithm):
        raise _untrusted("a variable has data that was not measured")
    try:
        _record(seen, parse_variable(event.data))
    except Malformed:
        raise _untrusted("a variable is not of the form that firmware measures") from None


def _record(seen: _Seen, variable: Variable) -> None:
    if seen.separator:
        raise _untrusted("a variable was measured after the separator")
    if (variable.vendor, variable.name) in seen.variables:
        raise _untrusted("a variable was measured twice")
    seen.variables[variable.vendor, variable.name] = variable


def _state(seen: _Seen) -> SecureBoot:
    values = {name: v.value for key, v in seen.variables.items() if (name := _VARIABLES.get(key)) is not None}
    try:
        lists = {name: tuple(signers(values.get(name, b""))) for name in ("pk", "kek", "db", "dbx")}
    except Malformed:
        raise _untrusted("a list of signers is not of the form that firmware measures") from None
    flag = values.get("enabled")
    if flag not in (None, b"", b"\0", b"\1"):
        raise _untrusted("the variable SecureBoot has another value than 0 or 1")
    # An empty value is measured where the variable doesn't exist (PFP §3.3.4.8): then secure boot can't be on.
    enabled = None if flag is None else flag == b"\1"
    if enabled:
        # dbx may be empty, but firmware measures all five (PFP §3.3.4.8): a missing one is shown as something else.
        if not all(values.get(name) for name in ("pk", "kek", "db")) or "dbx" not in values:
            raise _untrusted("it is on, but without the keys that it needs")
        if not seen.authorities:
            raise _untrusted("it is on, but nobody's signature was checked")
    return SecureBoot(
        enabled,
        **lists,
        dbx_digest=_hash("sha256", values["dbx"]).hexdigest() if "dbx" in values else "",
        authorities=seen.authorities,
        dma_protection_disabled=seen.no_dma,
    )
