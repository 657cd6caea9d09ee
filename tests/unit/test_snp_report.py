"""SEV-SNP reports: every version reads as AMD laid it out, everything else is Malformed, nothing else is raised."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation.snp import Report, parse_report
from cloister.attestation.snp.report import PLATFORM_BITS, POLICY_BITS, flags
from cloister.errors import Malformed
from tests.snp_forge import CPUID, FIELDS, KEYS, SIGNED, SIZE, TCB, Forge, body

MAKERS = [Forge("milan", "vcek", v) for v in (2, 3, 4, 5)] + [Forge("genoa", "vlek", 3), Forge("turin", "vcek", 5)]
REPORTS = [maker.report() for maker in MAKERS]


def encoded(report: Report) -> bytes:
    """The bytes of a parsed report, by the table of the forge: an independent writing of what was read."""
    bits = report.author_key | report.mask_chip_key << 1 | KEYS[report.signing_key] << 2
    fields: dict[str, bytes | int] = {
        "version": report.version,
        "guest_svn": report.guest_svn,
        "policy": report.policy,
        "family_id": report.family_id,
        "image_id": report.image_id,
        "vmpl": report.vmpl,
        "algorithm": 1,
        "current_tcb": report.current_tcb,
        "platform": report.platform,
        "key_information": bits,
        "report_data": report.report_data,
        "measurement": report.measurement,
        "host_data": report.host_data,
        "id_key_digest": report.id_key_digest,
        "author_key_digest": report.author_key_digest,
        "report_id": report.report_id,
        "report_id_ma": report.report_id_ma,
        "reported_tcb": report.reported_tcb,
        "cpuid": bytes(report.cpuid or 3),
        "chip_id": report.chip_id,
        "committed_tcb": report.committed_tcb,
        "current_version": bytes(report.current_version[::-1]),
        "committed_version": bytes(report.committed_version[::-1]),
        "launch_tcb": report.launch_tcb,
        "launch_mitigations": report.launch_mitigations or 0,
        "current_mitigations": report.current_mitigations or 0,
    }
    full = dict.fromkeys(FIELDS, 0) | fields
    message = body({f: v if isinstance(v, bytes) else v.to_bytes(FIELDS[f][1], "little") for f, v in full.items()})
    halves = (report.signature[:48][::-1], report.signature[48:][::-1])
    return (message + b"".join(half + bytes(24) for half in halves)).ljust(SIZE, b"\0")


def only_malformed_or_same(data: bytes) -> bool:
    """Whether ``data`` was accepted; then it reads as exactly these bytes."""
    parsed, refusal = None, None
    try:
        parsed = parse_report(data)
    except Malformed as error:
        refusal = error.code
    assert refusal in ("snp.structure", "snp.version") if parsed is None else encoded(parsed) == data
    return parsed is not None


@pytest.mark.parametrize("report", REPORTS, ids=lambda r: f"v{r[0]}")
def test_a_report_reads_as_it_was_written(report):
    assert only_malformed_or_same(report)


def test_the_fields_are_those_of_the_table():
    found = parse_report(Forge("genoa", "vcek", 5).report())
    assert (found.version, found.guest_svn, found.vmpl, found.signing_key) == (5, 7, 0, "vcek")
    assert (found.family_id, found.image_id) == (b"f" * 16, b"i" * 16)
    assert (found.measurement, found.host_data, found.report_data) == (b"m" * 48, b"h" * 32, b"d" * 64)
    assert (found.report_id, found.report_id_ma) == (b"r" * 32, b"\xff" * 32)
    assert found.reported_tcb == found.current_tcb == found.committed_tcb == found.launch_tcb == TCB["genoa"]
    assert found.cpuid == tuple(CPUID["genoa"]) == (0x19, 0x11, 1)
    assert found.current_version == found.committed_version == (1, 55, 29)
    assert (found.launch_mitigations, found.current_mitigations) == (0b101, 0b111)
    assert len(found.signed) == SIGNED
    assert flags(found.policy, POLICY_BITS) == dict.fromkeys(POLICY_BITS, False) | {"smt": True}
    on = {name for name, value in flags(found.platform, PLATFORM_BITS).items() if value}
    assert on == {"smt", "ecc", "alias_check"}


def test_fields_that_a_version_lacks_are_none():
    old, middle = parse_report(Forge(version=2).report()), parse_report(Forge(version=4).report())
    assert (old.cpuid, old.launch_mitigations, old.current_mitigations) == (None, None, None)
    assert middle.cpuid == tuple(CPUID["milan"])
    assert middle.launch_mitigations is None


def test_each_bit_of_key_information_is_its_own():
    for value, expected in (
        (0b00000, (False, False, "vcek")),
        (0b00001, (True, False, "vcek")),
        (0b00010, (False, True, "vcek")),
        (0b00101, (True, False, "vlek")),
        (0b11100, (False, False, "none")),
    ):
        found = parse_report(Forge().report(key_information=value))
        assert (found.author_key, found.mask_chip_key, found.signing_key) == expected


@pytest.mark.parametrize(("bits", "field", "base"), [(POLICY_BITS, "policy", 1 << 17), (PLATFORM_BITS, "platform", 0)])
def test_each_flag_has_its_own_bit(bits, field, base):
    for name, bit in bits.items():
        value = getattr(parse_report(Forge().report(**{field: base | 1 << bit})), field)
        assert [n for n, on in flags(value, bits).items() if on] == [name]


@pytest.mark.parametrize("version", [0, 1, 6, 7, 255, 256, 2**32 - 1])
def test_other_versions_are_refused(version):
    with pytest.raises(Malformed) as caught:
        parse_report(Forge().report(version=version))
    assert caught.value.code == "snp.version"
    assert "2 to 5" in caught.value.message


def test_what_a_version_reserves_must_be_zero():
    for version, field in (
        (2, "cpuid"),
        (2, "launch_mitigations"),
        (3, "launch_mitigations"),
        (4, "launch_mitigations"),
    ):
        with pytest.raises(Malformed):
            parse_report(Forge(version=version).report(**{field: 1}))
    for field in (f for f in FIELDS if f.startswith("reserved")):
        offset, size = FIELDS[field]
        for at in range(offset, offset + size):
            for base in REPORTS:
                changed = bytearray(base)
                changed[at] = 1
                with pytest.raises(Malformed) as caught:
                    parse_report(bytes(changed))
                assert caught.value.code == "snp.structure"


@pytest.mark.parametrize("at", [0x2A0 + 48, 0x2A0 + 71, 0x2E8 + 48, 0x2E8 + 71, 0x330, 0x49F])
def test_bytes_beside_the_numbers_of_the_signature_must_be_zero(at):
    changed = bytearray(REPORTS[0])
    changed[at] = 0x80
    with pytest.raises(Malformed) as caught:
        parse_report(bytes(changed))
    assert caught.value.code == "snp.structure"


def test_every_truncation_and_every_addition_is_malformed():
    for size in range(SIZE):
        with pytest.raises(Malformed):
            parse_report(REPORTS[3][:size])
    for extra in (b"\0", b"\xff", bytes(SIZE), bytes(1 << 20)):
        with pytest.raises(Malformed):
            parse_report(REPORTS[3] + extra)


def test_every_one_bit_change_is_malformed_or_another_report():
    accepted = 0
    for bit in range(8 * SIZE):
        changed = bytearray(REPORTS[5])
        changed[bit // 8] ^= 1 << (bit % 8)
        accepted += only_malformed_or_same(bytes(changed))
    assert 0 < accepted < 8 * SIZE


@given(st.one_of(st.binary(max_size=64), st.binary(min_size=SIZE, max_size=SIZE), st.binary(max_size=2 * SIZE)))
@settings(max_examples=200)
def test_any_bytes_are_malformed_or_a_report(data):
    only_malformed_or_same(data)


@given(
    st.sampled_from(REPORTS),
    st.lists(st.tuples(st.integers(0, SIZE - 1), st.integers(0, 255)), min_size=1, max_size=6),
)
@settings(max_examples=300)
def test_edited_reports_are_malformed_or_read_as_written(report, edits):
    changed = bytearray(report)
    for position, value in edits:
        changed[position] = value
    only_malformed_or_same(bytes(changed))
