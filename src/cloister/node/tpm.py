"""A TPM 2.0 through the TSS's ESAPI: identity keys, PCRs, quotes. tpm2-pytss is imported only when one is opened.

Keys: the endorsement key from the TCG EK Credential Profile's template L-2 (ECC P-256), and under it a restricted
ECDSA P-256 signing key, the attestation key (AK). The AK's blobs are saved; its private part is encrypted by the
TPM and loads nowhere else, so the attester id survives restarts and can't be copied away from the TPM.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..attestation.tpm import attester_id
from ..crypto import canonical_json, parse_canonical
from ..errors import Malformed, Misuse, Unavailable, Untrusted

__all__ = ["Identity", "Tpm"]

_KEY_FILE = "attestation-key.json"
_MAX_KEY_FILE = 16 * 1024
_MAX_PRIVATE = 1024  # bytes; the TSS's buffer holds 1,550, a P-256 key needs 126, RSA-4096 about 600
_DIGESTS_PER_READ = 8  # TPM 2.0 Part 2 §10.9.7: a TPML_DIGEST holds eight
# TCG EK Credential Profile §B.3.4: PolicyA, that is TPM2_PolicySecret(endorsement hierarchy) with SHA-256.
_EK_POLICY = bytes.fromhex("837197674484b3f81a90cc8d46a5d724fd52d76e06520b64f2a1da1b331469aa")


@dataclass(frozen=True)
class Identity:
    """The public areas (TPMT_PUBLIC bytes) of the endorsement and attestation keys."""

    ek_public: bytes
    ak_public: bytes

    @property
    def attester_id(self) -> str:
        """64 hex digits; what a contract names."""
        return attester_id(self.ak_public)


class Tpm:
    """One open connection. Not thread-safe: the attester holds a lock. Every failure of the TPM is Unavailable."""

    def __init__(self, tcti: str) -> None:
        self._tss = _library()
        with self._errors("be opened"):
            self._esapi = self._tss.ESAPI(tcti)
        self._ak: Any = None

    @contextlib.contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except self._tss.TSS2_Exception as error:
            raise Unavailable(
                "tpm.command", f"The TPM could not {what}; look at its state.", rc=int(error.rc)
            ) from None

    def load_identity(self, folder: Path) -> Identity:
        """Load the attestation key that ``folder`` keeps, or make one and keep it there.

        Raises Untrusted if the kept key belongs to another TPM or was changed: a new identity is never made
        silently, because contracts pin the old one.
        """
        path = folder / _KEY_FILE
        with self._errors("make its keys"), self._flushed(self._endorsement_key()) as ek:
            ek_public = bytes(self._esapi.read_public(ek)[0].publicArea.marshal())
            if not path.exists():
                _save(path, *self._create_key(ek))
            public, private = _load(path)
            self._unload()
            self._ak = self._load_key(ek, public, private)
            return Identity(ek_public, public)

    def _endorsement_key(self) -> Any:
        # A primary key follows from the TPM's seed and the template alone: the same key every time.
        return self._esapi.create_primary(None, _ek_template(self._tss), self._tss.ESYS_TR.ENDORSEMENT)[0]

    def _create_key(self, ek: Any) -> tuple[bytes, bytes]:
        with self._endorsement_session() as session:
            private, public, *_ = self._esapi.create(ek, None, _ak_template(self._tss), session1=session)
        return bytes(public.publicArea.marshal()), bytes(private)

    def _load_key(self, ek: Any, public: bytes, private: bytes) -> Any:
        tss = self._tss
        try:
            area, used = tss.TPMT_PUBLIC.unmarshal(public)
            if used != len(public) or len(private) > _MAX_PRIVATE:
                raise _foreign()
            with self._endorsement_session() as session:
                blob = tss.TPM2B_PRIVATE(private)
                return self._esapi.load(ek, blob, tss.TPM2B_PUBLIC(publicArea=area), session1=session)
        except tss.TSS2_Exception:
            raise _foreign() from None

    @contextlib.contextmanager
    def _endorsement_session(self) -> Iterator[Any]:
        """A policy session that satisfies the EK's policy: knowledge of the endorsement password, which is empty."""
        tss = self._tss
        none = tss.ESYS_TR.NONE
        symmetric = tss.TPMT_SYM_DEF(algorithm=tss.TPM2_ALG.NULL)
        session = self._esapi.start_auth_session(none, none, tss.TPM2_SE.POLICY, symmetric, tss.TPM2_ALG.SHA256)
        with self._flushed(session):
            self._esapi.policy_secret(tss.ESYS_TR.ENDORSEMENT, session, b"", b"", b"", 0)
            yield session

    @contextlib.contextmanager
    def _flushed(self, handle: Any) -> Iterator[Any]:
        """swtpm has no resource manager: what isn't flushed fills its three slots."""
        try:
            yield handle
        finally:
            self._esapi.flush_context(handle)

    def read_pcrs(self, indices: Iterable[int]) -> dict[int, bytes]:
        """Values of the SHA-256 bank, 32 bytes each."""
        values: dict[int, bytes] = {}
        wanted = sorted(set(indices))
        with self._errors("read its PCRs"):
            for start in range(0, len(wanted), _DIGESTS_PER_READ):
                part = wanted[start : start + _DIGESTS_PER_READ]
                digests = list(self._esapi.pcr_read(self._selection(part))[2])
                if len(digests) != len(part):
                    raise Unavailable("tpm.bank", "The TPM has no SHA-256 PCR bank; enable it in the firmware.")
                values.update(zip(part, (bytes(d) for d in digests), strict=True))
        return values

    def extend(self, index: int, digest: bytes) -> None:
        """PCR := SHA-256(PCR ‖ digest), for a 32-byte digest."""
        tss = self._tss
        if len(digest) != 32:
            raise Misuse("tpm.digest", "A PCR of the SHA-256 bank is extended with exactly 32 bytes.")
        one = tss.TPMT_HA(hashAlg=tss.TPM2_ALG.SHA256, digest=tss.TPMU_HA(sha256=digest))
        with self._errors("extend a PCR"):
            self._esapi.pcr_extend(tss.ESYS_TR.PCR0 + index, tss.TPML_DIGEST_VALUES([one]))

    def quote(self, report: bytes, indices: Iterable[int]) -> tuple[bytes, bytes]:
        """(TPMS_ATTEST, TPMT_SIGNATURE) by the attestation key over these PCRs and the 32-byte ``report``."""
        if self._ak is None or len(report) != 32:
            raise Misuse("tpm.quote", "Load the identity first, and quote exactly 32 bytes.")
        with self._errors("make a quote"):
            attest, signature = self._esapi.quote(self._ak, self._selection(indices), self._tss.TPM2B_DATA(report))
            return bytes(attest), bytes(signature.marshal())

    def _selection(self, indices: Iterable[int]) -> Any:
        return self._tss.TPML_PCR_SELECTION.parse("sha256:" + ",".join(str(i) for i in sorted(set(indices))))

    def shutdown(self) -> None:
        """Tell a TPM that is ours alone that its power goes now. Never for one that the kernel manages."""
        with self._errors("shut down in order"):
            self._esapi.shutdown(self._tss.TPM2_SU.CLEAR)

    def close(self) -> None:
        """Unload the key and close the connection. Calling it again does nothing."""
        self._unload()
        self._esapi.close()

    def _unload(self) -> None:
        ak, self._ak = self._ak, None
        if ak is not None:
            # A TPM that has gone has lost its loaded keys too, so there is nothing left to unload.
            with contextlib.suppress(self._tss.TSS2_Exception):
                self._esapi.flush_context(ak)


def _library() -> Any:
    # Its own log on stderr repeats what the exceptions say; whoever debugs sets the variable.
    os.environ.setdefault("TSS2_LOG", "all+none")
    try:
        import tpm2_pytss
    except (ImportError, OSError, RuntimeError):
        raise Unavailable(
            "tpm.library", "tpm2-pytss is not usable; apt install libtss2-dev and pip install 'cloister[node]'."
        ) from None
    return tpm2_pytss


def _template(tss: Any, attributes: int, policy: bytes) -> Any:
    area = tss.TPMT_PUBLIC(
        type=tss.TPM2_ALG.ECC, nameAlg=tss.TPM2_ALG.SHA256, objectAttributes=attributes, authPolicy=policy
    )
    ecc = area.parameters.eccDetail
    ecc.symmetric.algorithm = ecc.scheme.scheme = ecc.kdf.scheme = tss.TPM2_ALG.NULL
    ecc.curveID = tss.TPM2_ECC.NIST_P256
    return area


def _ek_template(tss: Any) -> Any:
    a = tss.TPMA_OBJECT
    fixed = a.FIXEDTPM | a.FIXEDPARENT | a.SENSITIVEDATAORIGIN
    area = _template(tss, fixed | a.ADMINWITHPOLICY | a.RESTRICTED | a.DECRYPT, _EK_POLICY)
    symmetric = area.parameters.eccDetail.symmetric
    symmetric.algorithm, symmetric.keyBits.aes, symmetric.mode.aes = tss.TPM2_ALG.AES, 128, tss.TPM2_ALG.CFB
    area.unique.ecc.x, area.unique.ecc.y = bytes(32), bytes(32)  # the profile's template fills them with zeros
    return tss.TPM2B_PUBLIC(publicArea=area)


def _ak_template(tss: Any) -> Any:
    a = tss.TPMA_OBJECT
    fixed = a.FIXEDTPM | a.FIXEDPARENT | a.SENSITIVEDATAORIGIN
    # NODA: the key has no password to guess, and a power loss must not count as a wrong guess.
    area = _template(tss, fixed | a.USERWITHAUTH | a.NODA | a.RESTRICTED | a.SIGN_ENCRYPT, b"")
    scheme = area.parameters.eccDetail.scheme
    scheme.scheme, scheme.details.ecdsa.hashAlg = tss.TPM2_ALG.ECDSA, tss.TPM2_ALG.SHA256
    return tss.TPM2B_PUBLIC(publicArea=area)


def _foreign() -> Untrusted:
    return Untrusted(
        "tpm.identity",
        f"The kept attestation key does not load in this TPM; restore the TPM's state, or move {_KEY_FILE} away "
        "and have contracts name the new attester id.",
    )


def _save(path: Path, public: bytes, private: bytes) -> None:
    body = canonical_json({k: base64.b64encode(v).decode() for k, v in (("public", public), ("private", private))})
    temporary = path.with_suffix(".new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def _load(path: Path) -> tuple[bytes, bytes]:
    try:
        body = parse_canonical(path.read_bytes(), limit=_MAX_KEY_FILE)
        if set(body) != {"public", "private"}:
            raise _foreign()
        return base64.b64decode(body["public"], validate=True), base64.b64decode(body["private"], validate=True)
    except (Malformed, TypeError, ValueError, binascii.Error):
        raise _foreign() from None
