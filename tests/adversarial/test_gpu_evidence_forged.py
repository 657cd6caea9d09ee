"""A GPU that isn't NVIDIA's, isn't this one, isn't in this state, or wasn't asked now."""

from __future__ import annotations

from typing import Any

import pytest

from cloister.attestation.nvidia import spdm
from cloister.errors import CloisterError, Malformed, Untrusted
from tests.nvidia_forge import EMPTY, SIGNING, Factory, Gpu, composite_id, entry, measured, tcb_info
from tests.pki import NOW, extension, issue, p256, p384

FACTORY = Factory()
GPU, BLACKWELL = FACTORY.gpu(), FACTORY.gpu("BLACKWELL")
NONCE, OTHER = bytes(range(32)), bytes(32)
VERIFIER = FACTORY.verifier()


def refused(code: str, *entries: dict[str, str], kind: type[CloisterError] = Untrusted) -> str:
    with pytest.raises(kind) as caught:
        VERIFIER.verify(list(entries), NONCE, now=NOW)
    assert caught.value.code == code, caught.value
    # Whatever was refused left nothing behind: good evidence is judged as before.
    assert VERIFIER.verify([GPU.entry(NONCE)], NONCE, now=NOW)[0].facts["confidential"] is True
    return caught.value.message


def test_evidence_of_another_session() -> None:
    refused("nvidia.nonce", GPU.entry(OTHER))
    refused("nvidia.nonce", GPU.entry(NONCE), FACTORY.gpu().entry(OTHER))


def test_a_nonce_that_was_exchanged_after_signing() -> None:
    report = GPU.report(OTHER)
    refused("nvidia.signature", entry(GPU, report[:4] + NONCE + report[36:]))


def test_a_chain_of_another_vendor() -> None:
    refused("x509.root", Factory().gpu().entry(NONCE))


def test_a_manifest_root_is_no_device_root() -> None:
    wrong = Factory(root=FACTORY.rim_root, rim_root=FACTORY.rim_root)
    refused("x509.root", wrong.gpu().entry(NONCE))


def test_another_devices_certificates() -> None:
    refused("nvidia.signature", entry(FACTORY.gpu(), GPU.report(NONCE)))


def test_a_signature_by_the_boot_rom_instead_of_the_firmware() -> None:
    refused("nvidia.signature", entry(GPU, GPU.report(NONCE, signer=GPU.chain[1])))


def test_a_certificate_left_out() -> None:
    short = Gpu(GPU.arch, [GPU.chain[0], *GPU.chain[2:]], GPU.fwid, GPU.pdi)
    refused("x509.issuer", short.entry(NONCE))
    stub = Gpu(GPU.arch, [FACTORY.root], GPU.fwid, GPU.pdi)
    refused("nvidia.chain", entry(stub, GPU.report(NONCE)), kind=Malformed)


def test_an_attestation_key_that_certifies_another() -> None:
    """The leaf is no authority: a device can't make itself a second one."""
    own = [(SIGNING, True), extension("2.23.133.5.4.1", composite_id(GPU.chain[1].key, GPU.fwid))]
    child = issue("child", p384(), GPU.chain[0], extensions=own)
    refused("x509.ca", Gpu(GPU.arch, [child, *GPU.chain], GPU.fwid, GPU.pdi).entry(NONCE))


def test_a_key_that_may_not_sign_or_is_of_another_kind() -> None:
    fwid = extension("2.23.133.5.4.1", composite_id(GPU.chain[1].key, GPU.fwid))
    refused("x509.usage", FACTORY.gpu(extensions=[fwid]).entry(NONCE))
    weak = issue("weak", p256(), GPU.chain[1], extensions=[(SIGNING, True), fwid])
    refused("nvidia.key", entry(Gpu(GPU.arch, [weak, *GPU.chain[1:]], GPU.fwid, GPU.pdi), GPU.report(NONCE)))


def test_another_generation_than_the_evidence_says() -> None:
    for arch in ("BLACKWELL", "LS10"):
        refused("nvidia.architecture", GPU.entry(NONCE) | {"arch": arch})
    refused("nvidia.architecture", FACTORY.gpu(model="GB100 A01 GSP BROM").entry(NONCE))


def test_a_switch_that_poses_as_a_gpu() -> None:
    refused("nvidia.architecture", FACTORY.gpu("LS10").entry(NONCE) | {"arch": "HOPPER"})


def test_firmware_that_the_key_was_not_certified_for() -> None:
    refused("nvidia.fwid", GPU.entry(NONCE, opaque={spdm.FWID: measured(999)}))
    refused("nvidia.fwid", BLACKWELL.entry(NONCE, opaque={spdm.FWID: measured(999)}))
    refused("nvidia.fwid", FACTORY.gpu(extensions=[(SIGNING, True)]).entry(NONCE))


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\x30\x00",
        b"\x30\x03\x02\x01\x01",
        composite_id(p384(), b"short"),
        tcb_info(measured(1)),
        b"\x30\x81\x05hello",
    ],
)
def test_a_firmware_id_of_an_unknown_form(value: bytes) -> None:
    own = [(SIGNING, True), extension("2.23.133.5.4.1", value)]
    refused("nvidia.chain", FACTORY.gpu(extensions=own).entry(NONCE), kind=Malformed)


def test_other_firmware_than_nvidia_lists() -> None:
    for index in (0, 7, 12, 35):
        refused("nvidia.measurement", GPU.entry(NONCE, measurements={index: measured(index + 1)}))
        refused("nvidia.measurement", GPU.entry(NONCE, measurements={index: EMPTY}))


def test_a_measurement_that_is_cut_short_or_longer() -> None:
    refused("nvidia.measurement", GPU.entry(NONCE, measurements={7: measured(7)[:47]}))
    refused("nvidia.measurement", GPU.entry(NONCE, measurements={7: measured(7) + b"\0"}))


def test_developer_tools_that_change_what_is_measured() -> None:
    """Another configuration measures otherwise; the sentence says what to look at. See the README for its limits."""
    message = refused("nvidia.measurement", GPU.entry(NONCE, measurements={21: measured(2100)}))
    assert "developer tools" in message


@pytest.mark.parametrize(("flags", "fact"), [(0x90, "debug"), (0xC0, "not_secure"), (0xA0, "recovery")])
def test_a_boot_rom_that_says_debug(flags: int, fact: str) -> None:
    gpu = FACTORY.gpu("BLACKWELL", flags=bytes([flags, 0, 0, 1]))
    (device,) = VERIFIER.verify([gpu.entry(NONCE)], NONCE, now=NOW)
    assert device.facts[f"dice.{fact}"] is True
    assert device.facts["debug"] is True
    assert device.facts["confidential"] is False


def test_the_same_gpu_twice() -> None:
    refused("nvidia.same-device", GPU.entry(NONCE), GPU.entry(NONCE))
    # Also under another attestation key, as after new firmware: the boot ROM's key names the chip.
    again = FACTORY.gpu(brom=GPU.chain[1])
    refused("nvidia.same-device", GPU.entry(NONCE), again.entry(NONCE))


def test_a_driver_that_nobody_named() -> None:
    refused("nvidia.report", GPU.entry(NONCE, opaque={spdm.DRIVER_VERSION: None}), kind=Malformed)
    refused("collateral.missing", GPU.entry(NONCE, opaque={spdm.DRIVER_VERSION: b"550.90.08"}))


def test_a_path_instead_of_a_version() -> None:
    for value in (b"../../x", b"550.90.07/../x", b"550.90.07\n"):
        refused("nvidia.report", GPU.entry(NONCE, opaque={spdm.DRIVER_VERSION: value}), kind=Malformed)


def check(code: str, **changed: Any) -> None:
    verifier = FACTORY.verifier(FACTORY.items(**changed))
    with pytest.raises((Untrusted, Malformed)) as caught:
        verifier.verify([GPU.entry(NONCE)], NONCE, now=NOW)
    assert caught.value.code == code, caught.value


def test_a_manifest_of_another_version() -> None:
    check("nvidia.manifest-version", driver=FACTORY.driver(version="550.90.08"))
    check("nvidia.manifest-version", vbios=FACTORY.driver())


def test_a_manifest_of_another_chip() -> None:
    """Drivers of two generations have one version number; only the chip tells their manifests apart."""
    check("nvidia.manifest-product", driver=FACTORY.driver(product="GB100"))
    check("nvidia.manifest-product", driver=FACTORY.driver(product="LS10"))
    check("nvidia.manifest-product", driver=FACTORY.driver(product="AD102"))


def test_manifests_that_claim_the_same_measurement() -> None:
    check("nvidia.manifest-conflict", driver=FACTORY.driver(golden={0: [measured(0)], 7: [measured(7)]}))


def test_a_manifest_that_lists_nothing() -> None:
    check("nvidia.manifest-empty", driver=FACTORY.driver(golden={}))


def test_a_manifest_that_is_only_a_part() -> None:
    check("nvidia.rim", driver=FACTORY.driver(patch="true"))


def test_a_manifest_of_somebody_else() -> None:
    check("x509.root", driver=Factory().driver())
    check("xmldsig.signature", driver=FACTORY.driver(signer=Factory().rim_signer))


def test_a_device_authority_signs_no_manifest() -> None:
    check("x509.root", driver=Factory(root=FACTORY.root, rim_root=FACTORY.root).driver())
