"""The client of Google Cloud KMS: its channel, what it logs in with, and the checksum that its interface asks for."""

from __future__ import annotations

import json
from typing import Any

import certifi
import grpc
from google.auth import exceptions as auth_errors
from google.auth import jwt

from ...errors import Misuse
from .remote import Limits

__all__ = ["crc32c", "kms_channel", "read_account"]

_AUDIENCE = "https://cloudkms.googleapis.com/"


def _crc_table() -> tuple[int, ...]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


_CRC = _crc_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4) against accidents on the way, as Google asks. It stops nobody."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def kms_channel(endpoint: str, ca: str, limits: Limits) -> grpc.Channel:
    """TLS always: gRPC would send the token in the clear otherwise. The roots are named, because gRPC takes others from
    the environment, where it also looks for proxies."""
    if not endpoint.startswith("https://"):
        raise Misuse("driver.url", "The option endpoint must be an https address.")
    target = endpoint.removeprefix("https://")
    try:
        with open(ca or certifi.where(), "rb") as file:
            roots = file.read()
    except OSError:
        raise Misuse("driver.options", "The file of certificates of the option ca can't be read.") from None
    options = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.max_receive_message_length", limits.answer),
        ("grpc.service_config_disable_resolution", 1),
        ("grpc.enable_retries", 0),
        # Without it a channel remembers for a minute that the service was not there.
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    address = target if ":" in target else f"{target}:443"
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(root_certificates=roots), options)


def read_account(credential: bytes) -> Any:
    """The key of a service account as Google gives it out; only what signs is taken from it, no addresses."""
    try:
        fields = json.loads(credential)
        wanted = {name: fields[name] for name in ("client_email", "private_key", "private_key_id")}
        if fields["type"] == "service_account" and all(isinstance(value, str) for value in wanted.values()):
            info = {
                **wanted,
                "token_uri": _AUDIENCE,
            }  # required by the reader, never contacted: the token is signed here
            reader: Any = jwt.Credentials
            return reader.from_service_account_info(info, audience=_AUDIENCE)
    except (ValueError, KeyError, TypeError, auth_errors.GoogleAuthError):
        raise _bad_account() from None
    raise _bad_account()


def _bad_account() -> Misuse:
    return Misuse("driver.credential", "The credential is the JSON key of a Google service account.")
