"""How many requests a second: token buckets in bounded memory, one for each name and one for all names beyond that."""

from __future__ import annotations

import ipaddress
import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import lru_cache

from ..errors import Unavailable

__all__ = ["RATE_CODES", "Rates", "source_of", "too_many"]

RATE_CODES = frozenset({"rate.address", "rate.contract"})
_REST = ""  # names that found no room share this bucket


class Rates:
    """``per_second`` in the long run, ``burst`` at once, for each of at most ``names`` names. Any thread may ask.

    A bucket that has filled up again says nothing and makes room for another. Where none has, many are at work at
    once, and whoever comes then shares one bucket: so memory stays bounded, and those who were there are served on.
    """

    def __init__(
        self, per_second: float, burst: float, *, names: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._per_second, self._burst, self._names = per_second, burst, names
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, as of when; oldest use first
        self._lock = threading.Lock()

    def take(self, name: str) -> float:
        """0.0 if one more is allowed now; else the seconds until it will be. Only what is allowed is counted."""
        with self._lock:
            now = self._clock()
            name = self._room(name, now)
            tokens = self._tokens(self._buckets.get(name, (self._burst, now)), now)
            allowed = tokens >= 1.0
            self._buckets[name] = (tokens - 1.0 if allowed else tokens, now)
            self._buckets.move_to_end(name)
            return 0.0 if allowed else (1.0 - tokens) / self._per_second

    def __len__(self) -> int:
        return len(self._buckets)

    def _tokens(self, bucket: tuple[float, float], now: float) -> float:
        tokens, since = bucket
        return min(self._burst, tokens + max(0.0, now - since) * self._per_second)

    def _room(self, name: str, now: float) -> str:
        if name in self._buckets or len(self._buckets) < self._names:
            return name
        oldest = next(iter(self._buckets))
        if self._tokens(self._buckets[oldest], now) < self._burst:
            return _REST  # one more than ``names`` at the most
        del self._buckets[oldest]
        return name


@lru_cache(maxsize=4096)  # asked for a connection and each of its requests
def source_of(address: str) -> str:
    """What counts as one sender: an IPv4 address, or the /64 that an IPv6 host can choose its addresses from."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            return str(parsed.ipv4_mapped)
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return str(parsed)


def too_many(code: str, wait: float) -> Unavailable:
    """The refusal, with the whole seconds after which it is worth trying again."""
    seconds = max(1, math.ceil(wait))
    return Unavailable(code, "Too many requests at once; slow down and try again.", seconds=seconds)
