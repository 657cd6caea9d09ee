"""The sender's half of TPM 2.0 credential protection: a secret that one TPM opens only beside one named key.

Source: TCG TPM 2.0 Library, Part 1 §24 (credential protection), §11.4.10 (KDFa, KDFe), annexes B.10.4 (RSA) and C.6.4
(ECC). What comes out is bytes for TPM2_ActivateCredential; the receiving half is in the TPM alone.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.decrepit.ciphers.modes import CFB
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from ..errors import Malformed, Misuse
from .framing import random_bytes

__all__ = ["kdfa", "kdfe", "make_credential"]

_HASHES: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha384": hashes.SHA384(),
    "sha512": hashes.SHA512(),
}


def kdfa(hash_name: str, key: bytes, label: bytes, u: bytes, v: bytes, bits: int) -> bytes:
    """Part 1 §11.4.10.2: HMAC in counter mode (SP 800-108). ``label``: without its closing zero. ``bits``: whole
    bytes."""
    out = b""
    counter = 1
    while len(out) * 8 < bits:
        block = counter.to_bytes(4, "big") + label + b"\0" + u + v + bits.to_bytes(4, "big")
        out += hmac.digest(key, block, hash_name)
        counter += 1
    return out[: bits // 8]


def kdfe(hash_name: str, z: bytes, label: bytes, u: bytes, v: bytes, bits: int) -> bytes:
    """Part 1 §11.4.10.3: a key from the x-coordinate of a shared point (SP 800-56A's one-step derivation)."""
    out = b""
    counter = 1
    while len(out) * 8 < bits:
        block = counter.to_bytes(4, "big") + z + label + b"\0" + u + v
        out += hashlib.new(hash_name, block).digest()
        counter += 1
    return out[: bits // 8]


def make_credential(
    public_der: bytes, *, hash_name: str, symmetric_bits: int, name: bytes, secret: bytes
) -> tuple[bytes, bytes]:
    """(TPM2B_ID_OBJECT's content, TPM2B_ENCRYPTED_SECRET's content) that give ``secret`` to whoever holds the
    endorsement key's private half in a TPM together with the key called ``name``.

    ``public_der``: the endorsement key as SubjectPublicKeyInfo, RSA of 2048 bits or more or ECC P-256 or P-384.
    ``hash_name``, ``symmetric_bits``: its name algorithm and the size of its AES-CFB key. ``secret``: at most as long
    as the hash. Raises Malformed for a key that can't be used, Misuse for a secret that is too long.

    Confidential: the seed is encrypted to the key. Bound to ``name``: it is in the derivation of the AES key and under
    the HMAC, so a TPM that holds another key under that name refuses. The zero IV is safe: every call draws a new seed.
    """
    algorithm = _HASHES.get(hash_name)
    if algorithm is None or symmetric_bits not in (128, 256):
        raise Malformed("tpm.credential", "An endorsement key has a hash or cipher that is not accepted.")
    if not 0 < len(secret) <= algorithm.digest_size:
        raise Misuse("tpm.credential", "A TPM credential holds from one byte to a hash's length.")
    seed, encrypted = _send_seed(public_der, hash_name, algorithm)
    key = kdfa(hash_name, seed, b"STORAGE", name, b"", symmetric_bits)
    encryptor = Cipher(algorithms.AES(key), CFB(bytes(16))).encryptor()
    identity = encryptor.update(_sized(secret)) + encryptor.finalize()
    outer = kdfa(hash_name, seed, b"INTEGRITY", b"", b"", algorithm.digest_size * 8)
    return _sized(hmac.digest(outer, identity + name, hash_name)) + identity, encrypted


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


def _send_seed(public_der: bytes, hash_name: str, algorithm: hashes.HashAlgorithm) -> tuple[bytes, bytes]:
    try:
        key = serialization.load_der_public_key(public_der)
    except (ValueError, UnsupportedAlgorithm):
        raise Malformed("key.public", "A public key can't be parsed.") from None
    if isinstance(key, rsa.RSAPublicKey) and key.key_size >= 2048:
        seed = random_bytes(algorithm.digest_size)
        # Part 1 annex B.4: OAEP with the key's name hash; the label counts its closing zero.
        oaep = padding.OAEP(padding.MGF1(algorithm), algorithm, b"IDENTITY\0")
        try:
            return seed, key.encrypt(seed, oaep)
        except ValueError:  # numbers that look like a key and are none, as with an even modulus
            raise Malformed("key.rsa", "An RSA public key is not usable.") from None
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1 | ec.SECP384R1):
        size = (key.curve.key_size + 7) // 8
        ephemeral = ec.generate_private_key(key.curve)
        z = ephemeral.exchange(ec.ECDH(), key)
        own, other = ephemeral.public_key().public_numbers(), key.public_numbers()
        x, y = own.x.to_bytes(size, "big"), own.y.to_bytes(size, "big")
        bits = algorithm.digest_size * 8
        return kdfe(hash_name, z, b"IDENTITY", x, other.x.to_bytes(size, "big"), bits), _sized(x) + _sized(y)
    raise Malformed("key.kind", "An endorsement key is neither RSA of at least 2048 bits nor ECC P-256 or P-384.")
