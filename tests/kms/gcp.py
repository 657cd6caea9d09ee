"""A double of Google Cloud KMS' gRPC interface, over TLS, with tokens that the service account signs itself.

Real AES-256-GCM inside, and both directions' CRC-32C. IAM, quotas, other locations and the hours until a version is
really destroyed are not here; the texts beside the codes are not Google's.
"""

from __future__ import annotations

import datetime
import json
import secrets
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from google.auth import jwt
from google.cloud import kms_v1

from .server import Certificates

__all__ = ["KEY_RING", "GcpDouble", "ServiceAccount"]

KEY_RING = "projects/owner-1/locations/europe-west3/keyRings/cloister"
_SERVICE = "google.cloud.kms.v1.KeyManagementService"
_State = kms_v1.CryptoKeyVersion.CryptoKeyVersionState
_CALLS = {
    "CreateCryptoKey": (kms_v1.CreateCryptoKeyRequest, kms_v1.CryptoKey),
    "DestroyCryptoKeyVersion": (kms_v1.DestroyCryptoKeyVersionRequest, kms_v1.CryptoKeyVersion),
    "Decrypt": (kms_v1.DecryptRequest, kms_v1.DecryptResponse),
    "Encrypt": (kms_v1.EncryptRequest, kms_v1.EncryptResponse),
    "GetCryptoKey": (kms_v1.GetCryptoKeyRequest, kms_v1.CryptoKey),
    "GetCryptoKeyVersion": (kms_v1.GetCryptoKeyVersionRequest, kms_v1.CryptoKeyVersion),
    "ListCryptoKeys": (kms_v1.ListCryptoKeysRequest, kms_v1.ListCryptoKeysResponse),
}


def _crc32c(data: bytes) -> int:
    """Bit by bit, from the polynomial: not the driver's table."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 * (crc & 1))
    return crc ^ 0xFFFFFFFF


class ServiceAccount:
    """A key as Google gives it out."""

    def __init__(self) -> None:
        key = rsa.generate_private_key(65537, 2048)
        pem = serialization.Encoding.PEM
        private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        self.public = key.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
        self.private = private.decode()
        fields = {
            "type": "service_account",
            "project_id": "owner-1",
            "private_key_id": secrets.token_hex(20),
            "private_key": self.private,
            "client_email": "broker@owner-1.iam.gserviceaccount.com",
            "client_id": "1",
            "token_uri": "https://127.0.0.1:1/token",
        }
        self.credential = json.dumps(fields).encode()


class Refused(Exception):
    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__(code)
        self.code = code


@dataclass
class _Key:
    message: kms_v1.CryptoKey
    secret: bytes
    state: _State = _State.ENABLED
    destroy_time: datetime.datetime | None = None


class Calls:
    """The same hooks as ``Server`` has, for calls. A failure is a status code, or one of ``Server``'s names."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.tokens: list[str] = []
        self._failures: deque[grpc.StatusCode | str] = deque()
        self._only = ""
        self.stopping = threading.Event()
        self.stop: Callable[[], None] = self.stopping.set

    def fail(self, *failures: Any, only: str = "") -> None:
        self._failures.extend(failures)
        self._only = only

    @property
    def pending(self) -> int:
        return len(self._failures)

    def next_failure(self, name: str) -> grpc.StatusCode | str | None:
        return self._failures.popleft() if self._failures and self._only in name else None


class GcpDouble:
    def __init__(self, certificates: Certificates, account: ServiceAccount, *, page: int = 2) -> None:
        self.keys: dict[str, _Key] = {}
        self.revoked: set[str] = set()
        self.server = Calls()
        self._account, self._page, self._lock = account, page, threading.Lock()
        self._grpc = grpc.server(ThreadPoolExecutor(16))
        handlers = {name: self._handler(name, *types) for name, types in _CALLS.items()}
        self._grpc.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        pair = (certificates.key.read_bytes(), certificates.cert.read_bytes())
        self.port = self._grpc.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        self._grpc.start()
        self.server.stop = self._stop

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def _stop(self) -> None:
        self.server.stopping.set()
        self._grpc.stop(0).wait(60)

    def _handler(self, name: str, request_type: Any, answer_type: Any) -> grpc.RpcMethodHandler:
        def call(request: Any, context: grpc.ServicerContext) -> Any:
            self.server.requests.append(name)
            failure = self.server.next_failure(name)
            if isinstance(failure, grpc.StatusCode) or failure in {"drop", "cut"}:
                context.abort(grpc.StatusCode.UNAVAILABLE if isinstance(failure, str) else failure, "on request")
            if failure in {"hang", "drip"}:
                self.server.stopping.wait(30)
            if failure == "huge":
                return kms_v1.ListCryptoKeysResponse(next_page_token="x" * 1_000_000)
            try:
                self._authenticate(context)
                with self._lock:
                    answer = getattr(self, f"_{name}")(request)
            except Refused as refused:
                context.abort(refused.code, "refused")
            if failure == "lost":
                context.abort(grpc.StatusCode.UNAVAILABLE, "on request")
            return _damaged(answer) if failure == "half" else answer

        return grpc.unary_unary_rpc_method_handler(call, request_type.deserialize, answer_type.serialize)

    def _authenticate(self, context: grpc.ServicerContext) -> None:
        token = dict(context.invocation_metadata()).get("authorization", "").removeprefix("Bearer ")
        self.server.tokens.append(token)
        try:
            claims = jwt.decode(token, certs=self._account.public, audience="https://cloudkms.googleapis.com/")
        except ValueError:
            raise Refused(grpc.StatusCode.UNAUTHENTICATED) from None
        if token in self.revoked or claims["iss"] != "broker@owner-1.iam.gserviceaccount.com":
            raise Refused(grpc.StatusCode.UNAUTHENTICATED)

    def _held(self, path: str, *, version: bool) -> _Key:
        ending = "/cryptoKeyVersions/1"
        if version != path.endswith(ending):
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT)
        key = self.keys.get(path.removesuffix(ending))
        if key is None:
            raise Refused(grpc.StatusCode.NOT_FOUND)
        return key

    def _CreateCryptoKey(self, request: kms_v1.CreateCryptoKeyRequest) -> kms_v1.CryptoKey:
        path = f"{request.parent}/cryptoKeys/{request.crypto_key_id}"
        if request.parent != KEY_RING or len(request.crypto_key_id) > 63:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT)
        if path in self.keys:
            raise Refused(grpc.StatusCode.ALREADY_EXISTS)
        template = request.crypto_key.version_template
        algorithm = kms_v1.CryptoKeyVersion.CryptoKeyVersionAlgorithm.GOOGLE_SYMMETRIC_ENCRYPTION
        purpose = kms_v1.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT
        if template.algorithm != algorithm or request.crypto_key.purpose != purpose:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT)
        request.crypto_key.name = path
        self.keys[path] = _Key(request.crypto_key, secrets.token_bytes(32))
        return request.crypto_key

    def _GetCryptoKey(self, request: kms_v1.GetCryptoKeyRequest) -> kms_v1.CryptoKey:
        return self._held(request.name, version=False).message

    def _GetCryptoKeyVersion(self, request: Any) -> kms_v1.CryptoKeyVersion:
        key = self._held(request.name, version=True)
        return kms_v1.CryptoKeyVersion(name=request.name, state=key.state, destroy_time=key.destroy_time)

    def _DestroyCryptoKeyVersion(self, request: Any) -> kms_v1.CryptoKeyVersion:
        key = self._held(request.name, version=True)
        if key.state in {_State.DESTROY_SCHEDULED, _State.DESTROYED}:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION)
        key.state = _State.DESTROY_SCHEDULED
        key.destroy_time = datetime.datetime.now(datetime.UTC) + key.message.destroy_scheduled_duration
        return kms_v1.CryptoKeyVersion(name=request.name, state=key.state, destroy_time=key.destroy_time)

    def _ListCryptoKeys(self, request: Any) -> kms_v1.ListCryptoKeysResponse:
        if request.parent != KEY_RING:
            raise Refused(grpc.StatusCode.PERMISSION_DENIED)
        names = sorted(name for name in self.keys if name > request.page_token)
        page = names[: min(self._page, request.page_size)]
        more = page[-1] if len(names) > len(page) else ""
        return kms_v1.ListCryptoKeysResponse(crypto_keys=[self.keys[n].message for n in page], next_page_token=more)

    def _Encrypt(self, request: kms_v1.EncryptRequest) -> kms_v1.EncryptResponse:
        key = self._held(request.name, version=True)
        if key.state != _State.ENABLED:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION)
        associated = request.additional_authenticated_data
        if "plaintext_crc32c" not in request or "additional_authenticated_data_crc32c" not in request:
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT)
        nonce = secrets.token_bytes(12)
        ciphertext = nonce + AESGCM(key.secret).encrypt(nonce, request.plaintext, associated)
        return kms_v1.EncryptResponse(
            name=request.name,
            ciphertext=ciphertext,
            ciphertext_crc32c=_crc32c(ciphertext),
            verified_plaintext_crc32c=_crc32c(request.plaintext) == request.plaintext_crc32c,
            verified_additional_authenticated_data_crc32c=_crc32c(associated)
            == request.additional_authenticated_data_crc32c,
        )

    def _Decrypt(self, request: kms_v1.DecryptRequest) -> kms_v1.DecryptResponse:
        key = self._held(request.name, version=False)
        associated, box = request.additional_authenticated_data, request.ciphertext
        if (_crc32c(box), _crc32c(associated)) != (
            request.ciphertext_crc32c,
            request.additional_authenticated_data_crc32c,
        ):
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT)
        try:
            plaintext = AESGCM(key.secret).decrypt(box[:12], box[12:], associated)
        except (InvalidTag, ValueError):
            raise Refused(grpc.StatusCode.INVALID_ARGUMENT) from None
        if key.state != _State.ENABLED:
            raise Refused(grpc.StatusCode.FAILED_PRECONDITION)
        return kms_v1.DecryptResponse(plaintext=plaintext, plaintext_crc32c=_crc32c(plaintext), used_primary=True)


def _damaged(answer: Any) -> Any:
    """One bit wrong on the way."""
    for name in ("plaintext", "ciphertext"):
        if name in type(answer).meta.fields:
            value = getattr(answer, name)
            setattr(answer, name, bytes([value[0] ^ 1]) + value[1:])
    return answer
