"""KEKs in Azure Key Vault (RSA) or Managed HSM (AES): one key for each epoch.

Experimental: it was never run against Azure. Its tests run against a double of the documented interface
(tests/kms/azure.py).
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar
from urllib.parse import urlsplit

import requests
from azure.core import exceptions as azure_errors
from azure.core.pipeline.transport import RequestsTransport
from azure.core.rest import HttpRequest
from azure.identity import ClientSecretCredential
from azure.keyvault.keys import KeyClient, KeyOperation

from ...crypto import b64url, unb64url
from ...errors import CloisterError, Malformed, Misuse
from .naming import (
    bind,
    changed,
    check_url,
    gone,
    handle_text,
    is_key_name,
    key_name,
    line_prefix,
    read_options,
    unbind,
)
from .remote import (
    LIMITS,
    BadAnswer,
    Failure,
    Limits,
    RemoteDriver,
    answer_field,
    busy,
    causes,
    common_failure,
    credential_refused,
    quiet,
    unreachable,
)
from .sessions import bounded_session

__all__ = ["AzureDriver", "AzureHsmDriver", "open_driver"]

_HANDLE = re.compile(r"cloister-[0-9a-f]{32}-[1-9][0-9]{0,9}-[0-9a-f]{10}/[0-9a-f]{32}")
_ID = re.compile(r"[A-Za-z0-9._~-]{1,128}")
_MAX_BOX = 2048
_BOUND = 32 + 32  # data key ‖ digest of its context
_DEFAULTS = {"key": "rsa", "hsm": "no", "authority": "https://login.microsoftonline.com", "ca": ""}
_OPERATIONS: list[str | KeyOperation] = [KeyOperation.wrap_key, KeyOperation.unwrap_key]
_Clients = tuple[ClientSecretCredential, KeyClient]
_REGION_VARIABLE = "AZURE_REGIONAL_AUTHORITY_NAME"


class AzureDriver(RemoteDriver):
    """``KekDriver`` over Key Vault with RSA-3072. A handle is ``name/version``; the vault is an option, so a handle
    can't lead elsewhere.

    RSA-OAEP hides and binds, but whoever may read the public key can make a box, too: the manifest's commitment to its
    data key refuses what such a box holds. ``AzureHsmDriver`` has no public part.
    """

    name: ClassVar[str] = "azure"
    experimental: ClassVar[bool] = True
    algorithm: ClassVar[str] = "RSA-OAEP-256"

    def __init__(self, chosen: Mapping[str, str], credential: bytes, limits: Limits) -> None:
        super().__init__(limits)
        url, authority = _https(chosen["url"], "url"), _https(chosen["authority"], "authority")
        self._hardware = chosen["hsm"] == "yes"
        application = _credential(credential)
        quiet("azure", "msal", "urllib3")
        self._session = bounded_session(limits, chosen["ca"] or None)
        self._connect: Callable[[], _Clients] = partial(_clients, url, authority, application, self._session)
        self._identity, self._client = self._connect()

    def create(self, kek_id: str, epoch: int) -> bytes:
        self._check()
        name = key_name(kek_id, epoch)
        tags = {"cloister-kek": kek_id, "cloister-epoch": str(epoch)}
        # Repeating it would make a second version of the key.
        made = self._call(lambda: self._make(name, tags), repeatable=False)
        return f"{name}/{made.properties.version}".encode()

    def wrap(self, handle: bytes, dek: bytes, context: bytes) -> bytes:
        self._check(dek)
        path = handle_text(handle, _HANDLE)
        box = self._call(lambda: self._operate(path, "wrapkey", bind(dek, context)))
        if not 1 <= len(box) <= _MAX_BOX:
            raise common_failure(BadAnswer()).error
        return box

    def unwrap(self, handle: bytes, box: bytes, context: bytes) -> bytes:
        self._check()
        path = handle_text(handle, _HANDLE)
        sent = box if 1 <= len(box) <= _MAX_BOX else b"\0"  # the service then says whether the KEK is there at all
        plaintext = self._call(lambda: self._operate(path, "unwrapkey", sent))
        if len(plaintext) != _BOUND or len(sent) != len(box):
            raise changed()
        return unbind(plaintext, context)

    def destroy(self, handle: bytes) -> str | None:
        self._check()
        try:
            path = handle_text(handle, _HANDLE)
        except CloisterError:
            return None  # it never named a key
        return self._call(lambda: self._delete(path.partition("/")[0]))

    def list(self, kek_id: str) -> Sequence[bytes]:
        self._check()
        prefix = line_prefix(kek_id)
        names = [n for n in self._call(self._names) if n.startswith(prefix) and is_key_name(n)]
        found = (self._call(partial(self._first, name)) for name in names)
        return [handle for handle in found if handle]

    # What follows runs in the bounded thread.

    def _probe(self) -> object:
        return next(self._client.list_properties_of_keys(max_page_size=1).by_page(), None)

    def _make(self, name: str, tags: dict[str, str]) -> Any:
        return self._client.create_rsa_key(
            name, size=3072, hardware_protected=self._hardware, key_operations=_OPERATIONS, tags=tags
        )

    def _operate(self, path: str, operation: str, value: bytes) -> bytes:
        """``wrapkey`` or ``unwrapkey`` at the service. The library's own class would wrap here, with a public key that
        it keeps: also after the KEK was destroyed."""
        body = {"alg": self.algorithm, "value": b64url(value)}
        answer = self._client.send_request(HttpRequest("POST", f"keys/{path}/{operation}", json=body))
        if answer.status_code == 400 and operation == "unwrapkey":
            raise changed()
        answer.raise_for_status()
        decoded = answer.json()
        if not answer_field(decoded, "kid", kind=str).endswith(f"/keys/{path}"):
            raise BadAnswer
        try:
            return unb64url(answer_field(decoded, "value", kind=str))
        except Malformed:
            raise BadAnswer from None

    def _delete(self, name: str) -> str | None:
        try:
            self._client.begin_delete_key(name)
        except azure_errors.ResourceNotFoundError:
            if self._deleted(name) is None:
                return None
        try:
            self._client.purge_deleted_key(name)
        except azure_errors.ResourceNotFoundError:
            return None
        except (azure_errors.HttpResponseError, azure_errors.ResourceExistsError) as error:
            # 403: purging is not allowed here; 409: deleting is still going on, or the vault protects from purging.
            if error.status_code not in {400, 403, 409}:
                raise
            return self._remains(self._deleted(name))
        return None

    def _deleted(self, name: str) -> Any:
        try:
            return self._client.get_deleted_key(name)
        except azure_errors.ResourceNotFoundError:
            return None

    def _remains(self, deleted: Any) -> str:
        day = getattr(deleted, "scheduled_purge_date", None)
        until = f" until {day:%Y-%m-%d}" if day else ""
        return (
            f"Azure keeps the deleted KEK{until}; whoever may recover keys of this vault can bring it back before that."
        )

    def _names(self) -> Sequence[str]:
        names: list[str] = []
        for number, page in enumerate(self._client.list_properties_of_keys().by_page()):
            if number >= self._limits.pages:
                raise BadAnswer
            names += [key.name for key in page if key.name]
        return names

    def _first(self, name: str) -> bytes | None:
        """The handle that ``create`` gave: the oldest version, in case that somebody rotated the key there."""
        found = self._client.list_properties_of_key_versions(name)
        versions = [(v.created_on, v.version) for v in found if v.created_on and v.version]
        return f"{name}/{min(versions)[1]}".encode() if versions else None

    def _login(self) -> bool:
        """The library would take the refused token from its memory again: start with an empty one."""
        self._identity, self._client = self._connect()
        return True

    def _failure(self, error: BaseException) -> Failure:
        if isinstance(error, azure_errors.ResourceNotFoundError):
            return Failure(gone())
        if isinstance(error, azure_errors.HttpResponseError) and error.status_code:
            return self._of_status(error)
        # What the token service does comes as one class, whether it refused or was not there at all.
        transport = (azure_errors.ServiceRequestError, azure_errors.ServiceResponseError, OSError)
        refused = common_failure(error)
        if refused.error.kind == "untrusted":
            return refused
        if any(isinstance(cause, transport) for cause in causes(error)):
            return Failure(unreachable(), again=True)
        return Failure(credential_refused()) if isinstance(error, azure_errors.ClientAuthenticationError) else refused

    def _of_status(self, error: azure_errors.HttpResponseError) -> Failure:
        status = error.status_code or 0
        if status == 404:
            return Failure(gone())
        if status in {401, 403}:
            disabled = "KeyDisabled" in (error.response.text() if error.response else "")
            return Failure(gone()) if disabled else Failure(credential_refused(), expired=status == 401)
        if status == 429:
            return Failure(busy(), again=True, refused=True)
        return Failure(unreachable(), again=True) if status >= 500 else common_failure(BadAnswer())

    def _shut(self) -> None:
        self._client.close()
        self._identity.close()
        self._session.close()


class AzureHsmDriver(AzureDriver):
    """AES-256 key wrap (RFC 3394) in a Managed HSM."""

    algorithm: ClassVar[str] = "A256KW"

    def _make(self, name: str, tags: dict[str, str]) -> Any:
        return self._client.create_oct_key(
            name, size=256, hardware_protected=True, key_operations=_OPERATIONS, tags=tags
        )


def _clients(url: str, authority: str, application: tuple[str, str, str], session: requests.Session) -> _Clients:
    """What logs in, and what calls the vault; both over the one session, without a retry of their own."""
    transport = {"session": session, "session_owner": False, "use_env_settings": False}
    identity = ClientSecretCredential(
        *application,
        authority=authority,
        # Else a fixed address of Microsoft's is asked whether this authority is one; the owner named it.
        disable_instance_discovery=True,
        transport=RequestsTransport(**transport),
        retry_total=0,
    )
    client = KeyClient(url, identity, transport=RequestsTransport(**transport), retry_total=0, permit_redirects=False)
    return identity, client


def _https(url: str, name: str) -> str:
    url = check_url(url, name)
    if urlsplit(url).scheme != "https":
        raise Misuse("driver.url", f"The option {name} must be an https address.")
    return url


def _credential(credential: bytes) -> tuple[str, str, str]:
    try:
        tenant, client, secret = credential.decode("ascii").split(":", 2)
    except (UnicodeDecodeError, ValueError):
        tenant = client = secret = ""
    if not (_ID.fullmatch(tenant) and _ID.fullmatch(client) and secret and secret.isprintable()):
        raise Misuse("driver.credential", 'The credential is "TENANT:CLIENT:SECRET" of an application.')
    return tenant, client, secret


def open_driver(options: Mapping[str, str], credential: bytes, *, limits: Limits = LIMITS) -> AzureDriver:
    """Options: ``url`` of the vault; ``key`` (rsa, or oct-hsm in a Managed HSM), ``hsm`` (yes: RSA in hardware),
    ``authority``, ``ca``. ``credential``: ``TENANT:CLIENT:SECRET``.

    Raises Misuse, Denied (``vault.credential``), Untrusted (``vault.tls``), Unavailable.
    """
    chosen = read_options(options, {"url"}, _DEFAULTS)
    kinds = {"rsa": AzureDriver, "oct-hsm": AzureHsmDriver}
    if chosen["key"] not in kinds or chosen["hsm"] not in {"yes", "no"}:
        raise Misuse("driver.options", "The option key is rsa or oct-hsm, the option hsm yes or no.")
    if os.environ.get(_REGION_VARIABLE):
        # The library would ask this machine's metadata service where it runs.
        raise Misuse(
            "driver.options", f"Unset {_REGION_VARIABLE}: the azure driver takes nothing from the environment."
        )
    return kinds[chosen["key"]](chosen, credential, limits).started()
