"""The connection to a PKCS#11 token: one login for each token and process, found again after it was lost.

Why everything goes through one lock: python-pkcs11 initializes a module without arguments, which promises the module
that only one thread will call it (PKCS#11 v2.40 §5.4), and then lets go of Python's lock during each call. SoftHSM
takes the promise literally and crashes. So calls into one module take turns.

Why one connection is shared: to PKCS#11 an application is logged in or not, as a whole (§5.6). A second login would be
answered "already logged in", whatever its PIN; and one driver's logout would end the other's session.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import pkcs11
from pkcs11 import exceptions as p11

from ...crypto import constant_time_equal
from ...errors import Denied, Misuse, Unavailable
from .pkcs11_errors import LOST, STALE, WRONG_PIN, Missing, check_tries, give_up, locked_pin, wrong_pin

__all__ = ["Connection", "connect"]

T = TypeVar("T")

_ATTEMPTS = 3  # with the session that is there; with a new one; with a new one after the module began anew
_MAX_KEPT = 1024


class _Module:
    """A loaded PKCS#11 library. ``generation`` counts its initializations: each ends all sessions of the one before."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.lock = threading.Lock()
        self.generation = 0
        self.inherited = False
        self.connections: dict[str, Connection] = {}
        self.lib = _load(path)

    def restart(self) -> None:
        """Let the module look for its slots and tokens anew."""
        self.generation += 1
        self.inherited = False
        with contextlib.suppress(p11.PKCS11Error):  # it may have been finalized behind our back
            self.lib.finalize()
        self.lib.initialize()


_modules: dict[str, _Module] = {}
_registry = threading.Lock()


def _forked() -> None:
    """In the child of a fork: sessions are the parent's, and locks may be held by threads that don't exist here."""
    global _registry
    _registry = threading.Lock()
    for module in _modules.values():
        module.lock = threading.Lock()
        module.inherited = True


os.register_at_fork(after_in_child=_forked)


def _load(path: str) -> Any:
    _check_module(Path(path))
    try:
        return pkcs11.lib(path)
    except p11.PKCS11Error:
        raise Unavailable(
            "vault.module", "The PKCS#11 module can't be loaded or started; look at its own configuration."
        ) from None


def _check_module(path: Path) -> None:
    """The path comes from the vault's file, and the module will run in this process and see the PIN: it must be a file
    that nobody but root and this user could have put there."""
    try:
        places = [path.stat(), path.parent.stat()] if path.is_file() else []
    except OSError:
        places = []
    if not places:
        raise Misuse("driver.module", "There is no PKCS#11 module there; give the absolute path of the .so file.")
    if any(place.st_uid not in (0, os.geteuid()) or place.st_mode & 0o022 for place in places):
        raise Misuse(
            "driver.module",
            "The PKCS#11 module or its folder can be written by other users; have it owned by root, mode 755.",
        )


def connect(module: str, token: str, credential: bytes) -> Connection:
    """A connection to the token with that label, logged in with the user PIN; each one is closed by its ``close``.

    Raises Denied (``vault.pin``, ``vault.pin_locked``, ``vault.pin_last_try``), Unavailable (``vault.token``), Misuse.
    """
    with _registry:
        if not os.path.isabs(module):
            raise Misuse("driver.module", "Give the absolute path of the PKCS#11 module, the .so file.")
        path = os.path.realpath(module)
        known = _modules.get(path) or _Module(path)
        _modules[path] = known
        try:
            with known.lock:
                connection = known.connections.get(token) or Connection(known, token)
                connection.login(credential)
                known.connections[token] = connection
                connection.users += 1
                return connection
        finally:
            _forget_unused(known)


def _forget_unused(module: _Module) -> None:
    """A module that nobody uses is finalized, so that the next one to use it gets its configuration read anew."""
    with module.lock:
        if not module.connections:
            del _modules[module.path]
            with contextlib.suppress(p11.PKCS11Error):
                module.lib.finalize()


class Connection:
    """A login on one token. ``call`` is the only way to it; inside, ``session`` is what python-pkcs11 made.

    It keeps the PIN, because a lost session needs it again. The PIN goes to the token once a login, and after the token
    has refused it never again: a token locks after a few wrong ones.
    """

    def __init__(self, module: _Module, label: str) -> None:
        self._module = module
        self._label = label
        self._pin: bytes | None = None
        self._accepted = False
        self._refusal: Denied | None = None
        self._session: Any = None
        self._generation = 0
        self._kept: dict[bytes, Any] = {}
        self.users = 0

    def login(self, credential: bytes) -> None:
        """With the module's lock held. A PIN that the token accepted before is compared here: the token would not."""
        if self._pin is not None and self._refusal is None:
            if not constant_time_equal(self._pin, credential):
                raise wrong_pin()
            return
        self._pin, self._refusal, self._accepted = credential, None, False
        self._attempts(lambda _: None)

    def call(self, work: Callable[[Any], T]) -> T:
        """``work(session)``, with nobody else in the module, again after a lost session. It may run up to three times.

        Raises Unavailable (``vault.token``, ``vault.device``), Denied (PIN), Misuse (``driver.unsupported``), Missing.
        """
        with self._module.lock:
            return self._attempts(work)

    def _attempts(self, work: Callable[[Any], T]) -> T:
        restart = False
        for attempt in range(_ATTEMPTS):
            restart = restart or self._module.inherited or attempt == _ATTEMPTS - 1
            try:
                if restart:
                    self._module.restart()
                return work(self._live_session())
            except Missing:
                self._drop()
                if restart:
                    raise
                restart = True
            except STALE:
                self._kept.clear()
            except LOST:
                self._drop()
            except p11.PKCS11Error as error:
                self._drop()
                if type(error) is not p11.PKCS11Error:
                    give_up(error)
        raise Unavailable("vault.token", "The token can't be reached; put it back or start its service, and try again.")

    def _live_session(self) -> Any:
        if self._session is None or self._generation != self._module.generation:
            self._drop()
            self._session = self._open()
            self._generation = self._module.generation
        return self._session

    def _open(self) -> Any:
        if self._refusal is not None or self._pin is None:
            raise self._refusal or Misuse("vault.closed", "The vault is closed; open it again.")
        try:
            session = self._log_in(self._pin.decode())
        except (*WRONG_PIN, UnicodeDecodeError):
            self._refusal = wrong_pin()
            raise self._refusal from None
        except (p11.PinLocked, p11.PinExpired, p11.UserPinNotInitialized):
            self._refusal = locked_pin()
            raise self._refusal from None
        self._accepted = True
        return session

    def _log_in(self, pin: str) -> Any:
        token = self._find_token()
        check_tries(token.flags)
        try:
            return token.open(rw=True, user_pin=pin)
        except p11.UserAlreadyLoggedIn:
            if self._accepted:
                return token.open(rw=True)
        # This process is logged in already, but not by us, and so our PIN was not looked at: end that, and it will be.
        self._module.restart()
        return self._find_token().open(rw=True, user_pin=pin)

    def _find_token(self) -> Any:
        try:
            return self._module.lib.get_token(token_label=self._label)
        except p11.MultipleTokensReturned:
            raise Misuse("driver.token", "Several tokens have that label; give each a label of its own.") from None

    def _drop(self) -> None:
        """Forget the session. It is not closed: that would log out, which a session by its side may not expect."""
        self._session = None
        self._kept.clear()

    def keep(self, name: bytes, find: Callable[[], T]) -> T:
        """Inside ``call``: an object of the token that was found before in this session, or is found now. A token
        refuses the handle of an object that was destroyed meanwhile, and ``call`` looks again."""
        if name not in self._kept:
            if len(self._kept) >= _MAX_KEPT:
                self._kept.clear()
            self._kept[name] = find()
        found: T = self._kept[name]
        return found

    def mechanisms(self) -> set[Any]:
        """What the token can do: ``pkcs11.Mechanism`` members, or numbers that python-pkcs11 has no name for."""

        def of(session: Any) -> set[Any]:
            found: set[Any] = session.token.slot.get_mechanisms()
            return found

        return self.call(of)

    def close(self) -> None:
        """Log out if nobody else in this process uses the token. Call it once."""
        with _registry:
            with self._module.lock:
                self.users -= 1
                if self.users > 0:
                    return
                self._module.connections.pop(self._label, None)
                if self._session is not None and self._generation == self._module.generation:
                    with contextlib.suppress(p11.PKCS11Error):  # it is lost already, and with it the login
                        self._session.close()
                self._drop()
                self._pin = None
            _forget_unused(self._module)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a connection to a token is not pickled")
