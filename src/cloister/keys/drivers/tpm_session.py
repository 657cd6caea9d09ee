"""The connection to a TPM for the tpm driver: its storage key, sessions whose parameters are encrypted, its errors.

Nothing stays in the TPM between two calls: whatever is loaded is flushed, because a TPM without a resource manager has
three slots. Only ESAPI's own saved context of the storage key is kept, in memory; it is worth nothing elsewhere.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from ...errors import Denied, Unavailable, Untrusted

__all__ = [
    "TpmConnection",
    "is_wrong_credential",
    "no_key",
    "pcrs_changed",
    "tpm_error",
    "tss",
    "wrong_credential",
]

T = TypeVar("T")

# Its own log on stderr repeats what the exceptions say; whoever debugs sets the variable.
os.environ.setdefault("TSS2_LOG", "all+none")
try:
    import tpm2_pytss as tss
except (OSError, RuntimeError) as error:  # the TSS libraries themselves are missing or too old
    raise ImportError("the TPM Software Stack can't be loaded", name="tpm2_pytss") from error

_LAYER = 0xFF0000  # TSS Overview §4: which part of the stack the error is from; 0 is the TPM itself
_FROM_TPM = (0, 11 << 16, 12 << 16)  # itself, or through one of two kinds of resource manager
_INITIALIZE = 0x100  # TPM 2.0 Part 2 §6.6.3: TPM_RC_INITIALIZE: it was reset and not started since
_PCR_CHANGED = 0x128
_LOCKOUT = 0x921
_AUTH_FAIL, _POLICY_FAIL, _INTEGRITY, _BAD_AUTH = 0x8E, 0x9D, 0x9F, 0xA2
_ATTEMPTS = 3


def tpm_error(error: Exception) -> int:
    """The TPM's error without the number of the parameter, handle or session it is about; 0 for another layer's."""
    code = int(error.rc)  # type: ignore[attr-defined]
    if code & _LAYER not in _FROM_TPM:
        return 0
    code &= 0xFFFF
    return code & 0xBF if code & 0x80 else code  # TPM 2.0 Part 2 §6.6.2: format one has bit 7


class TpmConnection:
    """One TPM, one caller at a time. ``call`` connects, and once more after the connection was lost."""

    def __init__(self, tcti: str) -> None:
        self._tcti = tcti
        self._lock = threading.Lock()
        self._esapi: Any = None
        self._saved: Any = None
        self._left: list[int] = []
        self._pid = os.getpid()

    def call(self, work: Callable[[Any], T]) -> T:
        """``work(esapi)``. Raises what ``_explain`` says; ``work`` may run several times."""
        if self._pid != os.getpid():
            # The child of a fork shares the parent's channel: one's commands would get the other's answers.
            self._lock, self._esapi, self._saved, self._pid = threading.Lock(), None, None, os.getpid()
        with self._lock:
            for attempt in range(_ATTEMPTS):
                try:
                    return work(self._open())
                except tss.TSS2_Exception as error:
                    if not self._again(error) or attempt == _ATTEMPTS - 1:
                        _explain(error)
        raise _gone()

    def _open(self) -> Any:
        if self._esapi is None:
            self._saved = None
            self._esapi = tss.ESAPI(self._tcti)
            left, self._left = self._left, []
            for handle in left:
                with contextlib.suppress(tss.TSS2_Exception):  # a resource manager, or a reset, flushed it before us
                    self._esapi.flush_context(self._esapi.tr_from_tpmpublic(handle))
        return self._esapi

    def _again(self, error: Exception) -> bool:
        """Whether ``work`` is worth another try, over a new connection if the old one is of no use any more."""
        code = tpm_error(error)
        if code in (0, _INITIALIZE):
            self._disconnect()
            return not _not_authentic(error)
        return code == _PCR_CHANGED  # some PCR was extended between policy and use; ours are looked at again

    def _disconnect(self) -> None:
        esapi, self._esapi, self._saved = self._esapi, None, None
        if esapi is not None:
            with contextlib.suppress(tss.TSS2_Exception):  # what is lost need not be closed in order
                esapi.close()

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    @contextlib.contextmanager
    def storage_key(self, esapi: Any) -> Iterator[Any]:
        """The storage root key, loaded: a restricted ECC P-256 decryption key in the owner hierarchy, from the TCG's
        template. It follows from the TPM's seed, so it is the same every time on this TPM and on no other."""
        handle = self._restored(esapi)
        if handle is None:
            handle = esapi.create_primary(None, _storage_template(), tss.ESYS_TR.OWNER)[0]
        with self.flushed(esapi, handle):
            if self._saved is None:
                self._saved = esapi.context_save(handle)
            yield handle

    def _restored(self, esapi: Any) -> Any:
        if self._saved is not None:
            try:
                return esapi.context_load(self._saved)
            except tss.TSS2_Exception as error:
                if not tpm_error(error):
                    raise
                self._saved = None  # a TPM that was reset refuses contexts of before: derive the key again
        return None

    @contextlib.contextmanager
    def flushed(self, esapi: Any, handle: Any) -> Iterator[Any]:
        """``handle``, unloaded afterwards; over the next connection if this one is broken by then."""
        try:
            yield handle
        finally:
            try:
                esapi.flush_context(handle)
            except tss.TSS2_Exception:
                self._left.append(int(esapi.tr_get_tpm_handle(handle)))

    @contextlib.contextmanager
    def encrypted_session(self, esapi: Any, storage_key: Any, kind: Any, attributes: Any) -> Iterator[Any]:
        """A session whose key comes from a salt that only ``storage_key``'s TPM can decrypt: whoever listens on the
        bus sees neither the parameters nor anything to guess the authorization value from, and can't answer in its
        place."""
        none = tss.ESYS_TR.NONE
        session = esapi.start_auth_session(storage_key, none, kind, "aes128cfb", tss.TPM2_ALG.SHA256)
        with self.flushed(esapi, session):
            # CONTINUESESSION: the TPM keeps it until it is flushed here, whether the command worked or not.
            esapi.trsess_set_attributes(session, attributes | tss.TPMA_SESSION.CONTINUESESSION)
            yield session


def _storage_template() -> Any:
    """TCG EK Credential Profile / TPM v2.0 Provisioning Guidance §7.5.1: the ECC P-256 SRK template."""
    return tss.TPM2B_PUBLIC.parse(
        "ecc256:aes128cfb",
        objectAttributes="fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt",
    )


def _not_authentic(error: Exception) -> bool:
    return int(error.rc) == int(tss.TSS2_RC.ESYS_RC_RSP_AUTH_FAILED)  # type: ignore[attr-defined]


def _gone() -> Unavailable:
    return Unavailable("vault.tpm", "The TPM can't be reached; check the tcti option, and who may open the device.")


_REFUSALS = {
    _LOCKOUT: (
        "vault.tpm_locked",
        "The TPM is locked after too many wrong credentials; wait until it recovers, or clear it with the lockout "
        "authorization (tpm2_dictionarylockout --clear-lockout).",
    ),
    _AUTH_FAIL: (
        "vault.credential",
        "The TPM refuses this credential; each wrong one counts towards locking it.",
    ),
    # No dictionary protection: of what is used here, only the owner hierarchy has none.
    _BAD_AUTH: (
        "vault.tpm_owner",
        "The TPM's owner hierarchy has a password and the driver uses none; take it off (tpm2_changeauth -c owner).",
    ),
    _POLICY_FAIL: (
        "vault.pcrs",
        "The machine did not start as it did when this key was sealed (its PCRs differ); restore that firmware, boot "
        "order and settings, or restore the vault from its recovery shares.",
    ),
    _INTEGRITY: (
        "wrap.gone",
        "The TPM does not hold the key that this was wrapped under.",
    ),
}


def pcrs_changed() -> Denied:
    return Denied(*_REFUSALS[_POLICY_FAIL])


def wrong_credential() -> Denied:
    return Denied(*_REFUSALS[_AUTH_FAIL])


def is_wrong_credential(error: Exception) -> bool:
    return tpm_error(error) == _AUTH_FAIL


def no_key() -> Denied:
    return Denied(*_REFUSALS[_INTEGRITY])


def _explain(error: Exception) -> NoReturn:
    code = tpm_error(error)
    if _not_authentic(error):
        raise Untrusted("vault.tpm_answer", "An answer was not the TPM's own; look at what sits between.") from None
    if code in _REFUSALS:
        raise Denied(*_REFUSALS[code]) from None
    if code in (0, _INITIALIZE):
        raise _gone() from None
    number = int(error.rc)  # type: ignore[attr-defined]
    raise Unavailable("vault.device", "The TPM failed; look at its state, then try again.", rc=number) from None
