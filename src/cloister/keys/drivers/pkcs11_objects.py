"""What lies on a PKCS#11 token: the attributes of the keys that are made, their labels, handles, and how one is found.

A handle is the object's CKA_ID (16 random bytes), followed by the public key where there is one: 16, 48 (Ed25519) or
81 bytes (P-256), so that its length says what it names. The label is for people, and for finding what a crash left.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pkcs11 import Attribute, KeyType, MechanismFlag, ObjectClass

from ...crypto import random_bytes
from .pkcs11_errors import Missing

__all__ = [
    "AES",
    "ED25519",
    "EPHEMERAL_SECRET",
    "ID_SIZE",
    "P256",
    "Kind",
    "destroy",
    "find",
    "generate_aes",
    "generate_pair",
    "handles",
    "kind_of",
    "label",
]

ID_SIZE = 16
_PREFIX = "cloister/"

# Never leaves the token, in whatever form, and can't be turned into a key that may: neither changed nor copied.
_LOCKED_IN: dict[Attribute, Any] = {
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: True,
    Attribute.EXTRACTABLE: False,
    Attribute.MODIFIABLE: False,
}
# A data key on its way through the token: in the session only, and readable, because it is to leave.
EPHEMERAL_SECRET: dict[Attribute, Any] = {
    Attribute.TOKEN: False,
    Attribute.PRIVATE: True,
    Attribute.SENSITIVE: False,
    Attribute.EXTRACTABLE: True,
}


@dataclass(frozen=True)
class Kind:
    """A kind of key: its class and type on the token, and the size of its public part."""

    object_class: ObjectClass
    key_type: KeyType
    public_size: int

    @property
    def handle_size(self) -> int:
        return ID_SIZE + self.public_size


AES = Kind(ObjectClass.SECRET_KEY, KeyType.AES, 0)
P256 = Kind(ObjectClass.PRIVATE_KEY, KeyType.EC, 65)
ED25519 = Kind(ObjectClass.PRIVATE_KEY, KeyType.EC_EDWARDS, 32)
_KINDS = (AES, P256, ED25519)


def kind_of(handle: bytes) -> Kind | None:
    """What a handle may name, by its length."""
    return next((kind for kind in _KINDS if kind.handle_size == len(handle)), None)


def label(line: str, *rest: str | int) -> str:
    return _PREFIX + "/".join([line, *map(str, rest)])


def generate_aes(session: Any, name: str) -> bytes:
    """An AES-256 key that can wrap and unwrap other keys and nothing else; its handle."""
    handle = random_bytes(ID_SIZE)
    session.generate_key(
        KeyType.AES,
        256,
        id=handle,
        label=name,
        store=True,
        capabilities=MechanismFlag.WRAP | MechanismFlag.UNWRAP,
        template=_LOCKED_IN,
    )
    return handle


def generate_pair(session: Any, kind: Kind, name: str, parameters: bytes, mechanism: Any, use: MechanismFlag) -> bytes:
    """A key pair for one use (``parameters``: its CKA_EC_PARAMS); its handle."""
    key_id = random_bytes(ID_SIZE)
    domain = session.create_domain_parameters(kind.key_type, {Attribute.EC_PARAMS: parameters}, local=True)
    public, _ = domain.generate_keypair(
        mechanism=mechanism,
        id=key_id,
        label=name,
        store=True,
        capabilities=use,
        # Nobody without the PIN can put another public key in its place: such objects are private, too.
        public_template={Attribute.PRIVATE: True, Attribute.MODIFIABLE: False},
        private_template=_LOCKED_IN,
    )
    return key_id + public_point(public[Attribute.EC_POINT], kind.public_size)


def public_point(value: bytes, size: int) -> bytes:
    """CKA_EC_POINT without its wrapping: a DER OCTET STRING in PKCS#11 2.40 and 3.0, plain bytes in some modules."""
    return value[2:] if value[:2] == bytes([4, size]) and len(value) == size + 2 else value


def find(session: Any, handle: bytes, kind: Kind) -> Any:
    """The key itself. Raises Missing, also if the handle carries another public key than the token has for it: the
    handle may come from a file that somebody changed."""
    found = list(_objects(session, _template(kind, handle)))
    if len(found) != 1 or handle not in _with_public(session, kind, handle[:ID_SIZE]):
        raise Missing
    return found[0]


def _template(kind: Kind, handle: bytes | None = None) -> dict[Attribute, Any]:
    wanted = {Attribute.CLASS: kind.object_class, Attribute.KEY_TYPE: kind.key_type, Attribute.TOKEN: True}
    return wanted if handle is None else {**wanted, Attribute.ID: handle[:ID_SIZE]}


def _objects(session: Any, template: dict[Attribute, Any]) -> Iterator[Any]:
    """Objects that Cloister made. All of them are fetched at once: a search that is left open blocks the session."""
    # python-pkcs11 can't tell in order that a search failed to start, so a lost session has to show before it.
    session.generate_random(64)
    for item in list(session.get_objects(template)):
        if str(item[Attribute.LABEL]).startswith(_PREFIX):
            yield item


def handles(session: Any, line: str) -> tuple[bytes, ...]:
    """Handles of every key whose label starts with that line. Raises Missing if there is none."""
    found: list[bytes] = []
    for kind in _KINDS:
        for item in _objects(session, _template(kind)):
            key_id = bytes(item[Attribute.ID])
            if str(item[Attribute.LABEL]).startswith(label(line, "")) and len(key_id) == ID_SIZE:
                found += _with_public(session, kind, key_id)
    if not found:
        raise Missing
    return tuple(found)


def _with_public(session: Any, kind: Kind, key_id: bytes) -> Iterator[bytes]:
    """The exact handle, or none: a handle that a vault doesn't recognize as its own would be swept away as an orphan,
    so a private key whose public half can't be told is left alone."""
    if kind.public_size == 0:
        yield key_id
        return
    template = {Attribute.CLASS: ObjectClass.PUBLIC_KEY, Attribute.TOKEN: True, Attribute.ID: key_id}
    points = [public_point(item[Attribute.EC_POINT], kind.public_size) for item in _objects(session, template)]
    if len(points) == 1 and len(points[0]) == kind.public_size:
        yield key_id + points[0]


def destroy(session: Any, handle: bytes) -> None:
    """Destroy the key, and its public half. Raises Missing if there is none."""
    found = list(_objects(session, {Attribute.ID: handle[:ID_SIZE], Attribute.TOKEN: True}))
    if not found:
        raise Missing
    for item in found:
        item.destroy()
