"""KBS's init-data: what an untrusted host gave a guest to start with, and where the hardware says the same. Pure.

Source: Trustee, kbs/docs/initdata.md ("Initdata Specification"). The digest is the named hash over the whole text as
it is, so one init-data has one encoding. Here it must be exactly as long as the platform's field: the specification
would pad or cut it, and what is cut binds less than it seems to.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..attestation.models import Device
from ..crypto import constant_time_equal, parse_json, sha256
from ..errors import Malformed, Untrusted
from ..fields import Fields

__all__ = ["MAX_INIT_DATA", "InitData", "check_init_data", "check_shown"]

MAX_INIT_DATA = 64 * 1024
_MAX_ENTRIES = 64
_MAX_KEY = 128
_VERSION = "0.1.0"
# IANA's "Hash Function Textual Names" have the dash, the guests' software has not.
_ALGORITHMS = {name: name.replace("-", "") for name in ("sha256", "sha384", "sha512", "sha-256", "sha-384", "sha-512")}
# Outside of strings and comments: init-data has one table and no dotted keys.
_MOST_DOTS, _MOST_BRACKETS, _MOST_COMMAS, _MOST_LINES = 16, 4, 64, 512
_MOST_QUIET = 1024  # comments and strings
# What follows the opening of a comment or a string, with its end. Possessive: no input makes one look back, and where
# one finds no end, nothing is looked for any more. So the whole text is passed once.
_OPENING = re.compile(r"""#|'''|\"\"\"|'|\"""")
_REST = {
    "#": re.compile(r"[^\n]*+"),
    "'''": re.compile(r"[^']*+(?:'(?!'')[^']*+)*+'{3,5}"),
    '"""': re.compile(r'[^"\\]*+(?:(?:\\.|"(?!""))[^"\\]*+)*+"{3,5}', re.DOTALL),
    "'": re.compile(r"[^'\n]*+'"),
    '"': re.compile(r'[^"\\\n]*+(?:\\.[^"\\\n]*+)*+"'),
}

HOST_DATA = 32  # SEV-SNP: HOST_DATA, bytes
MR_CONFIG_ID = 48  # TDX: MRCONFIGID, bytes
_FIELDS = frozenset({"snp", "tdx", "tpm"})  # platforms whose evidence can name init-data


@dataclass(frozen=True)
class InitData:
    """``data`` maps names to texts. ``digest`` is over the text that was sent; nothing vouches for it by itself."""

    algorithm: str
    digest: bytes
    data: dict[str, str]

    @classmethod
    def read(cls, value: Any) -> InitData:
        """From KBS's ``{"format": "toml" | "json", "body": text}``. Raises Malformed."""
        f = Fields(value, "init-data")
        form = f.text("format", choices=("json", "toml"))
        body = f.text("body", limit=MAX_INIT_DATA)
        f.done()
        try:
            text = body.encode()
        except UnicodeEncodeError:
            raise _malformed() from None
        if len(text) > MAX_INIT_DATA:
            raise _malformed()
        parsed = parse_json(text, limit=MAX_INIT_DATA) if form == "json" else _toml(body)
        inner = Fields(parsed, "init-data")
        inner.text("version", choices=(_VERSION,))
        algorithm = _ALGORITHMS[inner.text("algorithm", choices=tuple(_ALGORITHMS))]
        data = inner.mapping("data", _text, limit=_MAX_ENTRIES)
        inner.done()
        return cls(algorithm, hashlib.new(algorithm, text).digest(), data)


def check_shown(init: InitData, devices: Sequence[Device]) -> None:
    """``check_init_data`` for the guest among the attested devices. Init-data that nothing vouches for is refused."""
    for device in devices:
        if device.tee in _FIELDS:
            return check_init_data(init, device)
    raise Untrusted("init-data.platform", "This platform has no field that could name init-data.")


def check_init_data(init: InitData, device: Device) -> None:
    """Return only if what the hardware signed names exactly this init-data. ``device``: the attested CPU or TPM.

    snp: HOST_DATA (32 bytes); tdx: MRCONFIGID (48); tpm: PCR 8, extended once with a SHA-256 digest from zeros, as
    guests with a virtual TPM do. Raises Untrusted("init-data.*") for anything else, and for a digest of another length.
    """
    named = {**device.facts, **device.measurements}
    if device.tee == "snp":
        found, expected, size = named.get("host_data"), init.digest, HOST_DATA
    elif device.tee == "tdx":
        found, expected, size = named.get("mrconfigid"), init.digest, MR_CONFIG_ID
    elif device.tee == "tpm" and init.algorithm == "sha256":
        found, expected, size = named.get("pcr8"), sha256(bytes(32) + init.digest), 32
    elif device.tee == "tpm":
        raise Untrusted("init-data.size", "A TPM's register takes init-data with SHA-256 only.")
    else:
        raise Untrusted("init-data.platform", "This platform has no field that could name init-data.")
    if len(expected) != size:
        raise Untrusted("init-data.size", f"The init-data's digest must have exactly {size} bytes on this platform.")
    if not isinstance(found, str) or not constant_time_equal(found.encode(), expected.hex().encode()):
        raise Untrusted("init-data.other", "The hardware was started with other init-data than the guest shows.")


def _malformed() -> Malformed:
    return Malformed("init-data.form", f"Init-data is a TOML or JSON text of at most {MAX_INIT_DATA} bytes.")


def _toml(text: str) -> Any:
    # tomllib calls itself for nested values, and for a dotted key it looks at every part again for each part. So what
    # is left of the text without strings and comments must be as small as init-data is.
    bare = _bare(text)
    if bare.count(".") > _MOST_DOTS or bare.count("[") + bare.count("{") > _MOST_BRACKETS:
        raise _malformed()
    if bare.count(",") > _MOST_COMMAS or bare.count("\n") > _MOST_LINES:
        raise _malformed()
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError, ValueError):
        raise _malformed() from None


def _bare(text: str) -> str:
    """The text without comments and strings. It ends where one has no end: there tomllib stops, too."""
    parts: list[str] = []
    at = 0
    for _ in range(_MOST_QUIET):
        opening = _OPENING.search(text, at)
        if opening is None:
            return "".join((*parts, text[at:]))
        parts.append(text[at : opening.start()])
        rest = _REST[opening[0]].match(text, opening.end())
        if rest is None:
            return "".join(parts)
        at = rest.end()
    raise _malformed()


def _text(key: str, value: Any) -> str:
    if len(key) > _MAX_KEY or not isinstance(value, str):
        raise Malformed("init-data.form", "Init-data maps short names to texts.")
    return value
