"""Attacks on the evidence of Azure's confidential VMs: each breaks one link from the processor to the vTPM's quote."""

import dataclasses

import pytest

from cloister.attestation.tpm import parser
from cloister.errors import Malformed, Untrusted
from tests.adversarial.evidence_forge import Log, launch_event
from tests.azure_forge import ALL, AzureForge, b64url, jwk, rsa_key, sha256

REPORT = sha256(b"report")
FORGES = {kind: AzureForge(kind) for kind in ("snp", "tdx")}
both = pytest.mark.parametrize("forge", FORGES.values(), ids=FORGES)


def refused(forge, code, kind=Untrusted, *, log=None, report=REPORT, evidence=None, **options):
    made = forge.evidence(log or Log(), REPORT, **options) if evidence is None else evidence
    with pytest.raises(kind) as caught:
        forge.verifier().verify(made, report, now=forge.now)
    assert caught.value.code == code
    assert caught.value.message.endswith(".")


@both
def test_the_forge_is_good_unless_told_otherwise(forge):
    assert forge.verifier().verify(forge.evidence(Log(), REPORT), REPORT, now=forge.now).level == "cpu-tee"


@both
def test_text_that_the_hardware_did_not_sign(forge):
    """A real machine's report around a text with the attacker's key: what the whole construction is about."""
    refused(forge, "hcl.report-data", hardware={"report_data": sha256(b"another text") + bytes(32)})


@both
def test_report_data_with_something_behind_the_digest(forge):
    data = sha256(forge.runtime()) + b"\1" + bytes(31)
    refused(forge, "hcl.report-data", hardware={"report_data": data})


@both
def test_quote_by_a_key_of_the_attackers(forge):
    real = forge.runtime()
    attacker = AzureForge(forge.kind)
    attacker.cpu, attacker.ak = forge.cpu, rsa_key("attacker")
    refused(attacker, "signature.invalid", runtime=real)


@both
def test_quote_for_another_challenge(forge):
    refused(forge, "hcl.nonce", quote={"extra_data": sha256(b"older")})
    refused(forge, "hcl.nonce", report=sha256(b"newer"))


@both
@pytest.mark.parametrize("nonce", [REPORT[:31], REPORT + b"\0", REPORT + bytes(32), b""])
def test_challenge_padded_or_cut(forge, nonce):
    refused(forge, "hcl.nonce", quote={"extra_data": nonce})
    refused(forge, "hcl.report-size", Malformed, report=nonce)


@both
@pytest.mark.parametrize(
    "selections", [(), ALL * 2, (parser.PcrSelection(parser.ALG_SHA256, b"\xff\x00\xff"),),
                   (parser.PcrSelection(0x0004, b"\xff\xff\xff"),)]
)  # fmt: skip
def test_quote_over_other_pcrs(forge, selections):
    refused(forge, "hcl.pcr-selection", quote={"selections": selections})


@both
def test_pcr_values_that_were_not_quoted(forge):
    good = forge.evidence(Log(), REPORT)
    for index in (0, 7, 15, 23):
        pcrs = list(good.primary["tpm_quote"]["pcrs"])
        pcrs[index] = "ee" * 32
        quote = good.primary["tpm_quote"] | {"pcrs": pcrs}
        changed = dataclasses.replace(good, primary=good.primary | {"tpm_quote": quote})
        refused(forge, "hcl.pcr-digest", evidence=changed)


@both
def test_event_log_that_does_not_lead_to_pcr_15(forge):
    log = Log()
    evidence = forge.evidence(log, REPORT)
    other = Log(launch_event(measurement="77" * 32))
    refused(forge, "hcl.replay", evidence=dataclasses.replace(evidence, additional=other.text()))


@both
@pytest.mark.parametrize(
    "keys",
    [
        lambda ak: [],
        lambda ak: [jwk(ak, kid="HCLEkPub")],
        lambda ak: [jwk(ak), jwk(rsa_key("attacker"))],
        lambda ak: [jwk(ak, kty="oct")],
        lambda ak: [jwk(ak, e="Aw")],
        lambda ak: [jwk(ak, key_ops=["encrypt"])],
        lambda ak: [jwk(ak, n="AQAB")],
        lambda ak: [jwk(ak, n="AA" + jwk(ak)["n"])],
        lambda ak: [jwk(ak)] * 17,
    ],
)
def test_text_with_no_key_two_keys_or_another_kind(forge, keys):
    """With two keys of one name, this reader and another could disagree about which one is vouched for."""
    with pytest.raises(Malformed):
        forge.verifier().verify(
            forge.evidence(Log(), REPORT, runtime=forge.runtime(keys=keys(forge.ak))), REPORT, now=forge.now
        )


@both
def test_text_with_a_field_twice(forge):
    runtime = forge.runtime()[:-1] + b',"keys":[]}'
    refused(forge, "json.duplicate", Malformed, runtime=runtime)


@both
@pytest.mark.parametrize(
    "changed",
    [
        {"magic": b"HCLB"},
        {"type": 3},
        {"hash": 2},
        {"size": 1 << 31},
        {"size": 10},
        {"rest": b"\0" * 20 + b"x"},
        {"rest": bytes(16 * 1024)},
    ],
)
def test_report_of_the_paravisor_of_another_form(forge, changed):
    with pytest.raises(Malformed):
        forge.verifier().verify(forge.evidence(Log(), REPORT, hcl=changed), REPORT, now=forge.now)


def test_report_type_that_lies_about_the_hardware():
    refused(FORGES["snp"], "hcl.kind", hcl={"type": 4})
    refused(FORGES["tdx"], "hcl.kind", hcl={"type": 2})


def test_evidence_of_one_kind_for_the_verifier_of_the_other():
    one, other = FORGES["snp"], FORGES["tdx"]
    evidence = one.evidence(Log(), REPORT)
    refused(other, "hcl.tee", evidence=evidence)
    refused(other, "hcl.kind", evidence=dataclasses.replace(evidence, tee="az-tdx-vtpm"))


def test_report_that_the_guest_itself_asked_for():
    """Under the paravisor the guest has a lower privilege; it can ask for a report about a text of its own."""
    refused(FORGES["snp"], "hcl.vmpl", hardware={"vmpl": 2})


def test_report_of_another_chip_than_the_certificates():
    refused(FORGES["snp"], "snp.chip-id", hardware={"chip_id": b"\x07" * 64})


def test_report_with_a_changed_launch_measurement():
    forge = FORGES["snp"]
    text = forge.runtime()
    report = bytearray(forge.hardware(text))
    report[0x90] ^= 1
    refused(forge, "signature.invalid", hcl_report=b64url(forge.hcl(text, bytes(report))))


def test_attackers_own_confidential_vm_has_another_agent_digest():
    """It can have a genuine report about any text. What it can't have is the paravisor's launch measurement."""
    forge = FORGES["snp"]
    honest = forge.verifier().verify(forge.evidence(Log(), REPORT), REPORT, now=forge.now)
    own = forge.evidence(Log(), REPORT, hardware={"measurement": b"x" * 48})
    assert forge.verifier().verify(own, REPORT, now=forge.now).agent != honest.agent


def test_trust_domain_quote_swapped_for_another_machines():
    forge = FORGES["tdx"]
    other = forge.hardware(forge.runtime(**{"user-data": "11" * 64}))
    refused(forge, "hcl.report-data", td_quote=b64url(other))


@both
@pytest.mark.parametrize("version", [0, 3, True, "1", None, 2**40])
def test_version_that_nobody_knows(forge, version):
    refused(forge, "hcl.form", Malformed, version=version)


def test_version_2_is_not_one_of_tdx():
    refused(FORGES["tdx"], "hcl.form", Malformed, version=2)


@both
def test_fields_that_nobody_knows(forge):
    refused(forge, "hcl.form", Malformed, more="x")
