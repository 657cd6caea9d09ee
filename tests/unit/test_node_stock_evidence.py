"""What a node gives a stock attestation service: as such services read it, about the guest, and nobody else's words."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from cloister.attestation import Evidence
from cloister.attestation.collateral import Staleness
from cloister.attestation.guests import StockAttester, stock_report_data
from cloister.attestation.snp import SnpGuestJudge, SnpVerifier, stock_fields
from cloister.attestation.snp.stock import read_stock_report
from cloister.attestation.tdx import TdxGuestJudge
from cloister.crypto import JweKey
from cloister.errors import CloisterError, Malformed, Unavailable
from cloister.node.socket_requests import SocketLimits, StockEvidenceRequest, parse_request
from tests import snp_forge, stock_evidence, tdx_forge
from tests.unit.test_node_tsm import Kernel, host_table, launched

NONCE = "bm9uY2U=" * 4
KEY = dict(JweKey().public_jwk)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "report"
    path.mkdir()
    return path


def digest(algorithm: str, additional: str = "") -> bytes:
    """As the published client hashes it."""
    runtime = {"additional-evidence": additional, "nonce": NONCE, "tee-pubkey": KEY}
    return hashlib.new(algorithm, json.dumps(runtime, sort_keys=True, separators=(",", ":")).encode()).digest()


@pytest.mark.parametrize(("product", "key", "version"), snp_forge.GOOD)
def test_a_reports_fields_are_those_that_attesters_write(product: str, key: str, version: int) -> None:
    if (product, version) == ("turin", 2):
        return  # such a report does not say what it is
    report = snp_forge.Forge(product, key, version).report()
    assert stock_fields(report) == stock_evidence.newer(report)
    with pytest.raises(Malformed):
        stock_fields(report[:-1])


@pytest.mark.parametrize("certificates", [True, False])
@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_a_snp_node(folder: Path, algorithm: str, certificates: bool) -> None:
    forge = snp_forge.Forge()
    attester = launched(Kernel(folder, forge, table=host_table(forge) if certificates else b""))
    assert isinstance(attester, StockAttester)
    found = attester.stock_evidence(NONCE, KEY, algorithm)
    assert (found["tee"], found["additional_evidence"]) == ("snp", "")
    primary = found["primary_evidence"]
    assert bytes(primary["attestation_report"]["report_data"]) == digest(algorithm).ljust(64, b"\0")
    assert [entry["cert_type"] for entry in primary["cert_chain"] or []] == ["VCEK"] * certificates
    if algorithm == "sha256":
        judge = SnpGuestJudge(forge.collateral(), Staleness(), roots=forge.roots)
        assert judge.judge(primary, digest("sha256"), now=snp_forge.NOW).level == "cpu-tee"


def test_a_tdx_node(folder: Path) -> None:
    forge = tdx_forge.Forge()
    kernel = Kernel(
        folder, provider="tdx_guest", answer=lambda data: forge.quote(forge.td(report_data=data)), table=None
    )
    primary = launched(kernel).stock_evidence(NONCE, KEY, "sha256")["primary_evidence"]
    judge = TdxGuestJudge(forge.collateral(), Staleness(), roots=forge.roots)
    assert judge.judge(primary, digest("sha256"), now=tdx_forge.NOW).level == "cpu-tee"


def test_it_is_no_evidence_of_a_sandbox(folder: Path) -> None:
    """Our own brokers want the launch log, and the report of this one is over none."""
    forge = snp_forge.Forge()
    attester = launched(Kernel(folder, forge))
    fields = attester.stock_evidence(NONCE, KEY, "sha256")["primary_evidence"]
    report = read_stock_report(fields["attestation_report"])
    verifier = SnpVerifier(forge.collateral(), Staleness(), roots=forge.roots)
    own = {"certificates": [], "report": stock_evidence.tdx(report)["quote"]}
    for primary in (fields, own):
        with pytest.raises(CloisterError):
            verifier.verify(Evidence("snp", primary, ""), digest("sha256"), now=snp_forge.NOW)


def test_a_kernel_that_answers_something_else(folder: Path) -> None:
    forge = snp_forge.Forge()
    attester = launched(Kernel(folder, forge))
    attester._files.answer = lambda _: forge.report(report_data=b"x" * 64)  # type: ignore[attr-defined]
    with pytest.raises(Unavailable):
        attester.stock_evidence(NONCE, KEY, "sha256")
    attester.close()
    with pytest.raises(Unavailable):
        attester.stock_evidence(NONCE, KEY, "sha256")


@pytest.mark.parametrize(
    ("nonce", "key", "additional", "algorithm"),
    [
        ("", KEY, "", "sha256"),
        ("x" * 5000, KEY, "", "sha256"),
        (7, KEY, "", "sha256"),
        (NONCE, {"n": "x" * 5000}, "", "sha256"),
        (NONCE, KEY, "x" * 200_000, "sha256"),
        (NONCE, KEY, "", "md5"),
        (NONCE, KEY, "", None),
    ],
)
def test_what_is_hashed_is_bounded(nonce: Any, key: Any, additional: Any, algorithm: Any) -> None:
    with pytest.raises(Malformed):
        stock_report_data(nonce, key, additional, algorithm)


def test_a_sandbox_asks_for_it() -> None:
    body = {"op": "stock-evidence", "nonce": NONCE, "tee-pubkey": {"kty": "EC"}, "hash": "sha384"}
    assert parse_request(json.dumps(body).encode(), SocketLimits()) == StockEvidenceRequest(
        NONCE, {"kty": "EC"}, "sha384"
    )
    for change in ({"hash": "md5"}, {"hash": 1}, {"digest": "00"}, {"nonce": "x" * 4097}, {"nonce": ""}):
        with pytest.raises(Malformed):
            parse_request(json.dumps({**body, **change}).encode(), SocketLimits())
