"""A double of Azure Key Vault's and Managed HSM's REST interface, and of the token service beside it.

Real RSA-OAEP-256 and AES key wrap (RFC 3394) inside. Its RSA keys come from a small pool, because making them takes
long: two KEKs of one test differ all the same. Roles, firewalls, backups, throttling by the clock and the minutes that
deleting can take are not here.
"""

from __future__ import annotations

import base64
import functools
import itertools
import json
import re
import secrets
import threading
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar
from urllib.parse import parse_qs

from cryptography.hazmat.primitives import hashes, keywrap
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from .server import Certificates, Reply, Request, Server

__all__ = ["TENANT", "AzureDouble", "error"]

TENANT = "11111111-2222-3333-4444-555555555555"
_OAEP = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
_POOL = 6


def error(status: int, code: str, inner: str = "") -> Reply:
    body: dict[str, Any] = {"code": code, "message": "a text that nobody may rely on"}
    if inner:
        body["innererror"] = {"code": inner}
    return Reply(status, json.dumps({"error": body}).encode())


def _ok(**fields: Any) -> Reply:
    return Reply(200, json.dumps(fields).encode())


@functools.lru_cache
def _rsa(number: int) -> rsa.RSAPrivateKey:
    del number
    return rsa.generate_private_key(65537, 3072)


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


@dataclass
class _Key:
    kind: str
    tags: dict[str, str]
    operations: list[str]
    enabled: bool = True
    #: Version → (made at, secret).
    versions: dict[str, tuple[int, Any]] = field(default_factory=dict)


class AzureDouble:
    _numbers: ClassVar = itertools.count()

    def __init__(self, certificates: Certificates, *, purge: str = "allowed", page: int = 2) -> None:
        self.keys: dict[str, _Key] = {}
        self.deleted: dict[str, _Key] = {}
        self.tokens: set[str] = set()
        self.secret = "a~secret:with.colons"
        self.logins = 0
        #: allowed, forbidden, protected (the vault refuses), or slow (409 at first).
        self.purge = purge
        self.clock = itertools.count(int(time.time()))
        self._page, self._lock = page, threading.Lock()
        self.server = Server(certificates, self._answer)

    @property
    def authority(self) -> str:
        return self.server.url

    def _answer(self, request: Request) -> Reply:
        with self._lock:
            if request.path.startswith(f"/{TENANT}/"):
                return self._token_service(request)
            if "api-version" not in parse_qs(request.query):
                return error(400, "BadParameter")
            if request.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
                # The library wants the resource to be the domain above the vault's. An address has none, but a dot.
                resource = f"https://0.0.1:{self.server.port}"
                challenge = f'Bearer authorization="{self.authority}/{TENANT}", resource="{resource}"'
                return Reply(401, b"{}", {"WWW-Authenticate": challenge})
            return self._vault(request)

    def _token_service(self, request: Request) -> Reply:
        base = f"{self.authority}/{TENANT}"
        if request.path.endswith("/v2.0/.well-known/openid-configuration"):
            endpoints = {
                name: f"{base}/oauth2/v2.0/{name}" for name in ("authorization", "token", "device_authorization")
            }
            fields = {f"{name}_endpoint": url for name, url in endpoints.items()}
            return _ok(issuer=f"{base}/v2.0", **fields)
        form = {name: values[0] for name, values in parse_qs(request.body.decode()).items()}
        if request.path != f"/{TENANT}/oauth2/v2.0/token" or form.get("grant_type") != "client_credentials":
            return Reply(404, b"{}")
        if (form.get("client_id"), form.get("client_secret")) != ("client", self.secret):
            return Reply(401, b'{"error": "invalid_client", "error_description": "AADSTS7000215: not that one"}')
        self.logins += 1
        token = secrets.token_urlsafe(32)
        self.tokens.add(token)
        return _ok(token_type="Bearer", expires_in=3600, access_token=token)

    def _vault(self, request: Request) -> Reply:
        name = r"([0-9a-zA-Z-]{1,127})"
        routes = {
            ("POST", f"/keys/{name}/create"): self._create,
            ("GET", "/keys"): self._list,
            ("GET", f"/keys/{name}/versions"): self._versions,
            ("POST", f"/keys/{name}/([0-9a-f]{{32}})/(wrapkey|unwrapkey)"): self._operate,
            ("DELETE", f"/keys/{name}"): self._delete,
            ("GET", f"/deletedkeys/{name}"): self._show_deleted,
            ("DELETE", f"/deletedkeys/{name}"): self._purge,
        }
        for (method, pattern), call in routes.items():
            match = re.fullmatch(pattern, request.path.rstrip("/"))
            if match and method == request.method:
                return call(request, *match.groups())
        return error(404, "NotFound")

    def _bundle(self, name: str, version: str, **more: Any) -> Reply:
        key = {"kid": f"{self.server.url}/keys/{name}/{version}", "kty": "RSA", "n": _b64(b"\1" * 384), "e": "AQAB"}
        return _ok(key=key, attributes={"enabled": True, "exportable": False}, **more)

    def _create(self, request: Request, name: str) -> Reply:
        body = json.loads(request.body)
        kinds = {("RSA", 3072): "rsa", ("RSA-HSM", 3072): "rsa", ("oct-HSM", 256): "aes"}
        kind = kinds.get((body.get("kty"), body.get("key_size")))
        if kind is None or sorted(body.get("key_ops", ())) != ["unwrapKey", "wrapKey"]:
            return error(400, "BadParameter")
        if name in self.deleted:
            return error(409, "Conflict", "ObjectIsDeletedButRecoverable")
        key = self.keys.setdefault(name, _Key(kind, body.get("tags", {}), body["key_ops"]))
        version = secrets.token_hex(16)
        held = _rsa(next(self._numbers) % _POOL) if kind == "rsa" else secrets.token_bytes(32)
        key.versions[version] = (next(self.clock), held)
        return self._bundle(name, version, tags=key.tags)

    def _list(self, request: Request) -> Reply:
        after = parse_qs(request.query).get("$skiptoken", [""])[0]
        names = sorted(name for name in self.keys if name > after)
        page = names[: self._page]
        link = f"{self.server.url}/keys?api-version=7.6&$skiptoken={page[-1]}" if len(names) > len(page) else None
        items = [{"kid": f"{self.server.url}/keys/{n}", "attributes": {"enabled": True}} for n in page]
        return _ok(value=items, nextLink=link)

    def _versions(self, _: Request, name: str) -> Reply:
        if name not in self.keys:
            return error(404, "KeyNotFound")
        items = [
            {"kid": f"{self.server.url}/keys/{name}/{version}", "attributes": {"enabled": True, "created": made}}
            for version, (made, _held) in reversed(self.keys[name].versions.items())
        ]
        return _ok(value=items, nextLink=None)

    def _operate(self, request: Request, name: str, version: str, operation: str) -> Reply:
        body = json.loads(request.body)
        key = self.keys.get(name)
        if key is None or version not in key.versions:
            return error(404, "KeyNotFound")
        if not key.enabled:
            return error(403, "Forbidden", "KeyDisabled")
        wanted = {"rsa": "RSA-OAEP-256", "aes": "A256KW"}[key.kind]
        if set(body) != {"alg", "value"} or body["alg"] != wanted:
            return error(400, "BadParameter")
        held, value = key.versions[version][1], _unb64(body["value"])
        try:
            result = _transform(key.kind, held, operation, value)
        except (ValueError, keywrap.InvalidUnwrap):
            return error(400, "BadParameter")
        return _ok(kid=f"{self.server.url}/keys/{name}/{version}", value=_b64(result))

    def _deleted_bundle(self, name: str) -> Reply:
        day = int(time.time()) + 90 * 86400
        version = next(iter(self.deleted[name].versions))
        recovery = f"{self.server.url}/deletedkeys/{name}"
        return self._bundle(name, version, recoveryId=recovery, deletedDate=day - 90 * 86400, scheduledPurgeDate=day)

    def _delete(self, _: Request, name: str) -> Reply:
        if name not in self.keys:
            return error(404, "KeyNotFound")
        self.deleted[name] = self.keys.pop(name)
        return self._deleted_bundle(name)

    def _show_deleted(self, _: Request, name: str) -> Reply:
        return self._deleted_bundle(name) if name in self.deleted else error(404, "KeyNotFound")

    def _purge(self, _: Request, name: str) -> Reply:
        if name not in self.deleted:
            return error(404, "KeyNotFound")
        if self.purge == "slow":
            self.purge = "allowed"
            return error(409, "Conflict", "ObjectIsBeingDeleted")
        if self.purge != "allowed":
            return error(403, "Forbidden") if self.purge == "forbidden" else error(409, "Conflict")
        del self.deleted[name]
        return Reply(204)


def _transform(kind: str, held: Any, operation: str, value: bytes) -> bytes:
    if kind == "aes":
        call = keywrap.aes_key_wrap if operation == "wrapkey" else keywrap.aes_key_unwrap
        return call(held, value)
    if operation == "wrapkey":
        return bytes(held.public_key().encrypt(value, _OAEP))
    return bytes(held.decrypt(value, _OAEP))
