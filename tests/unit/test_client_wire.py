"""Whatever a server answers, the caller gets one of Cloister's errors, and never an unbounded or half-read answer."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest

from cloister.client.wire import Wire
from cloister.errors import Denied, Internal, Malformed, Unavailable


def wire(answer: Callable[[httpx.Request], httpx.Response]) -> Wire:
    client = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://x")
    return Wire(client, name="The broker", code="broker", mend="start it")


def test_an_answer_is_parsed_strictly() -> None:
    assert wire(lambda _: httpx.Response(200, content=b'{"a":1}')).json("GET", "/") == {"a": 1}
    with pytest.raises(Malformed):
        wire(lambda _: httpx.Response(200, content=b'{"a":1,"a":2}')).json("GET", "/")


def test_the_servers_own_error_comes_through() -> None:
    body = {"error": {"kind": "denied", "code": "x.y", "message": "No.", "details": {"n": 1}}}
    with pytest.raises(Denied) as caught:
        wire(lambda _: httpx.Response(403, json=body)).json("GET", "/")
    assert (caught.value.code, caught.value.details) == ("x.y", {"n": 1})


@pytest.mark.parametrize("content", [b"", b"<html>502</html>", b"[]", b'{"error": 3}'])
def test_an_error_that_is_none_of_ours(content: bytes) -> None:
    with pytest.raises(Internal) as caught:
        wire(lambda _: httpx.Response(502, content=content)).json("GET", "/")
    assert caught.value.code == "wire.unreadable"


def test_no_answer() -> None:
    def away(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("secret detail", request=request)

    def slow(request: httpx.Request) -> httpx.Response:
        raise httpx.ReadTimeout("slow", request=request)

    with pytest.raises(Unavailable) as gone:
        wire(away).json("GET", "/")
    assert (gone.value.code, gone.value.message) == ("broker.unreachable", "The broker does not answer; start it.")
    with pytest.raises(Unavailable) as late:
        wire(slow).json("GET", "/")
    assert late.value.code == "broker.slow"


def test_streams_raise_like_answers() -> None:
    assert b"".join(wire(lambda _: httpx.Response(200, content=b"abc")).stream("/", {})) == b"abc"
    body = {"error": {"kind": "denied", "code": "x.y", "message": "No.", "details": {}}}
    with pytest.raises(Denied):
        list(wire(lambda _: httpx.Response(403, json=body)).stream("/", {}))
