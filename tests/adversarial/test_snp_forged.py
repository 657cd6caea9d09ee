"""Forged SEV-SNP evidence: everything is right but one thing, and that one thing is enough to refuse it."""

import copy
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation import Evidence
from cloister.attestation.collateral import CollateralSet, Item, Staleness
from cloister.attestation.snp import SnpVerifier
from cloister.errors import CloisterError, Malformed, Untrusted
from tests.adversarial.evidence_forge import Log, launch_event
from tests.snp_forge import CHIP, DAY, NAMES, NOW, TCB, Forge, b64, body, der_integer, der_text

FORGE = Forge()
VLEK = Forge("milan", "vlek", 3)


def check(evidence: Evidence, *, forge: Forge = FORGE, now: int = NOW, **options: Any) -> None:
    collateral = options.pop("collateral", forge.collateral())
    verifier = SnpVerifier(collateral, Staleness(), roots=options.pop("roots", forge.roots), **options)
    verifier.verify(evidence, options.pop("data", forge.data(evidence.additional)), now=now)


def refused(code: str, evidence: Evidence, *, forge: Forge = FORGE, **options: Any) -> None:
    """``evidence`` is refused with ``code``, and good evidence is still taken afterwards."""
    with pytest.raises(CloisterError) as caught:
        check(evidence, forge=forge, **options)
    assert isinstance(caught.value, Malformed | Untrusted)
    assert caught.value.code == code
    assert caught.value.message.endswith(".")
    check(forge.evidence(), forge=forge)


def given_chain(forge: Forge, *certificates: Any) -> Evidence:
    return forge.evidence(certificates=list(certificates))


def test_the_forge_makes_good_evidence():
    check(FORGE.evidence())
    check(VLEK.evidence(), forge=VLEK)


# Somebody else's authorities


def test_an_amd_of_ones_own():
    own = Forge(root="another ark")
    refused("x509.root", given_chain(own, own.leaf(), *own.chain()))


def test_a_root_of_ones_own_with_amds_name_over_amds_authority():
    own = Forge(root="another ark")
    refused("x509.root", given_chain(FORGE, FORGE.leaf(), FORGE.intermediate(), own.root()))
    # The other way around: AMD's root on top, but it never signed the authority below.
    refused("x509.signature", given_chain(FORGE, FORGE.leaf(), own.intermediate(), FORGE.root()))


@pytest.mark.parametrize("product", ["genoa", "turin"])
def test_the_chain_of_another_product(product):
    other = Forge(product)
    for chain in (other.chain(), (FORGE.intermediate(), other.root()), (other.intermediate(), FORGE.root())):
        refused("snp.chain", given_chain(FORGE, FORGE.leaf(), *chain))


def test_a_chip_that_claims_another_product_on_the_chain_of_its_own():
    """The leaf's own word chooses the pinned root; lying about it leads to a root that didn't sign it."""
    lying = FORGE.leaf(extensions=FORGE.extensions(_2=der_text("Genoa-B0")))
    refused("snp.chain", given_chain(FORGE, lying, *FORGE.chain()))
    genoa = Forge("genoa")
    both = FORGE.roots | genoa.roots
    refused("x509.issuer", given_chain(FORGE, lying, *genoa.chain()), roots=both)


def test_a_report_of_another_product_than_its_certificate():
    refused("snp.product", FORGE.evidence(cpuid=b"\x19\x11\x01"))
    refused("snp.product", FORGE.evidence(cpuid=b"\x1a\x02\x01"))
    refused("snp.product", FORGE.evidence(cpuid=b"\x17\x31\x00"))


def test_an_authority_that_is_only_a_chip():
    """A VCEK as the one above another VCEK: it is no authority, whatever it calls itself."""
    fake = FORGE.leaf(common=f"SEV-{NAMES['milan']}")
    refused("x509.issuer", given_chain(FORGE, FORGE.leaf(issuer=fake), fake, FORGE.root()))


def data_of(forge: Forge) -> bytes:
    return forge.data(forge.evidence().additional)


def test_a_signature_scheme_that_amd_does_not_use():
    for certificates in (
        (FORGE.leaf(pss=None), *FORGE.chain()),
        (FORGE.leaf(), FORGE.intermediate(pss=None), FORGE.root()),
        (FORGE.leaf(), FORGE.intermediate(), FORGE.root(pss=None)),
    ):
        refused("snp.algorithm", given_chain(FORGE, *certificates))


# Somebody else's key


def test_a_vlek_passed_as_a_vcek():
    report = FORGE.fields(report_data=data_of(FORGE) + bytes(32))
    signed = VLEK.sign(body(report))
    evidence = FORGE.evidence(certificates=[VLEK.leaf(), *VLEK.chain()], primary={"report": b64(signed)})
    refused("snp.signing-key", evidence, collateral=VLEK.collateral())


def test_a_vcek_passed_as_a_vlek():
    refused("snp.signing-key", FORGE.evidence(key_information=1 << 2))


def test_a_vlek_under_the_authority_of_vceks_and_the_other_way_around():
    refused("snp.chain", given_chain(VLEK, VLEK.leaf(), *FORGE.chain()), forge=VLEK)
    refused("snp.chain", given_chain(FORGE, FORGE.leaf(), *VLEK.chain()))


def test_a_vlek_that_names_a_chip_and_a_vcek_that_names_a_provider():
    for forge, extensions in (
        (VLEK, VLEK.extensions(_4=CHIP, _5=None)),
        (VLEK, VLEK.extensions(_4=CHIP)),
        (FORGE, FORGE.extensions(_4=None, _5=der_text("CN=somebody"))),
    ):
        refused("snp.certificate", given_chain(forge, forge.leaf(extensions=extensions), *forge.chain()), forge=forge)


def test_a_report_signed_by_another_key():
    other = ec.generate_private_key(ec.SECP384R1())
    message = body(FORGE.fields(report_data=data_of(FORGE) + bytes(32)))
    refused("signature.invalid", FORGE.evidence(primary={"report": b64(FORGE.sign(message, other))}))


def test_a_report_whose_signature_was_left_out():
    message = body(FORGE.fields(report_data=data_of(FORGE) + bytes(32)))
    refused("signature.invalid", FORGE.evidence(primary={"report": b64(message.ljust(0x4A0, b"\0"))}))
    refused("snp.unsigned", FORGE.evidence(key_information=7 << 2))


def test_a_key_on_another_curve():
    key = ec.generate_private_key(ec.SECP256R1())
    refused("snp.certificate", given_chain(FORGE, FORGE.leaf(key=key), *FORGE.chain()))


# Another state of the same platform


@pytest.mark.parametrize("part", [0, 1, 2, 6, 7])
def test_a_certificate_for_another_tcb(part):
    """Old firmware with the certificate of the new one, or the other way around."""
    for step in (-1, 1) if TCB["milan"][part] else (1,):
        tcb = bytearray(TCB["milan"])
        tcb[part] += step
        refused("snp.tcb-mismatch", FORGE.evidence(reported_tcb=bytes(tcb)))


def test_the_certificate_of_another_chip():
    other = CHIP[:-1] + b"\0"
    refused("snp.chip-id", FORGE.evidence(chip_id=other))
    leaf = FORGE.leaf(extensions=FORGE.extensions(_4=other))
    refused("snp.chip-id", given_chain(FORGE, leaf, *FORGE.chain()))


def test_a_turin_chip_id_with_something_behind_it():
    turin = Forge("turin")
    refused("snp.chip-id", turin.evidence(chip_id=turin.hwid + bytes(55) + b"\1"), forge=turin)


def test_tcb_versions_that_firmware_never_reports():
    for changed in (
        {"committed_tcb": bytes([5, 1, 0, 0, 0, 0, 24, 219])},
        {"current_tcb": bytes([4, 1, 0, 0, 0, 0, 24, 218])},
        {"current_tcb": bytes([255, 255, 0, 0, 0, 0, 23, 255])},
        {"committed_version": b"\x00\x38\x01"},
    ):
        refused("snp.tcb-order", FORGE.evidence(**changed))


def test_reserved_parts_of_a_tcb():
    refused("snp.tcb", FORGE.evidence(current_tcb=bytes([4, 1, 9, 0, 0, 0, 24, 219])))
    leaf = FORGE.leaf(extensions=FORGE.extensions(_3_5=der_integer(9)))
    refused("snp.tcb-mismatch", given_chain(FORGE, leaf, *FORGE.chain()))


# Out of time, out of trust


def test_certificates_out_of_their_time():
    for certificates, code in (
        ((FORGE.leaf(ends=NOW - 1), *FORGE.chain()), "x509.expired"),
        ((FORGE.leaf(begins=NOW + 1), *FORGE.chain()), "x509.not-yet"),
        ((FORGE.leaf(), FORGE.intermediate(ends=NOW - 1), FORGE.root()), "x509.expired"),
        ((FORGE.leaf(), FORGE.intermediate(), FORGE.root(ends=NOW - 1)), "x509.expired"),
        ((FORGE.leaf(), FORGE.intermediate(), FORGE.root(begins=NOW + 1)), "x509.not-yet"),
    ):
        refused(code, given_chain(FORGE, *certificates))


def test_a_clock_set_back_or_forward():
    refused("collateral.future", FORGE.evidence(certificates=[]), now=NOW - 2 * DAY)
    refused("collateral.stale", FORGE.evidence(certificates=[]), now=NOW + 2 * DAY)
    # Collateral of the attacker's choice can't stretch a certificate's own time.
    late = FORGE.collateral(crl=FORGE.crl(ends=NOW + 9 * DAY))
    refused("x509.expired", FORGE.evidence(), now=NOW + 2 * DAY, collateral=late)


def test_an_authority_that_amd_revoked():
    for serial in (FORGE.intermediate().serial, FORGE.root().serial):
        refused("x509.revoked", FORGE.evidence(), collateral=FORGE.collateral(crl=FORGE.crl(serial)))
    check(FORGE.evidence(), collateral=FORGE.collateral(crl=FORGE.crl(0x99, 0x10002)))


def test_a_revocation_list_of_somebody_else_with_amds_name():
    """Whoever can withhold the real list must not be able to put an empty one in its place."""
    refused("crl.signature", FORGE.evidence(), collateral=FORGE.collateral(crl=FORGE.crl(key="another ark")))


def test_no_revocation_list_and_the_list_of_another_product():
    refused("crl.missing", FORGE.evidence(), collateral=FORGE.collateral("amd-crl"))
    refused("crl.missing", FORGE.evidence(), collateral=FORGE.collateral(crl=Forge("genoa").crl()))


def test_poisoned_collateral():
    good = {item.kind: item for item in FORGE.collateral()}
    own = Forge(root="another ark")
    pem = b"".join(x509.load_der_x509_certificate(c.der).public_bytes(Encoding.PEM) for c in own.chain())
    for kind, data, code in (
        ("amd-chain", pem, "x509.root"),
        ("amd-chain", pem[: len(pem) // 2], "x509.pem"),
        ("amd-chain", good["amd-chain"].data * 2, "x509.count"),
        ("amd-chain", pem[: pem.index(b"-----END") + 25], "snp.certificates"),
        ("amd-vcek", own.leaf().der, "signature.invalid"),
        ("amd-vcek", b"\x30\x80", "snp.certificate"),
        ("amd-vcek", good["amd-vcek"].data + b"\0", "x509.form"),
        ("amd-crl", b"", "x509.form"),
    ):
        poisoned = good | {kind: Item(kind, good[kind].name, data, NOW)}
        refused(code, FORGE.evidence(certificates=[]), collateral=CollateralSet(poisoned.values()))


# Another guest, another question


def test_a_debug_guest_is_never_at_a_tee_level():
    evidence = FORGE.evidence(policy=1 << 17 | 1 << 19)
    verifier = SnpVerifier(FORGE.collateral(), Staleness(), roots=FORGE.roots, vmpls=(0, 1, 2, 3))
    assert verifier.verify(evidence, FORGE.data(evidence.additional), now=NOW).level == "none"


def test_a_report_that_less_privileged_software_asked_for():
    evidence = FORGE.evidence(vmpl=1)
    verifier = SnpVerifier(FORGE.collateral(), Staleness(), roots=FORGE.roots)
    assert verifier.verify(evidence, FORGE.data(evidence.additional), now=NOW).level == "none"


def test_a_report_that_the_host_asked_for():
    refused("snp.host-requested", FORGE.evidence(vmpl=0xFFFFFFFF))


def test_a_report_for_another_nonce():
    other = Forge()
    refused("snp.report", FORGE.evidence(report_data=other.data(Log().text()) + bytes(32)))


@pytest.mark.parametrize("tail", [b"\1" + bytes(31), bytes(31) + b"\1", b"\xff" * 32])
def test_something_behind_the_report_data(tail):
    refused("snp.report", FORGE.evidence(report_data=data_of(FORGE) + tail))


def test_report_data_that_was_shifted_or_hashed_again():
    log = Log()
    data = FORGE.data(log.text())
    for value in (bytes(32) + data, data[::-1] + bytes(32), data + data):
        refused("snp.report", FORGE.evidence(log, report_data=value))


def test_an_event_log_that_was_changed_afterwards():
    evidence = FORGE.evidence()
    other = Evidence("snp", evidence.primary, Log(launch_event(job="00" * 32)).text())
    refused("snp.report", other)


def test_a_launch_that_is_not_in_the_log():
    log = Log()
    log.opened = launch_event()
    refused("evidence.launch", FORGE.evidence(log))


# Form


@pytest.mark.parametrize(
    "changed",
    [
        {"report": ""},
        {"report": None},
        {"report": "AA="},
        {"report": "AB=="},
        {"report": b64(FORGE.report() + b"\0")},
        {"report": b64(FORGE.report()[:-1])},
        {"report": b64(FORGE.report()) + "\n"},
        {"report": "A" * 200_000},
        {"certificates": None},
        {"certificates": {}},
        {"certificates": [b64(FORGE.leaf().der)] * 4},
        {"certificates": [b64(FORGE.leaf().der)] * 2},
        {"certificates": [b64(FORGE.leaf().der + b"\0")]},
        {"certificates": [b64(FORGE.leaf(common="Somebody").der)]},
        {"certificates": [b64(FORGE.leaf().der)[:-4]]},
        {"certificates": [7]},
        {"certificates": [b64(x509.load_der_x509_certificate(FORGE.leaf().der).public_bytes(Encoding.PEM))]},
        {"another": "", "certificates": []},
    ],
    ids=lambda c: f"{next(iter(c))}-{str(next(iter(c.values())))[:12]}",
)
def test_evidence_of_another_form(changed):
    wire = FORGE.evidence(certificates=[]).to_wire()
    wire["primary_evidence"] = copy.deepcopy(wire["primary_evidence"]) | changed
    codes = (
        "snp.form",
        "snp.base64",
        "snp.structure",
        "snp.certificates",
        "snp.certificate",
        "x509.form",
        "evidence.size",
    )
    with pytest.raises(Malformed) as caught:
        check(Evidence.from_wire(wire))
    assert caught.value.code in codes


def test_evidence_of_another_platform_and_a_report_of_another_size():
    evidence = FORGE.evidence()
    verifier = SnpVerifier(FORGE.collateral(), Staleness(), roots=FORGE.roots)
    with pytest.raises(Untrusted) as caught:
        verifier.verify(Evidence("tdx", evidence.primary, evidence.additional), bytes(32), now=NOW)
    assert caught.value.code == "snp.tee"
    for size in (0, 31, 33, 64):
        with pytest.raises(Malformed) as malformed:
            verifier.verify(evidence, bytes(size), now=NOW)
        assert malformed.value.code == "snp.report-size"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=8) | st.binary(max_size=40).map(b64),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
GOOD = FORGE.evidence()


@given(st.sampled_from(["report", "certificates", "other"]), JSON)
@settings(max_examples=150)
def test_any_primary_evidence_raises_typed_errors_only(field, value):
    evidence = Evidence("snp", GOOD.primary | {field: value}, GOOD.additional)
    if field == "certificates" and value == []:
        return
    with pytest.raises(CloisterError) as caught:
        check(evidence)
    assert isinstance(caught.value, Malformed | Untrusted)
