"""An owner signs its own attestation result, so its broker may write anything there: ``cloister verify`` says why it
does not believe it, and takes no result of a machine that the contract does not pin."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation.appraisal import EAR_PROFILE
from cloister.attestation.models import Device
from cloister.client.owners_results import check_result
from cloister.client.verify import RELEASE_FILE, verify_bundle
from cloister.crypto import b64url, canonical_json
from cloister.errors import Denied, Untrusted
from tests.bundles import INSTANCE, LAB, MEASUREMENT, NOW, PINS, Bundle, Party, contract_fields, make_contract

ANNOTATED = "ear.veraison.annotated-evidence"
SAID = {"level": "none", "measurement": MEASUREMENT}
CHIP, PCR = "ab" * 64, "11" * 32
PINNED = {"pcrs": {"0": PCR}, "devices": {"snp": [CHIP]}, "tenancy": "exclusive"}
AS_PINNED = {"pcrs": {"0": PCR}, "devices": (Device("cpu0", "snp", CHIP),), "tenancy": "exclusive"}


def signed(body: Any) -> str:
    message = f"{b64url(canonical_json({'alg': 'EdDSA', 'typ': 'JWT'}))}.{b64url(canonical_json(body))}"
    return f"{message}.{b64url(LAB.secret('receipt').sign(message.encode()))}"


def opened(token: str) -> dict[str, Any]:
    return dict(json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "==")))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return Bundle(tmp_path_factory.mktemp("logs"))


def check(bundle: Bundle, token: Any) -> None:
    job = bundle.job.digest
    check_result(token, "lab", bundle.contract, job=job, instance=INSTANCE, said=SAID)


def changed(**fields: Any) -> Callable[[dict[str, Any]], Any]:
    """The honest result's evidence with these fields; None: without the field."""

    def change(honest: dict[str, Any]) -> Any:
        evidence = {**honest["cpu0"][ANNOTATED], **fields}
        return {"cpu0": {ANNOTATED: {k: v for k, v in evidence.items() if v is not None}}}

    return change


@pytest.mark.parametrize(
    "modules",
    [
        lambda _: {},
        lambda _: {"cpu0": []},
        lambda _: {"cpu0": None},
        lambda _: {"cpu0": {}},
        lambda _: {"cpu0": {ANNOTATED: "text"}},
        lambda honest: honest | {"gpu0": "text"},
        lambda honest: honest | {"gpu0": {ANNOTATED: {"tee": 1, "identity": ""}}},
        lambda honest: honest | {f"gpu{n}": {ANNOTATED: {"digest": ""}} for n in range(33)},
        lambda honest: honest | {"g" * 65: {ANNOTATED: {"digest": ""}}},
        changed(agent=None),
        changed(agent=[]),
        changed(agent={}),
        changed(attester=1),
        changed(measurement=[MEASUREMENT]),
        changed(level="foo"),
        changed(level=0),
        changed(device="text"),
        changed(device={}),
        changed(pcrs=[]),
        changed(pcrs={"0": 1}),
        changed(tenancy=True),
    ],
)
def test_a_signed_result_of_another_form(bundle: Bundle, modules: Callable[[Any], Any]) -> None:
    body = opened(bundle.token(LAB))
    with pytest.raises(Untrusted, match="of lab can't be read") as caught:
        check(bundle, signed(body | {"submods": modules(body["submods"])}))
    assert (caught.value.code, caught.value.exit_code) == ("verify.token-form", 4)


def test_a_result_of_another_form_in_a_bundle(bundle: Bundle, tmp_path: Path) -> None:
    out = bundle.write(tmp_path / "out")
    record = json.loads((out / RELEASE_FILE).read_text())
    record["tokens"]["lab"] = signed(opened(record["tokens"]["lab"]) | {"submods": {}})
    (out / RELEASE_FILE).write_text(json.dumps(record))
    with pytest.raises(Untrusted) as caught:
        verify_bundle(out, PINS)
    assert caught.value.code == "verify.token-form"


@pytest.mark.parametrize("token", [None, 1, [], {}, "", "..", "a.b.c", "é.é.é", "e30.e30.e30", signed([]), signed({})])
def test_something_that_is_no_result(bundle: Bundle, token: Any) -> None:
    with pytest.raises(Untrusted):
        check(bundle, token)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["cpu0", ANNOTATED, "x"]), inner),
    max_leaves=9,
)


@given(
    fields=st.dictionaries(st.sampled_from(["iat", "exp", "submods", "eat_profile", "cloister.approvals"]), _JSON),
    evidence=st.dictionaries(
        st.sampled_from(["agent", "attester", "tee", "pcrs", "device", "tenancy", "level", "job"]), _JSON
    ),
)
@settings(max_examples=60, deadline=None)
def test_whatever_an_owner_signs(bundle: Bundle, fields: dict[str, Any], evidence: dict[str, Any]) -> None:
    modules = opened(bundle.token(LAB))["submods"]
    modules["cpu0"][ANNOTATED] |= evidence
    body = {"eat_profile": EAR_PROFILE, "iat": NOW, "exp": NOW + 60, "submods": modules} | fields
    with suppress(Untrusted, Denied):  # whatever else is raised fails this test
        check(bundle, signed(body))


@dataclass
class Elsewhere(Bundle):
    """A run that the contract binds to a chip, a boot and a machine of its own; results say what ``found`` says."""

    found: dict[str, Any] = field(default_factory=dict)

    def token(self, party: Party, **changes: Any) -> str:
        return super().token(party, **{**self.found, **changes})


def pinned(tmp_path: Path, found: dict[str, Any], **platform: Any) -> Elsewhere:
    fields = {**contract_fields()["platform"], **(platform or PINNED)}
    return Elsewhere(tmp_path / "logs", contract=make_contract(platform=fields), found=found)


def test_a_result_of_what_the_contract_pins(tmp_path: Path) -> None:
    assert verify_bundle(pinned(tmp_path, AS_PINNED).write(tmp_path / "out"), PINS).assurance == "none"


@pytest.mark.parametrize(
    ("found", "word"),
    [
        ({}, "PCR 0"),
        (AS_PINNED | {"pcrs": {"0": "22" * 32}}, "PCR 0"),
        (AS_PINNED | {"pcrs": {}}, "PCR 0"),
        (AS_PINNED | {"devices": ()}, "none is attested"),
        (AS_PINNED | {"devices": (Device("cpu0", "snp", "cd" * 64),)}, "id of cpu0"),
        (AS_PINNED | {"devices": (Device("cpu0", "snp"),)}, "id of cpu0"),
        (AS_PINNED | {"devices": (*AS_PINNED["devices"], Device("cpu1", "snp", "cd" * 64))}, "id of cpu1"),
        (AS_PINNED | {"tenancy": "shared"}, "runs beside"),
    ],
)
def test_a_result_of_another_machine_than_the_contract_pins(tmp_path: Path, found: dict[str, Any], word: str) -> None:
    with pytest.raises(Denied) as caught:
        verify_bundle(pinned(tmp_path, found).write(tmp_path / "out"), PINS)
    assert caught.value.code == "verify.platform"
    assert word in caught.value.message


def test_a_pinned_gpu_stands_in_a_submodule_of_its_own(tmp_path: Path) -> None:
    platform = {"devices": {"nvidia": ["aa" * 32]}}
    own, other = Device("gpu0", "nvidia", "aa" * 32), Device("gpu1", "nvidia", "bb" * 32)
    verify_bundle(pinned(tmp_path / "1", {"devices": (own,)}, **platform).write(tmp_path / "1" / "out"), PINS)
    with pytest.raises(Denied, match="id of gpu1"):
        verify_bundle(pinned(tmp_path / "2", {"devices": (own, other)}, **platform).write(tmp_path / "2" / "out"), PINS)


def test_a_device_of_which_a_digest_alone_is_left(bundle: Bundle, tmp_path: Path) -> None:
    """Fine where no device is pinned; where some are, it might be one of a pinned platform."""
    modules = opened(bundle.token(LAB))["submods"] | {"gpu0": {ANNOTATED: {"digest": "00" * 32}}}
    body = opened(bundle.token(LAB)) | {"submods": modules}
    check(bundle, signed(body))
    strict = pinned(tmp_path, AS_PINNED)
    body = opened(strict.token(LAB))
    body["submods"] |= {"gpu0": {ANNOTATED: {"digest": "00" * 32}}}
    with pytest.raises(Denied, match="does not say what gpu0 is"):
        check(strict, signed(body))


def test_a_result_from_before_devices_and_tenancy(bundle: Bundle) -> None:
    body = opened(bundle.token(LAB))
    for name in ("pcrs", "tenancy", "gpus"):
        del body["submods"]["cpu0"][ANNOTATED][name]
    check(bundle, signed(body))
