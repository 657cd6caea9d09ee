"""KEKs and signing keys in a PKCS#11 token: an HSM, a smart card, SoftHSM. They are made there and never leave it.

Options: ``module`` (absolute path of the vendor's library), ``token`` (its label), ``mechanism``: ``aes-kwp`` (the
default: AES-256, RFC 5649), ``aes-kw`` (AES-256, RFC 3394) or ``ecdh`` (P-256). The credential is the user PIN.
RSA-OAEP is left out on purpose: common tokens offer it with SHA-1 only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn, TypeVar

from pkcs11 import Mechanism, MechanismFlag
from pkcs11 import exceptions as p11

from ...crypto import Signer, verify_ed25519
from ...errors import Denied, Misuse, Unavailable, Untrusted
from ..models import DEK_SIZE
from .pkcs11_errors import Missing
from .pkcs11_objects import ED25519, ID_SIZE, destroy, find, generate_pair, handles, kind_of, label
from .pkcs11_schemes import AesWrap, EcdhWrap, Scheme, TokenKey, first_of
from .pkcs11_session import Connection, connect

__all__ = ["Pkcs11Driver", "SigningPkcs11Driver", "TokenSigner", "open_driver"]

T = TypeVar("T")

# PKCS#11 v3.0 §2.3.4: CKA_EC_PARAMS is the curve's name as a PrintableString, or its OID (RFC 8410). Tokens differ.
_ED25519_PARAMETERS = (b"\x13\x0cedwards25519", b"\x06\x03\x2b\x65\x70")
_SIGNING = {Mechanism.EDDSA, Mechanism.EC_EDWARDS_KEY_PAIR_GEN}
_REMAINS = "The key is gone from the token; backups and clones of the token, if there are any, still hold it."


def open_driver(options: Mapping[str, str], credential: bytes) -> Pkcs11Driver:
    """Log in to the token. A ``SigningDriver`` where the token has EdDSA.

    Raises Misuse (options; a token that can't do it), Denied (``vault.pin`` …), Unavailable (``vault.token`` …).
    """
    mechanism = options.get("mechanism", "aes-kwp")
    if not {"module", "token"} <= set(options) <= {"module", "token", "mechanism"}:
        raise Misuse("driver.options", "The pkcs11 driver takes the options module, token and mechanism.")
    if mechanism not in _DRIVERS:
        raise Misuse("driver.options", f"The pkcs11 driver's mechanism is one of {', '.join(_DRIVERS)}.")
    connection = connect(options["module"], options["token"], credential)
    try:
        return _DRIVERS[mechanism](connection, connection.mechanisms())
    except BaseException:
        connection.close()
        raise


class Pkcs11Driver:
    """``KekDriver`` over a token; what differs between mechanisms is in the ``Scheme``."""

    name: ClassVar[str] = "pkcs11"
    experimental: ClassVar[bool] = False
    algorithm: ClassVar[str]

    def __init__(self, connection: Connection, scheme: Scheme) -> None:
        self._connection: Connection | None = connection
        self._scheme = scheme

    def create(self, kek_id: str, epoch: int) -> bytes:
        return self._open().call(lambda session: self._scheme.generate(session, label(kek_id, epoch)))

    def wrap(self, handle: bytes, dek: bytes, context: bytes) -> bytes:
        if len(dek) != DEK_SIZE:
            raise Misuse("wrap.dek", f"A data key has exactly {DEK_SIZE} bytes.")
        return self._with_kek(handle, lambda key: self._scheme.wrap(key, dek, context))

    def unwrap(self, handle: bytes, box: bytes, context: bytes) -> bytes:
        return self._with_kek(handle, lambda key: self._scheme.unwrap(key, box, context))

    def destroy(self, handle: bytes) -> str | None:
        connection = self._open()
        if kind_of(handle) is None:
            return None
        try:
            connection.call(lambda session: destroy(session, handle))
        except Missing:
            return None
        return _REMAINS

    def list(self, kek_id: str) -> Sequence[bytes]:
        try:
            return self._open().call(lambda session: handles(session, kek_id))
        except Missing:
            return ()

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _open(self) -> Connection:
        connection = self._connection
        if connection is None:
            raise Misuse("vault.closed", "The vault is closed; open it again.")
        return connection

    def _with_kek(self, handle: bytes, work: Callable[[TokenKey], T]) -> T:
        """``work`` with the KEK of that handle."""
        gone = Denied("wrap.gone", "The token no longer has the key that this was wrapped under.")
        connection = self._open()
        if kind_of(handle) is not self._scheme.kind:
            raise gone

        def with_key(session: Any) -> T:
            found = connection.keep(handle, lambda: find(session, handle, self._scheme.kind))
            return work(TokenKey(session, found, handle[ID_SIZE:]))

        try:
            return connection.call(with_key)
        except Missing:
            raise gone from None

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a vault's driver is not pickled")


class SigningPkcs11Driver(Pkcs11Driver):
    """With Ed25519 keys that sign inside the token (CKM_EDDSA)."""

    def create_signer(self, name: str) -> tuple[bytes, bytes]:
        handle = self._open().call(lambda session: _generate_ed25519(session, label(name)))
        return handle, handle[ID_SIZE:]

    def signer(self, handle: bytes) -> Signer:
        self._open()
        return TokenSigner(self, handle)

    def sign(self, handle: bytes, message: bytes) -> bytes:
        """64 bytes. Raises Denied (``sign.gone``), Unavailable."""
        gone = Denied("sign.gone", "The token no longer has that signing key.")
        connection = self._open()
        if kind_of(handle) is not ED25519:
            raise gone

        def signed(session: Any) -> bytes:
            key = connection.keep(handle, lambda: find(session, handle, ED25519))
            return bytes(key.sign(message, mechanism=Mechanism.EDDSA))

        try:
            signature = connection.call(signed)
            # A signature that went wrong in the device can give its key away (fault attacks on EdDSA): it never leaves.
            verify_ed25519(handle[ID_SIZE:], message, signature)
        except Missing:
            raise gone from None
        except Untrusted:
            raise Unavailable("vault.device", "The token made a wrong signature; replace or repair it.") from None
        return signature


def _generate_ed25519(session: Any, name: str) -> bytes:
    by_name, by_oid = _ED25519_PARAMETERS
    mechanism, use = Mechanism.EC_EDWARDS_KEY_PAIR_GEN, MechanismFlag.SIGN
    try:
        return generate_pair(session, ED25519, name, by_name, mechanism, use)
    except p11.PKCS11Error:  # modules answer all kinds of things for a curve they don't know by that name
        return generate_pair(session, ED25519, name, by_oid, mechanism, use)


class TokenSigner:
    """``crypto.Signer`` whose key is in a token."""

    __slots__ = ("_driver", "_handle", "public")

    def __init__(self, driver: SigningPkcs11Driver, handle: bytes) -> None:
        self._driver = driver
        self._handle = handle
        self.public: bytes = handle[ID_SIZE:]

    def sign(self, message: bytes) -> bytes:
        return self._driver.sign(self._handle, message)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a signing key is not pickled")


# ``algorithm`` belongs to a class: what was wrapped under another one is refused by name, before the token is asked.


class _KwpDriver(Pkcs11Driver):
    algorithm = "A256KWP"


class _SigningKwpDriver(SigningPkcs11Driver):
    algorithm = "A256KWP"


class _KwDriver(Pkcs11Driver):
    algorithm = "A256KW"


class _SigningKwDriver(SigningPkcs11Driver):
    algorithm = "A256KW"


class _EcdhDriver(Pkcs11Driver):
    algorithm = "ECDH-ES+A256GCM"


class _SigningEcdhDriver(SigningPkcs11Driver):
    algorithm = "ECDH-ES+A256GCM"


def _kwp(connection: Connection, found: set[Any]) -> Pkcs11Driver:
    scheme = AesWrap(first_of((Mechanism.AES_KEY_WRAP_KWP, Mechanism.AES_KEY_WRAP_PAD), found))
    return (_SigningKwpDriver if found >= _SIGNING else _KwpDriver)(connection, scheme)


def _kw(connection: Connection, found: set[Any]) -> Pkcs11Driver:
    scheme = AesWrap(first_of((Mechanism.AES_KEY_WRAP,), found))
    return (_SigningKwDriver if found >= _SIGNING else _KwDriver)(connection, scheme)


def _ecdh(connection: Connection, found: set[Any]) -> Pkcs11Driver:
    scheme = EcdhWrap(first_of((Mechanism.ECDH1_DERIVE,), found))
    return (_SigningEcdhDriver if found >= _SIGNING else _EcdhDriver)(connection, scheme)


_DRIVERS: dict[str, Callable[[Connection, set[Any]], Pkcs11Driver]] = {
    "aes-kwp": _kwp,
    "aes-kw": _kw,
    "ecdh": _ecdh,
}
