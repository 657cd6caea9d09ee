"""HTTP as both clients speak it: bounded answers, and every failure as one of Cloister's errors."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

from ..crypto import parse_json
from ..errors import CloisterError, Unavailable, error_from_wire

__all__ = ["Wire"]

_ANSWER = 16 * 1024 * 1024  # bytes of one JSON answer
_TIMEOUT = httpx.Timeout(30.0, read=60.0)


class Wire:
    """One server. ``name`` is what messages call it, ``mend`` what to do when it doesn't answer."""

    def __init__(self, client: httpx.Client, *, name: str, code: str, mend: str) -> None:
        self._client, self._name, self._code, self._mend = client, name, code, mend

    def close(self) -> None:
        self._client.close()

    def json(
        self,
        method: str,
        path: str,
        *,
        content: bytes | Iterable[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Any:
        """The parsed answer. Raises the server's own error, or Unavailable."""
        with self._errors():
            response = self._client.request(
                method, path, content=content, headers=dict(headers or {}), timeout=_TIMEOUT
            )
        self._check(response)
        return parse_json(response.content, limit=_ANSWER)

    def stream(self, path: str, headers: Mapping[str, str]) -> Iterator[bytes]:
        """An answer's bytes as they come."""
        with self._errors(), self._client.stream("GET", path, headers=dict(headers), timeout=_TIMEOUT) as response:
            if response.status_code >= 400:
                response.read()
                self._check(response)
            yield from response.iter_bytes(1 << 20)

    def _check(self, response: httpx.Response) -> None:
        if response.status_code < 400:
            return
        try:
            body = parse_json(response.content, limit=_ANSWER)
        except CloisterError:
            body = None
        raise error_from_wire(body.get("error") if isinstance(body, dict) else None)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except httpx.TimeoutException:
            raise Unavailable(f"{self._code}.slow", f"{self._name} did not answer in time; try again.") from None
        except httpx.HTTPError:
            raise Unavailable(f"{self._code}.unreachable", f"{self._name} does not answer; {self._mend}.") from None
