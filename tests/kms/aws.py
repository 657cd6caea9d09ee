"""A double of AWS KMS' JSON interface, which checks signatures (Signature Version 4) as AWS documents them.

Real AES-256-GCM inside. Key policies, grants, quotas, regions and the seconds until a new key is listed are not here;
nor are the texts that AWS puts beside an error's code.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import secrets
import threading
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .server import Certificates, Reply, Request, Server

__all__ = ["AwsDouble", "error"]

_ARN = "arn:aws:kms:eu-test-1:111122223333:key/"


def error(status: int, code: str) -> Reply:
    body = json.dumps({"__type": code, "message": f"{code}: a text that nobody may rely on"}).encode()
    return Reply(status, body, {"Content-Type": "application/x-amz-json-1.1"})


@dataclass
class _Key:
    secret: bytes
    tags: list[dict[str, str]]
    state: str = "Enabled"
    deletion: float = 0.0
    calls: list[str] = field(default_factory=list)


class AwsDouble:
    def __init__(self, certificates: Certificates, *, page: int = 3) -> None:
        self.keys: dict[str, _Key] = {}
        self.access = {"AKIATEST": "aws/secret+key"}
        self.session_token: str | None = None
        self.hidden: set[str] = set()  # keys whose tags may not be read
        self._page = page
        self._lock = threading.Lock()
        self.server = Server(certificates, self._answer)

    def _answer(self, request: Request) -> Reply:
        with self._lock:
            target = request.headers.get("x-amz-target", "")
            if (request.method, request.path) != ("POST", "/") or not target.startswith("TrentService."):
                return error(400, "UnknownOperationException")
            refused = self._check_signature(request)
            if refused:
                return error(400, refused)
            call = getattr(
                self, "_" + re.sub(r"(?<!^)([A-Z])", r"_\1", target.removeprefix("TrentService.")).lower(), None
            )
            reply = call(json.loads(request.body)) if call else "UnknownOperationException"
            if isinstance(reply, str):
                return error(400, reply)
            return Reply(200, json.dumps(reply).encode(), {"Content-Type": "application/x-amz-json-1.1"})

    def _check_signature(self, request: Request) -> str | None:
        form = r"AWS4-HMAC-SHA256 Credential=(\w+)/(\d{8})/([\w-]+)/kms/aws4_request, "
        form += r"SignedHeaders=([\w;-]+), Signature=(\w+)"
        match = re.fullmatch(form, request.headers.get("authorization", ""))
        if not match:
            return "MissingAuthenticationToken"
        access, day, region, names, given = match.groups()
        if access not in self.access:
            return "UnrecognizedClientException"
        if request.headers.get("x-amz-security-token") != self.session_token:
            return "ExpiredTokenException"
        headers = "".join(f"{name}:{request.headers.get(name, '').strip()}\n" for name in names.split(";"))
        body = hashlib.sha256(request.body).hexdigest()
        canonical = "\n".join(["POST", "/", "", headers, names, body])
        digest = hashlib.sha256(canonical.encode()).hexdigest()
        text = "\n".join(
            ["AWS4-HMAC-SHA256", request.headers["x-amz-date"], f"{day}/{region}/kms/aws4_request", digest]
        )
        key = b"AWS4" + self.access[access].encode()
        for part in (day, region, "kms", "aws4_request"):
            key = hmac.digest(key, part.encode(), "sha256")
        right = hmac.digest(key, text.encode(), "sha256").hex()
        needed = {"host", "x-amz-date", "x-amz-target"}
        return (
            None
            if hmac.compare_digest(given, right) and needed <= set(names.split(";"))
            else "InvalidSignatureException"
        )

    def _key(self, body: dict[str, Any], *fields: str, usable: bool = True) -> _Key | str:
        if set(body) != {"KeyId", *fields}:
            return "ValidationException"
        key = self.keys.get(body["KeyId"])
        if key is None:
            return "NotFoundException"
        if usable and key.state != "Enabled":
            return "DisabledException" if key.state == "Disabled" else "KMSInvalidStateException"
        return key

    def _metadata(self, name: str) -> dict[str, Any]:
        key = self.keys[name]
        deletion = {"DeletionDate": key.deletion} if key.deletion else {}
        return {"KeyMetadata": {"KeyId": name, "Arn": _ARN + name, "KeyState": key.state, **deletion}}

    def _create_key(self, body: dict[str, Any]) -> dict[str, Any] | str:
        fixed = {"KeyUsage": "ENCRYPT_DECRYPT", "KeySpec": "SYMMETRIC_DEFAULT", "Origin": "AWS_KMS"}
        if set(body) != {*fixed, "Description", "Tags"} or any(body[name] != fixed[name] for name in fixed):
            return "ValidationException"
        name = str(uuid.uuid4())
        self.keys[name] = _Key(secrets.token_bytes(32), body["Tags"])
        return self._metadata(name)

    def _encrypt(self, body: dict[str, Any]) -> dict[str, Any] | str:
        key = self._key(body, "Plaintext", "EncryptionContext", "EncryptionAlgorithm")
        if isinstance(key, str):
            return key
        nonce, plaintext = secrets.token_bytes(12), base64.b64decode(body["Plaintext"])
        head = uuid.UUID(body["KeyId"]).bytes + nonce
        blob = head + AESGCM(key.secret).encrypt(nonce, plaintext, _associated(body, head))
        return {"CiphertextBlob": base64.b64encode(blob).decode(), "KeyId": _ARN + body["KeyId"]}

    def _decrypt(self, body: dict[str, Any]) -> dict[str, Any] | str:
        key = self._key(body, "CiphertextBlob", "EncryptionContext", "EncryptionAlgorithm")
        if isinstance(key, str):
            return key
        blob = base64.b64decode(body["CiphertextBlob"])
        if len(blob) >= 16 and str(uuid.UUID(bytes=blob[:16])) in self.keys.keys() - {body["KeyId"]}:
            return "IncorrectKeyException"
        try:
            plaintext = AESGCM(key.secret).decrypt(blob[16:28], blob[28:], _associated(body, blob[:28]))
        except (InvalidTag, ValueError):
            return "InvalidCiphertextException"
        return {"Plaintext": base64.b64encode(plaintext).decode(), "KeyId": _ARN + body["KeyId"]}

    def _disable_key(self, body: dict[str, Any]) -> dict[str, Any] | str:
        key = self._key(body, usable=False)
        if isinstance(key, str):
            return key
        if key.deletion:
            return "KMSInvalidStateException"
        key.state = "Disabled"
        return {}

    def _schedule_key_deletion(self, body: dict[str, Any]) -> dict[str, Any] | str:
        key = self._key(body, "PendingWindowInDays", usable=False)
        if isinstance(key, str):
            return key
        if not 7 <= body["PendingWindowInDays"] <= 30:
            return "ValidationException"
        if key.deletion:
            return "KMSInvalidStateException"
        key.state, key.deletion = "PendingDeletion", time.time() + 86400 * body["PendingWindowInDays"]
        return {"KeyId": _ARN + body["KeyId"], "DeletionDate": key.deletion, "KeyState": key.state}

    def _describe_key(self, body: dict[str, Any]) -> dict[str, Any] | str:
        key = self._key(body, usable=False)
        return key if isinstance(key, str) else self._metadata(body["KeyId"])

    def _list_resource_tags(self, body: dict[str, Any]) -> dict[str, Any] | str:
        if body.get("KeyId") in self.hidden:
            return "AccessDeniedException"
        key = self._key(body, usable=False)
        return key if isinstance(key, str) else {"Tags": key.tags, "Truncated": False}

    def _list_keys(self, body: dict[str, Any]) -> dict[str, Any] | str:
        if not set(body) <= {"Limit", "Marker"}:
            return "ValidationException"
        names = sorted(name for name in self.keys if name > body.get("Marker", ""))
        page = names[: min(self._page, body.get("Limit", self._page))]
        more = len(names) > len(page)
        keys = [{"KeyId": name, "KeyArn": _ARN + name} for name in page]
        return {"Keys": keys, "Truncated": more, **({"NextMarker": page[-1]} if more else {})}


def _associated(body: dict[str, Any], head: bytes) -> bytes:
    return head + json.dumps(body["EncryptionContext"], sort_keys=True).encode()
