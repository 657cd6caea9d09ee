"""How a data key is wrapped by a key that a PKCS#11 token keeps: AES key wrap, or ECDH.

Each scheme works inside ``Connection.call``: what python-pkcs11 raises there is handled by the connection, but for what
says that a box does not open.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from pkcs11 import KDF, Attribute, KeyType, Mechanism, MechanismFlag, ObjectClass
from pkcs11 import exceptions as p11
from pkcs11.util.ec import encode_named_curve_parameters

from ...crypto import constant_time_equal, frame, hkdf, open_box, seal_box, sha256
from ...crypto.ecdh import POINT_SIZE, check_point, ecdh_send
from ...errors import Malformed, Misuse, Untrusted
from ..models import DEK_SIZE
from .pkcs11_objects import AES, EPHEMERAL_SECRET, ID_SIZE, P256, Kind, generate_aes, generate_pair

__all__ = ["AesWrap", "EcdhWrap", "Scheme", "TokenKey", "first_of"]

_CONTENT = DEK_SIZE + 32  # data key ‖ SHA-256(context)
_WRAPPED = _CONTENT + 8  # RFC 3394 and RFC 5649 add one block of 8 bytes to a multiple of 8
_COORDINATE = 32
_SEALED = POINT_SIZE + 12 + DEK_SIZE + 16  # point ‖ nonce ‖ data key ‖ tag
_ECDH = "cloister/pkcs11/ecdh/v1"
_BOX_REFUSED = (p11.WrappedKeyInvalid, p11.WrappedKeyLenRange, p11.EncryptedDataInvalid, p11.EncryptedDataLenRange)
# What modules answer as well for a box that does not verify (SoftHSM: the first). Or else the device is broken.
_BOX_OR_DEVICE = (p11.GeneralError, p11.FunctionFailed, p11.DeviceError, p11.DataInvalid, p11.ArgumentsBad)


@dataclass(frozen=True)
class TokenKey:
    """A key that was found, in the session that it was found in. ``public``: its public point, empty for AES."""

    session: Any
    item: Any
    public: bytes


class Scheme(Protocol):
    """One way to wrap with a key of one kind."""

    kind: Kind

    def generate(self, session: Any, name: str) -> bytes:
        """A new key of that label; its handle."""
        ...

    def wrap(self, key: TokenKey, dek: bytes, context: bytes) -> bytes: ...

    def unwrap(self, key: TokenKey, box: bytes, context: bytes) -> bytes:
        """Raises Untrusted (``wrap.changed``)."""
        ...


def first_of(wanted: tuple[Mechanism, ...], mechanisms: set[Any]) -> Mechanism:
    for mechanism in wanted:
        if mechanism in mechanisms:
            return mechanism
    raise Misuse("driver.unsupported", "The token does not have that mechanism; choose another one for it.")


def changed() -> Untrusted:
    return Untrusted("wrap.changed", "A wrapped key does not open: it was changed, or wrapped for something else.")


class AesWrap:
    """AES key wrap of ``data key ‖ SHA-256(context)``, 72 bytes. It takes no associated data: the hash inside binds it.

    A wrapped form that is changed anywhere decrypts to noise everywhere, so besides its own check value (64 bits)
    whoever forges one would have to hit the hash, too.
    """

    kind = AES

    def __init__(self, mechanism: Mechanism) -> None:
        self._mechanism = mechanism

    def generate(self, session: Any, name: str) -> bytes:
        return generate_aes(session, name)

    def wrap(self, key: TokenKey, dek: bytes, context: bytes) -> bytes:
        box = self._wrap(key, dek + sha256(context))
        if len(box) != _WRAPPED:
            # CKM_AES_KEY_WRAP_PAD is RFC 5649 in one module, PKCS#7 padding and RFC 3394 in another (80 bytes).
            raise Misuse("driver.unsupported", "The token pads wrapped keys in another way; use mechanism aes-kw.")
        return box

    def _wrap(self, key: TokenKey, content: bytes) -> bytes:
        template = {
            Attribute.CLASS: ObjectClass.SECRET_KEY,
            Attribute.KEY_TYPE: KeyType.GENERIC_SECRET,
            Attribute.VALUE: content,
            **EPHEMERAL_SECRET,
        }
        with _ephemeral(key.session.create_object(template)) as secret:
            return bytes(key.item.wrap_key(secret, mechanism=self._mechanism))

    def unwrap(self, key: TokenKey, box: bytes, context: bytes) -> bytes:
        if len(box) != _WRAPPED:
            raise changed()
        try:
            content = self._unwrap(key, box)
        except _BOX_REFUSED:
            raise changed() from None
        except _BOX_OR_DEVICE:
            # If the device can't wrap either it raises here again: then it is the device, and not the box.
            self._wrap(key, bytes(_CONTENT))
            raise changed() from None
        if len(content) != _CONTENT or not constant_time_equal(content[DEK_SIZE:], sha256(context)):
            raise changed()
        return content[:DEK_SIZE]

    def _unwrap(self, key: TokenKey, box: bytes) -> bytes:
        unwrapped = key.item.unwrap_key(
            ObjectClass.SECRET_KEY,
            KeyType.GENERIC_SECRET,
            box,
            store=False,
            capabilities=MechanismFlag(0),
            mechanism=self._mechanism,
            template=EPHEMERAL_SECRET,
        )
        with _ephemeral(unwrapped) as secret:
            return bytes(secret[Attribute.VALUE])


class EcdhWrap:
    """ECDH with a P-256 key of the token: ``ephemeral point (65) ‖ AES-256-GCM box (60)``. Not post-quantum.

    The AEAD key is HKDF of two shared secrets, under both points and the context, so that a box opens for one key and
    one context: an ephemeral one, and the static one of the token's key with itself (SP 800-56A Rev. 3 §6.2.1.3,
    C(1e, 2s), with one party on both sides). With the first alone everybody who knows the public key could make boxes
    that open, and so put a vault of his own in the place of the owner's; the second only the token can tell.
    """

    kind = P256

    def __init__(self, mechanism: Mechanism) -> None:
        self._mechanism = mechanism

    def generate(self, session: Any, name: str) -> bytes:
        curve = encode_named_curve_parameters("secp256r1")
        handle = generate_pair(session, P256, name, curve, Mechanism.EC_KEY_PAIR_GEN, MechanismFlag.DERIVE)
        check_point(handle[ID_SIZE:])
        return handle

    def wrap(self, key: TokenKey, dek: bytes, context: bytes) -> bytes:
        ephemeral, shared = ecdh_send(key.public)
        return ephemeral + seal_box(self._key(key, ephemeral, shared, context), dek, _ECDH.encode())

    def unwrap(self, key: TokenKey, box: bytes, context: bytes) -> bytes:
        if len(box) != _SEALED:
            raise changed()
        ephemeral = box[:POINT_SIZE]
        try:
            check_point(ephemeral)
            secret = self._key(key, ephemeral, self._derive(key, ephemeral), context)
            return open_box(secret, box[POINT_SIZE:], _ECDH.encode())
        except (Malformed, Untrusted):
            raise changed() from None

    def _key(self, key: TokenKey, ephemeral: bytes, shared: bytes, context: bytes) -> bytes:
        static = self._derive(key, key.public)
        return hkdf(shared + static, info=frame(_ECDH, ephemeral, key.public, context))

    def _derive(self, key: TokenKey, point: bytes) -> bytes:
        derived = key.item.derive_key(
            KeyType.GENERIC_SECRET,
            256,
            store=False,
            capabilities=MechanismFlag(0),
            mechanism=self._mechanism,
            mechanism_param=(KDF.NULL, None, point),
            template=EPHEMERAL_SECRET,
        )
        with _ephemeral(derived) as secret:
            # The x-coordinate with its leading zeros: some modules leave them out.
            return bytes(secret[Attribute.VALUE]).rjust(_COORDINATE, b"\0")


@contextlib.contextmanager
def _ephemeral(item: Any) -> Iterator[Any]:
    """A data key doesn't stay in the token's memory longer than it takes."""
    try:
        yield item
    finally:
        item.destroy()
