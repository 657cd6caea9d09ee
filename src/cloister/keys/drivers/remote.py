"""What the drivers of services share: bounded calls, and which failures deserve another try.

A service is trusted for what it keeps, not for being quick, whole or there: every call ends in time, and whatever can't
be read as a correct answer is a refusal.
"""

from __future__ import annotations

import logging
import secrets
import ssl
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar, NoReturn, Self, TypeVar

from ...errors import CloisterError, Denied, Misuse, Unavailable, Untrusted
from ..models import DEK_SIZE

__all__ = [
    "LIMITS",
    "BadAnswer",
    "Failure",
    "Limits",
    "RemoteDriver",
    "answer_field",
    "busy",
    "causes",
    "certificate_refused",
    "common_failure",
    "credential_refused",
    "quiet",
    "unreachable",
]

T = TypeVar("T")
_JITTER = secrets.SystemRandom()


@dataclass(frozen=True)
class Limits:
    """Seconds, counts and bytes. ``total`` bounds one call with all its retries, ``read`` each wait for the service."""

    connect: float = 3.0
    read: float = 4.0
    total: float = 10.0
    retries: int = 2
    pause: float = 0.2
    at_once: int = 64
    answer: int = 4 * 1024 * 1024
    pages: int = 1000


LIMITS = Limits()


@dataclass(frozen=True)
class Failure:
    """What a client library's exception means: what to raise in the end, and what may help before that."""

    error: CloisterError
    again: bool = False  # too busy or broken for a moment
    refused: bool = False  # the service says that it did nothing: also what must not be done twice may be repeated
    expired: bool = False  # a fresh login may help


class BadAnswer(Exception):
    """The service answered something that its interface does not allow."""

    def __init__(self, *, again: bool = False) -> None:
        super().__init__("an answer that can't be read")
        self.again = again


def credential_refused() -> Denied:
    return Denied(
        "vault.credential", "The service refuses the credential or what it may do; check it and its permissions there."
    )


def unreachable() -> Unavailable:
    return Unavailable("vault.unreachable", "The key service can't be reached or is failing; try again in a moment.")


def busy() -> Unavailable:
    return Unavailable("vault.busy", "The key service asks to be called less often; try again in a moment.")


def _odd_answer() -> Unavailable:
    return Unavailable("vault.answer", "The key service's answer can't be read; check its address and its version.")


def certificate_refused() -> Untrusted:
    return Untrusted(
        "vault.tls", "The key service's TLS certificate does not hold; check its address and the option ca."
    )


def common_failure(error: BaseException) -> Failure:
    """For what no driver knows better."""
    if isinstance(error, CloisterError):
        return Failure(error)
    if any(isinstance(cause, ssl.SSLCertVerificationError) for cause in causes(error)):
        return Failure(certificate_refused())
    if isinstance(error, BadAnswer):
        return Failure(_odd_answer(), again=error.again)
    if isinstance(error, OSError):
        return Failure(unreachable(), again=True)
    return Failure(_odd_answer())


def causes(error: BaseException) -> list[BaseException]:
    """The error and what lies under it: each library wraps in its own way. At most 32."""
    seen = [error]
    for item in seen:
        inner: list[object] = [item.__cause__, item.__context__]
        inner += [getattr(item, name, None) for name in ("reason", "inner_exception")]
        inner += [*getattr(item, "args", ()), *getattr(item, "kwargs", {}).values()]
        seen += [i for i in inner if isinstance(i, BaseException) and i not in seen and len(seen) < 32]
    return seen


def answer_field(answer: object, *path: str, kind: type[T]) -> T:
    """A field of a decoded JSON answer. Raises BadAnswer where it is missing or of another type."""
    for name in path:
        if not isinstance(answer, dict) or name not in answer:
            raise BadAnswer
        answer = answer[name]
    # In Python a bool is an int; in an answer it is not.
    if not isinstance(answer, kind) or (isinstance(answer, bool) and kind is not bool):
        raise BadAnswer
    return answer


def quiet(*loggers: str) -> None:
    """Client libraries write whole requests and answers, keys included, to their debug logs. Not ours."""
    for name in loggers:
        logging.getLogger(name).setLevel(logging.WARNING)


class RemoteDriver(ABC):
    """Base of the drivers of services: closing, size checks, and ``_call``."""

    name: ClassVar[str]
    experimental: ClassVar[bool]
    algorithm: ClassVar[str]

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._closed = False
        self._slots = threading.BoundedSemaphore(limits.at_once)

    @abstractmethod
    def _failure(self, error: BaseException) -> Failure:
        """What the client library's exception means."""

    def _login(self) -> bool:
        """Get a fresh login after a refused one. False where there is nothing to get one with."""
        return False

    @abstractmethod
    def _shut(self) -> None:
        """Close the client's connections."""

    @abstractmethod
    def _probe(self) -> object:
        """One cheap call that shows whether address and credential are good."""

    def started(self) -> Self:
        """Itself, once the service has accepted the credential. Raises as ``open_driver``."""
        try:
            self._call(self._probe)
        except CloisterError:
            self.close()
            raise
        return self

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._shut()

    def _check(self, dek: bytes | None = None) -> None:
        if self._closed:
            raise Misuse("vault.closed", "The vault is locked; unlock it again.")
        if dek is not None and len(dek) != DEK_SIZE:
            raise Misuse("wrap.dek", f"A data key has exactly {DEK_SIZE} bytes.")

    def _call(self, operation: Callable[[], T], *, repeatable: bool = True) -> T:
        """The operation's result, within ``limits.total`` seconds.

        A refused login is renewed once. What a moment may mend is tried again, at most ``limits.retries`` times; what
        must not be done twice (``repeatable=False``) only where the service says that it did nothing.
        """
        self._check()
        deadline = time.monotonic() + self._limits.total
        retries, renewed = 0, False
        while True:
            try:
                return self._bounded(operation, deadline)
            except Exception as error:  # noqa: BLE001 - whatever a library raises, it is a refusal here
                failure = self._meaning(error)
            if failure.expired and not renewed:
                renewed = True
                if self._renewed(deadline):
                    continue
            if not failure.again or retries >= self._limits.retries or not (repeatable or failure.refused):
                raise failure.error
            retries += 1
            # Jitter, so that many brokers don't come back at the same moment.
            pause = self._limits.pause * 2**retries * _JITTER.uniform(0.5, 1.0)
            if time.monotonic() + pause >= deadline:
                raise failure.error
            time.sleep(pause)

    def _renewed(self, deadline: float) -> bool:
        try:
            return self._bounded(self._login, deadline)
        except Exception as error:  # noqa: BLE001 - as above
            failure = self._meaning(error)
        raise failure.error

    def _meaning(self, error: BaseException) -> Failure:
        # Errors of our own mean what they say.
        return common_failure(error) if isinstance(error, CloisterError | BadAnswer) else self._failure(error)

    def _bounded(self, operation: Callable[[], T], deadline: float) -> T:
        """In a thread of its own, because a client's time-outs bound neither the look-up of a name nor a service that
        sends one byte now and then. One that takes too long is left behind, and their number is bounded."""
        left = deadline - time.monotonic()
        if left <= 0 or not self._slots.acquire(timeout=left):
            raise unreachable()
        result: Future[T] = Future()
        threading.Thread(target=self._run, args=(operation, result), daemon=True, name=f"vault-{self.name}").start()
        try:
            return result.result(timeout=max(0.0, deadline - time.monotonic()))
        except TimeoutError:
            if result.done():
                raise  # the client's own
            raise unreachable() from None

    def _run(self, operation: Callable[[], Any], result: Future[Any]) -> None:
        try:
            result.set_result(operation())
        except BaseException as error:  # noqa: BLE001 - the caller's thread raises it
            result.set_exception(error)
        finally:
            self._slots.release()

    def __repr__(self) -> str:
        return f"{type(self).__name__}(…)"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a vault's driver is not pickled")
