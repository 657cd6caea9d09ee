"""Replay: the values that registers must have after exactly the events of a log, and whether a quote has them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from hashlib import new as _hash
from typing import Final

from ...errors import Malformed, Untrusted
from .format import EV_EFI_HCRTM_EVENT, SIZES, BootLog

__all__ = ["check_replay", "replay", "start_locality"]

_LOCALITY: Final = b"StartupLocality\0"  # PFP §10.4.5.3
_HCRTM: Final = 4
_LOCALITIES: Final = frozenset({0, 3, _HCRTM})
_DYNAMIC: Final = range(17, 23)  # PCRs that a dynamic launch resets (PFP §3.3.2): all ones before, all zeros after

# PFP §8.2.4. Firmware hands the log over before ExitBootServices, and some doesn't add what it measures then.
_INVOKED: Final = b"Exit Boot Services Invocation"
_DONE: Final = b"Exit Boot Services Returned with Success"
_FAILED: Final = b"Exit Boot Services Returned with Failure"
_ENDINGS: Final = (
    (_INVOKED, _DONE),
    (_INVOKED, _FAILED),
    (_INVOKED, _FAILED, _INVOKED, _DONE),
    (_INVOKED, _FAILED, _DONE),
)
_ENDING_REGISTER: Final = 5


def start_locality(log: BootLog) -> int:
    """The locality that a TPM was started from: PCR 0's first value. 0 unless the log says otherwise.

    It says so with an event StartupLocality, or with an H-CRTM's measurement as PCR 0's first: then it is 4 (TPM 2.0
    Library Part 1 §34.3). Untrusted ``bootlog.locality`` if it says so twice, after PCR 0 was used, or a number that
    can't be.
    """
    found: int | None = None
    first: int | None = None
    for event in log.events:
        if first is None and event.extends and event.index == 0:
            first = event.kind
        if event.extends or not event.data.startswith(_LOCALITY):
            continue
        locality = event.data[len(_LOCALITY) :]
        late = found is not None or first is not None
        if late or event.index != 0 or len(locality) != 1 or locality[0] not in _LOCALITIES:
            raise Untrusted(
                "bootlog.locality", "The boot log says more than once, or wrongly, how the TPM was started."
            )
        found = locality[0]
    if found is None:
        return _HCRTM if first == EV_EFI_HCRTM_EVENT else 0
    return found


def replay(log: BootLog, algorithm: str) -> dict[int, bytes]:
    """The value of every register that the log extends, in the bank ``algorithm`` (sha1, sha256, sha384, sha512).

    For a CCEL log the keys are the numbers of RTMRs: its index 1 is RTMR 0. Its index 0, MRTD, is fixed before anything
    runs, so it is never in the answer. PCR 0 starts with the locality of TPM2_Startup, the others with zeros. Raises
    Malformed ``bootlog.algorithm`` for another word, Untrusted ``bootlog.bank`` where the log or one event lacks it.
    """
    size = SIZES.get(algorithm)
    if size is None:
        raise Malformed("bootlog.algorithm", "A boot log is replayed with sha1, sha256, sha384 or sha512.")
    if algorithm not in log.algorithms:
        raise Untrusted("bootlog.bank", "The boot log has no digests of the bank that was asked for.")
    shift = 1 if log.registers == "rtmr" else 0
    locality = 0 if shift else start_locality(log)
    values: dict[int, bytes] = {0: locality.to_bytes(size, "big")} if locality else {}
    for event in log.events:
        index = event.index - shift
        if not event.extends or index < 0:
            continue
        digest = event.digests.get(algorithm)
        if digest is None:
            raise Untrusted("bootlog.bank", "An event of the boot log lacks a digest of the bank that was asked for.")
        values[index] = _extend(algorithm, values.get(index, bytes(size)), digest)
    return values


def _extend(algorithm: str, value: bytes, digest: bytes) -> bytes:
    return _hash(algorithm, value + digest).digest()


def check_replay(log: BootLog, algorithm: str, values: Mapping[int, bytes]) -> None:
    """Return if the log explains exactly these register values; Untrusted ``bootlog.replay`` if not.

    A register in ``values`` that the log never extends must have its first value: else something is missing. PCR 5
    may also have the fixed events of ExitBootServices that some firmware leaves out of its log; they tell nothing about
    what was started, and their digests are constants, so nothing can hide behind them.
    """
    found = replay(log, algorithm)
    size = SIZES[algorithm]
    wrong = []
    for index, value in values.items():
        expected = found.get(index, bytes(size))
        accepted = [expected]
        if log.registers == "pcr" and index in _DYNAMIC and index not in found:
            accepted.append(b"\xff" * size)
        if log.registers == "pcr" and index == _ENDING_REGISTER:
            accepted += _endings(algorithm, expected)
        if value not in accepted:
            wrong.append(index)
    if wrong:
        listed = ", ".join(str(index) for index in sorted(wrong)[:24])
        raise Untrusted("bootlog.replay", f"The boot log does not lead to the signed value of register {listed}.")


def _endings(algorithm: str, value: bytes) -> Iterable[bytes]:
    for ending in _ENDINGS:
        ended = value
        for text in ending:
            ended = _extend(algorithm, ended, _hash(algorithm, text).digest())
        yield ended
