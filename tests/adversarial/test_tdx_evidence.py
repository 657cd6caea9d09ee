"""TDX evidence for another challenge, of an enclave, of an opened guest, with a log that isn't the hardware's."""

import base64
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attestation import Evidence
from cloister.attestation.bootlog import BootEvent, BootLog, encode_log, replay
from cloister.attestation.collateral import CollateralSet, Staleness
from cloister.attestation.models import guest_digest
from cloister.attestation.tdx import TdxVerifier, attester_id, replay_rtmr3
from cloister.errors import CloisterError, Malformed, Unavailable, Untrusted
from tests.adversarial.evidence_forge import AGENT, CONTRACT, INSTANCE, JOB, MEASUREMENT, Log
from tests.boot_logs import ACTION, AUTHORITY, SEPARATOR, event, secure_boot_events
from tests.tdx_forge import COMPONENTS, NOW, SEPT_VE_DISABLE, TEE_TCB_SVN, Forge, platform_level
from tests.tdx_forge import INSTANCE as PLATFORM_INSTANCE

FORGE = Forge()
LOG = Log()
TEXT = LOG.text()
DIGESTS = [bytes.fromhex(event["digest"]) for event in LOG.events]


def verify(evidence, report, *, forge=FORGE, now=NOW, **changed):
    collateral = forge.collateral(**changed)
    return TdxVerifier(collateral, Staleness(), roots=forge.roots).verify(evidence, report, now=now)


def claims(forge=FORGE, **td):
    evidence, report = forge.evidence(TEXT, **td)
    return verify(evidence, report, forge=forge)


def refused(evidence, report, code, error=Untrusted, **more):
    with pytest.raises(error) as caught:
        verify(evidence, report, **more)
    assert caught.value.code == code


def attributes(*bits):
    return (int.from_bytes(SEPT_VE_DISABLE, "little") | sum(1 << bit for bit in bits)).to_bytes(8, "little")


# What is good


def test_good_evidence_gives_claims():
    found = claims()
    assert (found.tee, found.level) == ("tdx", "cpu-tee")
    assert found.measurement == MEASUREMENT.hex()
    assert (found.instance, found.contract, found.job) == (INSTANCE.hex(), CONTRACT.hex(), JOB.hex())
    assert found.attester == attester_id(PLATFORM_INSTANCE.hex())
    expected = {"mrtd": b"m" * 48, "rtmr0": b"0" * 48, "rtmr1": b"1" * 48, "rtmr2": b"2" * 48}
    assert found.agent == guest_digest("tdx", {name: value.hex() for name, value in expected.items()})
    assert found.agent != AGENT.hex()
    (cpu,) = found.devices
    assert (cpu.name, cpu.tee, cpu.identity) == ("cpu0", "tdx", PLATFORM_INSTANCE.hex())
    facts = cpu.facts
    assert (facts["debug"], facts["tcb_status"], facts["boot_log"], facts["rtmr3_log"]) == (
        False,
        "UpToDate",
        False,
        False,
    )
    assert facts["attributes.sept_ve_disable"] is True
    assert cpu.measurements["mrconfigid"] == "00" * 48


@pytest.mark.parametrize("body", ["td-1.0", "td-1.5", "td-1.5-ex"])
def test_version_5_gives_the_same_claims(body):
    found = claims(Forge("tdx", 5, body))
    assert (found.level, found.measurement) == ("cpu-tee", MEASUREMENT.hex())
    assert found.devices[0].facts["body"] == body
    for on in (True, False):
        facts = claims(Forge("tdx", 5, body), attributes=SEPT_VE_DISABLE if on else bytes(8)).devices[0].facts
        assert facts["attributes.sept_ve_disable"] is on


@pytest.mark.parametrize("register", ["mr_td", "rtmr0", "rtmr1", "rtmr2"])
def test_every_boot_measurement_changes_the_guest(register):
    assert claims(**{register: b"x" * 48}).agent != claims().agent


def test_rtmr_3_may_hold_the_event_log():
    assert claims(rtmr3=replay_rtmr3(DIGESTS)).devices[0].facts["rtmr3_log"] is True
    assert claims(rtmr3=replay_rtmr3(DIGESTS)).agent == claims().agent


def test_rtmr_3_is_replayed_as_the_page_says():
    register = bytes(48)
    for digest in (b"a" * 32, b"b" * 32):
        label = b"cloister/rtmr3/v1"
        framed = len(label).to_bytes(8, "big") + label + (32).to_bytes(8, "big") + digest
        register = hashlib.sha384(register + hashlib.sha384(framed).digest()).digest()
    assert replay_rtmr3([b"a" * 32, b"b" * 32]) == register
    assert replay_rtmr3([]) == bytes(48)


# Binding


def test_evidence_for_another_challenge():
    evidence, report = FORGE.evidence(TEXT)
    refused(evidence, hashlib.sha256(b"other").digest(), "tdx.report")
    refused(evidence, report[:31], "tdx.report-size", Malformed)


def test_report_data_with_more_than_the_report():
    _, report = FORGE.evidence(TEXT)
    for said in (report + b"\x01" + bytes(31), bytes(32) + report, report + report):
        evidence, _ = FORGE.evidence(TEXT, report=said)
        refused(evidence, report, "tdx.report")


def test_an_edited_event_log():
    evidence, report = FORGE.evidence(TEXT)
    other = Log().text()
    moved = Evidence("tdx", evidence.primary, other)
    _, expected = FORGE.evidence(other)
    refused(moved, expected, "tdx.report")
    assert expected != report


def test_rtmr_3_of_another_event_log():
    for digests in (DIGESTS[:-1], DIGESTS[::-1], [*DIGESTS, b"x" * 32], [b"x" * 32]):
        evidence, report = FORGE.evidence(TEXT, rtmr3=replay_rtmr3(digests))
        refused(evidence, report, "tdx.rtmr3")


def test_evidence_of_another_platform():
    evidence, report = FORGE.evidence(TEXT)
    refused(Evidence("snp", evidence.primary, TEXT), report, "tdx.tee")


def test_a_quote_of_an_enclave():
    sgx = Forge("sgx", 4)
    _, report = FORGE.evidence(TEXT)
    quote = sgx.quote(sgx.enclave(report_data=report + bytes(32)))
    evidence = Evidence("tdx", {"quote": base64.b64encode(quote).decode()}, TEXT)
    refused(evidence, report, "tdx.body", forge=sgx)


# An opened guest


@pytest.mark.parametrize("bits", [(0,), (1,), (5,), (7,), (29,), (20,), (40,), (0, 29)])
def test_a_guest_whose_memory_others_can_reach_has_no_level(bits):
    found = claims(attributes=attributes(*bits))
    assert found.level == "none"
    assert found.devices[0].facts["debug"] is any(bit < 8 for bit in bits)
    assert "Level none" in found.notes[0]


def test_attributes_that_open_nothing_keep_the_level():
    assert claims(attributes=attributes(16, 27, 30, 31, 62, 63)).level == "cpu-tee"
    assert claims(attributes=bytes(8)).devices[0].facts["attributes.sept_ve_disable"] is False


def test_a_guest_with_a_service_domain_has_no_level():
    forge = Forge("tdx", 5, "td-1.5")
    assert claims(forge, mr_service_td=b"s" * 48).level == "none"


# The platform's state


def test_a_state_that_intel_says_nothing_about():
    higher = bytes([COMPONENTS[0] + 1, *COMPONENTS[1:]])
    answer = FORGE.answer("tcbInfo", FORGE.tcb_info(tcbLevels=[platform_level(higher, bytes(16))]))
    evidence, report = FORGE.evidence(TEXT)
    refused(evidence, report, "tdx.tcb-unknown", tcb_info=answer)


NEWER = Forge("tdx", 5, "td-1.5")
OLD_MODULE = bytes([4, *TEE_TCB_SVN[1:]])


def test_a_module_replaced_by_an_older_one_under_a_running_domain():
    """The host may replace the TDX module while the domain runs. It began on what is current; that doesn't help it."""
    facts = claims(NEWER, tee_tcb_svn2=OLD_MODULE).devices[0].facts
    assert (facts["tcb_status"], facts["tcb_status.running"]) == ("OutOfDate", "OutOfDate")
    assert facts["advisories"] == ["INTEL-SA-00002"]
    with pytest.raises(Untrusted) as caught:
        claims(NEWER, tee_tcb_svn2=bytes([3, *TEE_TCB_SVN[1:]]))
    assert caught.value.code == "tdx.tcb-unknown"
    with pytest.raises(Untrusted) as caught:
        claims(NEWER, tee_tcb_svn2=bytes([6, 2, *TEE_TCB_SVN[2:]]))
    assert caught.value.code == "tdx.module"


def test_a_module_replaced_by_a_revoked_one_under_a_running_domain():
    info = NEWER.tcb_info()
    info["tdxModuleIdentities"][0]["tcbLevels"][1]["tcbStatus"] = "Revoked"
    evidence, report = NEWER.evidence(TEXT, tee_tcb_svn2=OLD_MODULE)
    refused(evidence, report, "tdx.tcb-revoked", forge=NEWER, tcb_info=NEWER.answer("tcbInfo", info))


def test_an_old_qe_identity_beside_a_new_tcb_info():
    """Both are Intel's and in their time. An owner's floor for the round of evaluation must see the older one."""
    old = FORGE.answer("enclaveIdentity", FORGE.qe_identity(tcbEvaluationDataNumber=12))
    evidence, report = FORGE.evidence(TEXT)
    facts = verify(evidence, report, qe_identity=old).devices[0].facts
    assert [facts[f"tcb_evaluation{of}"] for of in ("", ".platform", ".qe")] == [12, 19, 12]


def test_an_outdated_state_is_told():
    found = claims(tee_tcb_svn=bytes([4, *TEE_TCB_SVN[1:]]))
    assert found.devices[0].facts["tcb_status"] == "OutOfDate"
    assert found.devices[0].facts["advisories"] == ["INTEL-SA-00002"]
    assert any("OutOfDate" in note for note in found.notes)


def test_no_collateral_no_claims():
    evidence, report = FORGE.evidence(TEXT)
    with pytest.raises(Unavailable) as caught:
        TdxVerifier(CollateralSet(), Staleness(), roots=FORGE.roots).verify(evidence, report, now=NOW)
    assert caught.value.code == "tdx.collateral"


def test_a_forge_against_intels_root():
    evidence, report = FORGE.evidence(TEXT)
    with pytest.raises(Untrusted) as caught:
        TdxVerifier(FORGE.collateral(), Staleness()).verify(evidence, report, now=NOW)
    assert caught.value.code == "x509.root"


# The form of the evidence


@pytest.mark.parametrize(
    "primary", [{}, {"quote": 1}, {"quote": "!"}, {"quote": "AAAA\n"}, {"quote": "AB=="}, {"quote": "A" * 60_000}]
)
def test_a_primary_in_another_form(primary):
    _, report = FORGE.evidence(TEXT)
    with pytest.raises(Malformed):
        verify(Evidence("tdx", primary, TEXT), report)


def test_a_primary_with_more_than_it_has():
    evidence, report = FORGE.evidence(TEXT, primary={"more": "x"})
    refused(evidence, report, "tdx.form", Malformed)


def test_bytes_after_the_quote_are_zeros_or_refused():
    evidence, report = FORGE.evidence(TEXT)
    quote = base64.b64decode(evidence.primary["quote"])
    padded = Evidence("tdx", {"quote": base64.b64encode(quote + bytes(500)).decode()}, TEXT)
    assert verify(padded, report).level == "cpu-tee"
    for tail in (b"\x01", bytes(9) + b"x", b"\n"):
        spoiled = Evidence("tdx", {"quote": base64.b64encode(quote + tail).decode()}, TEXT)
        refused(spoiled, report, "tdx.trailing", Malformed)


@given(st.integers(0, 10**6), st.integers(0, 7))
def test_any_one_bit_change_of_the_evidence_is_refused(at, bit):
    evidence, report = GOOD
    quote = bytearray(base64.b64decode(evidence.primary["quote"]))
    quote[at % len(quote)] ^= 1 << bit
    changed = Evidence("tdx", {"quote": base64.b64encode(quote).decode()}, TEXT)
    with pytest.raises(CloisterError) as caught:
        VERIFIER.verify(changed, report, now=NOW)
    assert isinstance(caught.value, Malformed | Untrusted)


GOOD = FORGE.evidence(TEXT)
VERIFIER = TdxVerifier(FORGE.collateral(), Staleness(), roots=FORGE.roots)


# The boot event log


def boot_log(*events):
    """A CCEL log of (index, data) events, and the RTMRs 0 to 2 that it leads to."""
    registers = {n: bytes(48) for n in range(3)}
    found = []
    for index, data in events:
        digest = hashlib.sha384(data).digest()
        registers[index - 1] = hashlib.sha384(registers[index - 1] + digest).digest()
        found.append(BootEvent(index, 0x0D, {"sha384": digest}, data))
    return found, {f"rtmr{n}": value for n, value in registers.items()}


def with_log(events, registers, padding=b""):
    log = BootLog("rtmr", ("sha384",), tuple(events), HEADER)
    text = base64.b64encode(encode_log(log) + padding).decode()
    return FORGE.evidence(TEXT, primary={"cc_eventlog": text}, **registers)


# TCG_EfiSpecIDEvent with one algorithm, SHA-384 (PFP 10.4.5.1).
HEADER = b"Spec ID Event03\0" + bytes(4) + b"\x00\x02\x00\x02" + b"\x01\0\0\0" + b"\x0c\x00\x30\x00" + b"\x00"


def test_a_boot_log_that_leads_to_the_registers():
    evidence, report = with_log(*boot_log((1, b"config"), (2, b"loader"), (2, b"kernel"), (3, b"command line")))
    facts = verify(evidence, report).devices[0].facts
    assert facts["boot_log"] is True
    assert "secure_boot" not in facts  # this firmware measured no such variable


@pytest.mark.parametrize("padding", [b"", b"\xff" * 300, b"\0" * 3])
@pytest.mark.parametrize("index", [0, 1])
def test_a_boot_log_as_firmware_of_trust_domains_writes_it(index, padding):
    banks = ("sha384",)
    events = secure_boot_events(banks=banks, register=1)
    events += [event(1, ACTION, b"late", banks=banks), event(1, SEPARATOR, bytes(4), banks=banks)]
    log = BootLog("rtmr", banks, tuple(events), HEADER, padding, index)
    text = base64.b64encode(encode_log(log)).decode()
    registers = {"rtmr0": replay(log, "sha384")[0], "rtmr1": bytes(48), "rtmr2": bytes(48)}
    evidence, report = FORGE.evidence(TEXT, primary={"cc_eventlog": text}, **registers)
    facts = verify(evidence, report).devices[0].facts
    assert (facts["boot_log"], facts["secure_boot"]) == (True, True)


def test_a_boot_log_whose_blobs_are_shown_as_variables():
    """Secure boot is off. The host had the bytes of five other variables measured as its blobs, and swaps the types."""
    banks = ("sha384",)
    good, off = (secure_boot_events(on=on, banks=banks, register=1)[:6] for on in (True, False))
    shown = [*good[:5], *(BootEvent(1, AUTHORITY, e.digests, e.data) for e in off[:5]), off[5]]
    log = BootLog("rtmr", banks, tuple(shown), HEADER)
    registers = {"rtmr0": replay(log, "sha384")[0], "rtmr1": bytes(48), "rtmr2": bytes(48)}
    text = base64.b64encode(encode_log(log)).decode()
    evidence, report = FORGE.evidence(TEXT, primary={"cc_eventlog": text}, **registers)
    facts = verify(evidence, report).devices[0].facts
    assert "secure_boot" not in facts
    assert "twice" in facts["secure_boot.unknown"]


@pytest.mark.parametrize("register", ["rtmr0", "rtmr1", "rtmr2"])
def test_a_boot_log_that_leads_elsewhere(register):
    events, registers = boot_log((1, b"config"), (2, b"loader"), (3, b"command line"))
    evidence, report = with_log(events, registers | {register: b"x" * 48})
    refused(evidence, report, "bootlog.replay")


def test_a_boot_log_with_an_event_left_out():
    events, registers = boot_log((1, b"config"), (2, b"loader"), (2, b"malware"), (3, b"command line"))
    evidence, report = with_log([e for e in events if e.data != b"malware"], registers)
    refused(evidence, report, "bootlog.replay")


def test_a_boot_log_that_is_none():
    evidence, report = FORGE.evidence(TEXT, primary={"cc_eventlog": base64.b64encode(b"x" * 99).decode()})
    with pytest.raises(Malformed):
        verify(evidence, report)
