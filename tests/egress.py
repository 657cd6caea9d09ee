"""A guard against network traffic that nobody declared.

Python reports every use of a socket to its audit hooks, also where a library kept its own reference to
``socket.connect``; so the guard sees what a patched function would miss. It refuses, and it remembers: code that
swallows the refusal still fails its test. What it can't see are sockets opened inside compiled libraries and in
other processes.
"""

from __future__ import annotations

import ipaddress
import socket
import sys

__all__ = ["Egress", "EgressError"]

_LOCAL_FAMILIES = {socket.AF_UNIX, getattr(socket, "AF_NETLINK", -1)}


class EgressError(RuntimeError):
    """A test tried to reach something beyond this machine."""


def _is_loopback(host: object) -> bool:
    if not isinstance(host, str):
        return False
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.split("%")[0]).is_loopback
    except ValueError:
        return False


def _is_name(host: object) -> bool:
    """True for what only a name server could resolve."""
    text = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if not isinstance(text, str) or text in {"", "localhost"}:
        return False
    try:
        ipaddress.ip_address(text.split("%")[0])
    except ValueError:
        return True
    return False


def target(event: str, args: tuple[object, ...]) -> str | None:
    """What this audit event reaches for beyond the machine, or None where it stays on it."""
    if event in {"socket.connect", "socket.sendto", "socket.sendmsg"}:
        sock, address = args[0], args[1]
        if address is None or getattr(sock, "family", None) in _LOCAL_FAMILIES:
            return None
        host = address[0] if isinstance(address, tuple) and address else address
        return None if _is_loopback(host) else f"{event} {address!r}"
    if event in {"socket.getaddrinfo", "socket.gethostbyname"}:
        return f"{event} {args[0]!r}" if _is_name(args[0]) else None
    return None


class Egress:
    """Remembers every attempt since the last ``take``. An audit hook can't be removed: one per process."""

    def __init__(self) -> None:
        self._attempts: list[str] = []

    def install(self) -> None:
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        if not event.startswith("socket."):
            return
        reached = target(event, args)
        if reached is not None:
            self._attempts.append(reached)
            raise EgressError(f"no network but loopback in tests: {reached}")

    def take(self) -> list[str]:
        """The attempts so far; forgets them."""
        taken, self._attempts = self._attempts, []
        return taken
