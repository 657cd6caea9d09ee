"""What the drivers of services take in and call things by: options, addresses, names of keys, bound plaintexts."""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Mapping
from urllib.parse import urlsplit

from ...crypto import constant_time_equal, sha256
from ...errors import Denied, Misuse, Untrusted
from ..models import DEK_SIZE

__all__ = [
    "bind",
    "changed",
    "check_path",
    "check_url",
    "gone",
    "handle_text",
    "is_key_name",
    "key_name",
    "line_prefix",
    "read_number",
    "read_options",
    "unbind",
]

_PATH = re.compile(r"[A-Za-z0-9_.-]{1,128}(/[A-Za-z0-9_.-]{1,128}){0,15}")
_KEK_ID = re.compile(r"[0-9a-f]{32}")
# Fits what every service takes as a name (Google's 63 characters are the least). The end is random: a new KEK never
# takes up a key that lies there already.
_NAME = re.compile(r"cloister-[0-9a-f]{32}-[1-9][0-9]{0,9}-[0-9a-f]{10}")


def changed() -> Untrusted:
    return Untrusted("wrap.changed", "A wrapped key does not open: it was changed, or wrapped for something else.")


def gone() -> Denied:
    return Denied(
        "wrap.gone", "The service does not hold that KEK, or it was disabled there; what it wrapped can't be opened."
    )


def read_options(options: Mapping[str, str], required: set[str], optional: Mapping[str, str]) -> dict[str, str]:
    """All options, with defaults. Raises Misuse for one that is missing, empty or unknown: a typing error must not
    silently leave a setting at its default."""
    missing = sorted(name for name in required if not options.get(name))
    if missing:
        raise Misuse("driver.options", f"This vault driver needs the option {missing[0]}; see docs/vaults.md.")
    known = {*required, *optional}
    if not known.issuperset(options):
        raise Misuse("driver.options", f"This vault driver has the options {', '.join(sorted(known))}; no others.")
    return {**optional, **options}


def read_number(chosen: Mapping[str, str], name: str, lowest: int, highest: int) -> int:
    """The option ``name`` as a whole number within bounds. Raises Misuse."""
    text = chosen[name]
    if not text.isdecimal() or not lowest <= int(text) <= highest:
        raise Misuse("driver.options", f"The option {name} is a number from {lowest} to {highest}.")
    return int(text)


def check_url(url: str, name: str) -> str:
    """An https address, or http on loopback. Raises Misuse; credentials and queries have no place in it."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host, parts = "", urlsplit("")
    allowed = parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))
    if not (host and allowed) or parts.query or parts.fragment or "@" in parts.netloc or "\\" in url:
        raise Misuse("driver.url", f"The option {name} must be an https address, without credentials and query.")
    return url.rstrip("/")


def check_path(path: str, name: str) -> str:
    """Names with "/" between them, which can't climb out of their place in an address. Raises Misuse."""
    path = path.strip("/")
    if not _PATH.fullmatch(path) or ".." in path:
        raise Misuse(
            "driver.options", f"The option {name} is names of letters, digits, '-', '_' and '.', with '/' between."
        )
    return path


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def key_name(kek_id: str, epoch: int) -> str:
    """A new name for a KEK at a service; ``list`` finds it by its beginning. Raises Misuse."""
    name = f"{line_prefix(kek_id)}{epoch}-{secrets.token_hex(5)}"
    if not _NAME.fullmatch(name):
        raise Misuse("vault.epoch", "An epoch is a number from 1 to 9,999,999,999.")
    return name


def line_prefix(kek_id: str) -> str:
    if not _KEK_ID.fullmatch(kek_id):
        raise Misuse("vault.kek", "A KEK id has 32 hex digits.")
    return f"cloister-{kek_id}-"


def is_key_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def handle_text(handle: bytes, form: re.Pattern[str] = _NAME) -> str:
    """A handle as the name it is. Raises Denied for anything else: it goes into addresses, so nothing is passed on that
    could mean another path, key ring or account."""
    text = handle.decode("ascii", "replace")
    if not form.fullmatch(text):
        raise gone()
    return text


def bind(dek: bytes, context: bytes) -> bytes:
    """``dek ‖ SHA-256(context)``: what is wrapped where the service takes no associated data."""
    return dek + sha256(context)


def unbind(plaintext: bytes, context: bytes) -> bytes:
    """The inverse. Raises Untrusted for another context. The wrap authenticates or, for RSA-OAEP, can't be changed
    without the key, so nobody can exchange the digest beside a key that they don't know."""
    dek, digest = plaintext[:DEK_SIZE], plaintext[DEK_SIZE:]
    if not constant_time_equal(digest, sha256(context)):
        raise changed()
    return dek
