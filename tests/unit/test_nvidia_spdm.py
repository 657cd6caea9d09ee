"""Reports of GPUs and switches, and their certificates' extensions: strict, total, bounded."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cloister.attestation.nvidia import spdm
from cloister.attestation.nvidia.chain import ARCHITECTURES
from cloister.attestation.nvidia.rim import driver_rim_id, vbios_rim_id
from cloister.attestation.nvidia.spdm import MAX_REPORT, MIN_SVN, parse_report
from cloister.errors import CloisterError, Malformed, Untrusted
from tests.nvidia_forge import DRIVER_RIM, GOOD, SWITCH_RIM, VBIOS_RIM, Factory

FACTORY = Factory()
GPU, BLACKWELL, SWITCH = FACTORY.gpu(), FACTORY.gpu("BLACKWELL"), FACTORY.gpu("LS10")
NONCE = bytes(range(32))
REPORT = GPU.report(NONCE)


def test_what_a_gpu_says_is_what_is_read() -> None:
    report = parse_report(REPORT)
    assert report.nonce == NONCE
    assert report.measurements == GOOD
    assert report.signed + report.signature == REPORT
    assert len(report.signature) == 96
    assert (report.driver, report.vbios, report.mode, report.nvdec0) == ("550.90.07", "96.00.9F.00.01", "spt", True)
    assert report.opaque[spdm.FWID].value == GPU.fwid


def test_what_a_switch_says() -> None:
    report = parse_report(SWITCH.report(NONCE))
    assert (report.driver, report.vbios, report.mode, report.nvdec0) == (None, "96.10.55.00.01", None, None)
    assert report.pdis(spdm.SWITCH_PDIS) == (SWITCH.pdi,)


def test_the_ids_of_the_manifests() -> None:
    hopper, blackwell, switch = (ARCHITECTURES[name] for name in ("HOPPER", "BLACKWELL", "LS10"))
    report = parse_report(REPORT)
    assert (driver_rim_id(report, hopper), vbios_rim_id(report, hopper)) == (DRIVER_RIM, VBIOS_RIM)
    assert driver_rim_id(parse_report(BLACKWELL.report(NONCE)), blackwell) == "NV_GPU_CC_DRIVER_GB100_550.90.07"
    older = parse_report(BLACKWELL.report(NONCE, opaque={spdm.CHIP_INFO: None}))
    assert driver_rim_id(older, blackwell) == "NV_GPU_CC_DRIVER_GB100_550.90.07"
    assert vbios_rim_id(parse_report(SWITCH.report(NONCE)), switch) == SWITCH_RIM
    for field in (spdm.DRIVER_VERSION, spdm.VBIOS_VERSION, spdm.PROJECT):
        without = parse_report(GPU.report(NONCE, opaque={field: None}))
        with pytest.raises(Malformed):
            (driver_rim_id(without, hopper), vbios_rim_id(without, hopper))


def test_opaque_data_that_says_its_types() -> None:
    field = (40).to_bytes(2, "little") + MIN_SVN.to_bytes(2, "little") + b"\x02\0\x07\0"
    report = parse_report(GPU.report(NONCE, raw_opaque=b"NVDAOD\0\0\x02\0\0\0" + field))
    assert report.opaque == {40: spdm.Field(MIN_SVN, b"\x07\0")}
    for head in (b"NVDAOD\x01\0\x02\0\0\0", b"NVDAOD\0\0\x03\0\0\0", b"NVDAOD\0\0\x02"):
        with pytest.raises(Malformed):
            parse_report(GPU.report(NONCE, raw_opaque=head))


@pytest.mark.parametrize(("value", "mode"), [(b"\0\0", "mpt"), (b"\x01\0", "spt"), (b"\x02\0", "ppcie")])
def test_the_mode_that_is_signed(value: bytes, mode: str) -> None:
    assert parse_report(GPU.report(NONCE, opaque={spdm.FEATURE: value})).mode == mode


def test_the_mode_of_reports_that_are_older_than_its_field() -> None:
    older: dict[int, bytes | None] = {spdm.FEATURE: None}
    assert parse_report(GPU.report(NONCE, opaque=older)).mode is None
    assert parse_report(GPU.report(NONCE, opaque=older | {spdm.PROTECTED_PCIE: b"\x55"})).mode is None
    assert parse_report(GPU.report(NONCE, opaque=older | {spdm.PROTECTED_PCIE: b"\xaa"})).mode == "ppcie"


@pytest.mark.parametrize(
    ("opaque", "read", "kind"),
    [
        ({spdm.FEATURE: b"\x03\0"}, "mode", Malformed),
        ({spdm.FEATURE: b""}, "mode", Malformed),
        ({spdm.NVDEC0: b"\x00"}, "nvdec0", Untrusted),
        ({spdm.DRIVER_VERSION: b"../../etc"}, "driver", Malformed),
        ({spdm.DRIVER_VERSION: b"550"}, "driver", Malformed),
        ({spdm.DRIVER_VERSION: b"550.90\0.07"}, "driver", Malformed),
        ({spdm.VBIOS_VERSION: b"\x00\x9f\x00\x96\x01\x02\x00\x00"}, "vbios", Malformed),
        ({spdm.VBIOS_VERSION: b"96.00.9F"}, "vbios", Malformed),
    ],
)
def test_fields_that_mean_nothing(opaque: dict[int, bytes], read: str, kind: type[CloisterError]) -> None:
    report = parse_report(GPU.report(NONCE, opaque=dict(opaque)))
    with pytest.raises(kind):
        getattr(report, read)


@pytest.mark.parametrize(
    "change",
    [
        {0: 0x12},  # SPDM 1.2 signs more than the report holds
        {1: 0xE1},
        {2: 0x00},  # no signature was asked for
        {3: 0x01},  # one measurement was asked for, not all
        {36: 0x09},  # there are 8 slots
        {37: 0x12},
        {38: 0x61},
        {39: 0x01},
        {40: 0x01},  # answered from another slot
        {41: 0x2F},  # one block fewer than there are
        {41: 0x31},
        {42: 0xFF},
    ],
)
def test_a_header_that_is_wrong(change: dict[int, int]) -> None:
    changed = bytearray(REPORT)
    for at, value in change.items():
        changed[at] = value
    with pytest.raises(Malformed):
        parse_report(bytes(changed))


@pytest.mark.parametrize("version", [0x10, 0x12, 0x13, 0x14])
def test_another_version_of_spdm_says_what_to_do(version: int) -> None:
    with pytest.raises(Malformed, match=r"not of SPDM 1\.1.*through the GPU's driver") as caught:
        parse_report(bytes([version]) + REPORT[1:])
    assert caught.value.code == "nvidia.report"


def test_a_report_without_a_driver_says_what_to_do() -> None:
    """As the GPU's security processor makes one by itself."""
    alone = parse_report(GPU.report(NONCE, opaque={spdm.DRIVER_VERSION: None}))
    with pytest.raises(Malformed, match=r"names no driver.*load its driver") as caught:
        driver_rim_id(alone, ARCHITECTURES["HOPPER"])
    assert caught.value.code == "nvidia.report"


def test_a_measurement_or_field_twice() -> None:
    first = REPORT[45:100]
    doubled = bytearray(REPORT)
    doubled[100:155] = first
    with pytest.raises(Malformed):
        parse_report(bytes(doubled))
    field = b"\x03\0\x05\x00550.1"
    with pytest.raises(Malformed):
        parse_report(GPU.report(NONCE, raw_opaque=field + field))


def test_lengths_are_exact() -> None:
    for data in (REPORT[:-1], REPORT + b"\0", b"", REPORT[:37], bytes(MAX_REPORT + 1)):
        with pytest.raises(Malformed):
            parse_report(data)


def read_all(data: bytes) -> None:
    report = parse_report(data)
    for architecture in ARCHITECTURES.values():
        _: Any = (report.driver, report.vbios, report.mode, report.nvdec0, report.pdis(22))
        driver_rim_id(report, architecture)
        vbios_rim_id(report, architecture)


@given(st.binary(max_size=600))
@example(REPORT)
def test_any_bytes_are_a_report_or_a_typed_error(data: bytes) -> None:
    with suppress(Malformed, Untrusted):
        read_all(data)


@given(st.integers(0, len(REPORT) - 1), st.binary(min_size=1, max_size=4))
@settings(max_examples=200)
def test_any_change_of_a_report_is_a_report_or_a_typed_error(at: int, new: bytes) -> None:
    with suppress(Malformed, Untrusted):
        read_all(REPORT[:at] + new + REPORT[at + len(new) :])
