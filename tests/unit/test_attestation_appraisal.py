"""The pure decision over claims, check by check, and the result token."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation import Claims, ReferenceValues, appraise, result_token, verify_token
from cloister.attestation.appraisal import EAR_PROFILE, MAX_TOKEN_LIFE, check_placement
from cloister.attestation.models import Device
from cloister.attestation.policy import DEFAULT_POLICY
from cloister.attestation.trust import TIERS, tier
from cloister.crypto import JweKey, SigningKey, b64url, canonical_json, parse_json, unb64url
from cloister.errors import CloisterError, Denied, Malformed, Misuse, Untrusted

INSTANCE, CONTRACT, JOB = b"i" * 16, b"c" * 32, b"j" * 32
M, A, T, Z = "1" * 64, "2" * 64, "3" * 64, "0" * 64
NOW = 1_800_000_000
SIGNER = SigningKey(b"s" * 32)
KEY = JweKey().public_jwk
BOOT = {str(i): Z for i in range(8)}


def claims(**changed):
    base = Claims("tpm", "none", T, M, A, INSTANCE.hex(), CONTRACT.hex(), JOB.hex(), BOOT | {"15": M}, "hw", ("note",))
    return dataclasses.replace(base, **changed)


def reference(**changed):
    base = ReferenceValues(frozenset({M}), frozenset({A}), frozenset({T}), {}, "none")
    return dataclasses.replace(base, **changed)


def decide(c, r, **run):
    appraise(c, r, **({"instance": INSTANCE, "contract": CONTRACT, "job": JOB} | run))


def test_claims_that_the_contract_names_are_accepted():
    decide(claims(), reference())
    decide(claims(), reference(pcrs={"0": Z, "15": M}))
    decide(claims(), reference(measurements=frozenset({M, Z})))


@pytest.mark.parametrize(
    ("change_claims", "change_reference", "kind", "code"),
    [
        ({}, {"measurements": frozenset()}, Denied, "appraisal.reference"),
        ({}, {"agents": frozenset()}, Denied, "appraisal.reference"),
        ({}, {"attesters": frozenset()}, Denied, "appraisal.reference"),
        ({}, {"least_level": "tpm"}, Denied, "appraisal.level"),
        ({"level": "tpm"}, {"least_level": "cpu-tee"}, Denied, "appraisal.level"),
        ({"level": "cpu-tee"}, {"least_level": "gpu-tee"}, Denied, "appraisal.level"),
        ({"measurement": Z}, {}, Denied, "appraisal.measurement"),
        ({"agent": Z}, {}, Denied, "appraisal.agent"),
        ({"attester": Z}, {}, Denied, "appraisal.attester"),
        ({"agent": M}, {}, Denied, "appraisal.agent"),  # named, but as something else
        ({}, {"pcrs": {"0": M}}, Denied, "appraisal.pcr"),
        ({"pcrs": {}}, {"pcrs": {"0": Z}}, Denied, "appraisal.pcr"),
        ({"level": "tpm"}, {"pcrs": {"0": Z}}, Denied, "appraisal.pcr-reference"),
        ({"level": "tpm"}, {}, Denied, "appraisal.pcr-reference"),
        ({"instance": "00" * 16}, {}, Untrusted, "appraisal.instance"),
        ({"contract": Z}, {}, Untrusted, "appraisal.contract"),
        ({"job": Z}, {}, Untrusted, "appraisal.job"),
    ],
)
def test_each_check_refuses_with_its_own_reason(change_claims, change_reference, kind, code):
    with pytest.raises(CloisterError) as caught:
        decide(claims(**change_claims), reference(**change_reference))
    assert (type(caught.value), caught.value.code) == (kind, code)
    assert caught.value.message.endswith(".")


def test_a_tpm_above_level_none_needs_its_boot_pcrs_named():
    decide(claims(level="tpm"), reference(pcrs=BOOT, least_level="tpm"))
    decide(claims(level="cpu-tee", tee="snp", pcrs={}), reference(least_level="tpm"))


def test_checks_are_in_order():
    """Whoever is wrong in everything hears the first reason; mending one reveals the next."""
    wrong = {"level": "none", "measurement": Z, "agent": Z, "attester": Z, "pcrs": {}, "instance": "00" * 16}
    wrong |= {"contract": Z, "job": Z}
    ref = reference(least_level="tpm", pcrs=BOOT)
    codes = []
    for field, good in (
        ("level", "tpm"),
        ("measurement", M),
        ("agent", A),
        ("attester", T),
        ("pcrs", BOOT),
        ("instance", INSTANCE.hex()),
        ("contract", CONTRACT.hex()),
        ("job", JOB.hex()),
    ):
        with pytest.raises(CloisterError) as caught:
            decide(claims(**wrong), ref)
        codes.append(caught.value.code.removeprefix("appraisal."))
        wrong[field] = good
    assert codes == ["level", "measurement", "agent", "attester", "pcr", "instance", "contract", "job"]
    decide(claims(**wrong), ref)


def test_level_denial_carries_its_reason():
    with pytest.raises(Denied) as caught:
        decide(claims(), reference(least_level="gpu-tee"))
    assert caught.value.details == {"found": "none", "least": "gpu-tee"}


def token(**changed):
    arguments = {"signer": SIGNER, "now": NOW, "ttl": 300, "tee_pubkey": KEY} | changed
    return result_token(claims(), reference(), **arguments)


def test_token_says_what_was_appraised():
    body = verify_token(token(), SIGNER.public, now=NOW)
    assert body["eat_profile"] == EAR_PROFILE == "tag:github.com,2023:veraison/ear"
    assert (body["iat"], body["exp"]) == (NOW, NOW + 300)
    assert set(body["ear.verifier-id"]) == {"developer", "build"}
    result = body["submods"]["cpu0"]
    assert result["ear.status"] == "contraindicated"  # level none: nobody may mistake it for hardware trust
    assert result["ear.trustworthiness-vector"]["hardware"] == 97
    assert len(result["ear.trustworthiness-vector"]) == 8
    evidence = result["ear.veraison.annotated-evidence"]
    assert evidence["runtime_data_claims"] == {"tee-pubkey": KEY}
    assert {k: v for k, v in evidence.items() if k != "runtime_data_claims"} == claims().to_wire()


@pytest.mark.parametrize(
    ("level", "pcrs", "status"),
    [
        ("none", BOOT, "contraindicated"),
        ("tpm", BOOT, "warning"),
        ("cpu-tee", BOOT, "affirming"),
        ("gpu-tee", BOOT, "affirming"),
        ("gpu-tee", {}, "warning"),
    ],
)
def test_status_is_never_better_than_the_vector(level, pcrs, status):
    tee = "tpm" if level in ("none", "tpm") else "snp"
    made = result_token(
        claims(level=level, tee=tee), reference(pcrs=pcrs), signer=SIGNER, now=NOW, ttl=60, tee_pubkey=KEY
    )
    result = verify_token(made, SIGNER.public, now=NOW)["submods"]["cpu0"]
    assert result["ear.status"] == status
    worst = max(result["ear.trustworthiness-vector"].values())
    tiers = {"affirming": 2, "warning": 32, "contraindicated": 96}
    assert worst < {"affirming": 32, "warning": 96, "contraindicated": 128}[status]
    assert tiers[status] >= 2


def test_policy_id_names_the_reference_values():
    ids = set()
    for ref in (reference(), reference(pcrs={"0": Z}), reference(measurements=frozenset({M, Z}))):
        made = result_token(claims(), ref, signer=SIGNER, now=NOW, ttl=60, tee_pubkey=KEY)
        ids.add(verify_token(made, SIGNER.public, now=NOW)["submods"]["cpu0"]["ear.appraisal-policy-id"])
    assert len(ids) == 3


def test_no_token_for_claims_that_the_contract_does_not_name():
    with pytest.raises(Denied) as caught:
        result_token(claims(measurement=Z), reference(), signer=SIGNER, now=NOW, ttl=60, tee_pubkey=KEY)
    assert caught.value.code == "appraisal.measurement"


@pytest.mark.parametrize("ttl", [0, -1, MAX_TOKEN_LIFE + 1])
def test_no_token_outlives_a_session(ttl):
    with pytest.raises(Misuse) as caught:
        token(ttl=ttl)
    assert caught.value.code == "ear.ttl"


@pytest.mark.parametrize("now", [NOW + 300, NOW + 10**6, NOW - 61])
def test_token_out_of_its_time(now):
    with pytest.raises(Untrusted) as caught:
        verify_token(token(), SIGNER.public, now=now)
    assert caught.value.code == "ear.time"


def test_token_within_its_time():
    for now in (NOW - 60, NOW, NOW + 299):
        assert verify_token(token(), SIGNER.public, now=now)["iat"] == NOW


def test_token_by_another_signer():
    with pytest.raises(Untrusted) as caught:
        verify_token(token(), SigningKey.generate().public, now=NOW)
    assert caught.value.code == "signature.invalid"


def signed(header, body, key=SIGNER):
    message = f"{b64url(canonical_json(header))}.{b64url(body)}"
    return f"{message}.{b64url(key.sign(message.encode()))}"


GOOD_HEADER = {"alg": "EdDSA", "typ": "JWT"}
GOOD_BODY = parse_json(unb64url(token().split(".")[1]))


@pytest.mark.parametrize(
    "header",
    [
        {"alg": "none", "typ": "JWT"},
        {"alg": "HS256", "typ": "JWT"},
        {"alg": "EdDSA"},
        {"alg": "EdDSA", "typ": "JWT", "jwk": {"kty": "OKP"}},
        {"alg": "EdDSA", "typ": "JWT", "kid": "other"},
    ],
)
def test_token_that_chooses_its_own_algorithm_or_key(header):
    with pytest.raises(Untrusted) as caught:
        verify_token(signed(header, canonical_json(GOOD_BODY)), SIGNER.public, now=NOW)
    assert caught.value.code == "ear.algorithm"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"eat_profile": "tag:example.com,2024:other"}, "ear.profile"),
        ({"iat": None}, "ear.form"),
        ({"exp": "later"}, "ear.form"),
        ({"exp": True}, "ear.form"),
        ({"iat": -1}, "ear.form"),
        ({"submods": []}, "ear.form"),
        ({"exp": NOW + 301}, "ear.time"),
    ],
)
def test_signed_token_of_another_form(change, code):
    with pytest.raises(CloisterError) as caught:
        verify_token(signed(GOOD_HEADER, canonical_json(GOOD_BODY | change)), SIGNER.public, now=NOW)
    assert caught.value.code == code


@pytest.mark.parametrize(
    "text", ["", "a.b", "a.b.c.d", "!.!.!", "a" * 70_000, "e30.e30.", None, b"a.b.c", "\ud800.\ud800.\ud800"]
)
def test_text_that_is_no_token(text):
    with pytest.raises((Malformed, Untrusted)):
        verify_token(text, SIGNER.public, now=NOW)


def test_signed_body_that_is_no_object_or_not_canonical():
    for body, code in ((b"[]", "ear.profile"), (b'{"a": 1}', "json.canonical"), (b"{", "json.syntax")):
        with pytest.raises(CloisterError) as caught:
            verify_token(signed(GOOD_HEADER, body), SIGNER.public, now=NOW)
        assert caught.value.code == code


@given(st.integers(0, len(token()) - 1), st.characters(codec="ascii"))
@settings(max_examples=100, deadline=None)
def test_one_changed_character_anywhere_is_refused(position, character):
    text = token()
    changed = text[:position] + character + text[position + 1 :]
    if changed == text:
        assert verify_token(changed, SIGNER.public, now=NOW)["iat"] == NOW
        return
    with pytest.raises((Malformed, Untrusted)):
        verify_token(changed, SIGNER.public, now=NOW)


# Devices: where it may run, and the submodules of the result.

CHIP, OTHER_CHIP = "ab" * 64, "cd" * 64
CPU = Device("cpu0", "snp", CHIP, {"launch": "11" * 48}, {"debug": False})
GPUS = tuple(
    Device(f"gpu{i}", "nvidia", f"0{i}", {}, {"measurements_match": True, "confidential": True, "debug": False})
    for i in range(2)
)


def tee_claims(*devices, **changed):
    return claims(tee="snp", level="gpu-tee" if len(devices) > 1 else "cpu-tee", pcrs={}, devices=devices, **changed)


@pytest.mark.parametrize(
    "pinned",
    [{}, {"snp": (CHIP, OTHER_CHIP)}, {"nvidia": ("00", "01")}, {"snp": (CHIP,), "nvidia": ("00", "01", "02")}],
)
def test_a_machine_that_the_contract_names(pinned):
    check_placement(tee_claims(CPU, *GPUS), pinned, None)


@pytest.mark.parametrize(
    ("devices", "pinned"),
    [
        ((CPU,), {"snp": (OTHER_CHIP,)}),
        ((CPU,), {"snp": ()}),
        ((CPU,), {"tpm": (CHIP,)}),  # its platform isn't attested at all
        ((CPU,), {"snp": (CHIP,), "nvidia": ("00",)}),
        ((CPU, *GPUS), {"nvidia": ("00",)}),  # one GPU more than was agreed on
        ((dataclasses.replace(CPU, identity=""),), {"snp": ("",)}),
        ((), {"snp": (CHIP,)}),
    ],
)
def test_a_machine_that_the_contract_does_not_name(devices, pinned):
    with pytest.raises(Denied) as caught:
        check_placement(tee_claims(*devices), pinned, None)
    assert caught.value.code == "appraisal.device"


def test_tenancy_is_the_measured_agents_word():
    for wanted in (None, "shared", "exclusive"):
        check_placement(tee_claims(CPU, tenancy="exclusive"), {}, wanted)
    check_placement(tee_claims(CPU), {}, "shared")
    with pytest.raises(Denied) as caught:
        check_placement(tee_claims(CPU), {}, "exclusive")
    assert caught.value.code == "appraisal.tenancy"


def submodules(*devices, policy=DEFAULT_POLICY, **changed):
    made = result_token(
        tee_claims(*devices, **changed), reference(), signer=SIGNER, now=NOW, ttl=60, tee_pubkey=KEY, policy=policy
    )
    return verify_token(made, SIGNER.public, now=NOW)["submods"]


def test_each_device_is_a_submodule():
    found = submodules(CPU, *GPUS)
    assert set(found) == {"cpu0", "gpu0", "gpu1"}
    assert {name: one["ear.status"] for name, one in found.items()} == dict.fromkeys(found, "affirming")
    assert found["cpu0"]["ear.trustworthiness-vector"] == {
        "configuration": 2,
        "executables": 3,
        "file-system": 0,
        "hardware": 2,
        "instance-identity": 2,
        "runtime-opaque": 2,
        "sourced-data": 2,
        "storage-opaque": 0,
    }
    assert found["gpu1"]["ear.veraison.annotated-evidence"] == GPUS[1].to_wire()
    assert found["cpu0"]["ear.veraison.annotated-evidence"]["device"] == CPU.to_wire()
    assert found["cpu0"]["ear.veraison.annotated-evidence"]["runtime_data_claims"] == {"tee-pubkey": KEY}


def test_a_result_about_many_devices_stays_readable():
    facts = {**GPUS[0].facts, "firmware": ["x" * 200] * 40}
    many = [dataclasses.replace(GPUS[0], name=f"gpu{i}", facts=facts) for i in range(16)]
    found = submodules(CPU, *many)
    assert len(found) == 17
    assert {one["ear.status"] for one in found.values()} == {"affirming"}
    assert set(found["gpu3"]["ear.veraison.annotated-evidence"]) == {"digest", "identity", "tee"}
    assert found["cpu0"]["ear.veraison.annotated-evidence"]["device"] == CPU.to_wire()


def test_the_policy_id_is_the_owners_policy():
    for one in submodules(CPU, *GPUS).values():
        assert one["ear.appraisal-policy-id"] == f"urn:cloister:policy:{DEFAULT_POLICY.digest}"
        assert one["cloister.reference-values"].startswith("urn:cloister:reference:")


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"measurements_match": False}, "warning"),
        ({"confidential": False}, "contraindicated"),
        ({"debug": True}, "contraindicated"),
        ({"tcb_status": "OutOfDate"}, "warning"),
        ({"tcb_status": "Revoked"}, "contraindicated"),
    ],
)
def test_the_workload_is_never_better_than_its_weakest_device(change, status):
    bad = dataclasses.replace(GPUS[1], facts=GPUS[1].facts | change)
    lenient = dataclasses.replace(DEFAULT_POLICY, default=False, platforms={"snp": (), "nvidia": ()})
    found = submodules(CPU, GPUS[0], bad, policy=lenient)
    assert found["gpu0"]["ear.status"] == "affirming"
    assert found["gpu1"]["ear.status"] == status
    assert found["cpu0"]["ear.status"] == status
    if "tcb_status" not in change:
        with pytest.raises(Denied):
            submodules(CPU, GPUS[0], bad)  # and the built-in policy gives no token at all


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        ({"debug": True}, "contraindicated"),
        ({}, "warning"),
        ({"debug": False, "tcb_status": "SWHardeningNeeded"}, "warning"),
    ],
)
def test_the_cpus_own_facts_count(facts, status):
    lenient = dataclasses.replace(DEFAULT_POLICY, default=False, platforms={"snp": ()})
    found = submodules(dataclasses.replace(CPU, facts=facts), policy=lenient)
    assert found["cpu0"]["ear.status"] == status


def test_nothing_about_a_tpm_is_better_than_a_warning():
    tpm = Device("tpm0", "tpm", "ab", {}, {"secure_boot": True})
    made = result_token(
        claims(level="tpm", devices=(tpm,)), reference(pcrs=BOOT), signer=SIGNER, now=NOW, ttl=60, tee_pubkey=KEY
    )
    found = verify_token(made, SIGNER.public, now=NOW)["submods"]
    assert {name: one["ear.status"] for name, one in found.items()} == {"cpu0": "warning", "tpm0": "warning"}


def test_another_verifiers_word_is_not_improved():
    for said, status in (("affirming", "affirming"), ("warning", "warning"), ("excellent", "contraindicated")):
        lenient = dataclasses.replace(DEFAULT_POLICY, default=False, platforms={"ear": ()})
        for name in ("cpu0", "gpu0"):
            device = Device(name, "ear", "", {}, {"status": said, "verifier": "theirs"})
            assert submodules(device, policy=lenient)[name]["ear.status"] == status


_FACTS = st.fixed_dictionaries(
    {},
    optional={
        "debug": st.booleans(),
        "confidential": st.booleans(),
        "measurements_match": st.booleans(),
        "secure_boot": st.booleans(),
        "status": st.sampled_from(["affirming", "warning", "other"]),
        "tcb_status": st.sampled_from(["UpToDate", "OutOfDate", "Revoked", "anything"]),
    },
)


@given(
    st.lists(st.tuples(st.sampled_from(["snp", "tdx", "nvidia", "tpm", "ear", "cca"]), _FACTS), max_size=4),
    st.sampled_from(["none", "tpm", "cpu-tee", "gpu-tee"]),
)
@settings(max_examples=100, deadline=None)
def test_no_status_is_better_than_a_vector_or_a_device(found, level):
    devices = tuple(Device("cpu0" if i == 0 else f"d{i}", tee, facts=facts) for i, (tee, facts) in enumerate(found))
    made = result_token(
        claims(level=level, tee="snp", pcrs={}, devices=devices),
        reference(),
        signer=SIGNER,
        now=NOW,
        ttl=60,
        tee_pubkey=KEY,
    )
    submods = verify_token(made, SIGNER.public, now=NOW)["submods"]
    for one in submods.values():
        worst = max((tier(v) for v in one["ear.trustworthiness-vector"].values()), key=TIERS.index)
        assert TIERS.index(one["ear.status"]) >= TIERS.index(worst)
        assert TIERS.index(submods["cpu0"]["ear.status"]) >= TIERS.index(one["ear.status"])
        if level == "none":
            assert one["ear.status"] == "contraindicated"
