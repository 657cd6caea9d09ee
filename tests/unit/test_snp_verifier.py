"""SEV-SNP evidence that is right: what is proven, at which level, and where missing certificates come from."""

import base64
import json
from pathlib import Path

import pytest

from cloister.attestation.collateral import CollateralSet, Staleness
from cloister.attestation.models import guest_digest
from cloister.attestation.snp import (
    AMD_ROOTS,
    SnpVerifier,
    attester_id,
    chain_name,
    level_of,
    parse_report,
    vcek_name,
    verify_report,
)
from cloister.crypto.x509 import read_certificate, read_certificates
from cloister.errors import CloisterError, Malformed, Unavailable, Untrusted
from tests.adversarial.evidence_forge import CONTRACT, INSTANCE, JOB, MEASUREMENT
from tests.snp_forge import CHIP, CSP_ID, DAY, GOOD, NOW, TURIN_CHIP, Forge

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "vectors"
VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "snp.json").read_text())
FORGES = {case: Forge(*case) for case in GOOD}
shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared vectors folder is not beside the checkout")


def verifier(forge, *, collateral=None, staleness=None, **options):
    found = forge.collateral() if collateral is None else collateral
    return SnpVerifier(found, staleness or Staleness(), roots=forge.roots, **options)


def check(forge, evidence, *, now=NOW, **options):
    return verifier(forge, **options).verify(evidence, forge.data(evidence.additional), now=now)


def device_of(forge, **changed):
    return verify_report(forge.report(**changed), forge.leaf(), forge.chain(), now=NOW, roots=forge.roots)


@pytest.mark.parametrize("forge", FORGES.values(), ids=lambda f: f"{f.product}-{f.signing_key}-v{f.version}")
def test_good_evidence_of_every_product_key_and_version(forge):
    claims = check(forge, forge.evidence())
    assert (claims.tee, claims.level) == ("snp", "cpu-tee")
    assert (claims.instance, claims.contract, claims.job) == (INSTANCE.hex(), CONTRACT.hex(), JOB.hex())
    assert claims.measurement == MEASUREMENT.hex()
    assert claims.agent == guest_digest("snp", {"launch": (b"m" * 48).hex()})
    (cpu,) = claims.devices
    assert (cpu.name, cpu.tee, cpu.facts["product"]) == ("cpu0", "snp", forge.product)
    assert (cpu.facts["report_version"], cpu.facts["revocation_checked"]) == (forge.version, True)
    if forge.signing_key == "vcek":
        assert cpu.identity == forge.hwid.hex()
        assert claims.attester == attester_id("vcek", forge.hwid.hex())
    else:
        assert (cpu.identity, cpu.facts["csp_id"]) == ("", CSP_ID)
        assert claims.attester == attester_id("vlek", CSP_ID)


def test_the_facts_say_what_amd_signed():
    facts = device_of(Forge("turin", "vcek", 5)).facts
    assert {k: v for k, v in facts.items() if k.startswith("tcb.current.")} == {
        "tcb.current.fmc": 1,
        "tcb.current.bootloader": 2,
        "tcb.current.tee": 3,
        "tcb.current.snp": 4,
        "tcb.current.microcode": 82,
    }
    expected = {
        "cpuid.family": 26,
        "cpuid.model": 2,
        "debug": False,
        "firmware.build": 29,
        "firmware.committed.minor": 55,
        "firmware.major": 1,
        "firmware.minor": 55,
        "guest_svn": 7,
        "migration_agent": False,
        "mitigations.current.1": True,
        "mitigations.launch.2": True,
        "platform.alias_check": True,
        "platform.ecc": True,
        "platform.tsme": False,
        "policy.abi_major": 1,
        "policy.abi_minor": 31,
        "policy.debug": False,
        "policy.smt": True,
        "product_name": "Turin",
        "provisional": False,
        "revocation_checked": False,
        "signing_key": "vcek",
        "tcb.launch.snp": 4,
        "tcb.snp": 4,
        "vmpl": 0,
    }
    assert {name: facts[name] for name in expected} == expected
    assert "mitigations.launch.1" not in facts
    assert facts["chip_id"] == TURIN_CHIP.hex() + "00" * 56


def test_what_the_guest_was_given_are_measurements():
    found = device_of(Forge()).measurements
    assert found["launch"] == (b"m" * 48).hex()
    assert found["host_data"] == (b"h" * 32).hex()
    assert (found["family_id"], found["image_id"]) == ((b"f" * 16).hex(), (b"i" * 16).hex())
    assert set(found) == {"launch", "host_data", "report_data", "family_id", "image_id", "id_key", "author_key"}


def test_a_masked_chip_id_is_told_and_the_certificate_still_names_the_chip():
    found = device_of(Forge(), chip_id=0)
    assert found.facts["chip_id_masked"] is True
    assert found.identity == CHIP.hex()


def test_a_vlek_report_with_a_chip_id_names_no_chip():
    assert device_of(Forge("milan", "vlek", 3), chip_id=CHIP).identity == ""


@pytest.mark.parametrize(
    ("changed", "level", "fact"),
    [
        ({"policy": 1 << 17 | 1 << 19}, "none", ("debug", True)),
        ({"policy": 1 << 17 | 1 << 18}, "cpu-tee", ("policy.migrate_ma", True)),
        ({"policy": 1 << 17 | 1 << 18, "report_id_ma": b"a" * 32}, "none", ("migration_agent", True)),
        ({"report_id_ma": 0}, "cpu-tee", ("migration_agent", False)),
        ({"vmpl": 1}, "none", ("vmpl", 1)),
        ({"vmpl": 3}, "none", ("vmpl", 3)),
        ({"committed_tcb": bytes([4, 1, 0, 0, 0, 0, 23, 219])}, "cpu-tee", ("provisional", True)),
        ({"committed_version": b"\x1c\x37\x01"}, "cpu-tee", ("provisional", True)),
        ({"current_tcb": bytes([4, 1, 0, 0, 0, 0, 25, 220])}, "cpu-tee", ("tcb.current.snp", 25)),
        ({"launch_tcb": bytes([9, 9, 0, 0, 0, 0, 9, 9])}, "cpu-tee", ("tcb.launch.bootloader", 9)),
    ],
    ids=str,
)
def test_the_level_follows_from_who_else_can_reach_the_guest(changed, level, fact):
    forge = Forge()
    claims = check(forge, forge.evidence(**changed))
    assert claims.level == level
    assert claims.devices[0].facts[fact[0]] == fact[1]
    assert any(note.startswith("Level none") for note in claims.notes) == (level == "none")
    assert level_of(device_of(forge, **changed)) == level


def test_a_privilege_level_can_be_named_where_a_module_at_vmpl_0_guards_it():
    forge = Forge()
    assert check(forge, forge.evidence(vmpl=2), vmpls=(2,)).level == "cpu-tee"
    assert check(forge, forge.evidence(vmpl=0), vmpls=(2,)).level == "none"


# Certificates from the evidence, or from collateral


@pytest.mark.parametrize(
    "case", [("milan", "vcek", 2), ("genoa", "vcek", 4), ("turin", "vcek", 2), ("turin", "vcek", 5)]
)
def test_missing_certificates_come_from_the_collateral(case):
    forge = Forge(*case)
    for given in ([], [forge.leaf()], [forge.root(), forge.leaf()], list(reversed(forge.chain()))):
        assert check(forge, forge.evidence(certificates=given)).level == "cpu-tee"


def test_a_vlek_brings_its_certificate_along():
    forge = Forge("milan", "vlek", 5)
    assert check(forge, forge.evidence(certificates=[forge.leaf()])).level == "cpu-tee"
    with pytest.raises(Untrusted) as caught:
        check(forge, forge.evidence(certificates=[]))
    assert caught.value.code == "snp.certificate-missing"


def test_a_hidden_chip_brings_its_certificate_along():
    forge = Forge()
    assert check(forge, forge.evidence(certificates=[forge.leaf()], chip_id=0)).level == "cpu-tee"
    with pytest.raises(Untrusted) as caught:
        check(forge, forge.evidence(certificates=[], chip_id=0))
    assert caught.value.code == "snp.certificate-missing"


def test_what_nobody_has_is_named():
    forge = Forge()
    for kind in ("amd-vcek", "amd-chain"):
        with pytest.raises(Unavailable) as caught:
            check(forge, forge.evidence(certificates=[]), collateral=forge.collateral(kind))
        assert caught.value.code == "snp.collateral"
        assert caught.value.details["kind"] == kind
        assert forge.collateral().find(kind, str(caught.value.details["name"]))


def test_names_of_collateral():
    milan, turin = Forge(), Forge("turin", "vcek", 2)
    assert vcek_name(parse_report(milan.report())) == f"{CHIP.hex()}-db18000000000104"
    assert vcek_name(parse_report(turin.report())) == f"{TURIN_CHIP.hex()}-5200000004030201"
    assert [chain_name("milan", key) for key in ("vcek", "vlek")] == ["milan", "milan-vlek"]


def test_without_a_revocation_list_only_who_asks_for_it_goes_on():
    forge = Forge()
    bare = forge.collateral("amd-crl")
    with pytest.raises(Untrusted) as caught:
        check(forge, forge.evidence(), collateral=bare)
    assert caught.value.code == "crl.missing"
    claims = check(forge, forge.evidence(), collateral=bare, require_crl=False)
    assert claims.devices[0].facts["revocation_checked"] is False
    assert any("revocation" in note for note in claims.notes)


def test_a_vendor_outage_is_bridged_as_long_as_the_owner_said():
    forge = Forge()
    later = NOW + DAY - 1
    lists = forge.collateral(crl=forge.crl(ends=NOW))
    assert (
        check(forge, forge.evidence(), collateral=lists, staleness=Staleness(grace=DAY), now=later).level == "cpu-tee"
    )
    for staleness in (Staleness(grace=DAY - 1), Staleness()):
        with pytest.raises(Untrusted) as caught:
            check(forge, forge.evidence(), collateral=lists, staleness=staleness, now=later)
        assert caught.value.code == "collateral.stale"


def test_the_clock_of_a_vendor_or_an_importer_may_be_five_minutes_ahead():
    forge = Forge()
    soon = NOW + 300
    for collateral in (forge.collateral(obtained=soon), forge.collateral(crl=forge.crl(begins=soon))):
        assert check(forge, forge.evidence(certificates=[]), collateral=collateral).level == "cpu-tee"


def test_collateral_from_the_future_is_refused():
    forge = Forge()
    later = NOW + 301
    for collateral in (forge.collateral(obtained=later), forge.collateral(crl=forge.crl(begins=later))):
        with pytest.raises(Untrusted) as caught:
            check(forge, forge.evidence(certificates=[]), collateral=collateral)
        assert caught.value.code == "collateral.future"


# Vectors


@pytest.mark.parametrize("case", VECTORS["good"], ids=lambda c: c["name"])
def test_good_vectors(case):
    leaf, *chain = (read_certificate(base64.b64decode(c)) for c in case["certificates"])
    roots = {case["product"]: VECTORS["root"]}
    found = verify_report(base64.b64decode(case["report"]), leaf, chain, now=VECTORS["now"], roots=roots)
    assert level_of(found) == "cpu-tee"
    assert found.facts["product"] == case["product"]


@pytest.mark.parametrize("case", VECTORS["bad"], ids=lambda c: c["name"])
def test_bad_vectors(case):
    leaf, *chain = (read_certificate(base64.b64decode(c)) for c in VECTORS["certificates"])
    roots = {"milan": VECTORS["root"]}
    with pytest.raises(CloisterError) as caught:
        verify_report(base64.b64decode(case["report"]), leaf, chain, now=VECTORS["now"], roots=roots)
    assert isinstance(caught.value, Malformed | Untrusted)
    assert caught.value.code == case["code"]


def real(report: bytes, vcek: bytes, now: int):
    chain = read_certificates((SHARED / "snp" / "roots" / "ask_ark_milan.pem").read_bytes())
    return verify_report(report, read_certificate(vcek), chain, now=now)


@shared
def test_a_real_milan_report_verifies_to_amds_root():
    report = bytes.fromhex((SHARED / "snp" / "milan_report.hex").read_text())
    found = real(report, (SHARED / "snp" / "milan_vcek.der").read_bytes(), 1_700_000_000)
    assert level_of(found) == "cpu-tee"
    assert found.measurements["launch"].startswith("7a1e5c266c0108db")
    assert {k: found.facts[f"tcb.{k}"] for k in ("bootloader", "tee", "snp", "microcode")} == {
        "bootloader": 3,
        "tee": 0,
        "snp": 8,
        "microcode": 115,
    }
    assert found.identity == found.facts["chip_id"] == report[0x1A0:0x1E0].hex()


@shared
def test_a_real_debug_report_has_a_good_signature_and_never_a_tee_level():
    report = (SHARED / "snp" / "milan_debug_report.bin").read_bytes()
    found = real(report, (SHARED / "snp" / "milan_debug_vcek.cer").read_bytes(), 1_700_000_000)
    assert found.facts["debug"] is True
    assert level_of(found) == level_of(found, vmpls=(0, 1, 2, 3)) == "none"


@shared
def test_a_real_report_of_version_3_from_a_cloud():
    body = json.loads((SHARED / "tpm" / "azure_snp_vtpm_evidence_v1.json").read_text())
    hcl, vcek = (base64.urlsafe_b64decode(body[part] + "==") for part in ("hcl_report", "vcek"))
    found = real(hcl[32 : 32 + 1184], vcek, 1_795_000_000)
    assert (found.facts["report_version"], found.facts["cpuid.family"], found.facts["product"]) == (3, 25, "milan")
    # Firmware of line 1.55 that has a bit of a later ABI: bits aren't tied to versions.
    assert (found.facts["firmware.minor"], found.facts["platform.alias_check"]) == (55, True)


@shared
def test_real_certificates_of_another_chip_or_after_their_time_are_refused():
    report = bytes.fromhex((SHARED / "snp" / "milan_report.hex").read_text())
    own, other = ((SHARED / "snp" / n).read_bytes() for n in ("milan_vcek.der", "milan_debug_vcek.cer"))
    for vcek, now, code in ((other, 1_700_000_000, "signature.invalid"), (own, 1_917_000_000, "x509.expired")):
        with pytest.raises(Untrusted) as caught:
            real(report, vcek, now)
        assert caught.value.code == code


def test_the_roots_are_amds_by_default():
    forge = Forge()
    assert set(AMD_ROOTS) == {"milan", "genoa", "turin"}
    with pytest.raises(Untrusted) as caught:
        SnpVerifier(CollateralSet(), Staleness(), require_crl=False).verify(
            forge.evidence(), forge.data(forge.evidence().additional), now=NOW
        )
    assert caught.value.code == "x509.root"
