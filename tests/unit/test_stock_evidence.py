"""Evidence as stock guests write it: back to the very bytes that the hardware signed, and judged like those."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.attestation.bootlog import BootLog, encode_log
from cloister.attestation.collateral import CollateralSet, Staleness
from cloister.attestation.models import guest_digest
from cloister.attestation.registry import guest_judges
from cloister.attestation.snp import SnpGuestJudge, attester_id, parse_report
from cloister.attestation.snp.stock import read_stock_certificates, read_stock_report
from cloister.attestation.tdx import TdxGuestJudge
from cloister.broker import Settings
from cloister.broker.__main__ import _arguments
from cloister.broker.judging import guest_judges_of
from cloister.crypto import parse_json
from cloister.errors import CloisterError, Malformed, Unavailable, Untrusted
from tests import boot_logs, snp_forge, stock_evidence, tdx_forge
from tests.fuzz.registry import SHARED

REPORT = b"q" * 32
SHAPES = {"older": stock_evidence.older, "newer": stock_evidence.newer}
snp, tdx = cache(snp_forge.Forge), cache(tdx_forge.Forge)


def snp_judge(forge: snp_forge.Forge, **without: Any) -> SnpGuestJudge:
    return SnpGuestJudge(forge.collateral(*without.get("without", ())), Staleness(), roots=forge.roots)


def bound(forge: snp_forge.Forge, **changed: Any) -> bytes:
    return forge.report(**({"report_data": REPORT + bytes(32)} | changed))


def table(forge: snp_forge.Forge) -> list[dict[str, Any]]:
    leaf = forge.signing_key.upper()
    return stock_evidence.chain(
        ARK=forge.root().der, ASK=forge.intermediate().der, **{leaf: forge.leaf().der}, CRL=b"x", Empty=b"",
        **{"12345678-1234-1234-1234-123456789abc": b"\1\2\3"},
    )  # fmt: skip


# Reports


@pytest.mark.parametrize(("product", "key", "version"), snp_forge.GOOD)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_kind_of_report_comes_back_byte_for_byte(product: str, key: str, version: int, shape: str) -> None:
    report = snp_forge.Forge(product, key, version).report()
    fields = SHAPES[shape](report)
    assert read_stock_report(parse_json(json.dumps(fields).encode())) == report
    parse_report(read_stock_report(fields))


def test_a_real_report_comes_back_byte_for_byte() -> None:
    path = SHARED / "snp" / "milan_debug_report.bin"
    if not path.is_file():
        pytest.skip("needs the shared vectors beside the checkout")
    report = path.read_bytes()
    for shape in SHAPES.values():
        assert read_stock_report(shape(report)) == report


def test_a_library_that_does_not_know_the_mitigations() -> None:
    report = snp().report()  # version 3 has none
    assert read_stock_report(stock_evidence.newer(report, mitigations=False)) == report


def test_what_the_newer_shape_leaves_out_was_zero_or_the_signature_fails() -> None:
    """Firmware that uses a reserved byte: its report can't be put together again, and nothing of it is believed."""
    forge = snp()
    report = bound(forge, reserved_208=1)
    with pytest.raises(Untrusted) as caught:
        snp_judge(forge).judge(stock_evidence.snp(report, table(forge)), REPORT, now=snp_forge.NOW)
    assert caught.value.code == "signature.invalid"


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something may be changed: every member, and of each list its first and last."""
    if path:
        yield path
    for key in value if isinstance(value, dict) else (0, len(value) - 1) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


def changed(value: Any, path: tuple[Any, ...], new: Callable[[Any], Any]) -> Any:
    made = copy.deepcopy(value)
    inner = made
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = new(inner[path[-1]])
    return made


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "new",
    [
        lambda _: None, lambda _: "1", lambda _: -1, lambda _: 1.5, lambda _: True, lambda _: 2**70, lambda _: [],
        lambda _: {}, lambda v: [*v, 0] if isinstance(v, list) else [v], lambda v: [256] * len(v) if isinstance(v, list)
        else 2**33,
    ],
)  # fmt: skip
def test_a_field_of_another_form(shape: str, new: Callable[[Any], Any]) -> None:
    fields = SHAPES[shape](snp_forge.Forge("turin", "vcek", 5).report())
    for path in places(fields):
        wrong = changed(fields, path, new)
        try:
            got = read_stock_report(wrong)
        except Malformed:
            continue
        # The few that may be null, or are as wide as the new number.
        assert path[-1] in ("fmc", "cpuid_fam_id", "cpuid_mod_id", "cpuid_step", "policy", "plat_info", "key_info") or (
            str(path[-1]).endswith("_mit_vector")
        )
        assert got != read_stock_report(fields)


@pytest.mark.parametrize("shape", SHAPES)
def test_no_field_may_be_missing_or_more(shape: str) -> None:
    fields = SHAPES[shape](snp().report())
    with pytest.raises(Malformed):
        read_stock_report({**fields, "more": 1})
    for name in fields:
        if name not in ("launch_mit_vector", "current_mit_vector", "cpuid_fam_id", "cpuid_mod_id", "cpuid_step"):
            with pytest.raises(Malformed):
                read_stock_report({key: value for key, value in fields.items() if key != name})


NAMES = st.sampled_from(["attestation_report", "cert_chain", "cert_type", "data", "version", "signature", "r", "quote"])
LEAVES = st.none() | st.booleans() | st.integers() | st.text()


@given(st.recursive(LEAVES, lambda inner: st.lists(inner) | st.dictionaries(NAMES, inner)))
def test_whatever_it_is_only_our_errors_come_out(value: Any) -> None:
    for call in (
        lambda: read_stock_report(value),
        lambda: read_stock_certificates(value),
        lambda: snp_judge(snp()).judge(value, REPORT, now=snp_forge.NOW),
        lambda: TdxGuestJudge(tdx().collateral(), Staleness()).judge(value, REPORT, now=tdx_forge.NOW),
    ):
        try:
            call()
        except CloisterError:
            continue


# Certificates


def test_a_table_of_certificates_has_what_the_host_put_there() -> None:
    forge = snp()
    assert [c.der for c in read_stock_certificates(table(forge))] == [
        c.der for c in (*reversed(forge.chain()), forge.leaf())
    ]
    assert read_stock_certificates(None) == []
    assert read_stock_certificates([]) == []


@pytest.mark.parametrize(
    "entry",
    [
        {"cert_type": "VCEK", "data": [1, 2, 256]},
        {"cert_type": "VCEK", "data": "AAAA"},
        {"cert_type": "VCEK", "data": [0] * 9000},
        {"cert_type": "VCEK", "data": []},
        {"cert_type": "else", "data": [1]},
        {"cert_type": {"OTHER": "x", "more": 1}, "data": [1]},
        {"cert_type": ["VCEK"], "data": [1]},
        {"cert_type": "VCEK"},
        {"cert_type": "VCEK", "data": [1], "more": 1},
        7,
    ],
)
def test_an_entry_of_another_form(entry: Any) -> None:
    with pytest.raises(Malformed):
        read_stock_certificates([entry])


def test_a_table_that_is_too_long() -> None:
    forge = snp()
    with pytest.raises(Malformed):
        read_stock_certificates(table(forge)[:1] * 4)
    with pytest.raises(Malformed):
        read_stock_certificates(stock_evidence.chain(Empty=b"") * 9)


# SEV-SNP guests, judged


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("certificates", [True, False])
def test_a_snp_guest(shape: str, certificates: bool) -> None:
    forge = snp()
    primary = stock_evidence.snp(bound(forge), table(forge) if certificates else None, shape=SHAPES[shape])
    guest = snp_judge(forge).judge(primary, REPORT, now=snp_forge.NOW)
    assert (guest.level, guest.device.tee) == ("cpu-tee", "snp")
    assert guest.agent == guest_digest("snp", {"launch": (b"m" * 48).hex()})
    assert guest.attester == attester_id("vcek", forge.hwid.hex())
    assert guest.device.measurements["host_data"] == (b"h" * 32).hex()
    assert guest.device.facts["revocation_checked"] is True


@pytest.mark.parametrize(
    "changes", [{"policy": 1 << 17 | 1 << 19}, {"vmpl": 1}, {"report_id_ma": b"a" * 32}], ids=["debug", "vmpl", "agent"]
)
def test_a_snp_guest_that_others_can_open_is_level_none(changes: dict[str, Any]) -> None:
    forge = snp()
    primary = stock_evidence.snp(bound(forge, **changes), table(forge))
    assert snp_judge(forge).judge(primary, REPORT, now=snp_forge.NOW).level == "none"


def test_a_snp_guest_of_another_challenge() -> None:
    forge = snp()
    for report in (b"p" * 32, REPORT[:31], b""):
        with pytest.raises(CloisterError) as caught:
            snp_judge(forge).judge(stock_evidence.snp(bound(forge), None), report, now=snp_forge.NOW)
        assert caught.value.code in ("snp.report", "snp.report-size")


@pytest.mark.parametrize("without", ["amd-crl", "amd-vcek", "amd-chain"])
def test_a_snp_guest_without_collateral(without: str) -> None:
    forge = snp()
    with pytest.raises((Unavailable, Untrusted)):
        snp_judge(forge, without=(without,)).judge(stock_evidence.snp(bound(forge), None), REPORT, now=snp_forge.NOW)


def test_one_changed_number_of_a_report() -> None:
    forge = snp()
    primary = stock_evidence.snp(bound(forge), table(forge), shape=stock_evidence.older)
    for path in places(primary["attestation_report"]):
        wrong = changed(primary, ("attestation_report", *path), lambda v: v ^ 1 if type(v) is int else v)
        if wrong == primary:
            continue
        with pytest.raises((Malformed, Untrusted)):
            snp_judge(forge).judge(wrong, REPORT, now=snp_forge.NOW)


# TDX guests, judged


def tdx_judge(forge: tdx_forge.Forge) -> TdxGuestJudge:
    return TdxGuestJudge(forge.collateral(), Staleness(), roots=forge.roots)


def domain(forge: tdx_forge.Forge, **td: bytes) -> bytes:
    return forge.quote(forge.td(**({"report_data": REPORT + bytes(32)} | td)))


@pytest.mark.parametrize("more", [{}, {"aa_eventlog": None}, {"aa_eventlog": "INIT sha384/00\n"}])
def test_a_tdx_guest(more: dict[str, Any]) -> None:
    forge = tdx()
    guest = tdx_judge(forge).judge(stock_evidence.tdx(domain(forge), **more), REPORT, now=tdx_forge.NOW)
    assert (guest.level, guest.device.tee) == ("cpu-tee", "tdx")
    assert guest.device.facts["boot_log"] is False
    only = {"quote": base64.b64encode(domain(forge)).decode()}
    assert tdx_judge(forge).judge(only, REPORT, now=tdx_forge.NOW).agent == guest.agent


def test_what_a_tdx_guest_extended_when_it_ran_is_told_and_no_part_of_the_guest() -> None:
    forge = tdx()
    quiet = tdx_judge(forge).judge(stock_evidence.tdx(domain(forge)), REPORT, now=tdx_forge.NOW)
    busy = tdx_judge(forge).judge(stock_evidence.tdx(domain(forge, rtmr3=b"3" * 48)), REPORT, now=tdx_forge.NOW)
    assert quiet.agent == busy.agent
    assert busy.device.measurements["rtmr3"] == (b"3" * 48).hex()
    assert any("RTMR 3" in note for note in busy.device.notes)
    assert not any("RTMR 3" in note for note in quiet.device.notes)


def ccel(*, runtime: bool) -> tuple[bytes, dict[str, bytes]]:
    """A CCEL log, and the registers that it leads to: boot, and perhaps what the guest went on writing."""
    banks = ("sha384",)
    events = [boot_logs.event(i, boot_logs.SEPARATOR, bytes(4), banks=banks) for i in (1, 2, 3)]
    events += [boot_logs.event(4, boot_logs.IPL, b"pulled an image", banks=banks)] if runtime else []
    log = BootLog("rtmr", banks, tuple(events), boot_logs.header(*banks))
    values = boot_logs.naive_replay(log, "sha384")
    return encode_log(log) + b"\xff" * 64, {f"rtmr{i - 1}": value for i, value in values.items()}


@pytest.mark.parametrize("runtime", [False, True])
def test_a_log_of_a_tdx_guest_leads_to_its_registers(runtime: bool) -> None:
    forge = tdx()
    log, registers = ccel(runtime=runtime)
    primary = stock_evidence.tdx(domain(forge, **registers), cc_eventlog=log)
    assert tdx_judge(forge).judge(primary, REPORT, now=tdx_forge.NOW).device.facts["boot_log"] is True
    for register in registers:
        wrong = stock_evidence.tdx(domain(forge, **(registers | {register: b"x" * 48})), cc_eventlog=log)
        with pytest.raises(Untrusted) as caught:
            tdx_judge(forge).judge(wrong, REPORT, now=tdx_forge.NOW)
        assert caught.value.code == "bootlog.replay"


def test_a_tdx_guest_under_debug_is_level_none() -> None:
    forge = tdx()
    primary = stock_evidence.tdx(domain(forge, attributes=b"\1" + bytes(7)))
    assert tdx_judge(forge).judge(primary, REPORT, now=tdx_forge.NOW).level == "none"


def test_a_tdx_guest_of_another_challenge() -> None:
    forge = tdx()
    for report in (b"p" * 32, REPORT[:31], b""):
        with pytest.raises(CloisterError) as caught:
            tdx_judge(forge).judge(stock_evidence.tdx(domain(forge)), report, now=tdx_forge.NOW)
        assert caught.value.code in ("tdx.report", "tdx.report-size")


@pytest.mark.parametrize(
    "change",
    [{"quote": None}, {"quote": 7}, {"more": 1}, {"cc_eventlog": 7}, {"aa_eventlog": 7}, {"aa_eventlog": "x" * 70_000}],
)
def test_tdx_evidence_of_another_form(change: dict[str, Any]) -> None:
    forge = tdx()
    with pytest.raises(Malformed):
        tdx_judge(forge).judge({**stock_evidence.tdx(domain(forge)), **change}, REPORT, now=tdx_forge.NOW)


def test_the_judges_are_those_of_processors_and_no_double_is_among_them() -> None:
    assert set(guest_judges()) == {"snp", "tdx"}


def test_an_owner_switches_them_on(tmp_path: Path) -> None:
    words = ["--home", str(tmp_path)]
    assert _arguments(words).stock_guests is Settings(tmp_path).stock_guests is False
    assert _arguments([*words, "--stock-guests"]).stock_guests is True
    assert guest_judges_of(Settings(tmp_path), CollateralSet()) == {}
    assert set(guest_judges_of(Settings(tmp_path, stock_guests=True), CollateralSet())) == {"snp", "tdx"}


def test_a_dataclass_is_not_shared_between_judgements() -> None:
    """Notes of one guest must not stand in another's result."""
    forge = tdx()
    judge = tdx_judge(forge)
    first = judge.judge(stock_evidence.tdx(domain(forge, rtmr3=b"3" * 48)), REPORT, now=tdx_forge.NOW)
    assert replace(first) == first
    assert judge.judge(stock_evidence.tdx(domain(forge)), REPORT, now=tdx_forge.NOW).device.notes != first.device.notes
