"""Real quotes get the verdict that is stated for them, and self-made ones keep theirs forever."""

from __future__ import annotations

import base64
import json
import random
from pathlib import Path

import pytest

from cloister.attestation.collateral import CollateralSet, Item, Staleness
from cloister.attestation.tdx import (
    NOT_SUPPORTED,
    ROOTS,
    TdReport,
    authenticate_quote,
    extended_value,
    parse_quote,
    read_collateral,
    replay_rtmr3,
    service_items,
    verify_quote,
)
from cloister.crypto.x509 import read_certificate
from cloister.errors import CloisterError, Malformed, Unavailable, Untrusted

OWN = json.loads((Path(__file__).resolve().parents[1] / "vectors" / "tdx.json").read_text())
IN_TIME = 1_750_420_800  # 2025-06-20 12:00 UTC
TODAY = 1_795_824_000  # 2026-11-28
YEARS = 3 * 366 * 86_400


@pytest.fixture(scope="module")
def tdx(shared: Path) -> Path:
    return shared / "vectors" / "tdx"


def collateral(tdx: Path, name: str) -> CollateralSet:
    return CollateralSet(read_collateral((tdx / f"{name}_quote_collateral.json").read_bytes(), obtained=IN_TIME))


def quote(tdx: Path, name: str) -> bytes:
    return (tdx / name).read_bytes()


def test_the_pinned_root_is_intels(tdx: Path) -> None:
    assert read_certificate((tdx / "intel_sgx_root_ca.pem").read_bytes()).key_fingerprint in ROOTS
    assert len(ROOTS) == 1


@pytest.mark.parametrize("name", ["tdx_v4_quote.dat", "tdx_quote", "sgx_quote"])
def test_every_quote_verifies_to_intels_root(tdx: Path, name: str) -> None:
    for now in (IN_TIME, TODAY):
        authentic = authenticate_quote(quote(tdx, name), now=now)
        assert authentic.quote.tee == name[:3]
        device = verify_quote(quote(tdx, name), None, now=now)
        assert "tcb_status" not in device.facts


def test_a_real_trust_domain(tdx: Path) -> None:
    device = verify_quote(quote(tdx, "tdx_quote"), collateral(tdx, "tdx"), now=IN_TIME)
    facts = device.facts
    assert (device.tee, facts["tcb_status"], facts["advisories"], facts["debug"]) == ("tdx", "UpToDate", [], False)
    assert (facts["fmspc"], facts["pceid"], facts["tcb_evaluation"]) == ("b0c06f000000", "0000", 17)
    assert (facts["tcb.module_major"], facts["tcb.module_minor"], facts["tcb_date"]) == (1, 6, "2024-03-13T00:00:00Z")
    assert facts["attributes.sept_ve_disable"] is True
    assert len(device.identity) == 32
    assert device.measurements["mrtd"].startswith("91eb2b44")
    assert "70 bytes" in device.notes[0]


def test_a_real_enclave(tdx: Path) -> None:
    device = verify_quote(quote(tdx, "sgx_quote"), collateral(tdx, "sgx"), now=IN_TIME)
    assert device.tee == "sgx"
    assert device.facts["tcb_status"] == "ConfigurationAndSWHardeningNeeded"
    assert device.facts["advisories"] == ["INTEL-SA-00289", "INTEL-SA-00615"]
    assert (device.facts["fmspc"], device.facts["pck_authority"]) == ("00a067110000", "processor")
    assert bytes.fromhex(str(device.facts["report_data"])).rstrip(b"\0") == b"Hello, world!"
    assert len(device.identity) == 64


@pytest.mark.parametrize("name", ["tdx", "sgx"])
def test_real_collateral_is_good_in_its_month_and_at_no_other_time(tdx: Path, name: str) -> None:
    data, found = quote(tdx, f"{name}_quote"), collateral(tdx, name)
    for now in (1_750_331_000, IN_TIME, 1_752_918_000):  # 2025-06-19 11:03 to 2025-07-19 09:40
        assert verify_quote(data, found, now=now).facts["fmspc"]
    for now in (1_752_930_000, TODAY):  # 2025-07-19 13:00
        with pytest.raises(Untrusted) as error:
            verify_quote(data, found, now=now)
        assert error.value.code == "collateral.stale"
    with pytest.raises(Untrusted) as error:
        verify_quote(data, found, now=1_750_204_800)  # 2025-06-18
    assert error.value.code == "collateral.future"


def test_one_quotes_collateral_is_not_the_others(tdx: Path) -> None:
    with pytest.raises(Unavailable):
        verify_quote(quote(tdx, "tdx_quote"), collateral(tdx, "sgx"), now=IN_TIME)
    with pytest.raises(Unavailable):
        verify_quote(quote(tdx, "sgx_quote"), collateral(tdx, "tdx"), now=IN_TIME)


def answers(tdx: Path, chain: bytes) -> CollateralSet:
    return CollateralSet(
        service_items(
            tcb_info=quote(tdx, "tdx_v4_sample_tcbInfo_response"),
            tcb_info_chain=chain,
            qe_identity=quote(tdx, "tdx_v4_sample_qeIdentity_response"),
            pck_crl=quote(tdx, "tdx_v4_pckcrl"),
            root_crl=quote(tdx, "tdx_v4_rootcrl.der"),
            obtained=IN_TIME,
        )
    )


def test_answers_of_the_service_as_they_came(tdx: Path) -> None:
    """The responses are of 2023 and came without the header that holds their chain. The signing key is still in use, so
    a chain of today's shows that they are Intel's; a platform of that age has no level in them."""
    data = quote(tdx, "tdx_v4_quote.dat")
    with pytest.raises(Unavailable) as missing:
        verify_quote(data, answers(tdx, b""), now=IN_TIME, staleness=Staleness(grace=YEARS))
    assert missing.value.code == "tdx.collateral"
    chain = json.loads(quote(tdx, "tdx_quote_collateral.json"))["tcb_info_issuer_chain"].encode()
    with pytest.raises(Untrusted) as stale:
        verify_quote(data, answers(tdx, chain), now=IN_TIME)
    assert stale.value.code == "collateral.stale"
    device = verify_quote(data, answers(tdx, chain), now=IN_TIME, staleness=Staleness(grace=YEARS))
    assert device.facts["tcb_status"] == NOT_SUPPORTED
    assert device.facts["tcb_status.qe"] == "UpToDate"
    assert (device.facts["tcb.module_major"], device.facts["debug"]) == (0, False)
    assert "39 bytes" in device.notes[1]


@pytest.mark.parametrize("name", ["tdx", "sgx"])
def test_one_bit_changes_of_real_quotes_are_refused(tdx: Path, name: str) -> None:
    check_bits(tdx, name, random.Random(4).sample(range(4600 * 8), 150))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tdx", "sgx"])
def test_every_one_bit_change_of_real_quotes_is_refused(tdx: Path, name: str) -> None:
    data = quote(tdx, f"{name}_quote")
    check_bits(tdx, name, range(8 * (len(data) - len(parse_quote(data).trailing))))


def check_bits(tdx: Path, name: str, bits: range | list[int]) -> None:
    data = bytearray(quote(tdx, f"{name}_quote"))
    for bit in bits:
        data[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CloisterError) as error:
            authenticate_quote(bytes(data), now=IN_TIME)
        assert isinstance(error.value, Malformed | Untrusted), bit
        data[bit // 8] ^= 1 << bit % 8


# Our own


def own_collateral() -> CollateralSet:
    items = OWN["collateral"]
    return CollateralSet(
        Item(i["kind"], i["name"], base64.b64decode(i["data"]), OWN["now"], base64.b64decode(i["chain"])) for i in items
    )


@pytest.mark.parametrize("case", OWN["quotes"], ids=lambda case: case["name"])
def test_a_committed_quote_keeps_its_verdict(case: dict[str, object]) -> None:
    data = base64.b64decode(str(case["quote"]))
    if "facts" in case:
        device = verify_quote(data, own_collateral(), now=OWN["now"], roots=OWN["roots"])
        assert isinstance(case["facts"], dict)
        assert {key: device.facts[key] for key in case["facts"]} == case["facts"]
        return
    with pytest.raises(CloisterError) as error:
        verify_quote(data, own_collateral(), now=OWN["now"], roots=OWN["roots"])
    assert error.value.code == case["code"], case["reason"]


def test_committed_events_lead_to_the_committed_register() -> None:
    digests = [bytes.fromhex(digest) for digest in OWN["rtmr3"]["digests"]]
    assert [extended_value(digest).hex() for digest in digests] == OWN["rtmr3"]["extended"]
    assert replay_rtmr3(digests).hex() == OWN["rtmr3"]["register"]


def test_a_real_trust_domains_report_is_read(tdx: Path) -> None:
    body = parse_quote(quote(tdx, "tdx_v4_quote.dat")).body
    assert isinstance(body, TdReport)
    assert [value[:1] for value in body.rtmrs] == [b"\x29", b"\x2c", b"\x86", b"\x00"]
    assert (body.xfam.hex(), body.attributes.hex()) == ("e71a060000000000", "0000004000000000")
