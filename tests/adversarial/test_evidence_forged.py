"""Forged TPM evidence: keys of the wrong kind, other PCRs, edited logs. Each attack changes one thing."""

import dataclasses
import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cloister.attestation.events import event_digest
from cloister.attestation.tpm import TpmVerifier, parser
from cloister.errors import Malformed, Untrusted
from tests.adversarial.evidence_forge import AK_ATTRIBUTES, CONTRACT, INSTANCE, JOB, Forge, Log, b64, launch_event


def verify(forge, evidence):
    return TpmVerifier().verify(evidence, forge.report(evidence.additional), now=0)


def refused(forge, evidence, code, kind=Untrusted):
    with pytest.raises(kind) as caught:
        verify(forge, evidence)
    assert caught.value.code == code
    assert caught.value.message.endswith(".")


def test_the_forge_is_good_unless_told_otherwise():
    """Otherwise every attack below would pass for the wrong reason."""
    forge = Forge()
    claims = verify(forge, forge.evidence(Log()))
    assert (claims.instance, claims.contract, claims.job) == (INSTANCE.hex(), CONTRACT.hex(), JOB.hex())
    assert claims.level == "none"
    assert claims.attester == hashlib.sha256(forge.ak.name()).hexdigest()


@pytest.mark.parametrize(
    ("attributes", "why"),
    [
        (AK_ATTRIBUTES & ~parser.RESTRICTED, "a key that signs anything can sign a made-up quote"),
        (AK_ATTRIBUTES & ~parser.SIGN, "not a signing key"),
        (AK_ATTRIBUTES & ~parser.FIXED_TPM, "a key that may be copied to another TPM"),
        (AK_ATTRIBUTES & ~parser.FIXED_PARENT, "a key that may be moved"),
        (AK_ATTRIBUTES & ~parser.SENSITIVE_DATA_ORIGIN, "a key that was made outside and brought in"),
        (AK_ATTRIBUTES | parser.DECRYPT, "a key that also decrypts"),
        (0, "a key with no promise at all"),
    ],
)
def test_attestation_key_that_is_not_a_restricted_signing_key(attributes, why):
    forge = Forge()
    forge.ak = dataclasses.replace(forge.ak, attributes=attributes)
    refused(forge, forge.evidence(Log()), "tpm.ak-attributes")


@pytest.mark.parametrize("change", [{"scheme": parser.ALG_NULL}, {"symmetric_bits": 128}])
def test_attestation_key_without_one_fixed_scheme(change):
    forge = Forge()
    forge.ak = dataclasses.replace(forge.ak, **change)
    refused(forge, forge.evidence(Log()), "tpm.ak-scheme")


def test_signature_of_another_scheme_than_the_keys():
    forge = Forge()
    rsa = parser.Signature(parser.ALG_RSASSA, (b"\1" * 256,)).encode()
    refused(forge, forge.evidence(Log(), primary={"signature": b64(rsa)}), "tpm.ak-scheme")


def test_endorsement_key_that_is_a_signing_key():
    forge = Forge()
    forge.ek = forge.public(ec.generate_private_key(ec.SECP256R1()), AK_ATTRIBUTES, parser.ALG_ECDSA, 0)
    refused(forge, forge.evidence(Log()), "tpm.ek-attributes")


def test_endorsement_key_of_another_tpm_is_shown():
    forge, other = Forge(), Forge()
    refused(forge, forge.evidence(Log(), primary={"ek_public": b64(other.ek.encode())}), "tpm.signer")


def test_attestation_key_of_another_tpm_is_shown():
    forge, other = Forge(), Forge()
    refused(forge, forge.evidence(Log(), primary={"ak_public": b64(other.ak.encode())}), "signature.invalid")


@pytest.mark.parametrize(
    ("selections", "why"),
    [
        ((parser.PcrSelection(parser.ALG_SHA256, b"\xff\x00\x01"),), "PCR 16 instead of 15: resettable"),
        ((parser.PcrSelection(parser.ALG_SHA256, b"\xff\x00\x80"),), "PCR 23 instead of 15: resettable"),
        ((parser.PcrSelection(parser.ALG_SHA256, b"\xff\x80\x01"),), "PCR 16 beside 15"),
        ((parser.PcrSelection(parser.ALG_SHA256, b"\xff\x80\x80"),), "PCR 23 beside 15"),
        ((parser.PcrSelection(parser.ALG_SHA256, b"\x00\x80\x00"),), "the boot PCRs left out"),
        ((parser.PcrSelection(parser.ALG_SHA256, b"\xff\x00\x00"),), "the event PCR left out"),
        ((parser.PcrSelection(parser.ALG_SHA256, b"\xff\x80"),), "another form of the same bit map"),
        ((parser.PcrSelection(0x0004, b"\xff\x80\x00"),), "the SHA-1 bank"),
        ((parser.PcrSelection(parser.ALG_SHA256, b"\xff\x80\x00"),) * 2, "the bank twice"),
        ((), "nothing at all"),
    ],
)
def test_quote_over_other_pcrs(selections, why):
    forge = Forge()
    refused(forge, forge.evidence(Log(), quote={"selections": selections}), "tpm.pcr-selection")


def test_pcr_values_that_were_not_quoted():
    forge = Forge()
    good = forge.evidence(Log())
    for index in ("0", "7", "15"):
        changed = good.primary["pcrs"] | {index: "ee" * 32}
        refused(forge, dataclasses.replace(good, primary=good.primary | {"pcrs": changed}), "tpm.pcr-digest")


def test_two_pcr_values_swapped():
    forge = Forge()
    good = forge.evidence(Log())
    values = good.primary["pcrs"]
    swapped = values | {"0": values["1"], "1": values["0"]}
    refused(forge, dataclasses.replace(good, primary=good.primary | {"pcrs": swapped}), "tpm.pcr-digest")


def edited(edit):
    """A log that was edited after PCR 15 got its value; everything else, the report included, is consistent."""
    forge, log = Forge(), Log(launch_event(instance="01" * 16), launch_event(instance="02" * 16), launch_event())
    honest = Log()
    honest.events = [dict(e) for e in log.events]
    edit(log)
    return forge, forge.evidence(log, quoted_log=honest)


def test_event_removed_from_the_log():
    refused(*edited(lambda log: log.events.pop(1)), "tpm.replay")


def test_event_inserted_into_the_log():
    extra = {"digest": event_digest(launch_event()).hex(), "kind": "launch"}
    refused(*edited(lambda log: log.events.insert(2, extra)), "tpm.replay")


def test_events_reordered():
    def reorder(log):
        log.events[1], log.events[2] = log.events[2], log.events[1]

    refused(*edited(reorder), "tpm.replay")


def test_log_cut_short():
    def cut(log):
        log.events = log.events[:2]
        log.opened = log.launches[0]

    refused(*edited(cut), "tpm.replay")


def test_launch_of_another_sandbox_appended_in_the_log_only():
    """Name a sandbox with the measurement that the contract wants, without ever having launched it."""

    def pretend(log):
        wanted = launch_event(measurement="77" * 32)
        log.events.append({"digest": event_digest(wanted).hex(), "kind": "launch"})
        log.opened = wanted

    refused(*edited(pretend), "tpm.replay")


def test_opened_launch_that_is_not_in_the_log():
    forge, log = Forge(), Log()
    log.opened = launch_event(measurement="77" * 32)
    refused(forge, forge.evidence(log), "evidence.launch")


def test_opened_launch_with_one_field_changed():
    for field in ("instance", "measurement", "contract", "job", "salt"):
        forge, log = Forge(), Log()
        log.opened = log.opened | {field: "0" * len(log.opened[field])}
        refused(forge, forge.evidence(log), "evidence.launch")


def test_opened_agent_that_is_not_the_measured_one():
    forge, log = Forge(), Log()
    log.agent = log.agent | {"measurement": "55" * 32}
    refused(forge, forge.evidence(log), "evidence.agent")


def test_second_agent_in_the_log():
    """A rogue agent that started later and hides behind the first one's measurement."""
    forge, log = Forge(), Log()
    log.events[1]["kind"] = "agent"
    refused(forge, forge.evidence(log), "evidence.agent-first")


def test_log_without_an_agent():
    forge, log = Forge(), Log()
    log.events[0]["kind"] = "launch"
    refused(forge, forge.evidence(log), "evidence.agent-first")


def test_agent_event_passed_off_as_a_launch():
    forge, log = Forge(), Log()
    log.opened = log.agent
    refused(forge, forge.evidence(log), "evidence.events", Malformed)


def test_same_launch_twice():
    forge, log = Forge(), Log()
    log.events.append(dict(log.events[-1]))
    refused(forge, forge.evidence(log), "evidence.event-twice")


def test_data_that_is_no_quote_signed_by_the_key():
    """The magic number is what keeps outside data from looking like a quote."""
    forge = Forge()
    message = b"GCT\xff" + bytes(141)
    primary = {"quote": b64(message), "signature": b64(forge.sign(message))}
    refused(forge, forge.evidence(Log(), primary=primary), "tpm.structure", Malformed)


@pytest.mark.parametrize("report", [b"", bytes(31), bytes(33), bytes(64)])
def test_report_padded_or_cut(report):
    """A quote over a report of another size is refused, and so is asking for one."""
    forge = Forge()
    good = forge.evidence(Log())
    with pytest.raises(Malformed) as caught:
        TpmVerifier().verify(good, report, now=0)
    assert caught.value.code == "tpm.report-size"
    text = good.additional
    for data in (forge.report(text)[:31], forge.report(text) + b"\0", forge.report(text) + bytes(32)):
        refused(forge, forge.evidence(Log(), quote={"extra_data": data}), "tpm.report")


def test_evidence_of_another_platform():
    forge = Forge()
    good = forge.evidence(Log())
    refused(forge, dataclasses.replace(good, tee="snp"), "tpm.tee")
