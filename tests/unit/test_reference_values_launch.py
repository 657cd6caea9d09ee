"""Launch measurements of SEV-SNP and TDX guests, computed from firmware: fixed values, and images of other forms."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation.firmware import guid_table
from cloister.attestation.snp.launch import CPU_TYPES, DirectKernel, SnpGuest, launch_digest
from cloister.attestation.tdx.launch import mrtd
from cloister.errors import CloisterError, Malformed, Misuse
from tests import firmware_forge as forge

KERNEL = DirectKernel(hashlib.sha256(b"kernel").digest(), hashlib.sha256(b"initrd").digest(), "console=ttyS0")
GUEST = SnpGuest(forge.snp_image(), 1, "EPYC-v4")


# The same image measured with sev-snp-measure 0.0.13 gave these values.
@pytest.mark.parametrize(
    ("changes", "digest"),
    [
        ({}, "b173f04d2efe8ef3540dbf8e8f363ed310fd15cb48b33cef43512c3d3b508d792a10b64f428ec91b84056fd5eeadf203"),
        (
            {"vcpus": 4},
            "71e034ec3757589f1f068b0a7317d0e600206cc384f1ec14cee13a05f37963c22b1acdf606b52c65ebd9251860f18dd0",
        ),
        (
            {"kernel": KERNEL, "cpu": "EPYC-Milan"},
            "c00cf15ae3932891563717f0400301a053c679ff615b1160fd12c66bbbcd109a949972dcf372cb4260ba5c833a000c7c",
        ),
        (
            {"kernel": KERNEL, "cpu": "EPYC-Genoa", "vcpus": 8, "features": 0x21},
            "4dcb479666a98328fcd43a61e0ba5f3070f812fb61318d7794fe1f4b7e5e5620d91efb06c343a6cfbca9a4ff9600c25e",
        ),
        (
            {"hypervisor": "ec2", "vcpus": 2},
            "bfddda5b8cb9db0b4bd81d8ee3bcbbd4f2fb3c054a5146500dd99be2fc0c3d52e37a5c291ebf483294b8805ffb31bb01",
        ),
        (
            {"hypervisor": "gce", "vcpus": 2},
            "f095143b520880a7790b3aa33453d6745d33cda9be09af4689b8866a074e7a1ac264856512e076af5618a75502e64c88",
        ),
    ],
)
def test_snp_values_that_a_peer_computes_too(changes: dict[str, Any], digest: str) -> None:
    assert launch_digest(replace(GUEST, **changes)).hex() == digest


def test_everything_that_a_guest_is_started_with_counts() -> None:
    guests = [
        GUEST,
        replace(GUEST, vcpus=2),
        replace(GUEST, vcpus=3),
        replace(GUEST, cpu="EPYC-Milan"),
        replace(GUEST, features=3),
        replace(GUEST, kernel=KERNEL),
        replace(GUEST, kernel=replace(KERNEL, cmdline="console=ttyS1")),
        replace(GUEST, kernel=replace(KERNEL, initrd=bytes(32))),
        replace(GUEST, hypervisor="ec2"),
        replace(GUEST, hypervisor="gce"),
        replace(GUEST, firmware=forge.snp_image(forge.SNP_SECTIONS[:-1])),
    ]
    assert len({launch_digest(guest) for guest in guests}) == len(guests)
    assert launch_digest(GUEST) == launch_digest(replace(GUEST))


def code(error: type[CloisterError], guest: SnpGuest) -> str:
    with pytest.raises(error) as caught:
        launch_digest(guest)
    return caught.value.code


@pytest.mark.parametrize(
    "changes",
    [{"cpu": "Pentium"}, {"vcpus": 0}, {"vcpus": 513}, {"hypervisor": "none"}, {"features": -1}, {"features": 1 << 64}],
)
def test_a_guest_that_is_not_known(changes: dict[str, Any]) -> None:
    assert code(Misuse, replace(GUEST, **changes)) == "launch.guest"


@pytest.mark.parametrize(
    "sections",
    [
        (),
        ((0x800001, 0x1000, 1),),
        ((0x800000, 0x1001, 1),),
        ((0x800000, 0x1000, 9),),
        ((0x800000, 0x1000, 1),) * 65,
        ((0, 0x8000000, 1),),
    ],
)
def test_sev_metadata_of_another_form(sections: Any) -> None:
    assert code(Malformed, replace(GUEST, firmware=forge.snp_image(sections))) == "firmware.form"


def test_a_kernel_needs_firmware_that_measures_it() -> None:
    without = forge.snp_image(forge.SNP_SECTIONS[:-1])
    assert code(Malformed, replace(GUEST, firmware=without, kernel=KERNEL)) == "launch.kernel"


def table_image(*entries: bytes) -> bytes:
    return forge.image(list(entries))


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"x" * 4095,
        bytes(4096),
        forge.noise(8192),
        table_image(forge.entry(forge.RESET_BLOCK, b"1234")),
        table_image(forge.entry(forge.SEV_METADATA, b"12")),
        table_image(forge.entry(forge.SEV_METADATA, b"\xff\xff\xff\xff")),
        table_image(forge.entry(forge.SEV_METADATA, forge.pointer(8))),
        table_image(forge.entry(forge.SEV_METADATA, forge.pointer()), forge.entry(forge.SEV_METADATA, forge.pointer())),
    ],
)
def test_firmware_without_usable_tables(image: bytes) -> None:
    for measure in (lambda: launch_digest(replace(GUEST, firmware=image)), lambda: mrtd(image)):
        with pytest.raises(Malformed) as caught:
            measure()
        assert caught.value.code == "firmware.form"


def test_a_table_that_begins_within_an_entrys_head() -> None:
    """It says that it reaches to the image's first byte; its one entry leaves five bytes before it."""
    whole = 4096 - 32
    first = bytes(5)
    last = forge.entry(forge.RESET_BLOCK, bytes(whole - 18 - 18 - len(first)))
    footer = whole.to_bytes(2, "little") + uuid.UUID(forge.FOOTER).bytes_le
    with pytest.raises(Malformed) as caught:
        guid_table(first + last + footer + bytes(32))
    assert caught.value.code == "firmware.form"


def test_the_table_is_read_from_its_end() -> None:
    table = guid_table(forge.snp_image())
    assert set(table) == {forge.HASHES_TABLE, forge.RESET_BLOCK, forge.SEV_METADATA}
    assert table[forge.SEV_METADATA] == forge.pointer()


def by_definition(image: bytes, sections: Any) -> bytes:
    """As the module's specification words it, page by page and chunk by chunk."""
    out = b""
    for offset, raw, address, size, _, attributes in sections:
        content = image[offset : offset + raw] + bytes(size - raw)
        for page in range(size // 4096):
            if not attributes & 2:
                out += b"MEM.PAGE.ADD" + bytes(4) + (address + page * 4096).to_bytes(8, "little") + bytes(104)
            if attributes & 1:
                for chunk in range(16):
                    at = page * 4096 + chunk * 256
                    out += b"MR.EXTEND" + bytes(7) + (address + at).to_bytes(8, "little") + bytes(104)
                    out += content[at : at + 256]
    return hashlib.sha384(out).digest()


def test_mrtd_follows_its_definition() -> None:
    image = forge.tdx_image()
    assert mrtd(image) == by_definition(image, forge.TDX_SECTIONS)
    padded = ((0x2000, 0x1080, 0xFFFF2000, 0x3000, 0, 1),)
    assert mrtd(forge.tdx_image(padded)) == by_definition(forge.tdx_image(padded), padded)


def test_mrtd_depends_on_the_order_of_a_hypervisor() -> None:
    image = forge.tdx_image()
    assert mrtd(image) != mrtd(image, two_passes=True)
    one_page = ((0x2000, 0x1000, 0xFFFF2000, 0x1000, 0, 1),)
    single = forge.tdx_image(one_page)
    assert mrtd(single) == mrtd(single, two_passes=True)


def test_memory_that_is_accepted_later_costs_nothing() -> None:
    later = (0, 0, 0x100000000, 1 << 50, 4, 2)
    image = forge.tdx_image((*forge.TDX_SECTIONS, later))
    assert mrtd(image) == by_definition(image, forge.TDX_SECTIONS)


def test_what_is_not_measured_does_not_change_mrtd() -> None:
    image = bytearray(forge.tdx_image())
    before = mrtd(bytes(image))
    image[0x100] ^= 1  # the variables: added, not measured
    assert mrtd(bytes(image)) == before
    image[0x2100] ^= 1
    assert mrtd(bytes(image)) != before


@pytest.mark.parametrize(
    "section",
    [
        (0, 0x20000, 0xFFFF0000, 0x20000, 0, 1),  # beyond the image
        (0, 0x2000, 0xFFFF0000, 0x1000, 0, 1),  # more data than memory
        (0, 0, 0xFFFF0001, 0x1000, 3, 0),
        (0, 0, 0xFFFF0000, 0x1001, 3, 0),
        (0, 0, 0, 1 << 40, 3, 0),  # a bill that nobody would wait for
        (0, 0, 1 << 60, 0x1000, 3, 0),
        (0, 0, 0, 0x1000, 3, 4),
    ],
)
def test_tdx_metadata_of_another_form(section: Any) -> None:
    with pytest.raises(Malformed):
        mrtd(forge.tdx_image((section,)))


def test_tdx_metadata_that_is_cut_or_empty() -> None:
    for blob in (b"", b"TDVF" + bytes(12), forge.tdx_metadata(forge.TDX_SECTIONS)[:-1], forge.tdx_metadata(())):
        with pytest.raises(Malformed):
            mrtd(forge.image([forge.entry(forge.TDX_METADATA, forge.pointer())], blob=blob))


_IMAGE = forge.snp_image()
_TDX = forge.tdx_image()


@given(st.integers(0, 299), st.integers(1, 255))
@settings(max_examples=100, deadline=None)
def test_changed_tables_measure_otherwise_or_are_refused(position: int, change: int) -> None:
    """Also the tables themselves lie in measured pages."""
    for image, at in ((_IMAGE, len(_IMAGE) - 33 - position % 150), (_IMAGE, len(_IMAGE) - 0x3000 + position % 80)):
        changed = bytearray(image)
        changed[at] ^= change
        try:
            assert launch_digest(replace(GUEST, firmware=bytes(changed))) != launch_digest(GUEST)
        except Malformed:
            continue
    changed = bytearray(_TDX)
    changed[len(_TDX) - 0x3000 + position % 190] ^= change
    try:
        mrtd(bytes(changed))
    except Malformed:
        return


def test_the_known_cpu_types() -> None:
    assert {
        name: hex(value) for name, value in CPU_TYPES.items() if name in ("EPYC-v4", "EPYC-Milan", "EPYC-Turin")
    } == {
        "EPYC-v4": "0x800f12",
        "EPYC-Milan": "0xa00f11",
        "EPYC-Turin": "0xb00f00",
    }
