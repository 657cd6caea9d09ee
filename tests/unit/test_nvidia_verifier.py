"""Several GPUs and switches in one evidence: what is accepted, what the devices say of themselves, what is raised."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography.x509 import ocsp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloister.attestation.collateral import CollateralSet, Item, Staleness
from cloister.attestation.nvidia import MAX_GPUS, NvidiaVerifier, revocation_requests, spdm, verify_report
from cloister.attestation.nvidia.chain import verify_device_chain
from cloister.attestation.nvidia.compare import compare
from cloister.attestation.nvidia.rim import open_manifest
from cloister.crypto.x509 import read_crl
from cloister.errors import CloisterError, Malformed, Untrusted
from tests.nvidia_forge import EMPTY, GOOD, LEAST, Factory, Gpu, entry, listed, measured, resource
from tests.pki import DAY, NOW, Entity, answer, issue, p384, responder

FACTORY = Factory()
GPU, BLACKWELL, SWITCH = FACTORY.gpu(), FACTORY.gpu("BLACKWELL"), FACTORY.gpu("LS10")
NONCE = bytes(range(32))
ITEMS = FACTORY.items()
VERIFIER = FACTORY.verifier(ITEMS)
OWN: dict[str, Any] = {"device_roots": {FACTORY.root.root}, "manifest_roots": {FACTORY.rim_root.root}}


def verify(evidence: Any, verifier: NvidiaVerifier = VERIFIER) -> list[Any]:
    return list(verifier.verify(evidence, NONCE, now=NOW))


def refused(
    code: str, evidence: Any, verifier: NvidiaVerifier = VERIFIER, kind: type[CloisterError] = Untrusted
) -> None:
    with pytest.raises(kind) as caught:
        verify(evidence, verifier)
    assert caught.value.code == code, caught.value


def test_a_gpu_that_is_right() -> None:
    (device,) = verify([GPU.entry(NONCE)])
    assert (device.name, device.tee) == ("gpu0", "nvidia")
    assert device.identity == GPU.chain[1].root
    assert device.facts == {
        "arch": "HOPPER",
        "hwmodel": "GH100 A01 GSP BROM",
        "ueid": str(GPU.chain[0].cert.serial_number),
        "revocation_checked": False,
        "driver": "550.90.07",
        "vbios": "96.00.9F.00.01",
        "mode": "spt",
        "pdi": GPU.pdi,
        "measurements_match": True,
        "measurements_compared": 7,
        "secboot": True,
        "debug": False,
        "rim.driver": device.facts["rim.driver"],
        "rim.vbios": device.facts["rim.vbios"],
        "confidential": True,
    }
    assert set(device.measurements) == {"all", "fwid", "driver", "vbios"}
    assert any("developer tools" in note for note in device.notes)


def test_gpus_and_switches_of_several_generations() -> None:
    devices = verify([g.entry(NONCE) for g in (SWITCH, GPU, BLACKWELL, FACTORY.gpu())])
    assert [d.name for d in devices] == ["nvswitch0", "gpu0", "gpu1", "gpu2"]
    assert all(d.facts["confidential"] is True for d in devices)
    assert len({d.identity for d in devices}) == 4
    # Alike in all that is compared, and told apart by who they are.
    assert devices[1].measurements["driver"] == devices[3].measurements["driver"]


def test_the_forms_in_which_others_send_evidence() -> None:
    good = GPU.entry(NONCE)
    (alone,) = verify([good])
    more = {"uuid": "GPU-1", "version": "1.0", "driver_version": "550.90.07", "vbios_version": "96.00.9f.00.01"}
    assert verify([good | more | {"nonce": NONCE.hex()}]) == [alone]
    assert verify({"device_evidence_list": [good | {"arch": "Hopper", "uuid": "x"}]}) == [alone]
    report = GPU.report(NONCE)
    assert verify([entry(GPU, report) | {"evidence": report.hex()}])[0].facts == alone.facts


def url_safe(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def wrapped(*gpus: Gpu, nonce: bytes | None = None, **more: Any) -> dict[str, Any]:
    """A collection of conceptual message wrappers, as NVIDIA's newer tools write it."""
    items = {
        f"gpu_{i}": {
            "__cmwc_t": "tag:nvidia.com,2026:evidence-item/v1",
            "evidence": ["application/vnd.nvidia.spdm-measurement-transcript", url_safe(gpu.report(NONCE))],
            "certificate": ["application/vnd.nvidia.pem-cert-chain", url_safe(gpu.pem)],
            "hints": ["application/json", url_safe(b"{}")],
        }
        for i, gpu in enumerate(gpus)
    }
    common = {} if nonce is None else {"nonce": ["application/octet-stream", url_safe(nonce)]}
    profile = {"__cmwc_t": "tag:nvidia.com,2026:verifier-input/profiles/base/pre-1.0.0"}
    return profile | common | items | more


def test_a_wrapped_collection() -> None:
    expected = verify([g.entry(NONCE) for g in (GPU, BLACKWELL, SWITCH)])
    for nonce in (None, NONCE):
        found = verify(wrapped(GPU, BLACKWELL, SWITCH, nonce=nonce))
        assert [(d.name, d.facts) for d in found] == [(d.name, d.facts) for d in expected]
    refused("nvidia.nonce", wrapped(GPU, nonce=bytes(32)))


@pytest.mark.parametrize(
    "evidence",
    [
        wrapped(),
        wrapped(GPU, __cmwc_t="tag:nvidia.com,2026:other"),
        wrapped(GPU, **{"appraisal-settings": ["application/json", url_safe(b'{"verify":false}')]}),
        wrapped(GPU, gpu_1={}),
        wrapped(GPU, gpu_1={**wrapped(GPU)["gpu_0"], "__cmwc_t": "x"}),
        wrapped(GPU, gpu_1={**wrapped(GPU)["gpu_0"], "evidence": "text"}),
        wrapped(GPU, gpu_1={**wrapped(GPU)["gpu_0"], "evidence": ["text/plain", ""]}),
        wrapped(GPU, gpu_1={**wrapped(GPU)["gpu_0"], "more": 1}),
        wrapped(GPU, nonce=NONCE) | {"nonce": ["application/octet-stream", "A"]},
        wrapped(GPU, nonce=NONCE) | {"nonce": ["application/octet-stream", "+/=="]},
    ],
)
def test_a_wrapped_collection_of_an_unknown_form(evidence: Any) -> None:
    with pytest.raises(Malformed):
        verify(evidence)


def test_base64_has_one_text() -> None:
    """Stray bits before the padding, which Python's decoder ignores."""
    for text in (url_safe(NONCE), base64.b64encode(NONCE).decode()):
        assert text.rstrip("=").endswith("8")  # NONCE ends with 1f
    other = url_safe(NONCE)[:-1] + "9"
    refused("nvidia.base64", wrapped(GPU, nonce=NONCE) | {"nonce": ["application/octet-stream", other]}, kind=Malformed)
    strange = base64.b64encode(NONCE).decode()[:-2] + "9="
    refused("nvidia.base64", [GPU.entry(NONCE) | {"evidence": strange}], kind=Malformed)


def test_what_is_not_signed_must_agree_with_what_is() -> None:
    for field, value in (("driver_version", "550.90.08"), ("vbios_version", "96.00.9F.00.02")):
        refused("nvidia.version", [GPU.entry(NONCE) | {field: value}])
    refused("nvidia.nonce", [GPU.entry(NONCE) | {"nonce": "00" * 32}])
    refused("nvidia.architecture", [GPU.entry(NONCE) | {"arch": "AMPERE"}], kind=Malformed)


@pytest.mark.parametrize(
    "evidence",
    [
        None,
        [],
        {},
        {"device_evidence_list": []},
        {"device_evidence_list": [], "more": 1},
        [None],
        [{}],
        [{"arch": "HOPPER", "certificate": "", "evidence": 1}],
        [{"arch": "HOPPER", "certificate": "", "evidence": "", "extra": ""}],
        [{"arch": "HOPPER", "certificate": "", "evidence": "A" * 70_000}],
        [{"arch": "HOPPER", "certificate": "", "evidence": "", "uuid": "u" * 200}],
        [{"arch": "HOPPER", "certificate": "", "evidence": "***"}],
        [{"arch": "HOPPER"}] * 17,
    ],
)
def test_evidence_of_no_known_form(evidence: Any) -> None:
    with pytest.raises(Malformed):
        verify(evidence)


def test_numbers_are_bounded_by_kind() -> None:
    many = [GPU.entry(NONCE)] * (MAX_GPUS + 1)
    # Checked device by device: the same one twice would be refused only after all of them were verified.
    with pytest.raises(Malformed) as caught:
        verify(many)
    assert caught.value.code == "nvidia.count"
    with pytest.raises(Malformed):
        VERIFIER.verify([GPU.entry(NONCE)], NONCE[:31], now=NOW)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3),
    max_leaves=8,
)
ENTRY = GPU.entry(NONCE)


@given(JSON)
@example({"device_evidence_list": {}})
def test_any_json_is_devices_or_a_typed_error(evidence: Any) -> None:
    with suppress(Malformed, Untrusted):
        verify(evidence)


@given(st.sampled_from(sorted(ENTRY)), st.integers(0, 5000), st.text(max_size=3))
@settings(max_examples=60)
def test_any_change_of_an_entry_is_refused_with_a_typed_error(field: str, at: int, new: str) -> None:
    old = ENTRY[field]
    changed = old[:at] + new + old[at + 1 :]
    with suppress(Malformed, Untrusted):
        verify([ENTRY | {field: changed}])
        assert field == "arch" or changed.rstrip() == old or changed.upper() == old.upper()


@given(st.integers(0, len(GPU.report(NONCE)) * 8 - 1))
@settings(max_examples=60)
def test_any_one_bit_change_of_a_report_is_refused(bit: int) -> None:
    changed = bytearray(GPU.report(NONCE))
    changed[bit // 8] ^= 1 << bit % 8
    with pytest.raises((Malformed, Untrusted)):
        verify([entry(GPU, bytes(changed))])


def test_without_manifests_only_who_signed_is_known() -> None:
    device = verify_report(GPU.report(NONCE), GPU.pem, "HOPPER", now=NOW, **OWN)
    assert not {"measurements_match", "secboot", "debug"} & set(device.facts)
    assert device.facts["confidential"] is False
    with pytest.raises(Untrusted) as caught:
        verify_report(GPU.report(NONCE), GPU.pem, "HOPPER", now=NOW, collateral=CollateralSet(), **OWN)
    assert caught.value.code == "collateral.missing"


def test_a_measurement_may_have_several_values() -> None:
    golden = listed((7, 21, 35)) | {21: [EMPTY, measured(1000), measured(21)]}
    verifier = FACTORY.verifier(FACTORY.items(driver=FACTORY.driver(golden=golden)))
    verify([GPU.entry(NONCE)], verifier)
    verify([GPU.entry(NONCE, measurements={21: EMPTY})], verifier)
    refused("nvidia.measurement", [GPU.entry(NONCE, measurements={21: measured(1001)})], verifier)


def test_the_decoders_measurement_counts_only_where_there_is_one() -> None:
    off = GPU.entry(NONCE, measurements={35: EMPTY}, opaque={spdm.NVDEC0: b"\x55"})
    verify([off])
    refused("nvidia.measurement", [GPU.entry(NONCE, measurements={35: EMPTY})])
    refused("nvidia.status", [GPU.entry(NONCE, opaque={spdm.NVDEC0: b"\x00"})])


def test_a_least_security_version() -> None:
    rule = resource(0x1000 + 40, [], more=' ns3:minSvn="7"').replace('alternatives="0"', 'alternatives="1"')
    items = FACTORY.items(driver=FACTORY.driver(more=rule))
    manifest = open_manifest(
        items.find("nvidia-rim", "NV_GPU_DRIVER_GH100_550.90.07"),  # type: ignore[arg-type]
        roots={FACTORY.rim_root.root},
        now=NOW,
    )
    assert manifest.least == {40: 7}
    assert LEAST.startswith("https://docs.")
    typed = b"NVDAOD\0\0\x02\0\0\0" + b"\x0b\0\0\0\x01\0\xaa" + b"\x28\0%b\x02\0%b"

    def check(kind: bytes, value: bytes) -> None:
        compare(spdm.parse_report(GPU.report(NONCE, raw_opaque=typed % (kind, value))), [manifest])

    check(b"\x87\0", b"\x07\0")
    check(b"\x87\0", b"\x00\x01")
    for kind, value in ((b"\x87\0", b"\x06\0"), (b"\x86\0", b"\x07\0")):
        with pytest.raises(Untrusted) as caught:
            check(kind, value)
        assert caught.value.code == "nvidia.security-version"


def test_a_switch_and_its_gpus_in_protected_pcie_mode() -> None:
    """Links are in the clear in this mode, so a GPU counts only with every switch and GPU that it is linked with."""
    one, two = FACTORY.gpu(), FACTORY.gpu()
    switch, other = FACTORY.gpu("LS10"), FACTORY.gpu("LS10")
    links = b"".join(bytes.fromhex(s.pdi) for s in (switch, switch, other)) + bytes(8)
    gpu: dict[int, bytes | None] = {spdm.FEATURE: b"\x02\0", spdm.SWITCH_PDIS: links}
    beyond: dict[int, bytes | None] = {spdm.GPU_PDIS: bytes.fromhex(one.pdi + two.pdi + "00" * 8)}

    def facts(devices: list[tuple[Gpu, dict[int, bytes | None]]]) -> list[bool]:
        found = verify([g.entry(NONCE, opaque=dict(opaque)) for g, opaque in devices])
        return [d.facts["confidential"] is True for d in found if d.name.startswith("gpu")]

    everything = [(one, gpu), (two, gpu), (switch, beyond), (other, beyond)]
    assert facts(everything) == [True, True]
    assert facts(everything[:3]) == [False, False]
    assert facts([everything[0], *everything[2:]]) == [False]
    assert facts([(one, {spdm.FEATURE: b"\x02\0"}), (switch, beyond)]) == [False]


def revocation(
    factory: Factory, gpu: Gpu, *pieces: Item, required: bool = False, grace: int = 0, now: int = NOW
) -> bool:
    """Whether revocation was checked, where evidence is accepted with these pieces at hand."""
    verifier = NvidiaVerifier(
        CollateralSet([*factory.items(), *pieces]),
        Staleness(grace=grace),
        require_revocation=required,
        device_roots={factory.root.root},
        manifest_roots={factory.rim_root.root},
    )
    (device,) = verifier.verify([gpu.entry(NONCE)], NONCE, now=now)
    assert device.facts["confidential"] is True
    return device.facts["revocation_checked"] is True


def crl_of(authority: Entity, crl: bytes, obtained: int = NOW) -> Item:
    return Item("nvidia-crl", authority.root, crl, obtained)


def test_revocation_lists_are_collateral_with_a_time() -> None:
    factory = Factory()
    gpu, authority, serial = factory.gpu(), factory.identity, factory.provisioner.cert.serial_number

    def check(crl: bytes, grace: int = 0, obtained: int = NOW) -> None:
        assert revocation(factory, gpu, crl_of(authority, crl, obtained), grace=grace) is False

    check(authority.crl())
    check(authority.crl(1234))
    old = authority.crl(start=NOW - 9 * DAY, end=NOW - DAY)
    check(old, grace=2 * DAY)
    revoked = authority.crl(serial, start=NOW - 9 * DAY, end=NOW - DAY)
    stranger = issue("Identity", p384(), ca=True).crl()
    assert read_crl(revoked).revoked(serial)
    for code, crl, how in (
        ("x509.revoked", authority.crl(serial), {}),
        ("x509.revoked", revoked, {"grace": 2 * DAY}),
        ("collateral.stale", old, {}),
        ("collateral.future", authority.crl(start=NOW + DAY, end=NOW + 2 * DAY), {}),
        ("collateral.future", authority.crl(), {"obtained": NOW + 1}),
        ("crl.signature", stranger, {}),
    ):
        with pytest.raises(Untrusted) as caught:
            check(crl, **how)
        assert caught.value.code == code


@pytest.mark.parametrize("gpu", [GPU, BLACKWELL, SWITCH], ids=lambda gpu: gpu.arch)
def test_answers_about_every_certificate_that_can_be_revoked(gpu: Gpu) -> None:
    """All but the leaf, which the device made for itself, and the root."""
    answers = FACTORY.answers(gpu)
    assert len(answers) == 3
    assert revocation(FACTORY, gpu, *answers, required=True)
    assert revocation(FACTORY, gpu, *answers)
    for left_out in range(3):
        few = answers[:left_out] + answers[left_out + 1 :]
        assert revocation(FACTORY, gpu, *few) is False
        with pytest.raises(Untrusted) as caught:
            revocation(FACTORY, gpu, *few, required=True)
        assert caught.value.code == "collateral.missing"
        assert caught.value.details["ocsp"] == gpu.chain[1 + left_out].parsed.fingerprint


def test_a_list_stands_in_for_an_answer() -> None:
    lists = [crl_of(FACTORY.root, FACTORY.root.crl()), crl_of(FACTORY.identity, FACTORY.identity.crl())]
    answers = FACTORY.answers(GPU, provisioner=None, identity=None)
    assert revocation(FACTORY, GPU, *answers, *lists, required=True)
    assert revocation(FACTORY, GPU, *lists) is False
    whole = [crl_of(entity, entity.crl()) for entity in (FACTORY.root, FACTORY.identity, FACTORY.provisioner)]
    assert revocation(FACTORY, GPU, *whole, required=True)


def test_of_two_sources_one_in_its_time_is_enough() -> None:
    """A vendor's service that is down stops nobody who has its list."""
    early = {"start": NOW - 2 * DAY, "end": NOW - DAY}
    stale = answer(FACTORY.provisioner, FACTORY.identity, responder(FACTORY.identity), **early)
    answers = FACTORY.answers(GPU, provisioner=stale)
    fresh, old = (
        crl_of(FACTORY.identity, FACTORY.identity.crl()),
        crl_of(FACTORY.identity, FACTORY.identity.crl(**early)),
    )
    assert revocation(FACTORY, GPU, *answers, fresh, required=True)
    assert revocation(FACTORY, GPU, *FACTORY.answers(GPU), old, required=True)
    for pieces in ([*answers], [*answers, old]):
        with pytest.raises(Untrusted) as caught:
            revocation(FACTORY, GPU, *pieces)
        assert caught.value.code == "collateral.stale"
    assert revocation(FACTORY, GPU, *answers, required=True, grace=2 * DAY)


def test_what_to_ask_about_a_device() -> None:
    asked = revocation_requests(GPU.pem, now=NOW, roots={FACTORY.root.root})
    assert list(asked) == [entity.parsed.fingerprint for entity in GPU.chain[1:4]]
    for entity, request in zip(GPU.chain[1:4], asked.values(), strict=True):
        question = ocsp.load_der_ocsp_request(request)
        assert (question.serial_number, question.hash_algorithm.name) == (entity.cert.serial_number, "sha384")
    # About certificates that only somebody sent nobody is asked.
    with pytest.raises(Untrusted) as caught:
        revocation_requests(GPU.pem, now=NOW)
    assert caught.value.code == "x509.root"


def test_the_generation_may_be_left_to_the_certificates() -> None:
    for gpu in (GPU, BLACKWELL, SWITCH):
        assert verify_report(gpu.report(NONCE), gpu.pem, now=NOW, **OWN).facts["arch"] == gpu.arch
    unknown = FACTORY.gpu(model="XY100 A01 GSP BROM")
    with pytest.raises(Untrusted) as caught:
        verify_report(unknown.report(NONCE), unknown.pem, now=NOW, **OWN)
    assert caught.value.code == "nvidia.architecture"


VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "nvidia.json").read_text(encoding="utf-8"))


def check_vector(evidence: Any) -> int:
    items = [Item("nvidia-rim", name, text.encode(), VECTORS["now"]) for name, text in VECTORS["manifests"].items()]
    roots = {"device_roots": {VECTORS["device_root"]}, "manifest_roots": {VECTORS["manifest_root"]}}
    verifier = NvidiaVerifier(CollateralSet(items), Staleness(), **roots)
    found = verifier.verify(evidence, bytes.fromhex(VECTORS["device"]), now=VECTORS["now"])
    return sum(device.facts["confidential"] is True for device in found)


def test_a_good_vector_is_verified_forever() -> None:
    assert check_vector(VECTORS["good"]) == 3


@pytest.mark.parametrize("bad", VECTORS["bad"], ids=lambda bad: bad["name"])
def test_a_bad_vector_fails_for_its_reason(bad: dict[str, Any]) -> None:
    with pytest.raises(Untrusted) as caught:
        check_vector(bad["evidence"])
    assert caught.value.code == bad["code"]


REVOCATION = json.loads((Path(__file__).parents[1] / "vectors" / "nvidia_revocation.json").read_text(encoding="utf-8"))


def check_answers(answers: dict[str, str], required: bool = True) -> bool:
    now = REVOCATION["now"]
    items = [Item("nvidia-ocsp", name, base64.b64decode(text), now) for name, text in answers.items()]
    chain = verify_device_chain(
        REVOCATION["chain"].encode(),
        None,
        roots={REVOCATION["device_root"]},
        now=now,
        collateral=CollateralSet(items),
        require_revocation=required,
    )
    return chain.unrevoked


def test_good_answers_are_accepted_forever() -> None:
    assert check_answers(REVOCATION["good"])
    assert not check_answers({}, required=False)


@pytest.mark.parametrize("bad", REVOCATION["bad"], ids=lambda bad: bad["name"])
def test_a_bad_answer_fails_for_its_reason(bad: dict[str, Any]) -> None:
    with pytest.raises((Malformed, Untrusted)) as caught:
        check_answers(bad["answers"])
    assert caught.value.code == bad["code"]


def test_the_default_measurements_are_what_the_forge_says() -> None:
    assert spdm.parse_report(GPU.report(NONCE)).measurements == GOOD
