"""KBS as published, over the broker's HTTP: messages of every version, paths, cookies, status codes, error shapes.

The table in docs/spec/kbs-conformance.md names these tests.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

from cloister.attestation import Claims, Evidence, device_data, report_data
from cloister.attestation.events import Journal
from cloister.attestation.models import Device
from cloister.broker.http import CHANNEL
from cloister.broker.sessions import Channel
from cloister.crypto import JweKey, SigningKey
from cloister.crypto.jwe import RSA_OAEP
from tests.broker_world import Workload, World, nothing_granted

pytest_plugins = ["tests.broker_fixtures"]

ERRORS = "https://github.com/confidential-containers/kbs/errors/"
PUBLISHED = {  # kbs_attestation_protocol.md, "Error information"
    "AdminAuth", "AttestationError", "HTTPFailed", "HTTPSFailed", "InvalidRequestPath", "JweError",
    "PluginManagerInitialization", "PluginNotFound", "PluginInternalError", "PolicyDeny", "PolicyEngine", "SerdeError",
    "TokenNotFound", "TokenVerifierError",
}  # fmt: skip
RSA = JweKey(RSA_OAEP)  # making one is slow


class Recorder:
    """A verifier that keeps what it was asked, and finds everything in order."""

    tee = "insecure"

    def __init__(self, world: World) -> None:
        self.world = world
        self.seen: list[tuple[Evidence, bytes]] = []
        self.about: Workload | None = None
        self.devices: tuple[Device, ...] = ()

    def verify(self, evidence: Evidence, report: bytes, *, now: int) -> Claims:
        self.seen.append((evidence, report))
        assert self.about is not None
        platform = self.about.contract.platform
        return Claims(
            tee=self.tee,
            level="none",
            attester=platform.attesters[0],
            measurement=platform.measurements[0],
            agent=platform.agents[0],
            instance=self.about.instance.hex(),
            contract=self.about.contract.digest.hex(),
            job=self.about.job.digest.hex(),
            devices=self.devices,
        )


class Guest:
    """Speaks over HTTP, on a connection whose client proved the workload's key."""

    def __init__(self, world: World, http: TestClient, **changes: Any) -> None:
        self.workload = world.workload(**changes)
        self.http = http
        http.app_state[CHANNEL] = Channel(self.workload.signing.public)

    def auth(self, **changes: Any) -> Any:
        return self.http.post("/kbs/v0/auth", json={**self.workload.request(), **changes})

    def attest(self, nonce: str, **changes: Any) -> Any:
        return self.http.post("/kbs/v0/attest", json={**self.workload.attestation(nonce), **changes})

    def attested(self) -> Guest:
        assert self.attest(self.auth().json()["nonce"]).status_code == 200
        return self

    def get(self, path: str, **headers: str) -> Any:
        return self.http.get(f"/kbs/v0/{path}", headers=headers)


@pytest.fixture
def http(world: World) -> Iterator[TestClient]:
    with TestClient(world.hospital.broker.public_app(), base_url="https://broker") as client:
        yield client


@pytest.fixture
def quiet(calm: World) -> Iterator[TestClient]:
    with TestClient(calm.hospital.broker.public_app(), base_url="https://broker") as client:
        yield client


@pytest.fixture
def recorder(world: World) -> Recorder:
    recorder = Recorder(world)
    world.hospital.judges = {"insecure": recorder}
    world.hospital.restart()
    return recorder


@pytest.fixture
def recorded(world: World, recorder: Recorder) -> Iterator[TestClient]:
    with TestClient(world.hospital.broker.public_app(), base_url="https://broker") as client:
        yield client


def problem(response: Any) -> tuple[int, str]:
    body = response.json()
    assert set(body) >= {"type", "detail"}  # RFC 7807, as KBS uses it
    assert body["type"].startswith(ERRORS)
    kind = body["type"].removeprefix(ERRORS)
    assert kind in PUBLISHED
    return response.status_code, kind


# --- Request and Challenge ----------------------------------------------------------------------------------------


def test_the_challenge_is_a_nonce_a_hash_and_a_cookie(quiet: TestClient, calm: World) -> None:
    answer = Guest(calm, quiet).auth()
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"nonce", "extra-params"}
    assert answer.json()["extra-params"] == {"selected-hash-algorithm": "sha256"}
    name, _, rest = answer.headers["set-cookie"].partition("=")
    assert name == "kbs-session-id"
    assert "Max-Age" not in rest  # nothing that a client would take for a longer life


@pytest.mark.parametrize(
    "more",
    [
        {"supported-hash-algorithms": ["sha256", "sha384", "sha512"]},
        {"supported-hash-algorithms": ["SHA256"]},
        {"tee-metadata": {"primary_tee": {"tee": "insecure"}, "additional_tees": [{"tee": "nvidia", "metadata": {}}]}},
    ],
)
def test_published_extra_params_are_read(quiet: TestClient, calm: World, more: dict[str, Any]) -> None:
    guest = Guest(calm, quiet)
    ours = guest.workload.request()["extra-params"]
    assert guest.auth(**{"extra-params": {**ours, **more}}).status_code == 200


@pytest.mark.parametrize(
    ("more", "code"),
    [
        ({"supported-hash-algorithms": ["sha384", "sha512"]}, "kbs.hash"),
        ({"supported-hash-algorithms": ["md5"]}, "kbs.hash"),
        ({"supported-hash-algorithms": "sha256"}, "form.field"),
        ({"tee-metadata": {"primary_tee": {"tee": "snp"}}}, "kbs.tee"),
        ({"tee-metadata": {}}, "form.missing"),
        ({"attestation-policy-selector": "alice"}, "kbs.policy-selector"),
        ({"something": 1}, "form.unknown"),
    ],
)
def test_extra_params_that_can_not_be_honoured(quiet: TestClient, calm: World, more: dict[str, Any], code: str) -> None:
    guest = Guest(calm, quiet)
    ours = guest.workload.request()["extra-params"]
    with nothing_granted(calm.hospital):
        answer = guest.auth(**{"extra-params": {**ours, **more}})
    assert answer.json()["error"]["code"] == code
    assert answer.status_code == 401


@pytest.mark.parametrize("extra", ["", None, {}, {"supported-hash-algorithms": ["sha256"]}])
def test_a_stock_guest_is_told_that_it_is_one(quiet: TestClient, calm: World, extra: Any) -> None:
    with nothing_granted(calm.hospital):
        answer = Guest(calm, quiet).auth(**{"extra-params": extra})
    assert problem(answer) == (401, "AttestationError")
    assert answer.json()["error"]["code"] == "kbs.stock-guest"


# --- Attestation, in every version --------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["0.1.1", "0.2.0", "0.2.1"])
def test_before_0_3_the_key_stands_at_the_top(recorded: TestClient, recorder: Recorder, version: str) -> None:
    guest = Guest(recorder.world, recorded)
    recorder.about = guest.workload
    nonce, key = guest.auth(version=version).json()["nonce"], guest.workload.jwe.public_jwk
    answer = recorded.post("/kbs/v0/attest", json={"tee-pubkey": key, "tee-evidence": {"svn": "1"}})
    assert answer.status_code == 200
    ((evidence, report),) = recorder.seen
    assert (evidence.primary, evidence.additional) == ({"svn": "1"}, "")
    assert report == device_data(nonce, key)  # the nonce is the session's; there is no additional evidence


def test_0_3_has_runtime_data_and_one_piece_of_evidence(recorded: TestClient, recorder: Recorder) -> None:
    guest = Guest(recorder.world, recorded)
    recorder.about = guest.workload
    nonce, key = guest.auth(version="0.3.0").json()["nonce"], guest.workload.jwe.public_jwk
    body = {"runtime-data": {"nonce": nonce, "tee-pubkey": key}, "tee-evidence": {"svn": "1"}, "init-data": None}
    assert recorded.post("/kbs/v0/attest", json=body).status_code == 200
    assert recorder.seen[0][1] == device_data(nonce, key)


def test_0_4_has_two_pieces_of_evidence_and_both_are_in_the_report(recorded: TestClient, recorder: Recorder) -> None:
    guest = Guest(recorder.world, recorded)
    recorder.about = guest.workload
    nonce, key = guest.auth().json()["nonce"], guest.workload.jwe.public_jwk
    journal = Journal(bytes(32))
    journal.commit(journal.prepare(guest.workload.instance, bytes(32), bytes(32), bytes(32)))
    additional = journal.additional(guest.workload.instance)
    evidence = {"primary_evidence": {"svn": "1"}, "additional_evidence": additional}
    body = {
        "runtime-data": {"nonce": nonce, "tee-pubkey": key},
        "tee-evidence": evidence,
    }
    answer = recorded.post("/kbs/v0/attest", json=body)
    assert answer.status_code == 200
    assert set(answer.json()) == {"token"}
    assert answer.json()["token"].count(".") == 2
    assert recorder.seen[0][1] == report_data(nonce, key, additional)


TOML = 'version = "0.1.0"\nalgorithm = "sha384"\n[data]\n"aa.toml" = "x"\n'


@pytest.mark.parametrize(
    ("device", "code"),
    [
        (Device("cpu0", "tdx", measurements={"mrconfigid": hashlib.sha384(TOML.encode()).hexdigest()}), None),
        (Device("cpu0", "tdx", measurements={"mrconfigid": "00" * 48}), "init-data.other"),
        (Device("cpu0", "snp", measurements={"host_data": "00" * 32}), "init-data.size"),
        (Device("gpu0", "nvidia"), "init-data.platform"),
    ],
)
def test_init_data_that_is_shown_is_what_the_hardware_names(
    recorded: TestClient, recorder: Recorder, device: Device, code: str | None
) -> None:
    guest = Guest(recorder.world, recorded)
    recorder.about, recorder.devices = guest.workload, (device,)
    answer = guest.attest(guest.auth().json()["nonce"], **{"init-data": {"format": "toml", "body": TOML}})
    assert answer.json().get("error", {}).get("code") == code
    assert answer.status_code == (200 if code is None else 401)


def _forms(guest: Guest, nonce: str) -> dict[str, dict[str, Any]]:
    key = guest.workload.jwe.public_jwk
    return {
        "0.2.0": {"tee-pubkey": key, "tee-evidence": {"svn": "1"}},
        "0.3.0": {"runtime-data": {"nonce": nonce, "tee-pubkey": key}, "tee-evidence": {"svn": "1"}},
        "0.4.0": {
            "runtime-data": {"nonce": nonce, "tee-pubkey": key},
            "tee-evidence": {"primary_evidence": {"svn": "1"}, "additional_evidence": ""},
        },
    }


@pytest.mark.parametrize(("spoken", "sent"), [*itertools.permutations(("0.2.0", "0.3.0", "0.4.0"), 2)])
def test_a_message_of_another_version_than_was_agreed(
    recorded: TestClient, recorder: Recorder, spoken: str, sent: str
) -> None:
    guest = Guest(recorder.world, recorded)
    recorder.about = guest.workload
    nonce = guest.auth(version=spoken).json()["nonce"]
    answer = recorded.post("/kbs/v0/attest", json=_forms(guest, nonce)[sent])
    if (spoken, sent) == ("0.3.0", "0.4.0"):
        # To 0.3 the evidence is any JSON; but the report of 0.4 covers more, and no hardware signed what 0.3 asks for.
        assert recorder.seen[0][1] == device_data(nonce, guest.workload.jwe.public_jwk)
        return
    assert problem(answer) == (401, "SerdeError")
    assert recorder.seen == []
    again = recorded.post("/kbs/v0/attest", json=_forms(guest, nonce)[spoken])
    assert again.json()["error"]["code"] == "nonce.replayed"


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"more": 1}, "SerdeError"),
        ({"tee-pubkey": {}}, "SerdeError"),
        ({"tee-evidence": {"primary_evidence": {}}}, "SerdeError"),
        ({"tee-evidence": {"primary_evidence": {}, "additional_evidence": {}}}, "SerdeError"),
        ({"tee-evidence": {"primary_evidence": {}, "additional_evidence": "", "x": 1}}, "SerdeError"),
        ({"tee-evidence": "text"}, "SerdeError"),
        ({"init-data": "text"}, "SerdeError"),
        ({"init-data": {"format": "yaml", "body": ""}}, "SerdeError"),
        ({"init-data": {"format": "json", "body": "{}"}}, "SerdeError"),
    ],
)
def test_attestations_of_another_form(quiet: TestClient, calm: World, changes: dict[str, Any], kind: str) -> None:
    guest = Guest(calm, quiet)
    nonce = guest.auth().json()["nonce"]
    with nothing_granted(calm.hospital):
        assert problem(guest.attest(nonce, **changes)) == (401, kind)


@pytest.mark.parametrize("alg", ["RSA1_5", "RSA-OAEP", "ECDH-ES", "ML-KEM-768+A192KW"])
def test_response_keys_for_algorithms_that_are_refused(quiet: TestClient, calm: World, alg: str) -> None:
    guest = Guest(calm, quiet)
    nonce = guest.auth().json()["nonce"]
    for key in ({**RSA.public_jwk, "alg": alg}, {**guest.workload.jwe.public_jwk, "alg": alg}):
        if guest.http.cookies.get("kbs-session-id") is None:
            nonce = guest.auth().json()["nonce"]
        with nothing_granted(calm.hospital):
            answer = guest.attest(nonce, **{"runtime-data": {"nonce": nonce, "tee-pubkey": key}})
        assert problem(answer) == (401, "JweError")
        guest.http.cookies.clear()


# --- Response -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("repository", ["hospital/", "default/", ""])
@pytest.mark.parametrize("jwe", [None, RSA])
def test_a_resource_under_its_repository_and_under_the_default_one(
    world: World, http: TestClient, repository: str, jwe: JweKey | None
) -> None:
    guest = Guest(world, http, **({} if jwe is None else {"jwe": jwe})).attested()
    answer = guest.get(f"resource/{repository}asset-key/{world.data.digest.hex()}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    body = json.loads(answer.content)
    assert set(body) == {"protected", "encrypted_key", "aad", "iv", "ciphertext", "tag"}
    key, _ = guest.workload.open(answer.content, world.data.digest)
    assert len(key) == 32


def test_the_cookie_comes_again_with_every_answer_and_stays_the_same(world: World, http: TestClient) -> None:
    guest = Guest(world, http)
    first = guest.auth()
    second = guest.attest(first.json()["nonce"])
    third = guest.get(f"resource/hospital/asset-key/{world.data.digest.hex()}")
    sent = {answer.headers["set-cookie"] for answer in (first, second, third)}
    assert len(sent) == 1
    assert "HttpOnly; Secure; SameSite=Strict" in sent.pop()


# --- Errors -------------------------------------------------------------------------------------------------------


def test_a_resource_without_a_session_is_401(quiet: TestClient, calm: World) -> None:
    guest = Guest(calm, quiet)
    path = f"resource/hospital/asset-key/{calm.data.digest.hex()}"
    assert problem(guest.get(path)) == (401, "TokenNotFound")
    assert problem(guest.get(path, Cookie="kbs-session-id=" + "A" * 43)) == (401, "TokenNotFound")
    guest.auth()
    assert problem(guest.get(path)) == (401, "TokenNotFound")  # before attestation


def test_a_bearer_token_is_401(quiet: TestClient, calm: World) -> None:
    """Published, and refused: a token would open keys on any connection for as long as it lives."""
    guest = Guest(calm, quiet)
    answer = guest.get(f"resource/hospital/asset-key/{calm.data.digest.hex()}", Authorization="Bearer a.b.c")
    assert problem(answer) == (401, "TokenNotFound")
    assert answer.json()["error"]["code"] == "session.token"


def test_a_resource_that_the_guest_may_not_have_is_403(world: World, http: TestClient) -> None:
    guest = Guest(world, http).attested()
    answer = guest.get(f"resource/hospital/asset-key/{world.base.digest.hex()}")
    assert problem(answer) == (403, "PolicyDeny")


@pytest.mark.parametrize(
    "path",
    [
        "resource/hospital/asset-key/unknown",
        "resource/hospital/asset-key/" + "AB" * 32,
        "resource/hospital/key/1",
        "resource/hospital/state-share/other",
        "resource/lab/state-share/checkpoint",
        "resource/nobody/asset-key/" + "00" * 32,
        "resource/key/1",
    ],
)
def test_a_resource_that_does_not_exist_is_404(world: World, http: TestClient, path: str) -> None:
    guest = Guest(world, http).attested()
    with nothing_granted(world.hospital):
        assert problem(guest.get(path)) == (404, "InvalidRequestPath")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "auth",
        "attest",
        "plugin/x",
        "resource",
        "resource/a",
        "resource/a/b/c/d",
        "pkcs11/wrap-key",
        "resource-policy",
    ],
)
def test_a_plugin_that_does_not_exist_is_404(quiet: TestClient, calm: World, path: str) -> None:
    with nothing_granted(calm.hospital):
        assert problem(Guest(calm, quiet).get(path)) == (404, "PluginNotFound")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
@pytest.mark.parametrize(
    "path", ["resource/hospital/asset-key/1", "resource-policy", "attestation-policy", "reference-value"]
)
def test_administration_has_no_door_here(quiet: TestClient, calm: World, method: str, path: str) -> None:
    """An owner's keys, policies and reference values come through the owner's own socket."""
    with nothing_granted(calm.hospital):
        assert problem(quiet.request(method, f"/kbs/v0/{path}", json={})) == (404, "PluginNotFound")


def test_before_attestation_an_error_is_a_code_and_a_kind(quiet: TestClient, calm: World) -> None:
    guest = Guest(calm, quiet)
    answers = [
        guest.auth(version="9.9.9"),
        guest.auth(tee="insecure", **{"extra-params": ""}),
        guest.attest("A" * 88),
    ]
    guest.http.app_state[CHANNEL] = Channel(SigningKey.generate().public)
    answers.append(guest.auth())
    for answer in answers:
        assert problem(answer)[0] == 401
        assert answer.json()["error"]["details"] == {}
        text = answer.text
        assert calm.contract.digest.hex() not in text
        assert guest.workload.instance.hex() not in text
        assert "lab" not in text
