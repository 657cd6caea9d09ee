"""KEKs sealed by this machine's TPM 2.0: to its PCRs, and to a credential.

Options: ``tcti`` (how to reach it: ``device:/dev/tpmrm0`` by default), ``pcrs`` (``0,2,4,7`` by default, SHA-256 bank).

A handle carries the KEK itself, encrypted by the TPM: nothing is stored in the TPM. To wrap or unwrap, the KEK is
unsealed into this process, used once and dropped. So this driver ties keys to a machine and to how it was started; it
does not keep them out of memory, as an HSM does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar, NoReturn

from ...crypto import constant_time_equal, frame, hkdf, open_box, random_bytes, seal_box
from ...errors import Denied, Misuse, Untrusted
from ..models import DEK_SIZE
from .tpm_session import TpmConnection, is_wrong_credential, no_key, pcrs_changed, tss, wrong_credential

__all__ = ["TpmDriver", "open_driver"]

_VERSION = 1
_MAX_HANDLE = 4096
_KEK_SIZE = 32
_DIGESTS_PER_READ = 8  # TPM 2.0 Part 2 §10.9.7: a TPML_DIGEST holds eight
# 16 and 23 can be reset by software, so a policy over them binds nothing.
_PCRS = frozenset(range(24)) - {16, 23}
# Options come from a file. The TSS would load any library that is named here, or (``cmd``) start any program.
_TCTI = re.compile(r"device:/dev/[A-Za-z0-9/]+|tabrmd(:[A-Za-z0-9_=,.]+)?|(swtpm|mssim):[A-Za-z0-9_=,./:~+-]+")
_REMAINS = (
    "A TPM can't forget a sealed key: copies of the vault's file that hold it still open on this machine with its "
    "credential; destroy those copies."
)


def open_driver(options: Mapping[str, str], credential: bytes) -> TpmDriver:
    """Connect to the TPM. A wrong credential shows when the first key is used.

    Raises Misuse (options, no SHA-256 bank), Unavailable (``vault.tpm``).
    """
    if not set(options) <= {"tcti", "pcrs"}:
        raise Misuse("driver.options", "The tpm driver takes the options tcti and pcrs.")
    tcti = options.get("tcti", "device:/dev/tpmrm0")
    if not _TCTI.fullmatch(tcti):
        raise Misuse("driver.options", "The option tcti is such as device:/dev/tpmrm0, tabrmd or swtpm:path=SOCKET.")
    driver = TpmDriver(tcti, _pcrs(options.get("pcrs", "0,2,4,7")), credential)
    try:
        driver.check()
    except BaseException:
        driver.close()
        raise
    return driver


def _pcrs(text: str) -> tuple[int, ...]:
    numbers = [int(part) for part in text.split(",") if part.isascii() and part.isdecimal() and len(part) <= 2]
    if not numbers or ",".join(map(str, sorted(set(numbers)))) != text or not set(numbers) <= _PCRS:
        raise Misuse(
            "driver.options", "The option pcrs is a list such as 0,2,4,7: ascending, from 0 to 22, without 16."
        )
    return tuple(numbers)


class TpmDriver:
    """``KekDriver`` over a TPM. After one refusal the credential is not tried again: a TPM locks after a few."""

    name: ClassVar[str] = "tpm"
    experimental: ClassVar[bool] = False
    algorithm: ClassVar[str] = "TPM2+A256GCM"

    def __init__(self, tcti: str, pcrs: tuple[int, ...], credential: bytes) -> None:
        self._connection: TpmConnection | None = TpmConnection(tcti)
        self._pcrs = pcrs
        # The TPM takes at most 32 bytes. This is no slow hash: guesses have to go through the TPM, which counts them.
        self._auth = hkdf(credential, info=b"cloister/tpm/auth/v1")
        self._refusal: Denied | None = None

    def check(self) -> None:
        """Raise Misuse unless the TPM has the PCRs. A policy over a bank that isn't there would bind nothing."""
        for start in range(0, len(self._pcrs), _DIGESTS_PER_READ):
            part = self._pcrs[start : start + _DIGESTS_PER_READ]
            if self._open().call(partial(_readable, pcrs=part)) != len(part):
                raise Misuse("driver.pcrs", "The TPM has no SHA-256 PCR bank; enable it in the firmware.")

    def create(self, kek_id: str, epoch: int) -> bytes:  # noqa: ARG002 - a TPM keeps no labels
        connection = self._open()

        def seal(esapi: Any) -> bytes:
            with connection.storage_key(esapi) as storage_key:
                template = _sealed_template(_expected_policy(connection, esapi, self._pcrs))
                secret = tss.TPMS_SENSITIVE_CREATE(userAuth=self._auth, data=random_bytes(_KEK_SIZE))
                both = tss.TPMA_SESSION.DECRYPT | tss.TPMA_SESSION.ENCRYPT
                with connection.encrypted_session(esapi, storage_key, tss.TPM2_SE.HMAC, both) as session:
                    private, public, *_ = esapi.create(
                        storage_key, tss.TPM2B_SENSITIVE_CREATE(secret), template, session1=session
                    )
                return _pack(bytes(esapi.tr_get_name(storage_key)), bytes(private), bytes(public.publicArea.marshal()))

        return connection.call(seal)

    def wrap(self, handle: bytes, dek: bytes, context: bytes) -> bytes:
        if len(dek) != DEK_SIZE:
            raise Misuse("wrap.dek", f"A data key has exactly {DEK_SIZE} bytes.")
        return seal_box(self._unseal(handle), dek, context)

    def unwrap(self, handle: bytes, box: bytes, context: bytes) -> bytes:
        kek = self._unseal(handle)
        try:
            return open_box(kek, box, context)
        except Untrusted:
            raise Untrusted(
                "wrap.changed", "A wrapped key does not open: it was changed, or wrapped for something else."
            ) from None

    def destroy(self, handle: bytes) -> str | None:  # noqa: ARG002 - there is nothing in the TPM
        self._open()
        return _REMAINS

    def list(self, kek_id: str) -> Sequence[bytes]:  # noqa: ARG002 - the keys are in the handles
        self._open()
        return ()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            self._auth = b""

    def _open(self) -> TpmConnection:
        connection = self._connection
        if connection is None:
            raise Misuse("vault.closed", "The vault is closed; open it again.")
        return connection

    def _unseal(self, handle: bytes) -> bytes:
        """The KEK. Raises Denied: ``vault.credential``, ``vault.tpm_locked``, ``vault.pcrs``, ``vault.tpm_other``."""
        connection = self._open()
        name, private, public = _unpack(handle)
        kek = connection.call(lambda esapi: self._unsealed(connection, esapi, name, private, public))
        if len(kek) != _KEK_SIZE:
            raise no_key()
        return kek

    def _unsealed(self, connection: TpmConnection, esapi: Any, name: bytes, private: bytes, public: bytes) -> bytes:
        if self._refusal is not None:  # asked inside the connection's lock: threads that waited don't try again either
            raise self._refusal
        with connection.storage_key(esapi) as storage_key:
            # The name is a hash of the public key. The session below is salted to it, so only that TPM can take part:
            # one that sits on the bus and shows a key of its own would be noticed here.
            if not constant_time_equal(bytes(esapi.tr_get_name(storage_key)), name):
                raise Denied("vault.tpm_other", "This key was sealed by another TPM; open the vault on that machine.")
            area = _public_area(public)
            with connection.flushed(esapi, esapi.load(storage_key, tss.TPM2B_PRIVATE(private), area)) as item:
                esapi.tr_set_auth(item, self._auth)
                with self._policy(connection, esapi, storage_key) as session:
                    # Looked at beforehand only for a better answer; the TPM itself refuses below.
                    if bytes(esapi.policy_get_digest(session)) != bytes(area.publicArea.authPolicy):
                        raise pcrs_changed()
                    return self._unseal_with(esapi, item, session)

    def _unseal_with(self, esapi: Any, item: Any, session: Any) -> bytes:
        try:
            return bytes(esapi.unseal(item, session1=session))
        except tss.TSS2_Exception as error:
            if is_wrong_credential(error):
                self._refusal = wrong_credential()
            raise

    @contextmanager
    def _policy(self, connection: TpmConnection, esapi: Any, storage_key: Any) -> Iterator[Any]:
        kind, attributes = tss.TPM2_SE.POLICY, tss.TPMA_SESSION.ENCRYPT
        with connection.encrypted_session(esapi, storage_key, kind, attributes) as session:
            _apply_policy(esapi, session, self._pcrs)
            yield session

    def __repr__(self) -> str:
        return "TpmDriver(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a vault's driver is not pickled")


def _readable(esapi: Any, pcrs: Sequence[int]) -> int:
    return len(list(esapi.pcr_read(_selection(pcrs))[2]))


def _selection(pcrs: Sequence[int]) -> Any:
    return tss.TPML_PCR_SELECTION.parse("sha256:" + ",".join(map(str, pcrs)))


def _apply_policy(esapi: Any, session: Any, pcrs: Sequence[int]) -> None:
    """Both: the PCRs as they are now, and knowledge of the authorization value (proved by HMAC, never sent)."""
    esapi.policy_pcr(session, b"", _selection(pcrs))
    esapi.policy_auth_value(session)


def _expected_policy(connection: TpmConnection, esapi: Any, pcrs: Sequence[int]) -> bytes:
    none = tss.ESYS_TR.NONE
    symmetric = tss.TPMT_SYM_DEF(algorithm=tss.TPM2_ALG.NULL)
    trial = esapi.start_auth_session(none, none, tss.TPM2_SE.TRIAL, symmetric, tss.TPM2_ALG.SHA256)
    with connection.flushed(esapi, trial):
        _apply_policy(esapi, trial, pcrs)
        return bytes(esapi.policy_get_digest(trial))


def _sealed_template(policy: bytes) -> Any:
    """Without USERWITHAUTH the policy is the only way in; without NODA the TPM counts wrong credentials and locks."""
    a = tss.TPMA_OBJECT
    area = tss.TPMT_PUBLIC(
        type=tss.TPM2_ALG.KEYEDHASH,
        nameAlg=tss.TPM2_ALG.SHA256,
        objectAttributes=a.FIXEDTPM | a.FIXEDPARENT | a.ADMINWITHPOLICY,
        authPolicy=policy,
    )
    area.parameters.keyedHashDetail.scheme.scheme = tss.TPM2_ALG.NULL
    return tss.TPM2B_PUBLIC(publicArea=area)


def _pack(name: bytes, private: bytes, public: bytes) -> bytes:
    return bytes([_VERSION]) + frame(name, private, public)


def _unpack(handle: bytes) -> tuple[bytes, bytes, bytes]:
    """(name of the storage key, private part, public area); Denied for anything that ``_pack`` would not make."""
    parts: list[bytes] = []
    rest = handle[1:]
    while len(rest) >= 8 and len(parts) < 3:
        size = 8 + int.from_bytes(rest[:8], "big")
        parts.append(rest[8:size])
        rest = rest[size:]
    if len(handle) > _MAX_HANDLE or len(parts) != 3 or _pack(*parts) != handle:
        raise no_key()
    return parts[0], parts[1], parts[2]


def _public_area(public: bytes) -> Any:
    try:
        area, used = tss.TPMT_PUBLIC.unmarshal(public)
    except tss.TSS2_Exception:
        raise no_key() from None
    if used != len(public):
        raise no_key()
    return tss.TPM2B_PUBLIC(publicArea=area)
