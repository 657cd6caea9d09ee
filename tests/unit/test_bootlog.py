"""Boot event logs: both formats, every bank, real logs of nine machines, and nothing but typed errors."""

import base64
import contextlib
import dataclasses
import hashlib
import struct
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.attestation.bootlog import (
    MAX_EVENTS,
    MAX_LOG,
    BootLog,
    check_replay,
    encode_log,
    parse_log,
    parse_variable,
    replay,
    secure_boot,
    start_locality,
)
from cloister.errors import CloisterError, Malformed, Untrusted
from tests import boot_logs
from tests.boot_logs import NO_ACTION, SEPARATOR, boot_bytes, boot_log, event, header, naive_replay, variable

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "vectors" / "tpm" / "eventlogs"
real = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared vectors folder is not beside the checkout")

# Secure boot as each log's own machine had it; None: the log doesn't show it.
REAL = {
    "cos-93-amd-sev.bin": ("sha1 sha256 sha384", True),
    "crypto_agile_eventlog": ("sha256", False),  # the variable doesn't exist there
    "debian-10.bin": ("sha1", True),
    "ebs_event_missing_eventlog": ("sha1", False),
    "eventlogwithsp800155.bin": ("sha1 sha256 sha384", True),
    "option_rom_eventlog": ("sha1", True),
    "rhel8-uefi.bin": ("sha1 sha256 sha384", True),
    "short_no_action_eventlog": ("sha1", None),
    "ubuntu-2404-amd-sevsnp.bin": ("sha1 sha256 sha384", False),
}
# Register values that the machines' TPMs had, from the tests of google/go-eventlog and google/go-attestation.
ZEROS_SEPARATED = "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969"
KNOWN = {
    "rhel8-uefi.bin": {
        0: "24af52a4f429b71a3184a6d64cddad17e54ea030e2aa6576bf3a5a3d8bd3328f",
        2: ZEROS_SEPARATED,
        7: "5fd54361d580eb7592adb8deb236ff35444ceeac7148f24b3de63c041f12b3da",
        14: "d8f57ebcc1a23cc46832696e1a657f720e1be8f5b405bb7204682114e363b455",
    },
    "ubuntu-2404-amd-sevsnp.bin": {
        0: "50597a27846e91d025eef597abbc89f72bff9af849094db97b0684d8bc4c515e",
        5: "0b0e1903aeb1bff649b82dba2cdcf5c4ffb75027e54f151ab00b3b989f16a300",
        7: "33ad69850fb2c7f30b4f8b4bc10ed93fc954dc07fa726e84f50f3d192dc1c140",
    },
    "cos-93-amd-sev.bin": {
        4: "871e8343044ae4c87b402dcb94b5e49715b1b8dc1b19c43ba0801422fabb39d4",
        7: "3365d7fa2b024c852913c06e04ffbfa6ea5289f743bbf1a76f7ffdf21ed84793",
    },
}
OPTION_ROM = ["AVGK7ch6DvUF0nJh74NYCefaAIY=", "vr/0wIpmd0c6tgTO3vuC+FDN6IM=", "NmoxoMB1No8OEIVzM+ou1uigD9M="]
DEBIAN = {0: "0f2d3a2a1adaa479aeeca8f5df76aadc41b862ea", 7: "9e6c57e850f371c2a7fe02bca552149363952318"}


@real
@pytest.mark.parametrize("name", REAL)
def test_real_logs_parse_replay_and_tell_secure_boot(name):
    data = (SHARED / name).read_bytes()
    log = parse_log(data)
    banks, expected = REAL[name]
    assert encode_log(log) == data
    assert " ".join(log.algorithms) == banks
    for bank in log.algorithms:
        values = replay(log, bank)
        check_replay(log, bank, values)
        if expected is None:
            assert values == {0: b"\0" * 19 + b"\3"}
            continue
        assert values == naive_replay(log, bank)
        state = secure_boot(log, bank)
        assert state.enabled is expected
        assert state.facts()["secure_boot"] is expected
        assert len(state.pk) == 1
        trimmed = encode_log(log.trimmed(range(8)))
        assert len(trimmed) <= len(data)
        smaller = parse_log(trimmed)
        assert replay(smaller, bank) == {i: v for i, v in values.items() if i < 8}
        assert secure_boot(smaller, bank) == state


@real
def test_real_logs_lead_to_what_those_machines_tpms_held():
    for name, values in KNOWN.items():
        log = parse_log((SHARED / name).read_bytes())
        check_replay(log, "sha256", {i: bytes.fromhex(v) for i, v in values.items()})
    option_rom = parse_log((SHARED / "option_rom_eventlog").read_bytes())
    check_replay(option_rom, "sha1", {i: base64.b64decode(v) for i, v in enumerate(OPTION_ROM)})
    check_replay(
        parse_log((SHARED / "debian-10.bin").read_bytes()), "sha1", {i: bytes.fromhex(v) for i, v in DEBIAN.items()}
    )


@real
def test_firmware_that_leaves_its_last_events_out_of_the_log():
    """PCR 5 of that machine holds two events of ExitBootServices more than its log."""
    log = parse_log((SHARED / "ebs_event_missing_eventlog").read_bytes())
    held = bytes.fromhex("31245808d6d35849bc394f6343f2b3ff908ed5e3")
    assert replay(log, "sha1")[5] != held
    check_replay(log, "sha1", {5: held})
    for register in (0, 4):
        with pytest.raises(Untrusted) as caught:
            check_replay(log, "sha1", {register: held})
        assert caught.value.code == "bootlog.replay"


@real
def test_some_bytes_of_a_real_log_changed_or_cut():
    data = (SHARED / "rhel8-uefi.bin").read_bytes()
    good = parse_log(data)
    values = replay(good, "sha256")
    for at in range(0, len(data), 997):
        changed = data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]
        for other in (changed, data[:at]):
            try:
                log = parse_log(other)
                check_replay(log, "sha256", values)
            except (Malformed, Untrusted):
                continue
            # What no register covers: types, other banks, data. None of it is believed.
            assert [e.digests["sha256"] for e in log.events] == [e.digests["sha256"] for e in good.events]


@pytest.mark.parametrize("bank", boot_logs.BANKS)
def test_every_bank_replays(bank):
    banks = tuple(boot_logs.BANKS)
    log = parse_log(boot_bytes(banks=banks))
    assert log == boot_log(banks=banks)
    assert replay(log, bank) == naive_replay(log, bank)
    assert secure_boot(log, bank).enabled is True


def test_a_sha1_log_has_no_header():
    made = BootLog("pcr", ("sha1",), boot_log(banks=("sha1",)).events)
    log = parse_log(encode_log(made))
    assert log == made
    assert secure_boot(log, "sha1").enabled
    with pytest.raises(Untrusted) as caught:
        replay(log, "sha256")
    assert caught.value.code == "bootlog.bank"


@pytest.mark.parametrize("version", [b"Spec ID Event00\0", b"Spec ID Event02\0"])
def test_headers_of_older_formats_only_inform(version):
    data = version + struct.pack("<IBBBBB", 0, 2, 1, 2, 1, 0)
    log = parse_log(encode_log(BootLog("pcr", ("sha1",), (event(0, NO_ACTION, data, banks=("sha1",)),))))
    assert log.algorithms == ("sha1",)
    assert replay(log, "sha1") == {}


@pytest.mark.parametrize("locality", [0, 3, 4])
def test_the_locality_of_the_start_is_pcr_0s_first_value(locality):
    started = event(0, NO_ACTION, b"StartupLocality\0" + bytes([locality]))
    log = dataclasses.replace(boot_log(), events=(started, *boot_log().events))
    value = bytes(31) + bytes([locality])
    for e in log.events:
        if e.index == 0 and e.extends:
            value = hashlib.sha256(value + e.digests["sha256"]).digest()
    assert start_locality(log) == locality
    assert replay(log, "sha256")[0] == value


def test_an_h_crtm_starts_pcr_0_at_four():
    measured = event(0, 0x80000010, b"HCRTM", measured=b"code")
    log = dataclasses.replace(boot_log(), events=(measured, *boot_log().events))
    assert start_locality(log) == 4
    only = dataclasses.replace(log, events=(measured,))
    value = hashlib.sha256(bytes(31) + b"\4" + hashlib.sha256(b"code").digest()).digest()
    assert replay(only, "sha256") == {0: value}
    # The profile has it as the first event only; later it is one like any other.
    assert start_locality(dataclasses.replace(log, events=(*boot_log().events, measured))) == 0


def test_registers_of_a_dynamic_launch_are_replayed_from_zeros():
    log = dataclasses.replace(boot_log(), events=(event(17, 0x502, b"launch"),))
    value = hashlib.sha256(bytes(32) + hashlib.sha256(b"launch").digest()).digest()
    check_replay(log, "sha256", {17: value})
    for wrong in (bytes(32), b"\xff" * 32):
        with pytest.raises(Untrusted):
            check_replay(log, "sha256", {17: wrong})


@pytest.mark.parametrize("kind", [0x800000E3, 0x800000E4])
def test_events_about_devices_may_stand_in_pcr_7(kind):
    log = boot_log(extra=[event(7, kind, b"device")])
    assert secure_boot(log, "sha256").enabled
    with pytest.raises(Untrusted) as caught:
        secure_boot(boot_log(extra=[event(7, kind, b"device", measured=b"other")]), "sha256")
    assert caught.value.code == "bootlog.secure-boot"


def test_registers_without_events_have_their_first_value():
    log = boot_log()
    check_replay(log, "sha256", {8: bytes(32), 17: b"\xff" * 32, 18: bytes(32), 23: bytes(32)})
    for register, value in ((8, b"\1" * 32), (8, b"\xff" * 32), (17, b"\1" * 32), (23, b"\xff" * 32)):
        with pytest.raises(Untrusted) as caught:
            check_replay(log, "sha256", {register: value})
        assert caught.value.code == "bootlog.replay"
        assert str(register) in caught.value.message


def test_windows_and_linux_events_that_name_no_register():
    log = dataclasses.replace(boot_log(), events=(*boot_log().events, event(0xFFFFFFFF, NO_ACTION, b"trust point")))
    assert parse_log(encode_log(log)) == log
    assert replay(log, "sha256") == replay(boot_log(), "sha256")


def ccel(*, on=True, padding=b"\xff" * 100, extra=()):
    """A TD's log: index 0 is MRTD, 1 to 4 are RTMR 0 to 3, everything in SHA-384."""
    banks = ("sha384",)
    events = [event(1, 0x8000000A, b"firmware volume", banks=banks, measured=b"code")]
    events += boot_logs.secure_boot_events(on=on, banks=banks, register=1)
    events += [event(2, boot_logs.APPLICATION, b"path", banks=banks, measured=b"loader")]
    events += [event(4, boot_logs.IPL, b"late", banks=banks), *extra]
    return BootLog("rtmr", banks, tuple(events), header(*banks), padding)


@pytest.mark.parametrize("padding", [b"", b"\xff" * 4096, bytes(300), b"\xff", b"\0", b"\xff" * 7, bytes(5), bytes(16)])
def test_ccel_logs_count_measurement_registers(padding):
    made = ccel(padding=padding)
    log = parse_log(encode_log(made), "rtmr")
    assert log == made
    values = replay(log, "sha384")
    assert set(values) == {0, 1, 3}
    assert values[3] == hashlib.sha384(bytes(48) + hashlib.sha384(b"late").digest()).digest()
    check_replay(log, "sha384", {**values, 2: bytes(48)})
    assert secure_boot(log, "sha384").enabled
    assert secure_boot(ccel(on=False), "sha384").enabled is False


@pytest.mark.parametrize("index", [0, 1])
def test_a_ccel_logs_header_names_register_0_or_1(index):
    """EDK2's firmware of trust domains writes 1 there, others 0; a log keeps its own."""
    made = dataclasses.replace(ccel(), header_index=index)
    data = encode_log(made)
    assert data[:4] == struct.pack("<I", index)
    log = parse_log(data, "rtmr")
    assert log == made
    assert encode_log(log) == data
    assert encode_log(log.trimmed(range(5)))[:4] == data[:4]
    assert replay(log, "sha384") == replay(ccel(), "sha384")
    for other in (2, 0xFFFFFFFF):
        with pytest.raises(Malformed):
            parse_log(struct.pack("<I", other) + data[4:], "rtmr")


@pytest.mark.parametrize("ending", [b"\0", b"\xff", b"\0" * 20, b"\xff" * 20])
@pytest.mark.parametrize("padding", [b"", b"\0", b"\xff", bytes(50), b"\xff" * 50])
def test_the_unused_rest_is_not_taken_for_the_last_event(ending, padding):
    last = event(4, boot_logs.IPL, b"x" + ending, banks=("sha384",))
    made = ccel(extra=[last], padding=padding)
    assert parse_log(encode_log(made), "rtmr") == made


def test_firmware_of_trust_domains_measures_two_separators():
    """EDK2: one after the variables of secure boot, and one in the same register when it is ready to boot."""
    banks = ("sha384",)
    late = [
        event(1, 0xA, b"ACPI DATA", banks=banks, measured=b"tables"),
        event(1, boot_logs.BOOT, variable("BootOrder", b"\0\0"), banks=banks, measured=b"\0\0"),
        event(1, SEPARATOR, bytes(4), banks=banks),
    ]
    for on in (True, False):
        log = ccel(on=on, extra=late)
        assert secure_boot(parse_log(encode_log(log), "rtmr"), "sha384").enabled is on
    with pytest.raises(Untrusted):
        secure_boot(boot_log(extra=[event(7, SEPARATOR, bytes(4))]), "sha256")


def test_a_dbx_may_be_empty_but_is_measured():
    events = list(boot_log().events)
    at = next(i for i, e in enumerate(events) if e.data[32:38] == "dbx".encode("utf-16-le"))
    events[at] = event(7, boot_logs.DRIVER_CONFIG, variable("dbx", b""))
    state = secure_boot(dataclasses.replace(boot_log(), events=tuple(events)), "sha256")
    assert (state.enabled, state.dbx, state.authorities) == (True, (), 1)


def test_ccel_logs_are_not_read_as_a_tpms():
    with pytest.raises(Malformed):
        parse_log(encode_log(ccel()))
    with pytest.raises(Malformed):
        parse_log(encode_log(ccel(padding=b"\xff" * 50 + b"\0")), "rtmr")
    for spoiled in (bytes(50) + b"\xff", bytes(16) + b"x", bytes(8) + b"\xff", b"\xff" * 4 + bytes(4), b"\0\xff"):
        with pytest.raises(Malformed):
            parse_log(encode_log(ccel(padding=spoiled)), "rtmr")
    with pytest.raises(Malformed):
        parse_log(encode_log(ccel(extra=[event(5, boot_logs.IPL, b"x", banks=("sha384",))])), "rtmr")
    with pytest.raises(Malformed):
        parse_log(encode_log(BootLog("pcr", ("sha1",), boot_log(banks=("sha1",)).events)), "rtmr")
    # MRTD is fixed before anything runs: an event for it is never replayed.
    assert set(replay(ccel(extra=[event(0, boot_logs.IPL, b"x", banks=("sha384",))]), "sha384")) == {0, 1, 3}


def first(data, digest=bytes(20), index=0):
    return struct.pack("<II20sI", index, NO_ACTION, digest, len(data)) + data


GOOD = header("sha1", "sha256")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "nothing at all"),
        (b"\0" * 31, "half an event"),
        (struct.pack("<II20sI", 4, 0xD, bytes(20), 0xBDBFEF47) + b"abcd", "data of 3 GB"),
        (struct.pack("<II20sI", 24, 0xD, bytes(20), 0), "PCR 24"),
        (first(GOOD, digest=b"\1" * 20), "a header with a digest"),
        (first(GOOD, index=1), "a header in PCR 1"),
        (first(GOOD[:28]), "a header cut short"),
        (first(GOOD + b"\0"), "a header with more"),
        (first(GOOD[:20] + b"\2\1\0\2" + GOOD[24:]), "version 1.2"),
        (first(GOOD[:24] + b"\xff\xff\xff\xff" + GOOD[28:]), "four billion banks"),
        (first(GOOD[:24] + bytes(4) + GOOD[28:]), "no bank"),
        (first(header("sha256", "sha256")), "a bank twice"),
        (first(GOOD[:30] + b"\x20" + GOOD[31:]), "SHA-1 with 32 bytes"),
        (first(GOOD) + b"\0" * 11, "half an agile event"),
        (first(GOOD) + struct.pack("<III", 0, 0xD, 3), "more digests than banks"),
        (first(GOOD) + struct.pack("<IIIH", 0, 0xD, 1, 0x0C) + bytes(60), "a bank that the header doesn't name"),
        (
            first(GOOD) + struct.pack("<III", 0, 0xD, 2) + (b"\x0b\0" + bytes(32)) * 2 + bytes(4),
            "a bank twice in one event",
        ),
        (first(GOOD) + struct.pack("<IIIH", 0, 0xD, 1, 0x0B) + bytes(32) + b"\x05\0\0\0abcd", "data that is cut"),
        (first(GOOD) + struct.pack("<IIII", 99, 0xD, 0, 0), "PCR 99"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_logs_outside_the_form_are_malformed(data, why):
    with pytest.raises(Malformed) as caught:
        parse_log(data)
    assert caught.value.code == "bootlog.structure", why


def test_sizes_and_counts_are_bounded():
    with pytest.raises(Malformed) as caught:
        parse_log(bytes(MAX_LOG + 1))
    assert caught.value.code == "bootlog.size"
    with pytest.raises(Malformed, match=str(MAX_EVENTS)):
        parse_log(struct.pack("<II20sI", 0, 0xD, bytes(20), 0) * (MAX_EVENTS + 1))


def test_unknown_banks_are_carried_but_not_replayed():
    head = b"Spec ID Event03\0" + struct.pack("<IBBBBI", 0, 0, 2, 0, 2, 2) + struct.pack("<HHHH", 0x12, 32, 0x0B, 32)
    data = first(head + b"\0") + struct.pack("<IIIH", 0, 0xD, 2, 0x12) + b"s" * 32 + b"\x0b\0" + b"d" * 32 + bytes(4)
    log = parse_log(data)
    assert log.algorithms == ("0x0012", "sha256")
    assert encode_log(log) == data
    with pytest.raises(Malformed) as caught:
        replay(log, "0x0012")
    assert caught.value.code == "bootlog.algorithm"


def test_an_event_without_the_bank_cannot_be_left_out():
    log = boot_log(banks=("sha1", "sha256"))
    lacking = dataclasses.replace(log, events=(*log.events, event(1, boot_logs.IPL, b"x", banks=("sha1",))))
    assert replay(parse_log(encode_log(lacking)), "sha1")
    with pytest.raises(Untrusted) as caught:
        replay(lacking, "sha256")
    assert caught.value.code == "bootlog.bank"


def test_variables_are_read_strictly():
    good = variable("SecureBoot", b"\1")
    assert parse_variable(good).name == "SecureBoot"
    for bad in (good[:-1], good + b"\0", good[:20], b"", good[:16] + bytes(8) + good[24:], b"\0" * 32):
        with pytest.raises(Malformed) as caught:
            parse_variable(bad)
        assert caught.value.code == "bootlog.variable"


def only_typed(data, registers):
    try:
        log = parse_log(data, registers)
    except Malformed:
        return
    assert encode_log(log) == data
    for bank in log.algorithms:
        for ask in (replay, secure_boot):
            with contextlib.suppress(CloisterError):
                ask(log, bank)


@given(st.binary(max_size=300), st.sampled_from(["pcr", "rtmr"]), st.sampled_from([b"", first(GOOD)]))
@settings(max_examples=150)
def test_any_bytes_are_malformed_or_encode_to_themselves(data, registers, before):
    only_typed(before + data, registers)


@given(
    st.sampled_from([(boot_bytes(banks=("sha1", "sha256")), "pcr"), (encode_log(ccel()), "rtmr")]),
    st.lists(st.tuples(st.integers(0, 1 << 16), st.integers(0, 255)), min_size=1, max_size=4),
)
@settings(max_examples=150)
def test_edited_logs_are_malformed_or_encode_to_themselves(case, edits):
    data, registers = case
    changed = bytearray(data)
    for position, value in edits:
        changed[position % len(changed)] = value
    only_typed(bytes(changed), registers)


def test_separators_have_their_usual_value():
    """The value that nearly every machine's PCR 2 has: one separator of zeros."""
    log = BootLog("pcr", ("sha256",), (event(2, SEPARATOR, bytes(4)),), header("sha256"))
    assert replay(log, "sha256")[2].hex() == ZEROS_SEPARATED
