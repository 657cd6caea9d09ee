"""A double of the transit engine of OpenBao and HashiCorp Vault, with token and AppRole login.

Real AES-256-GCM inside. It also does what makes the real one dangerous: encrypting under a name that is not there
makes a key. Policies, leases that end by the clock, namespaces with engines of their own and snapshots are not here.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import threading
from dataclasses import dataclass, field
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from .server import Certificates, Reply, Request, Server

__all__ = ["TransitDouble"]

_NAME = r"([A-Za-z0-9._-]+)"


def _errors(status: int, *messages: str) -> Reply:
    return Reply(status, json.dumps({"errors": list(messages)}).encode())


def _ok(**fields: Any) -> Reply:
    return Reply(200, json.dumps({"request_id": secrets.token_hex(8), **fields}).encode())


@dataclass
class _Key:
    versions: list[bytes]
    config: dict[str, Any] = field(default_factory=lambda: {"deletion_allowed": False})


class TransitDouble:
    def __init__(self, certificates: Certificates | None, *, mount: str = "transit", namespace: str = "") -> None:
        self.keys: dict[str, _Key] = {}
        self.tokens: dict[str, dict[str, Any]] = {}
        self.roles: dict[str, str] = {}
        self.lease, self.renewable = 0, False
        self.logins = self.renewals = 0
        self.mount, self.namespace = mount, namespace
        self._lock = threading.Lock()
        self.server = Server(certificates, self._answer)

    def token(self, *, ttl: int = 0, renewable: bool = False) -> str:
        text = f"s.{secrets.token_urlsafe(24)}"
        self.tokens[text] = {"ttl": ttl, "renewable": renewable}
        return text

    def rotate(self, name: str) -> None:
        self.keys[name].versions.append(secrets.token_bytes(32))

    def _answer(self, request: Request) -> Reply:
        with self._lock:
            if request.headers.get("x-vault-request") != "true":
                return _errors(412, "required request header is missing")
            if request.headers.get("x-vault-namespace", "") != self.namespace:
                return _errors(404, "no handler for route")
            body = json.loads(request.body) if request.body else {}
            if request.path.startswith("/v1/auth/") and request.path.endswith("/login"):
                right = request.path == "/v1/auth/approle/login"
                return self._approle(body) if right else _errors(404, "no handler for route")
            token = self.tokens.get(request.headers.get("x-vault-token", ""))
            if token is None:
                return _errors(403, "permission denied")
            if request.path.startswith("/v1/auth/token/"):
                return self._token(request, token)
            return self._transit(request, body)

    def _approle(self, body: dict[str, str]) -> Reply:
        if set(body) != {"role_id", "secret_id"} or self.roles.get(body["role_id"]) != body["secret_id"]:
            return _errors(400, "invalid role or secret ID")
        self.logins += 1
        auth = {"client_token": self.token(), "lease_duration": self.lease, "renewable": self.renewable}
        return _ok(auth=auth)

    def _token(self, request: Request, token: dict[str, Any]) -> Reply:
        if (request.method, request.path) == ("GET", "/v1/auth/token/lookup-self"):
            return _ok(data=token)
        if request.path == "/v1/auth/token/renew-self" and token["renewable"]:
            self.renewals += 1
            return _ok(auth={"lease_duration": token["ttl"], "renewable": True})
        return _errors(400, "lease is not renewable")

    def _transit(self, request: Request, body: dict[str, Any]) -> Reply:
        base = f"/v1/{self.mount}"
        if (request.method, request.path) == ("LIST", f"{base}/keys"):
            return _ok(data={"keys": sorted(self.keys)}) if self.keys else _errors(404)
        routes = {
            ("POST", f"{base}/keys/{_NAME}"): self._create,
            ("GET", f"{base}/keys/{_NAME}"): self._read,
            ("DELETE", f"{base}/keys/{_NAME}"): self._delete,
            ("POST", f"{base}/keys/{_NAME}/config"): self._config,
            ("POST", f"{base}/encrypt/{_NAME}"): self._encrypt,
            ("POST", f"{base}/decrypt/{_NAME}"): self._decrypt,
        }
        for (method, pattern), call in routes.items():
            match = re.fullmatch(pattern, request.path)
            if match and method == request.method:
                return call(match[1], body)
        return _errors(404, "no handler for route")

    def _create(self, name: str, body: dict[str, Any]) -> Reply:
        wanted = {"type": "aes256-gcm96", "exportable": False, "allow_plaintext_backup": False}
        if body != wanted:
            return _errors(400, "not what a KEK is made with")
        self.keys.setdefault(name, _Key([secrets.token_bytes(32)]))
        return Reply(204)

    def _read(self, name: str, _: dict[str, Any]) -> Reply:
        if name not in self.keys:
            return _errors(404)
        fixed = {"name": name, "type": "aes256-gcm96", "derived": False, "exportable": False}
        fixed |= {"allow_plaintext_backup": False, "latest_version": len(self.keys[name].versions)}
        return _ok(data={**fixed, **self.keys[name].config})

    def _config(self, name: str, body: dict[str, Any]) -> Reply:
        if name not in self.keys:
            return _errors(400, f"no existing key named {name} could be found")
        if set(body) != {"deletion_allowed"}:
            return _errors(400, "unexpected field")
        self.keys[name].config.update(body)
        return Reply(204)

    def _delete(self, name: str, _: dict[str, Any]) -> Reply:
        if name not in self.keys:
            return _errors(400, "could not delete key; not found")
        if not self.keys[name].config["deletion_allowed"]:
            return _errors(400, "deletion is not allowed for this key")
        del self.keys[name]
        return Reply(204)

    def _encrypt(self, name: str, body: dict[str, str]) -> Reply:
        if set(body) != {"plaintext", "associated_data"}:
            return _errors(400, "unexpected field")
        key = self.keys.setdefault(name, _Key([secrets.token_bytes(32)]))
        nonce = secrets.token_bytes(12)
        plaintext, associated = (base64.b64decode(body[f], validate=True) for f in ("plaintext", "associated_data"))
        sealed = nonce + AESGCM(key.versions[-1]).encrypt(nonce, plaintext, associated)
        text = f"vault:v{len(key.versions)}:{base64.b64encode(sealed).decode()}"
        return _ok(data={"ciphertext": text, "key_version": len(key.versions)})

    def _decrypt(self, name: str, body: dict[str, str]) -> Reply:
        if set(body) != {"ciphertext", "associated_data"}:
            return _errors(400, "unexpected field")
        if name not in self.keys:
            return _errors(400, "encryption key not found")
        match = re.fullmatch(r"vault:v(\d+):(.+)", body["ciphertext"])
        versions = self.keys[name].versions
        if not match or not 1 <= int(match[1]) <= len(versions):
            return _errors(400, "invalid ciphertext: version is too new")
        sealed = base64.b64decode(match[2], validate=True)
        try:
            associated = base64.b64decode(body["associated_data"], validate=True)
            plaintext = AESGCM(versions[int(match[1]) - 1]).decrypt(sealed[:12], sealed[12:], associated)
        except (InvalidTag, ValueError):
            return _errors(400, "cipher: message authentication failed")
        return _ok(data={"plaintext": base64.b64encode(plaintext).decode()})
