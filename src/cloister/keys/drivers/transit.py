"""KEKs in the transit engine of OpenBao or HashiCorp Vault: one key of the engine for each epoch.

Experimental: no server of either could be had where this was built. Its tests run against a double of the HTTP
interface that the two document (tests/kms/transit.py).
"""

from __future__ import annotations

import base64
import binascii
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import hvac
from hvac import exceptions as hvac_errors

from ...errors import CloisterError, Misuse, Untrusted
from .naming import changed, check_path, check_url, gone, handle_text, is_key_name, key_name, line_prefix, read_options
from .remote import (
    LIMITS,
    BadAnswer,
    Failure,
    Limits,
    RemoteDriver,
    answer_field,
    busy,
    common_failure,
    credential_refused,
    unreachable,
)
from .sessions import bounded_session

__all__ = ["TransitDriver", "open_driver"]

_TYPE = "aes256-gcm96"
_SEALED = 12 + 32 + 16  # nonce ‖ ciphertext ‖ tag
_BOX = 4 + _SEALED
_DEFAULTS = {"mount": "transit", "namespace": "", "ca": "", "auth": "token", "approle-mount": "approle"}


@dataclass(frozen=True)
class _Token:
    text: str
    renewable: bool
    renew_at: float  # on the monotonic clock; infinity for a token that does not end

    def __repr__(self) -> str:
        return "_Token(…)"


class TransitDriver(RemoteDriver):
    """``KekDriver`` over the transit engine. A handle is the key's name; a box is ``key version (4, big-endian) ‖ nonce
    ‖ ciphertext ‖ tag``: the engine's own text form would allow two spellings of one box."""

    name: ClassVar[str] = "transit"
    experimental: ClassVar[bool] = True
    algorithm: ClassVar[str] = "TRANSIT+A256GCM"

    def __init__(self, options: Mapping[str, str], credential: bytes, limits: Limits) -> None:
        super().__init__(limits)
        chosen = read_options(options, {"url"}, _DEFAULTS)
        self._url, self._namespace = check_url(chosen["url"], "url"), chosen["namespace"] or None
        self._mount = check_path(chosen["mount"], "mount")
        self._approle_mount = check_path(chosen["approle-mount"], "approle-mount")
        self._secret = _credential(credential, chosen["auth"])
        self._session = bounded_session(limits, chosen["ca"] or None)
        self._lock = threading.Lock()
        self._token: _Token | None = None

    def create(self, kek_id: str, epoch: int) -> bytes:
        self._check()
        name = key_name(kek_id, epoch)
        # Creating a key that is there changes nothing, and the name is ours alone: safe to repeat.
        self._call(lambda: self._create(name))
        return name.encode()

    def wrap(self, handle: bytes, dek: bytes, context: bytes) -> bytes:
        self._check(dek)
        name = handle_text(handle)
        return self._call(lambda: self._encrypt(name, dek, context))

    def unwrap(self, handle: bytes, box: bytes, context: bytes) -> bytes:
        self._check()
        name = handle_text(handle)
        if len(box) != _BOX:
            self._call(lambda: self._read(name))  # where the KEK is gone, that is the refusal, whatever the box
            raise changed()
        return self._call(lambda: self._decrypt(name, box, context))

    def destroy(self, handle: bytes) -> str | None:
        self._check()
        try:
            name = handle_text(handle)
        except CloisterError:
            return None  # it never named a key
        if not self._call(lambda: self._delete(name)):
            return None
        return "Snapshots of the OpenBao or Vault server that were made before still hold the KEK; delete them there."

    def list(self, kek_id: str) -> Sequence[bytes]:
        self._check()
        prefix = line_prefix(kek_id)
        return [n.encode() for n in self._call(self._names) if n.startswith(prefix) and is_key_name(n)]

    # What follows runs in the bounded thread.

    def _probe(self) -> object:
        return self._names()

    def _create(self, name: str) -> None:
        transit = self._client().secrets.transit
        transit.create_key(
            name, exportable=False, allow_plaintext_backup=False, key_type=_TYPE, mount_point=self._mount
        )
        self._require(name)

    def _require(self, name: str) -> None:
        """Raise Denied unless the key is there, and Untrusted unless it still is what ``create`` made: whoever
        administers the server could have made it exportable."""
        data = self._read(name)
        wanted = {"type": _TYPE, "derived": False, "exportable": False, "allow_plaintext_backup": False}
        if any(data.get(field) != value for field, value in wanted.items()):
            raise Untrusted("vault.extractable", "The KEK was made exportable at the server; rotate to a new epoch.")

    def _read(self, name: str) -> dict[str, Any]:
        answer = self._client().secrets.transit.read_key(name, mount_point=self._mount)
        return answer_field(answer, "data", kind=dict)

    def _encrypt(self, name: str, dek: bytes, context: bytes) -> bytes:
        # Encrypting under a name that is gone makes a new key, where the policy allows to create: so look first.
        self._require(name)
        answer = self._client().secrets.transit.encrypt_data(
            name, plaintext=_b64(dek), associated_data=_b64(context), mount_point=self._mount
        )
        return _box(answer_field(answer, "data", "ciphertext", kind=str))

    def _decrypt(self, name: str, box: bytes, context: bytes) -> bytes:
        text = f"vault:v{int.from_bytes(box[:4], 'big')}:{_b64(box[4:])}"
        try:
            answer = self._client().secrets.transit.decrypt_data(
                name, ciphertext=text, associated_data=_b64(context), mount_point=self._mount
            )
        except hvac_errors.InvalidRequest:
            # The server says 400 for a missing key and for a changed box; only its prose differs.
            self._read(name)
            raise changed() from None
        dek = _unb64(answer_field(answer, "data", "plaintext", kind=str))
        if len(dek) != 32:
            raise BadAnswer
        return dek

    def _delete(self, name: str) -> bool:
        transit = self._client().secrets.transit
        try:
            self._read(name)
            transit.update_key_configuration(name, deletion_allowed=True, mount_point=self._mount)
            transit.delete_key(name, mount_point=self._mount)
        except hvac_errors.InvalidPath:
            return False
        return True

    def _names(self) -> Sequence[str]:
        try:
            answer = self._client().secrets.transit.list_keys(mount_point=self._mount)
        except hvac_errors.InvalidPath as error:
            if error.errors:  # an empty list has none
                raise _no_mount() from None
            return []
        return [str(name) for name in answer_field(answer, "data", "keys", kind=list)]

    # Logging in

    def _client(self, *, token: str | None = None) -> Any:
        """A client is cheap and holds one token; the session with its connections is shared."""
        return hvac.Client(
            url=self._url,
            token=self._fresh().text if token is None else token,
            verify=self._session.verify,
            allow_redirects=False,
            session=self._session,
            namespace=self._namespace,
        )

    def _fresh(self) -> _Token:
        with self._lock:
            if self._token is None or time.monotonic() >= self._token.renew_at:
                self._token = self._obtained(self._token)
            return self._token

    def _obtained(self, old: _Token | None) -> _Token:
        """Renew a token that allows it; else log in, or look at the one that the owner gave."""
        if old is not None and old.renewable:
            try:
                return _token(self._client(token=old.text).auth.token.renew_self(), old.text)
            except (hvac_errors.Forbidden, hvac_errors.InvalidRequest):
                if len(self._secret) == 1:
                    raise
        if len(self._secret) == 1:
            looked = self._client(token=self._secret[0]).auth.token.lookup_self()
            return _token({"auth": _as_auth(looked)}, self._secret[0])
        role, secret = self._secret
        try:
            login = self._client(token="").auth.approle.login(
                role, secret, use_token=False, mount_point=self._approle_mount
            )
        except hvac_errors.InvalidRequest:
            raise credential_refused() from None  # how the server answers a wrong role or secret
        except hvac_errors.InvalidPath:
            raise _no_mount() from None
        return _token(login, answer_field(login, "auth", "client_token", kind=str))

    def _login(self) -> bool:
        if len(self._secret) == 1:
            return False
        with self._lock:
            self._token = None
        self._fresh()
        return True

    def _failure(self, error: BaseException) -> Failure:
        if isinstance(error, hvac_errors.InvalidPath):
            return Failure(gone())
        if isinstance(error, hvac_errors.Forbidden | hvac_errors.Unauthorized):
            return Failure(credential_refused(), expired=True)
        if isinstance(error, hvac_errors.RateLimitExceeded):
            return Failure(busy(), again=True, refused=True)
        if isinstance(error, hvac_errors.InternalServerError | hvac_errors.BadGateway | hvac_errors.VaultDown):
            return Failure(unreachable(), again=True)
        return common_failure(error)

    def _shut(self) -> None:
        self._session.close()
        self._token = None


def _no_mount() -> Misuse:
    return Misuse("driver.mount", "The server has nothing at that mount and namespace; check the options.")


def _credential(credential: bytes, auth: str) -> tuple[str, ...]:
    try:
        text = credential.decode("ascii")
    except UnicodeDecodeError:
        text = ""
    parts = {"token": (text,), "approle": tuple(text.split(":"))}.get(auth)
    if parts is None:
        raise Misuse("driver.options", "The option auth is token or approle.")
    if len(parts) != (1 if auth == "token" else 2) or not all(p and p.isprintable() and " " not in p for p in parts):
        raise Misuse("driver.credential", 'The credential is a token, or with auth=approle "ROLE_ID:SECRET_ID".')
    return parts


def _token(answer: object, text: str) -> _Token:
    """Renewed after two thirds of its time, as long as it can be; a lease of 0 never ends."""
    lease = answer_field(answer, "auth", "lease_duration", kind=int)
    renewable = answer_field(answer, "auth", "renewable", kind=bool)
    return _Token(text, renewable, time.monotonic() + lease * 2 / 3 if lease > 0 else float("inf"))


def _as_auth(looked: object) -> dict[str, Any]:
    ttl = answer_field(looked, "data", "ttl", kind=int)
    renewable = answer_field(looked, "data", "renewable", kind=bool)
    # One that can't be renewed is used until the server refuses it: looking again would not help.
    return {"lease_duration": ttl if renewable else 0, "renewable": renewable}


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _unb64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadAnswer from None


def _box(ciphertext: str) -> bytes:
    parts = ciphertext.split(":")
    if len(parts) != 3 or parts[0] != "vault" or not parts[1].startswith("v") or not parts[1][1:].isdecimal():
        raise BadAnswer
    version, sealed = int(parts[1][1:]), _unb64(parts[2])
    if not 1 <= version < 2**32 or len(sealed) != _SEALED:
        raise BadAnswer
    return version.to_bytes(4, "big") + sealed


def open_driver(options: Mapping[str, str], credential: bytes, *, limits: Limits = LIMITS) -> TransitDriver:
    """Options: ``url``; ``mount`` (transit), ``namespace``, ``ca`` (a file of certificates), ``auth`` (token or
    approle), ``approle-mount``. ``credential``: a token, or ``ROLE_ID:SECRET_ID``.

    Raises Misuse, Denied (``vault.credential``), Untrusted (``vault.tls``), Unavailable.
    """
    return TransitDriver(options, credential, limits).started()
