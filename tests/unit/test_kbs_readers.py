"""Whatever arrives as a Request or an Attestation is read, or refused in words of ours, and quickly."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.attestation.models import MAX_ADDITIONAL
from cloister.broker import Limits
from cloister.broker.kbs_request import read_attestation, read_knock, sent_nonce
from cloister.crypto import JweKey, canonical_json
from cloister.errors import CloisterError, Malformed
from tests.broker_world import World

pytest_plugins = ["tests.broker_fixtures"]

LIMITS = Limits()
KEY = JweKey().public_jwk
VERSIONS = [(0, 1, 1), (0, 2, 0), (0, 3, 0), (0, 4, 0)]
NAMES = st.sampled_from(
    ["version", "tee", "extra-params", "cloister", "runtime-data", "nonce", "tee-pubkey", "tee-evidence",
     "primary_evidence", "additional_evidence", "init-data", "format", "body", "kty", "crv", "alg", "x", "y", "n", "e"]
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=12) | st.sampled_from(["0.4.0", "snp", "EC", "P-256"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES | st.text(max_size=3), inner, max_size=6),
    max_leaves=20,
)


def attestation() -> dict[str, Any]:
    return {
        "init-data": {"format": "json", "body": '{"algorithm":"sha256","data":{},"version":"0.1.0"}'},
        "runtime-data": {"nonce": "A" * 88, "tee-pubkey": dict(KEY)},
        "tee-evidence": {"primary_evidence": {"quote": "AAAA"}, "additional_evidence": "{}"},
    }


@settings(max_examples=300, deadline=None)
@given(JSON)
def test_any_json_as_a_request(body: Any) -> None:
    with pytest.raises(CloisterError):
        read_knock(body, LIMITS)


@settings(max_examples=300, deadline=None)
@given(JSON, st.sampled_from(VERSIONS))
def test_any_json_as_an_attestation(body: Any, version: tuple[int, int, int]) -> None:
    with suppress(CloisterError):
        assert sent_nonce(body) is None or isinstance(sent_nonce(body), str)
    with pytest.raises(CloisterError):
        read_attestation(body, version)


def test_additional_evidence_is_as_long_as_evidence_may_be() -> None:
    """A long boot log and the reports of eight GPUs are beyond 64 KiB."""
    body = attestation()
    body["tee-evidence"]["additional_evidence"] = "x" * MAX_ADDITIONAL
    assert len(read_attestation(body, (0, 4, 0)).additional) == MAX_ADDITIONAL > 64 * 1024
    body["tee-evidence"]["additional_evidence"] += "x"
    with pytest.raises(Malformed):
        read_attestation(body, (0, 4, 0))


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict):
        for name, inner in value.items():
            yield (*at, name)
            yield from places(inner, (*at, name))


PLACES = list(places(attestation()))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(PLACES), JSON)
def test_an_attestation_with_something_else_in_one_place(place: tuple[Any, ...], value: Any) -> None:
    body = copy.deepcopy(attestation())
    target = body
    for name in place[:-1]:
        target = target[name]
    target[place[-1]] = value
    with suppress(CloisterError):
        message = read_attestation(body, (0, 4, 0))
        assert message.tee_pubkey == KEY
        assert message.report("A" * 88) == message.report("A" * 88)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_genuine_request_with_something_else_in_one_place(calm: World, data: st.DataObject) -> None:
    body = _request(calm)
    ours = body["extra-params"]["cloister"]
    name = data.draw(st.sampled_from(sorted(ours)))
    value = data.draw(JSON)
    with suppress(CloisterError):
        knock = read_knock({**body, "extra-params": {"cloister": {**ours, name: value}}}, LIMITS)
        assert knock.request.job.contract == knock.request.contract.digest


_REQUESTS: dict[int, dict[str, Any]] = {}


def _request(world: World) -> dict[str, Any]:
    if id(world) not in _REQUESTS:
        _REQUESTS[id(world)] = world.workload().request()
    return _REQUESTS[id(world)]


@pytest.mark.parametrize(
    "body",
    [
        {"version": "0" * 200_000},
        {"version": "0.4.0", "tee": "x" * 200_000},
        {"version": "0.4.0", "tee": "snp", "extra-params": {"supported-hash-algorithms": ["sha256"] * 20_000}},
        {"version": "0.4.0", "tee": "snp", "extra-params": {f"k{n}": n for n in range(15_000)}},
        {"version": "0.4.0", "tee": "snp", "extra-params": {"cloister": {"contract": "{" * 200_000}}},
        {"version": "0.4.0", "tee": "snp", "extra-params": {"cloister": {"contract": '{"payload":"' + "A" * 200_000}}},
    ],
)
def test_requests_that_are_made_to_take_long(body: Any) -> None:
    with pytest.raises(CloisterError):
        read_knock(body, LIMITS)


@pytest.mark.parametrize(
    "key",
    [
        {**KEY, "x": "A" * 200_000},
        {"kty": "RSA", "alg": "RSA-OAEP-256", "e": "AQAB", "n": "_" * 200_000},
        {"kty": "RSA", "alg": "RSA-OAEP-256", "e": "_" * 200_000, "n": "_" * 342},
        {**KEY, **{f"k{n}": "" for n in range(20_000)}},
    ],
)
def test_keys_that_are_made_to_take_long(key: dict[str, Any]) -> None:
    body = attestation()
    body["runtime-data"]["tee-pubkey"] = key
    with pytest.raises(Malformed):
        read_attestation(body, (0, 4, 0))


def test_what_was_read_is_what_was_sent() -> None:
    body = attestation()
    message = read_attestation(json.loads(canonical_json(body)), (0, 4, 0))
    assert message.nonce == sent_nonce(body) == "A" * 88
    assert (message.primary, message.additional) == ({"quote": "AAAA"}, "{}")
    assert message.init_data is not None
    evidence = message.evidence("snp")
    assert (evidence.tee, evidence.primary, evidence.additional) == ("snp", {"quote": "AAAA"}, "{}")
