"""Azure's vTPM evidence: real evidence of both kinds, and what a whole verification claims."""

import base64
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation.collateral import CollateralSet, Item, Staleness
from cloister.attestation.models import guest_digest
from cloister.attestation.snp import read_amd
from cloister.attestation.tdx import TdReport, authenticate_quote
from cloister.attestation.tpm.azure import verify_azure_snp, verify_azure_tdx
from cloister.attestation.tpm.hcl import check_binding, parse_azure, parse_hcl, verify_quote
from cloister.errors import CloisterError, Malformed, Untrusted
from tests.adversarial.evidence_forge import AGENT, CONTRACT, INSTANCE, JOB, MEASUREMENT, Log
from tests.azure_forge import AzureForge, rsa_key, sha256, spki

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "vectors"
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared vectors folder is not beside the checkout")
REPORT = sha256(b"report")
FORGES = {kind: AzureForge(kind) for kind in ("snp", "tdx")}


def real(kind):
    return json.loads((SHARED / "tpm" / f"azure_{kind}_vtpm_evidence_v1.json").read_text())


@shared
@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_real_quotes_verify_with_the_key_that_the_hardware_vouches_for(kind):
    found = parse_azure(real(kind))
    assert found.report.kind == kind
    verify_quote(found.report, found.quote, b"challenge")
    assert found.report.facts["hcl.secure_boot"] is True
    for nonce in (b"", b"challeng", b"challenge\0", bytes(32)):
        with pytest.raises(Untrusted) as caught:
            verify_quote(found.report, found.quote, nonce)
        assert caught.value.code == "hcl.nonce"


@shared
def test_real_snp_evidence_leads_to_amds_root():
    body = real("snp")
    chain = (SHARED / "snp" / "roots" / "ask_ark_milan.pem").read_bytes()
    now = read_amd(parse_azure(body).endorsement).not_before + 86_400
    collateral = CollateralSet([Item("amd-chain", "milan", chain, now)])
    device = verify_azure_snp(body, b"challenge", collateral, Staleness(), now=now, require_crl=False)
    assert (device.tee, device.facts["product"], device.facts["vmpl"], device.facts["debug"]) == (
        "snp",
        "milan",
        0,
        False,
    )
    assert device.measurements["pcr0"] == body["tpm_quote"]["pcrs"][0]
    assert len(device.measurements["launch"]) == 96
    with pytest.raises(Untrusted) as caught:
        verify_azure_snp(body, b"another", collateral, Staleness(), now=now, require_crl=False)
    assert caught.value.code == "hcl.nonce"


@shared
def test_real_tdx_evidence_leads_to_intels_root():
    body = real("tdx")
    found = parse_azure(body)
    now = 1_750_000_000
    quoted = authenticate_quote(found.endorsement, now=now).quote.body
    assert isinstance(quoted, TdReport)
    check_binding(found.report, quoted.report_data)
    device = verify_azure_tdx(body, b"challenge", None, Staleness(), now=now)
    assert device.tee == "tdx"
    assert "tcb_status" not in device.facts
    assert device.measurements["pcr15"] == body["tpm_quote"]["pcrs"][15]


@shared
@pytest.mark.parametrize("kind", ["snp", "tdx"])
def test_real_evidence_changed_anywhere_in_the_runtime_text(kind):
    body = real(kind)
    found = parse_azure(body)
    if kind == "snp":
        signed = found.report.hardware[0x50:0x90]
    else:
        signed = authenticate_quote(found.endorsement, now=1_750_000_000).quote.body.report_data
    report = bytearray(base64.urlsafe_b64decode(body["hcl_report"]))
    start = report.index(b'{"keys"')
    for at in range(start, start + len(found.report.runtime), 37):
        changed = bytearray(report)
        changed[at] ^= 4
        try:
            other = parse_hcl(bytes(changed))
            verify_quote(other, found.quote, b"challenge")
            check_binding(other, signed)
        except CloisterError:
            continue
        pytest.fail(f"a change at {at} was not noticed")


@pytest.mark.parametrize("kind", FORGES)
def test_good_evidence_and_its_claims(kind):
    forge, log = FORGES[kind], Log()
    claims = forge.verifier().verify(forge.evidence(log, REPORT), REPORT, now=forge.now)
    assert (claims.tee, claims.level) == (f"az-{kind}-vtpm", "cpu-tee")
    assert (claims.instance, claims.contract, claims.job) == (INSTANCE.hex(), CONTRACT.hex(), JOB.hex())
    assert claims.measurement == MEASUREMENT.hex()
    assert claims.pcrs["15"] == log.pcr().hex()
    assert len(claims.pcrs) == 24
    (cpu,) = claims.devices
    names = ["launch"] if kind == "snp" else ["mrtd", "rtmr0", "rtmr1", "rtmr2"]
    launched = {name: cpu.measurements[name] for name in names}
    assert claims.agent == guest_digest(claims.tee, {**launched, "agent": AGENT.hex()})
    assert (cpu.name, cpu.tee, cpu.facts["hcl.secure_boot"]) == ("cpu0", kind, True)
    assert cpu.measurements["pcr7"] == claims.pcrs["7"]


def test_the_key_is_the_one_in_the_text():
    found = parse_azure(FORGES["snp"].body(REPORT))
    assert found.report.ak == spki(rsa_key("ak"))


@pytest.mark.parametrize("kind", FORGES)
def test_debugging_makes_it_level_none(kind):
    forge = FORGES[kind]
    debug = {"policy": 1 << 19 | 1 << 17 | 1 << 16 | 0x011F} if kind == "snp" else {"attributes": b"\1" + bytes(7)}
    claims = forge.verifier().verify(forge.evidence(Log(), REPORT, hardware=debug), REPORT, now=forge.now)
    assert claims.level == "none"
    assert claims.devices[0].facts["debug"] is True
    assert claims.notes[0].startswith("Level none")


def test_version_2_of_trustees_evidence():
    forge = FORGES["snp"]
    runtime = forge.runtime(**{"user-data": (REPORT + bytes(32)).hex()})
    good = forge.evidence(Log(), REPORT, runtime=runtime, version=2)
    assert forge.verifier().verify(good, REPORT, now=forge.now).level == "cpu-tee"
    with pytest.raises(Untrusted) as caught:
        forge.verifier().verify(forge.evidence(Log(), REPORT, version=2), REPORT, now=forge.now)
    assert caught.value.code == "hcl.user-data"


@given(st.binary(max_size=2000), st.booleans())
@settings(max_examples=100)
def test_any_bytes_are_no_report(data, begins):
    with pytest.raises(Malformed):
        parse_hcl((b"HCLA" + bytes(28) if begins else b"") + data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)


@given(st.sampled_from(["version", "hcl_report", "tpm_quote", "vcek", "message", "pcrs", "signature"]), JSON)
@settings(max_examples=150)
def test_any_json_in_place_of_a_field_is_malformed(field, value):
    body = FORGES["snp"].body(REPORT)
    inner = body["tpm_quote"] if field in body["tpm_quote"] else body
    if value == inner[field]:
        return
    with pytest.raises(CloisterError):
        parse_azure(body | {field: value} if inner is body else body | {"tpm_quote": inner | {field: value}})


@given(JSON)
@settings(max_examples=100)
def test_any_json_is_no_evidence(value):
    with pytest.raises(Malformed):
        parse_azure(value)


@given(st.sampled_from(["keys", "vm-configuration", "user-data"]), JSON)
@settings(max_examples=100)
def test_any_runtime_text_is_read_or_refused(field, value):
    forge = FORGES["snp"]
    runtime = forge.runtime(**{field: value})
    try:
        parse_hcl(forge.hcl(runtime, bytes(1184)))
    except Malformed:
        return
    assert field != "keys"
