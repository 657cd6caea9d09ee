"""Makes ``tests/vectors/kbs_jwe.json``: responses of a key broker to fixed keys, by the stock broker's own code path.

    .venv/bin/python -m tests.kbs_vectors

The keys are of no use to anybody: they are written here. Each bad case says why it must fail.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from tests.trustee_double import b64, encrypt, unb64

VECTORS = Path(__file__).parent / "vectors" / "kbs_jwe.json"
PLAINTEXT = b"32 bytes of a key, or a document"


def _jwk(private: Any) -> dict[str, str]:
    n = private.public_key().public_numbers()
    if isinstance(n, rsa.RSAPublicNumbers):
        return {"kty": "RSA", "alg": "RSA-OAEP-256", "n": b64(n.n.to_bytes(256, "big")), "e": "AQAB"}
    x, y = (b64(value.to_bytes(32, "big")) for value in (n.x, n.y))
    return {"kty": "EC", "crv": "P-256", "alg": "ECDH-ES+A256KW", "x": x, "y": y}


def _pem(private: Any) -> str:
    form = serialization.PrivateFormat.PKCS8
    return private.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()).decode()


def _flip(text: str) -> str:
    raw = bytearray(unb64(text))
    raw[0] ^= 1
    return b64(bytes(raw))


def _header(jwe: dict[str, str], **changes: Any) -> dict[str, str]:
    header = {**json.loads(unb64(jwe["protected"])), **changes}
    return {**jwe, "protected": b64(json.dumps(header, separators=(",", ":")).encode())}


def make() -> dict[str, Any]:
    keys = {"ec": ec.generate_private_key(ec.SECP256R1()), "rsa": rsa.generate_private_key(65537, 2048)}
    jwks = {name: _jwk(key) for name, key in keys.items()}
    good = [
        {
            "name": f"{name}, {'with' if aad else 'without'} aad",
            "key": name,
            "jwe": encrypt(jwk, PLAINTEXT, with_aad=aad),
        }
        for name, jwk in jwks.items()
        for aad in (True, False)
    ]
    bad = []
    for name, jwk in jwks.items():
        jwe = encrypt(jwk, PLAINTEXT, with_aad=False)
        other = "RSA-OAEP-256" if name == "ec" else "ECDH-ES+A256KW"
        for why, changed in (
            ("the ciphertext was changed", {**jwe, "ciphertext": _flip(jwe["ciphertext"])}),
            ("the tag was changed", {**jwe, "tag": _flip(jwe["tag"])}),
            ("the tag was cut", {**jwe, "tag": b64(unb64(jwe["tag"])[:12])}),
            ("the wrapped key was changed", {**jwe, "encrypted_key": _flip(jwe["encrypted_key"])}),
            ("the header was written again with a space", {**jwe, "protected": b64(unb64(jwe["protected"]) + b" ")}),
            ("RSA1_5 is refused everywhere", _header(jwe, alg="RSA1_5")),
            ("the header names the other kind of key", _header(jwe, alg=other)),
            ("another content algorithm", _header(jwe, enc="A128GCM")),
            ("a critical extension that nobody here knows", _header(jwe, crit=["exp"])),
            ("a compressed text could be endless", _header(jwe, zip="DEF")),
            ("aad is something else than the header", {**jwe, "aad": b64(b"other")}),
            ("aad is the header encoded twice", {**jwe, "aad": b64(jwe["protected"].encode())}),
            ("a member that KBS does not have", {**jwe, "unprotected": {}}),
            ("base64url with padding", {**jwe, "iv": jwe["iv"] + "="}),
        ):
            bad.append({"name": f"{name}: {why}", "key": name, "jwe": changed})
    return {
        "about": "Responses of a stock key broker (KBS 0.2 to 0.4) to two fixed keys. What opens opens to 'plaintext'.",
        "plaintext": PLAINTEXT.decode(),
        "keys": {name: {"public": jwks[name], "private": _pem(key)} for name, key in keys.items()},
        "good": good,
        "bad": bad,
    }


if __name__ == "__main__":
    VECTORS.write_text(json.dumps(make(), indent=1) + "\n")
