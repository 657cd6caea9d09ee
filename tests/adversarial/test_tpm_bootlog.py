"""Attacks through the boot event log. Whoever sends it chooses types and data freely; only digests are signed.

Each attack keeps the replay right, because the attacker knows how to, and wants one thing: that a machine without
secure boot, or one that was changed, is taken for another.
"""

import dataclasses

import pytest

from cloister.attestation.bootlog import BootEvent, BootLog, check_replay, replay, secure_boot
from cloister.errors import Untrusted
from tests.boot_logs import (
    ACTION,
    AUTHORITY,
    BOOT,
    DRIVER_CONFIG,
    NO_ACTION,
    SEPARATOR,
    boot_log,
    event,
    secure_boot_events,
    signature_list,
    variable,
)

ON = variable("SecureBoot", b"\1")
OFF = variable("SecureBoot", b"\0")


def log_of(*register_7, banks=("sha256",)):
    return dataclasses.replace(boot_log(), events=tuple(register_7), algorithms=banks)


def refused(log):
    check_replay(log, "sha256", replay(log, "sha256"))  # the replay is never the reason
    with pytest.raises(Untrusted) as caught:
        secure_boot(log, "sha256")
    assert caught.value.code == "bootlog.secure-boot"
    assert caught.value.message.endswith(".")


def test_the_log_is_good_unless_told_otherwise():
    assert secure_boot(boot_log(), "sha256").enabled is True
    assert secure_boot(boot_log(on=False), "sha256").enabled is False
    assert secure_boot(boot_log(), "sha256").facts()["secure_boot.db"] != []


def test_data_that_was_not_measured():
    """The measured variable says off; the log's data says on."""
    events = secure_boot_events(on=False)
    events[0] = event(7, DRIVER_CONFIG, ON, measured=OFF)
    refused(log_of(*events))


def test_variable_after_the_separator():
    """The system itself extends PCR 7 with the digest of "on"; firmware would have done it before."""
    events = secure_boot_events(on=False)
    refused(log_of(*events[1:], event(7, DRIVER_CONFIG, ON)))


def test_variable_twice():
    refused(log_of(event(7, DRIVER_CONFIG, ON), *secure_boot_events(on=False)))


@pytest.mark.parametrize("kind", [ACTION, AUTHORITY, DRIVER_CONFIG, BOOT, 0xFFFF])
def test_separator_under_another_type(kind):
    """Types aren't signed: an attacker who hides the separator makes later events look like the firmware's."""
    events = secure_boot_events(on=False)[1:]
    at = next(i for i, e in enumerate(events) if e.kind == SEPARATOR)
    events[at] = event(7, kind, b"nothing", measured=bytes(4))
    refused(log_of(*events, event(7, DRIVER_CONFIG, ON), event(7, SEPARATOR, bytes(4)), event(7, AUTHORITY, ON)))


def test_no_separator():
    refused(log_of(*(e for e in secure_boot_events() if e.kind != SEPARATOR)))


def test_variable_of_another_vendor_with_the_name_of_secure_boot():
    events = secure_boot_events()[1:]
    state = secure_boot(log_of(event(7, DRIVER_CONFIG, variable("SecureBoot", b"\1", b"v" * 16)), *events), "sha256")
    assert state.enabled is None
    assert "secure_boot" not in state.facts()


@pytest.mark.parametrize("kind", [AUTHORITY, ACTION, BOOT, 0xFFFF])
def test_variable_hidden_under_another_type(kind):
    """The measured "off" is shown as something else: it is known by its digest, and two values are refused."""
    events = secure_boot_events(on=False)
    events[0] = event(7, kind, b"something else", measured=OFF)
    assert secure_boot(log_of(*events), "sha256").enabled is False
    refused(log_of(event(7, DRIVER_CONFIG, ON), *events))


@pytest.mark.parametrize("value", [b"", b"\0"])
def test_host_that_gives_a_trust_domain_the_bytes_of_a_variable_to_measure(value):
    """Firmware of a TD measures the host's blobs into RTMR 0, too. The host's blob is "SecureBoot is on", shown as the
    firmware's variable; the firmware's own, "off" or none, is shown as a blob."""
    banks = ("sha384",)
    events = secure_boot_events(banks=banks, register=1)
    own = event(1, 0x8000000A, b"a blob of the host", banks=banks, measured=variable("SecureBoot", value))
    log = BootLog("rtmr", banks, (own, *events))
    with pytest.raises(Untrusted) as caught:
        secure_boot(log, "sha384")
    assert "twice" in caught.value.message
    # Lists of keys could be the host's: an RTMR shows none.
    facts = secure_boot(BootLog("rtmr", banks, tuple(events)), "sha384").facts()
    assert facts == {"secure_boot": True, "dma_protection_disabled": False}


def test_event_turned_into_one_that_only_informs():
    """EV_NO_ACTION extends nothing: the replay no longer leads to the signed value."""
    log = boot_log(on=False)
    values = replay(log, "sha256")
    hidden = dataclasses.replace(log.events[1], kind=NO_ACTION)
    with pytest.raises(Untrusted) as caught:
        check_replay(dataclasses.replace(log, events=(log.events[0], hidden, *log.events[2:])), "sha256", values)
    assert caught.value.code == "bootlog.replay"


@pytest.mark.parametrize("value", [b"\2", b"\1\1", b"\0\1"])
def test_secure_boot_with_a_value_that_is_neither_on_nor_off(value):
    events = secure_boot_events()
    events[0] = event(7, DRIVER_CONFIG, variable("SecureBoot", value))
    refused(log_of(*events))


@pytest.mark.parametrize("missing", ["PK", "KEK", "db"])
def test_secure_boot_on_without_keys(missing):
    wanted = variable(missing, b"")[32 : 32 + 2 * len(missing)]
    events = [e for e in secure_boot_events() if e.kind != DRIVER_CONFIG or e.data[32 : 32 + len(wanted)] != wanted]
    if missing == "db":
        events.insert(0, event(7, DRIVER_CONFIG, variable("dbx", b"")))
    refused(log_of(*events))


def test_secure_boot_on_but_nobodys_signature_was_checked():
    refused(log_of(*(e for e in secure_boot_events() if e.kind != AUTHORITY)))


@pytest.mark.parametrize("name", ["SecureBoot", "PK", "KEK", "db", "dbx"])
def test_variable_shown_as_a_signer_because_nobodys_signature_was_checked(name):
    """Types aren't signed: one of the measured variables is shown as the event that names who signed what was started.
    The variable SecureBoot is known by its digest; of the others one is missing then."""
    text = name.encode("utf-16-le")
    events = [e for e in secure_boot_events() if e.kind != AUTHORITY]
    at = next(i for i, e in enumerate(events) if e.data[32:].startswith(text) and e.data[16] == len(name))
    events[at] = dataclasses.replace(events[at], kind=AUTHORITY)
    refused(log_of(*events))


@pytest.mark.parametrize(
    "data",
    [
        variable("dbt", signature_list(b"time stamps")),
        variable("dbx", signature_list(b"bad")),
        variable("AuditMode", b"\0"),
        variable("db", b"o" * 16 + b"signer", b"v" * 16),
        b"someone",
        b"",
    ],
)
def test_something_else_shown_as_a_signer(data):
    events = [e for e in secure_boot_events() if e.kind != AUTHORITY]
    refused(log_of(*events, event(7, AUTHORITY, data)))


def test_variable_after_the_first_of_two_separators():
    """A trust domain's firmware measures two. What ran in between can have extended the register with "on"."""
    banks = ("sha384",)
    events = secure_boot_events(on=False, banks=banks, register=1)[1:]
    end = event(1, SEPARATOR, bytes(4), banks=banks)
    for kind in (DRIVER_CONFIG, ACTION):
        own = BootEvent(1, kind, event(1, SEPARATOR, ON, banks=banks).digests, ON)
        with pytest.raises(Untrusted) as caught:
            secure_boot(BootLog("rtmr", banks, (*events, own, end)), "sha384")
        assert "after the separator" in caught.value.message


def test_signer_with_other_data_than_measured():
    events = secure_boot_events()
    events[-1] = event(7, AUTHORITY, b"someone honest", measured=b"someone else")
    refused(log_of(*events))


@pytest.mark.parametrize("kind", [ACTION, AUTHORITY, DRIVER_CONFIG])
def test_debugger_that_is_hidden(kind):
    events = secure_boot_events()
    refused(log_of(event(7, kind, b"nothing to see", measured=b"UEFI Debug Mode"), *events))


def test_firmware_error_shown_as_a_normal_separator():
    events = [e for e in secure_boot_events() if e.kind != SEPARATOR]
    refused(log_of(*events, event(7, SEPARATOR, bytes(4), measured=b"\1\0\0\0")))


@pytest.mark.parametrize("lists", [b"\0" * 27, signature_list(b"x")[:-1], b"\0" * 28, signature_list(*[b"x"] * 65)])
def test_signature_lists_that_lie_about_their_sizes(lists):
    events = secure_boot_events()
    events[1] = event(7, DRIVER_CONFIG, variable("PK", lists))
    refused(log_of(*events))


@pytest.mark.parametrize(
    "events",
    [
        lambda start, rest: (start, start, *rest),
        lambda start, rest: (*rest, start),
        lambda start, rest: (dataclasses.replace(start, index=1), *rest),
        lambda start, rest: (dataclasses.replace(start, data=b"StartupLocality\0\5"), *rest),
        lambda start, rest: (dataclasses.replace(start, data=b"StartupLocality\0"), *rest),
    ],
)
def test_start_from_another_locality_told_wrongly(events):
    """PCR 0's first value is the log's word: only as the profile says it, once and first."""
    log = boot_log()
    start = event(0, NO_ACTION, b"StartupLocality\0\3")
    with pytest.raises(Untrusted) as caught:
        replay(dataclasses.replace(log, events=events(start, log.events)), "sha256")
    assert caught.value.code == "bootlog.locality"


def test_ending_of_pcr_5_used_for_other_registers_or_other_texts():
    log = boot_log()
    values = replay(log, "sha256")
    longer = dataclasses.replace(log, events=(*log.events, event(5, ACTION, b"Something else")))
    with pytest.raises(Untrusted):
        check_replay(log, "sha256", replay(longer, "sha256"))
    for register in (0, 4, 7):
        with pytest.raises(Untrusted):
            check_replay(log, "sha256", {register: values[5]})
