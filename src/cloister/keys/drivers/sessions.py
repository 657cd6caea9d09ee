"""HTTP sessions for the client libraries that use ``requests``: nothing from the environment, answers bounded."""

from __future__ import annotations

from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter

from .remote import Limits

__all__ = ["bounded_session"]


def bounded_session(limits: Limits, ca: str | None) -> requests.Session:
    """Usable by several threads. No proxy, ``.netrc`` or CA from the environment, no cookies, no redirects, no retries
    of its own; an answer longer than ``limits.answer`` is an error. ``ca``: a file of certificates to trust instead of
    the usual ones."""
    session = requests.Session()
    session.trust_env = False
    session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
    session.headers["Accept-Encoding"] = "identity"
    session.verify = ca or True
    adapter = _BoundedAdapter(limits, ca)
    for scheme in ("https://", "http://"):
        session.mount(scheme, adapter)
    return session


class _BoundedAdapter(HTTPAdapter):
    def __init__(self, limits: Limits, ca: str | None) -> None:
        super().__init__(pool_maxsize=limits.at_once, max_retries=0)
        self._limits, self._ca = limits, ca

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        """What the caller chose for certificates, proxies and times does not count: the session decides."""
        times = (self._limits.connect, self._limits.read)
        response = super().send(request, stream=True, timeout=times, verify=self._ca or True, cert=None, proxies={})
        try:
            body = response.raw.read(self._limits.answer + 1, decode_content=True)
        except (urllib3.exceptions.HTTPError, OSError):
            raise requests.ConnectionError("the answer broke off") from None
        finally:
            response.raw.release_conn()
        if len(body) > self._limits.answer:
            response.raw.close()
            raise requests.exceptions.ContentDecodingError("the answer is too long")
        # No library above follows what isn't there: the credential goes to the address that the owner named.
        response.headers.pop("Location", None)
        # Where requests itself keeps a body that was read; it has no public way to hand one over.
        response._content, response._content_consumed = body, True
        return response
