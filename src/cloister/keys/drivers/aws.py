"""KEKs in AWS KMS: one symmetric key of the account for each epoch.

Experimental: it was never run against AWS. Its tests run against a double of the documented interface
(tests/kms/aws.py).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import urllib3
from botocore import exceptions as boto_errors

from ...crypto import sha256
from ...errors import Denied, Misuse
from .aws_client import Sender, kms_client, read_credential
from .naming import changed, check_url, gone, handle_text, is_key_name, key_name, line_prefix, read_number, read_options
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

__all__ = ["AwsDriver", "open_driver"]

_KEY_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|mrk-[0-9a-f]{32}")
_REGION = re.compile(r"[a-z]{2,8}(-[a-z]{2,16}){1,3}-[0-9]{1,2}")
_MAX_BOX = 2048
_LINE_TAG, _NAME_TAG = "cloister-kek", "cloister-name"
_DEFAULTS = {"endpoint": "", "ca": "", "deletion-days": "7"}
# https://docs.aws.amazon.com/kms/latest/APIReference/CommonErrors.html and each operation's own list.
_CREDENTIAL = {
    "AccessDenied",
    "AccessDeniedException",
    "ExpiredToken",
    "ExpiredTokenException",
    "IncompleteSignature",
    "InvalidClientTokenId",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "NotAuthorized",
    "OptInRequired",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
_GONE = {"DisabledException", "KMSInvalidStateException", "NotFoundException"}
_CHANGED = {"IncorrectKeyException", "InvalidCiphertextException"}
_BUSY = {
    "LimitExceededException",
    "Throttling",
    "ThrottlingException",
    "RequestLimitExceeded",
    "TooManyRequestsException",
}
_BROKEN = {
    "DependencyTimeoutException",
    "InternalFailure",
    "KMSInternalException",
    "KeyUnavailableException",
    "RequestTimeout",
    "ServiceUnavailable",
    "ServiceUnavailableException",
}


class AwsDriver(RemoteDriver):
    """``KekDriver`` over AWS KMS. A handle is the key's id; the account is the credential's and the region an option,
    so a handle can't lead elsewhere."""

    name: ClassVar[str] = "aws"
    experimental: ClassVar[bool] = True
    algorithm: ClassVar[str] = "AWS-KMS+A256GCM"

    def __init__(self, options: Mapping[str, str], credential: bytes, limits: Limits) -> None:
        super().__init__(limits)
        chosen = read_options(options, {"region"}, _DEFAULTS)
        if not _REGION.fullmatch(chosen["region"]):
            raise Misuse("driver.options", "The option region is the name of an AWS region, such as eu-central-1.")
        self._days = read_number(chosen, "deletion-days", 7, 30)
        endpoint = check_url(chosen["endpoint"], "endpoint") if chosen["endpoint"] else None
        self._sender = Sender(chosen["ca"], limits)
        self._client = kms_client(chosen["region"], endpoint, read_credential(credential), self._sender)

    def create(self, kek_id: str, epoch: int) -> bytes:
        self._check()
        name = key_name(kek_id, epoch)
        tags = [{"TagKey": _LINE_TAG, "TagValue": kek_id}, {"TagKey": _NAME_TAG, "TagValue": name}]
        # Tagged in the same call: a key that a crash leaves behind can be found. Not repeated when the answer was lost.
        made = self._call(
            lambda: self._client.create_key(
                KeyUsage="ENCRYPT_DECRYPT", KeySpec="SYMMETRIC_DEFAULT", Origin="AWS_KMS", Description=name, Tags=tags
            ),
            repeatable=False,
        )
        return _key_id(answer_field(made, "KeyMetadata", "KeyId", kind=str)).encode()

    def wrap(self, handle: bytes, dek: bytes, context: bytes) -> bytes:
        self._check(dek)
        key = handle_text(handle, _KEY_ID)
        return self._call(lambda: self._encrypt(key, dek, context))

    def unwrap(self, handle: bytes, box: bytes, context: bytes) -> bytes:
        self._check()
        key = handle_text(handle, _KEY_ID)
        # An empty box is no request at all: one byte that can't be a box lets the service say whether the KEK is there.
        sent = box if 1 <= len(box) <= _MAX_BOX else b"\0"
        return self._call(lambda: self._decrypt(key, sent, context))

    def destroy(self, handle: bytes) -> str | None:
        self._check()
        if not _KEY_ID.fullmatch(handle.decode("ascii", "replace")):
            return None  # it never named a key
        return self._call(lambda: self._schedule(handle.decode()))

    def list(self, kek_id: str) -> Sequence[bytes]:
        self._check()
        line_prefix(kek_id)
        found: list[bytes] = []
        marker = ""
        for _ in range(self._limits.pages):
            page = self._call(partial(self._client.list_keys, **({"Marker": marker} if marker else {})))
            keys = [_key_id(answer_field(key, "KeyId", kind=str)) for key in answer_field(page, "Keys", kind=list)]
            found += [key.encode() for key in keys if self._call(partial(self._is_ours, key, kek_id))]
            if not page.get("Truncated"):
                return found
            marker = answer_field(page, "NextMarker", kind=str)
        raise Denied("vault.pages", "The account holds more keys than are looked through; use an account for Cloister.")

    # What follows runs in the bounded thread.

    def _probe(self) -> object:
        return self._client.list_keys(Limit=1)

    def _encrypt(self, key: str, dek: bytes, context: bytes) -> bytes:
        answer = self._client.encrypt(
            KeyId=key, Plaintext=dek, EncryptionContext=_context(context), EncryptionAlgorithm="SYMMETRIC_DEFAULT"
        )
        _same_key(answer, key)
        box = answer_field(answer, "CiphertextBlob", kind=bytes)
        if not 1 <= len(box) <= _MAX_BOX:
            raise BadAnswer
        return box

    def _decrypt(self, key: str, box: bytes, context: bytes) -> bytes:
        try:
            answer = self._client.decrypt(
                KeyId=key,
                CiphertextBlob=box,
                EncryptionContext=_context(context),
                EncryptionAlgorithm="SYMMETRIC_DEFAULT",
            )
        except boto_errors.ClientError as error:
            if _code(error) in _CHANGED:
                raise changed() from None
            raise
        _same_key(answer, key)
        dek = answer_field(answer, "Plaintext", kind=bytes)
        if len(dek) != 32:
            raise BadAnswer
        return dek

    def _schedule(self, key: str) -> str | None:
        """Disabled first: even who takes the deletion back later finds a KEK that does nothing by itself."""
        try:
            self._client.disable_key(KeyId=key)
            self._client.schedule_key_deletion(KeyId=key, PendingWindowInDays=self._days)
        except boto_errors.ClientError as error:
            if _code(error) == "NotFoundException":
                return None
            if _code(error) != "KMSInvalidStateException":
                raise
        metadata = answer_field(self._client.describe_key(KeyId=key), "KeyMetadata", kind=dict)
        if metadata.get("KeyState") not in {"PendingDeletion", "PendingReplicaDeletion"}:
            raise BadAnswer
        day = f" on {metadata['DeletionDate']:%Y-%m-%d}" if "DeletionDate" in metadata else ""
        return f"AWS deletes the KEK{day}; until then an administrator of the account can take that back."

    def _is_ours(self, key: str, kek_id: str) -> bool:
        try:
            tags = answer_field(self._client.list_resource_tags(KeyId=key), "Tags", kind=list)
            wanted = {(_LINE_TAG, kek_id)}
            named = {tag.get("TagValue", "") for tag in tags if tag.get("TagKey") == _NAME_TAG}
            if not wanted.issubset((tag.get("TagKey"), tag.get("TagValue")) for tag in tags):
                return False
            metadata = answer_field(self._client.describe_key(KeyId=key), "KeyMetadata", kind=dict)
        except boto_errors.ClientError as error:
            # Keys of others in the same account may not be looked at; then they are not this vault's.
            if _code(error) in {"AccessDeniedException", "NotFoundException"}:
                return False
            raise
        return any(map(is_key_name, named)) and metadata.get("KeyState") in {"Enabled", "Disabled"}

    def _failure(self, error: BaseException) -> Failure:
        if isinstance(error, boto_errors.ClientError):
            code, status = _code(error), error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if code in _GONE:
                return Failure(gone())
            if code in _CREDENTIAL or status in {401, 403}:
                return Failure(credential_refused())
            if code in _BUSY or status == 429:
                return Failure(busy(), again=True, refused=True)
            return Failure(unreachable(), again=True) if code in _BROKEN or status >= 500 else common_failure(error)
        refused = common_failure(error)
        if isinstance(error, urllib3.exceptions.HTTPError) and refused.error.kind != "untrusted":
            return Failure(unreachable(), again=True)
        return refused

    def _shut(self) -> None:
        self._client.close()
        self._sender.pool.clear()


def _context(context: bytes) -> dict[str, str]:
    # The context stands in AWS' own logs: its digest says nothing to who doesn't know it.
    return {"cloister": sha256(context).hex()}


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def _key_id(text: str) -> str:
    if not _KEY_ID.fullmatch(text):
        raise BadAnswer
    return text


def _same_key(answer: object, key: str) -> None:
    """Encrypt and Decrypt answer with the ARN of the key that they used."""
    if answer_field(answer, "KeyId", kind=str).rpartition("/")[2] != key:
        raise BadAnswer


def open_driver(options: Mapping[str, str], credential: bytes, *, limits: Limits = LIMITS) -> AwsDriver:
    """Options: ``region``; ``endpoint`` (a private one), ``ca``, ``deletion-days`` (7). ``credential``:
    ``ACCESS_KEY:SECRET_KEY[:SESSION_TOKEN]`` or JSON; nothing is searched for elsewhere.

    Raises Misuse, Denied (``vault.credential``), Untrusted (``vault.tls``), Unavailable.
    """
    return AwsDriver(options, credential, limits).started()
