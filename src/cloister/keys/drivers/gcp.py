"""KEKs in Google Cloud KMS: one CryptoKey with one version for each epoch, in a key ring of the owner's.

Experimental: it was never run against Google Cloud. Its tests run against a double of the documented gRPC interface
(tests/kms/gcp.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

from google.api_core import exceptions as google_errors
from google.cloud import kms_v1
from google.cloud.kms_v1.services.key_management_service import transports

from ...errors import CloisterError, Misuse
from .gcp_client import crc32c, kms_channel, read_account
from .naming import (
    changed,
    check_path,
    check_url,
    gone,
    handle_text,
    is_key_name,
    key_name,
    line_prefix,
    read_number,
    read_options,
)
from .remote import (
    LIMITS,
    BadAnswer,
    Failure,
    Limits,
    RemoteDriver,
    busy,
    certificate_refused,
    common_failure,
    credential_refused,
    quiet,
    unreachable,
)

__all__ = ["GcpDriver", "open_driver"]

_KEY_RING = re.compile(r"projects/[a-z0-9.:-]{1,128}/locations/[a-z0-9-]{1,63}/keyRings/[A-Za-z0-9_-]{1,63}")
_MAX_BOX = 2048
_MAX_CONTEXT = 64 * 1024
_DEFAULTS = {"protection": "hsm", "destroy-hours": "24", "endpoint": "https://cloudkms.googleapis.com", "ca": ""}
_State = kms_v1.CryptoKeyVersion.CryptoKeyVersionState
_DESTROYED = {_State.DESTROYED, _State.DESTROY_SCHEDULED}


class GcpDriver(RemoteDriver):
    """``KekDriver`` over Cloud KMS. A handle is the CryptoKey's name within the key ring; only version 1 wraps, so a
    rotation that somebody starts there changes nothing."""

    name: ClassVar[str] = "gcp"
    experimental: ClassVar[bool] = True
    algorithm: ClassVar[str] = "GCP-KMS+A256GCM"

    def __init__(self, options: Mapping[str, str], credential: bytes, limits: Limits) -> None:
        super().__init__(limits)
        chosen = read_options(options, {"key-ring"}, _DEFAULTS)
        self._ring = check_path(chosen["key-ring"], "key-ring")
        if not _KEY_RING.fullmatch(self._ring):
            raise Misuse("driver.options", "The option key-ring is projects/NAME/locations/NAME/keyRings/NAME.")
        self._hours, self._level = read_number(chosen, "destroy-hours", 24, 2880), _level(chosen["protection"])
        self._login_with = read_account(credential)
        quiet("google", "grpc", "urllib3")
        self._channel = kms_channel(check_url(chosen["endpoint"], "endpoint"), chosen["ca"], limits)
        transport = transports.KeyManagementServiceGrpcTransport(channel=self._channel)
        self._client = kms_v1.KeyManagementServiceClient(transport=transport)

    def create(self, kek_id: str, epoch: int) -> bytes:
        self._check()
        name = key_name(kek_id, epoch)
        key = kms_v1.CryptoKey(
            purpose=kms_v1.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT,
            version_template=kms_v1.CryptoKeyVersionTemplate(
                protection_level=self._level,
                algorithm=kms_v1.CryptoKeyVersion.CryptoKeyVersionAlgorithm.GOOGLE_SYMMETRIC_ENCRYPTION,
            ),
            labels={"cloister-kek": kek_id, "cloister-epoch": str(epoch)},
            destroy_scheduled_duration={"seconds": self._hours * 3600},
        )
        request = kms_v1.CreateCryptoKeyRequest(parent=self._ring, crypto_key_id=name, crypto_key=key)
        self._call(lambda: self._create(request))
        return name.encode()

    def wrap(self, handle: bytes, dek: bytes, context: bytes) -> bytes:
        self._check(dek)
        name = handle_text(handle)
        return self._call(lambda: self._encrypt(name, dek, context))

    def unwrap(self, handle: bytes, box: bytes, context: bytes) -> bytes:
        self._check()
        name = handle_text(handle)
        sent = box if 1 <= len(box) <= _MAX_BOX else b"\0"  # the service then says whether the KEK is there at all
        return self._call(lambda: self._decrypt(name, sent, context))

    def destroy(self, handle: bytes) -> str | None:
        self._check()
        try:
            name = handle_text(handle)
        except CloisterError:
            return None  # it never named a key
        return self._call(lambda: self._destroy(name))

    def list(self, kek_id: str) -> Sequence[bytes]:
        self._check()
        prefix = line_prefix(kek_id)
        names = [name for name in self._call(self._names) if name.startswith(prefix) and is_key_name(name)]
        return [name.encode() for name in names if self._call(partial(self._usable, name))]

    # What follows runs in the bounded thread.

    def _probe(self) -> object:
        return self._page("", size=1)

    def _create(self, request: kms_v1.CreateCryptoKeyRequest) -> None:
        try:
            self._client.create_crypto_key(request, **self._options())
        except google_errors.AlreadyExists:
            # The name's random end is ours alone: an attempt whose answer was lost had made it.
            self._client.get_crypto_key(name=self._path(request.crypto_key_id), **self._options())

    def _encrypt(self, name: str, dek: bytes, context: bytes) -> bytes:
        version = self._path(name, version=True)
        answer = self._client.encrypt(
            kms_v1.EncryptRequest(
                name=version,
                plaintext=dek,
                plaintext_crc32c=crc32c(dek),
                additional_authenticated_data=_aad(context),
                additional_authenticated_data_crc32c=crc32c(context),
            ),
            **self._options(),
        )
        arrived = answer.verified_plaintext_crc32c and answer.verified_additional_authenticated_data_crc32c
        if not arrived or crc32c(answer.ciphertext) != answer.ciphertext_crc32c:
            raise BadAnswer(again=True)
        if answer.name != version or not 1 <= len(answer.ciphertext) <= _MAX_BOX:
            raise BadAnswer
        return answer.ciphertext

    def _decrypt(self, name: str, box: bytes, context: bytes) -> bytes:
        try:
            answer = self._client.decrypt(
                kms_v1.DecryptRequest(
                    name=self._path(name),
                    ciphertext=box,
                    ciphertext_crc32c=crc32c(box),
                    additional_authenticated_data=_aad(context),
                    additional_authenticated_data_crc32c=crc32c(context),
                ),
                **self._options(),
            )
        except google_errors.FailedPrecondition:
            raise gone() from None
        except google_errors.InvalidArgument:
            if not self._usable(name):
                raise gone() from None
            raise changed() from None
        if crc32c(answer.plaintext) != answer.plaintext_crc32c:
            raise BadAnswer(again=True)
        if len(answer.plaintext) != 32:
            raise BadAnswer
        return answer.plaintext

    def _destroy(self, name: str) -> str | None:
        path = self._path(name, version=True)
        try:
            version = self._client.destroy_crypto_key_version(name=path, **self._options())
        except google_errors.NotFound:
            return None
        except google_errors.FailedPrecondition:
            version = self._client.get_crypto_key_version(name=path, **self._options())
        if version.state not in _DESTROYED:
            raise BadAnswer
        if version.state == _State.DESTROYED:
            return None
        return (
            f"Google destroys the KEK after {version.destroy_time:%Y-%m-%d %H:%M} UTC; "
            "until then an administrator of the project can take that back."
        )

    def _usable(self, name: str) -> bool:
        try:
            version = self._client.get_crypto_key_version(name=self._path(name, version=True), **self._options())
        except google_errors.NotFound:
            return False
        return version.state not in _DESTROYED

    def _names(self) -> Sequence[str]:
        names: list[str] = []
        token = ""
        for _ in range(self._limits.pages):
            page = self._page(token)
            names += [key.name.removeprefix(f"{self._ring}/cryptoKeys/") for key in page.crypto_keys]
            token = page.next_page_token
            if not token:
                return names
        raise BadAnswer

    def _page(self, token: str, *, size: int = 1000) -> Any:
        request = kms_v1.ListCryptoKeysRequest(parent=self._ring, page_size=size, page_token=token)
        # The pager itself would go on without end; one page shows its answer as attributes.
        return self._client.list_crypto_keys(request, **self._options())

    def _path(self, name: str, *, version: bool = False) -> str:
        return f"{self._ring}/cryptoKeys/{name}" + ("/cryptoKeyVersions/1" if version else "")

    def _options(self) -> dict[str, Any]:
        """One attempt with a deadline, and a token signed here: no other service is asked for one."""
        credentials = self._login_with
        if not credentials.valid:
            credentials.refresh(None)
        token = credentials.token.decode() if isinstance(credentials.token, bytes) else credentials.token
        return {"retry": None, "timeout": self._limits.read, "metadata": (("authorization", f"Bearer {token}"),)}

    def _login(self) -> bool:
        self._login_with.refresh(None)
        return True

    def _failure(self, error: BaseException) -> Failure:
        if isinstance(error, google_errors.Unauthenticated):
            return Failure(credential_refused(), expired=True)
        if isinstance(error, google_errors.PermissionDenied):
            return Failure(credential_refused())
        if isinstance(error, google_errors.NotFound | google_errors.FailedPrecondition):
            return Failure(gone())
        if isinstance(error, google_errors.ResourceExhausted):
            return Failure(busy(), again=True, refused=True)
        if isinstance(error, google_errors.ServerError | google_errors.Aborted):
            # gRPC has no error of its own for a certificate that does not hold; its text names OpenSSL's.
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                return Failure(certificate_refused())
            return Failure(unreachable(), again=True)
        return common_failure(error)

    def _shut(self) -> None:
        self._channel.close()


def _level(text: str) -> Any:
    levels: dict[str, Any] = {"hsm": kms_v1.ProtectionLevel.HSM, "software": kms_v1.ProtectionLevel.SOFTWARE}
    if text not in levels:
        raise Misuse("driver.options", "The option protection is hsm or software.")
    return levels[text]


def _aad(context: bytes) -> bytes:
    if len(context) > _MAX_CONTEXT:
        raise Misuse("wrap.context", f"A context has at most {_MAX_CONTEXT} bytes.")
    return context


def open_driver(options: Mapping[str, str], credential: bytes, *, limits: Limits = LIMITS) -> GcpDriver:
    """Options: ``key-ring``; ``protection`` (hsm, or software), ``destroy-hours`` (24), ``endpoint``, ``ca``.
    ``credential``: the JSON key of a service account.

    Raises Misuse, Denied (``vault.credential``), Untrusted (``vault.tls``), Unavailable.
    """
    return GcpDriver(options, credential, limits).started()
