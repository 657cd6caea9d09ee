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
from ..attestation.tpm.credential import Credential
from ..attestation.tpm.ek import TEMPLATES, Template, parse_endorsement
from ..crypto import canonical_json, parse_canonical
from ..errors import Malformed, Misuse, Unavailable, Untrusted

__all__ = ["Identity", "Tpm"]

_KEY_FILE = "attestation-key.json"
_MAX_KEY_FILE = 16 * 1024
_MAX_PRIVATE = 1024  # bytes; the TSS's buffer holds 1,550, a P-256 key needs 126, RSA-4096 about 600
_DIGESTS_PER_READ = 8  # TPM 2.0 Part 2 §10.9.7: a TPML_DIGEST holds eight
_PARENT = next(t for t in TEMPLATES if t.name == "L-2")  # the attestation key's; every TPM 2.0 for PCs has P-256
_NV_CHUNK = 512  # bytes; a TPM says how many it reads at once, none for PCs less than this
_MAX_CERTIFICATE = 16 * 1024
_TPM_LAYER = 0xFF0000  # TSS 2.0 overview §3: response codes of the TPM itself have none of these bits


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
            ek_public = self._public_of(ek)
            if not path.exists():
                _save(path, *self._create_key(ek))
            public, private = _load(path)
            self._unload()
            self._ak = self._load_key(ek, public, private)
            return Identity(ek_public, public)

    def _endorsement_key(self, template: Template = _PARENT) -> Any:
        # A primary key follows from the TPM's seed and the template alone: the same key every time.
        area = self._tss.TPMT_PUBLIC.unmarshal(template.template())[0]
        public = self._tss.TPM2B_PUBLIC(publicArea=area)
        return self._esapi.create_primary(None, public, self._tss.ESYS_TR.ENDORSEMENT)[0]

    def _public_of(self, handle: Any) -> bytes:
        public = self._esapi.read_public(handle)[0]
        return bytes(public.publicArea.marshal())

    def endorsement(self) -> tuple[bytes, bytes]:
        """(TPMT_PUBLIC, certificate as DER) of the first endorsement key that the TPM keeps a certificate for.

        Raises Unavailable ``tpm.no-certificate`` where there is none: software TPMs, and chips that were never given
        one.
        """
        with self._errors("show its endorsement certificate"):
            for template in TEMPLATES:
                certificate = self._read_nv(template.index)
                if certificate is not None:
                    with self._flushed(self._endorsement_key(template)) as ek:
                        return self._public_of(ek), _one_der(certificate)
        raise Unavailable("tpm.no-certificate", "The TPM keeps no endorsement certificate; it can't be enrolled.")

    def _read_nv(self, index: int) -> bytes | None:
        tss = self._tss
        # Held until it is read: the list inside is only a view of its memory.
        capability = self._esapi.get_capability(tss.TPM2_CAP.HANDLES, index, 1)[1]
        if [int(handle) for handle in capability.data.handles] != [index]:
            return None
        handle = self._esapi.tr_from_tpmpublic(index)
        public = self._esapi.nv_read_public(handle)[0]
        size = int(public.nvPublic.dataSize)
        out = b""
        while len(out) < min(size, _MAX_CERTIFICATE):
            # Read under the index's own authorization, which is empty: every user of the TPM may see the certificate.
            out += bytes(self._esapi.nv_read(handle, min(_NV_CHUNK, size - len(out)), len(out), handle))
        return out

    def activate(self, ek_public: bytes, credential: Credential) -> bytes:
        """TPM2_ActivateCredential: the secret that was protected to ``ek_public`` and to this attestation key.

        Raises Untrusted ``tpm.credential`` if the TPM says that it is for other keys, or was changed.
        """
        if self._ak is None:
            raise Misuse("tpm.activate", "Load the identity first.")
        tss = self._tss
        template = parse_endorsement(ek_public).template
        with self._errors("activate a credential"), self._flushed(self._endorsement_key(template)) as ek:
            try:
                blob, secret = tss.TPM2B_ID_OBJECT(credential.identity), tss.TPM2B_ENCRYPTED_SECRET(credential.secret)
                with self._use_of(template) as session:
                    return bytes(self._esapi.activate_credential(self._ak, ek, blob, secret, session2=session))
            except tss.TSS2_Exception as error:
                if int(error.rc) & _TPM_LAYER:
                    raise
                raise Untrusted(
                    "tpm.credential", "The enrolment's challenge is not for this TPM and its attestation key."
                ) from None

    @contextlib.contextmanager
    def _use_of(self, template: Template) -> Iterator[Any]:
        """What authorizes the use of an endorsement key: its policy, or its own password, which is empty."""
        if template.by_policy:
            with self._endorsement_session() as session:
                yield session
        else:
            yield self._tss.ESYS_TR.PASSWORD

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


def _ak_template(tss: Any) -> Any:
    a = tss.TPMA_OBJECT
    fixed = a.FIXEDTPM | a.FIXEDPARENT | a.SENSITIVEDATAORIGIN
    # NODA: the key has no password to guess, and a power loss must not count as a wrong guess.
    area = _template(tss, fixed | a.USERWITHAUTH | a.NODA | a.RESTRICTED | a.SIGN_ENCRYPT, b"")
    scheme = area.parameters.eccDetail.scheme
    scheme.scheme, scheme.details.ecdsa.hashAlg = tss.TPM2_ALG.ECDSA, tss.TPM2_ALG.SHA256
    return tss.TPM2B_PUBLIC(publicArea=area)


def _one_der(data: bytes) -> bytes:
    """The one DER element that ``data`` begins with: an NV index may be longer than what it holds."""
    if len(data) < 4 or data[:2] != b"\x30\x82":
        raise Unavailable("tpm.no-certificate", "The TPM's endorsement certificate is in no known form.")
    return data[: 4 + int.from_bytes(data[2:4], "big")]


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
