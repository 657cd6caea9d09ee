"""The firmware's event log, as far as it explains registers that evidence is about."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ..attestation.bootlog import MAX_LOG, check_replay, encode_log, parse_log
from ..errors import Malformed, Untrusted

__all__ = ["CCEL", "TPM_LOG", "explaining_ccel", "explaining_log"]

TPM_LOG: Final = Path("/sys/kernel/security/tpm0/binary_bios_measurements")
"""Where Linux shows the firmware's event log of a TPM; root alone can read it on most systems."""
CCEL: Final = Path("/sys/firmware/acpi/tables/data/CCEL")
"""Where Linux shows a TDX guest's event log; root alone can read it."""


def explaining_log(path: Path, pcrs: Mapping[int, bytes], *, limit: int) -> bytes:
    """The TPM's log at ``path``, without what a verifier has no use for; nothing where it can't be read, explains
    nothing or stays longer than ``limit`` bytes.

    Leaving it out only makes evidence say less. Sending one that doesn't explain the registers would make it refused.
    """
    try:
        with path.open("rb") as file:
            log = parse_log(file.read(MAX_LOG + 1)).trimmed(pcrs)
        check_replay(log, "sha256", pcrs)
    except (OSError, Malformed, Untrusted):
        return b""
    raw = encode_log(log)
    return raw if len(raw) <= limit else b""


def explaining_ccel(path: Path, rtmrs: Mapping[int, bytes], *, limit: int) -> bytes:
    """As ``explaining_log``, for a TDX guest's log and RTMRs, whose numbers are one less than in the log."""
    try:
        with path.open("rb") as file:
            log = parse_log(file.read(MAX_LOG + 1), "rtmr").trimmed([number + 1 for number in rtmrs])
        check_replay(log, "sha384", rtmrs)
    except (OSError, Malformed, Untrusted):
        return b""
    raw = encode_log(log)
    return raw if len(raw) <= limit else b""
