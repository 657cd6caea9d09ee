"""Cryptography in one place: the only package that imports crypto libraries (CI enforces it).

The tour: ``framing`` (unambiguous concatenation, SHA-256), ``canonical`` (RFC 8785 JSON), ``kdf``
(HKDF, Argon2id), ``aead`` (small secrets), ``streaming`` (files, Tink's format), ``signatures``,
``dsse`` (signed documents), ``hpke`` (keys to a workload or recipient), ``jwe`` (KBS responses),
``tls`` (pinned transport). For evidence of hardware: ``der``, ``certificates``, ``x509``, ``ocsp``
(vendors' chains), ``canonical_xml`` and ``xmldsig`` (signed manifests), ``cbor`` and ``cose`` (signed
reference values), ``jws`` (results of other verifiers), ``tpm_credential``. Verification raises; nothing
here returns a bool that could be ignored.
"""

from .aead import open_box, seal_box
from .canonical import canonical_json, parse_canonical, parse_json
from .dsse import Envelope, sign_document
from .framing import frame, random_bytes, sha256
from .hpke import HpkePrivateKey, hpke_seal
from .jwe import JweKey, b64url, jwe_encrypt, unb64url
from .kdf import Argon2Params, argon2id, constant_time_equal, hkdf
from .signatures import Signer, SigningKey, fingerprint, verify_ed25519, verify_hardware_signature

__all__ = [
    "Argon2Params",
    "Envelope",
    "HpkePrivateKey",
    "JweKey",
    "Signer",
    "SigningKey",
    "argon2id",
    "b64url",
    "canonical_json",
    "constant_time_equal",
    "fingerprint",
    "frame",
    "hkdf",
    "hpke_seal",
    "jwe_encrypt",
    "open_box",
    "parse_canonical",
    "parse_json",
    "random_bytes",
    "seal_box",
    "sha256",
    "sign_document",
    "unb64url",
    "verify_ed25519",
    "verify_hardware_signature",
]
