"""Signed requests: what is accepted, and what each kind of refusal is called."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.contracts.requests import REQUEST_TYPE, SCHEME, authorization_header
from cloister.control.errors import Unauthenticated
from cloister.control.requests import MAX_AGE, Asked, Caller, ReplayGuard, check_request
from cloister.crypto import SigningKey, b64url, sha256, sign_document, unb64url
from cloister.errors import Unavailable

KEY = SigningKey(b"k" * 32)
NOW = 1_790_000_000
PATH = "/v1/jobs?after=3"
BODY = b'{"job":"x"}'
AUDIENCE = "ab" * 32


def key_of(party: str) -> bytes | None:
    return KEY.public if party == "hospital" else None


def header(body: bytes | None = BODY, **changes: object) -> str:
    values: dict[str, object] = {
        "method": "POST",
        "path": PATH,
        "body": None if body is None else sha256(body).hex(),
        "audience": AUDIENCE,
        "now": NOW,
        **changes,
    }
    party = str(values.pop("party", "hospital"))
    key = values.pop("key", KEY)
    return authorization_header(party, key, **values)  # type: ignore[arg-type]


def check(given: str | None, asked: Asked | None = None, *, now: int = NOW, since: int = 0) -> Caller:
    return check_request(
        given, asked or Asked("POST", PATH, BODY), key_of=key_of, audience=AUDIENCE, now=now, since=since
    )


def refused(code: str, given: str | None, asked: Asked | None = None, *, now: int = NOW, since: int = 0) -> None:
    with pytest.raises(Unauthenticated) as caught:
        check(given, asked, now=now, since=since)
    assert caught.value.code == code
    assert caught.value.http_status == 401


def test_a_signed_request_names_its_caller() -> None:
    assert check(header()).party == "hospital"


def test_an_empty_body_may_be_signed_either_way() -> None:
    asked = Asked("POST", PATH, b"")
    assert check(header(None), asked).party == check(header(b""), asked).party == "hospital"


def test_a_streamed_body_is_signed_as_none() -> None:
    assert check(header(None), Asked("POST", PATH, None)).party == "hospital"
    refused("request.body", header(b"x"), Asked("POST", PATH, None))


def test_two_requests_of_one_second_differ() -> None:
    assert check(header()).request != check(header()).request


@pytest.mark.parametrize("given", [None, "", "Bearer abc", SCHEME.strip(), SCHEME + "x" * 20_000])
def test_unsigned(given: str | None) -> None:
    refused("request.unsigned", given)


@pytest.mark.parametrize("given", ["!!", b64url(b"{}"), b64url(b"not json")])
def test_unreadable(given: str) -> None:
    refused("request.form", SCHEME + given)


def test_an_unknown_field_is_refused() -> None:
    document = {
        "audience": AUDIENCE, "body": None, "issued": NOW, "method": "POST", "party": "hospital", "path": PATH,
        "salt": "00" * 16, "type": "request/v1", "more": 1,
    }  # fmt: skip
    refused("request.form", SCHEME + b64url(sign_document(REQUEST_TYPE, document, KEY).to_bytes()))


def test_another_document_type_is_refused() -> None:
    document = {
        "audience": AUDIENCE, "body": None, "issued": NOW, "method": "POST", "party": "hospital", "path": PATH,
        "salt": "00" * 16, "type": "request/v1",
    }  # fmt: skip
    envelope = sign_document("application/vnd.cloister.contract+json", document, KEY)
    refused("request.signature", SCHEME + b64url(envelope.to_bytes()), Asked("POST", PATH, b""))


def test_each_binding_is_checked() -> None:
    refused("request.party", header(party="mallory"))
    refused("request.signature", header(key=SigningKey(b"m" * 32)))
    refused("request.audience", header(audience="cd" * 32))
    refused("request.route", header(method="PUT"))
    refused("request.route", header(path="/v1/jobs?after=4"))
    refused("request.body", header(b'{"job":"y"}'))
    refused("request.body", header(None))


def test_time_is_bounded_on_both_sides() -> None:
    assert check(header(), now=NOW + MAX_AGE).party == check(header(), now=NOW - MAX_AGE).party
    refused("request.stale", header(), now=NOW + MAX_AGE + 1)
    refused("request.stale", header(), now=NOW - MAX_AGE - 1)


def test_a_request_from_before_the_start_is_refused() -> None:
    """Nobody remembers whether it was answered."""
    refused("request.stale", header(), since=NOW + 1)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_never_accepted(data: st.DataObject) -> None:
    original = header()
    raw = bytearray(unb64url(original[len(SCHEME) :]))
    index = data.draw(st.integers(0, len(raw) - 1))
    raw[index] ^= 1 << data.draw(st.integers(0, 7))
    try:
        caller = check(SCHEME + b64url(bytes(raw)))
    except Unauthenticated:
        return
    # Only DSSE's key hint lies outside of the signature: what passes is still the document that was signed.
    assert caller == check(original)


def test_the_guard_refuses_what_it_saw() -> None:
    guard = ReplayGuard(capacity=10)
    caller = check(header())
    guard.admit(caller, now=NOW)
    with pytest.raises(Unauthenticated) as caught:
        guard.admit(caller, now=NOW + MAX_AGE)
    assert caught.value.code == "request.replayed"
    guard.admit(check(header()), now=NOW)


def test_the_guard_remembers_as_long_as_a_request_is_good() -> None:
    guard = ReplayGuard(capacity=10)
    caller = check(header(), now=NOW - MAX_AGE)  # from the future
    guard.admit(caller, now=NOW - MAX_AGE)
    with pytest.raises(Unauthenticated):
        guard.admit(caller, now=NOW + MAX_AGE)


def test_the_guard_forgets_in_the_end_and_never_too_early() -> None:
    guard = ReplayGuard(capacity=2)
    first, second, third = (check(header()) for _ in range(3))
    guard.admit(first, now=NOW)
    guard.admit(second, now=NOW)
    with pytest.raises(Unavailable) as caught:
        guard.admit(third, now=NOW + 1)
    assert caught.value.code == "request.busy"
    guard.admit(third, now=NOW + 2 * MAX_AGE + 2)
