"""The workload facing a stock key broker: only what is published is spoken, and what is missing is said."""

from __future__ import annotations

import base64
import hashlib
import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cloister.errors import CloisterError, Denied, Malformed, Unavailable, Untrusted
from cloister.workload.trustee import PublishedSession, TrusteeEntry
from tests.bundles import make_contract
from tests.trustee_double import Refusal, Trustee

CONTRACT = make_contract()
PATH = "default/key/minilm"


class Link:
    """The node's tunnel."""

    def __init__(self, trustee: Trustee) -> None:
        self._trustee = trustee

    def tunnel(self, _: str) -> socket.socket:
        return self._trustee.connect()


class Sample:
    """Evidence of the platform that everybody knows to be none."""

    tee = "sample"

    def __init__(self, additional: str = "") -> None:
        self.digests: list[bytes] = []
        self._additional = additional

    def make(self, nonce: str, tee_pubkey: dict[str, str], algorithm: str) -> tuple[str, Any]:
        runtime = {"additional-evidence": self._additional, "nonce": nonce, "tee-pubkey": tee_pubkey}
        material = json.dumps(runtime, sort_keys=True, separators=(",", ":")).encode()
        digest = hashlib.new(algorithm, material).digest()
        self.digests.append(digest)
        return self._additional, {"svn": "1", "report_data": base64.b64encode(digest).decode()}


@pytest.fixture
def trustee(tmp_path: Path) -> Iterator[Trustee]:
    yield from started(Trustee(tmp_path))


def started(server: Trustee) -> Iterator[Trustee]:
    server.resources[PATH] = b"k" * 32
    server.resources["denied/key/minilm"] = b"k" * 32
    yield server
    server.close()


def session(trustee: Trustee, evidence: Any = None, **changes: Any) -> PublishedSession:
    entry = TrusteeEntry(trustee.pin, "default", unbound=True, address="kbs.example:8080")
    party = sorted(CONTRACT.parties)[0]
    return PublishedSession(Link(trustee), CONTRACT, party, replace(entry, **changes), evidence or Sample())  # type: ignore[arg-type]


@pytest.mark.parametrize(("selects", "size"), [(None, 48), ("sha256", 32), ("SHA384", 48), ("sha512", 64)])
@pytest.mark.parametrize("with_aad", [False, True])
def test_a_key_of_a_stock_key_broker(tmp_path: Path, selects: str | None, size: int, with_aad: bool) -> None:
    for server in started(Trustee(tmp_path, selects=selects, with_aad=with_aad)):
        evidence = Sample()
        with session(server, evidence) as opened:
            key = opened.key("key", "minilm")
        assert key.secret == b"k" * 32
        assert [len(digest) for digest in evidence.digests] == [size]
        assert server.requests == ["/kbs/v0/auth", "/kbs/v0/attest", f"/kbs/v0/resource/{PATH}"]
        assert opened.token.count(".") == 2


def test_the_result_says_that_nothing_was_bound(trustee: Trustee) -> None:
    with session(trustee) as opened:
        key = opened.key("key", "minilm")
    assert key.statement() == {"binding": "none", "party": sorted(CONTRACT.parties)[0], "resource": PATH}
    assert "kkkk" not in repr(key)


def test_without_the_contracts_word_nothing_is_sent(trustee: Trustee) -> None:
    with pytest.raises(Denied) as caught:
        session(trustee, unbound=False)
    assert caught.value.code == "trustee.unbound"
    assert trustee.requests == []


def test_another_server_at_the_address(trustee: Trustee) -> None:
    with pytest.raises(Untrusted) as caught, session(trustee, tls_pin=b"\0" * 32):
        raise AssertionError
    assert caught.value.code == "tls.pin"
    assert trustee.requests == []


def test_devices_go_beside_the_guest(trustee: Trustee) -> None:
    with session(trustee, Sample('{"nvidia":{"device_evidence_list":[]}}')) as opened:
        assert opened.key("key", "minilm").secret == b"k" * 32


def test_our_own_launch_log_is_nothing_that_a_stock_service_knows(trustee: Trustee) -> None:
    """The reason why evidence for it is made apart."""
    with pytest.raises(Denied) as caught, session(trustee, Sample('{"cloister":{}}')):
        raise AssertionError
    assert (caught.value.code, caught.value.details["problem"]) == ("kbs.refused", "AttestationError")


@pytest.mark.parametrize(("repository", "problem"), [("other", "InvalidRequestPath"), ("denied", "PolicyDeny")])
def test_refusals_keep_their_published_type_and_nothing_of_their_text(
    trustee: Trustee, repository: str, problem: str
) -> None:
    with session(trustee, repository=repository) as opened, pytest.raises(Denied) as caught:
        opened.key("key", "minilm")
    assert caught.value.details["problem"] == problem
    assert "stranger" not in json.dumps(caught.value.to_wire())


def test_a_refusal_in_the_form_of_our_own_brokers(trustee: Trustee, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would put words into another party's mouth: such a server has its published types, and no more to say."""
    word = {"kind": "denied", "code": "contract.revoked", "message": "Revoked by hospital.", "details": {}}
    for more in ({}, {"type": 1}):
        monkeypatch.setattr(Refusal, "body", property(lambda _, m=more: {"error": word, **m}, lambda *_: None), False)
        with session(trustee, repository="other") as opened, pytest.raises(Denied) as caught:
            opened.key("key", "minilm")
        assert (caught.value.code, caught.value.details["problem"]) == ("kbs.refused", "something unreadable")
        assert "hospital" not in json.dumps(caught.value.to_wire())


@pytest.mark.parametrize("part", ["", "..", ".", "a/b", "a?b", "a%2fb", "ä", "x" * 129, "a b"])
def test_names_that_would_be_another_address(trustee: Trustee, part: str) -> None:
    with session(trustee) as opened:
        for kind, tag in ((part, "minilm"), ("key", part)):
            with pytest.raises(Malformed) as caught:
                opened.key(kind, tag)
            assert caught.value.code == "trustee.resource"
    assert len(trustee.requests) == 2


@pytest.mark.parametrize(
    "extra",
    [{"selected-hash-algorithm": "md5"}, {"selected-hash-algorithm": 5}, {"selected-hash-algorithm": "sha1"}, [], 7],
)
def test_a_hash_that_is_none(trustee: Trustee, extra: Any) -> None:
    trustee.spoil["extra-params"] = extra
    with pytest.raises(Malformed), session(trustee):
        raise AssertionError


@pytest.mark.parametrize("extra", [{}, {"supplemental": "x"}, "", None])
def test_a_server_that_selects_nothing_means_sha_384(trustee: Trustee, extra: Any) -> None:
    trustee.spoil["extra-params"] = extra
    evidence = Sample()
    with session(trustee, evidence):
        assert {len(digest) for digest in evidence.digests} == {48}


@pytest.mark.parametrize(
    "spoiled", [{"tag": "AAAA"}, {"ciphertext": ""}, {"aad": "AAAA"}, {"protected": "e30"}, {"iv": None}, {"more": 1}]
)
def test_an_answer_that_does_not_open(trustee: Trustee, spoiled: dict[str, Any]) -> None:
    trustee.spoil["jwe"] = spoiled
    with session(trustee) as opened, pytest.raises((Untrusted, Malformed)):
        opened.key("key", "minilm")


@pytest.mark.parametrize("size", [0, 70_000])
def test_a_secret_of_no_reasonable_size(trustee: Trustee, size: int) -> None:
    trustee.resources[PATH] = b"x" * size
    with session(trustee) as opened, pytest.raises(Malformed) as caught:
        opened.key("key", "minilm")
    assert caught.value.code == "trustee.secret"


def test_a_server_that_is_gone(trustee: Trustee) -> None:
    class Nowhere:
        def tunnel(self, _: str) -> socket.socket:
            left, right = socket.socketpair()
            right.close()
            return left

    entry = TrusteeEntry(trustee.pin, "default", unbound=True, address="kbs.example:8080")
    party = sorted(CONTRACT.parties)[0]
    with pytest.raises(Unavailable), PublishedSession(Nowhere(), CONTRACT, party, entry, Sample()):  # type: ignore[arg-type]
        raise AssertionError


def test_every_refusal_is_one_of_ours(trustee: Trustee) -> None:
    trustee.sessions.clear()
    with pytest.raises(CloisterError), session(trustee, Sample("not json")):
        raise AssertionError
