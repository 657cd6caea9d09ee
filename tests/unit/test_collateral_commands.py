"""``cloister collateral`` and ``cloister evidence``: real vectors get their verdict, and files go in and out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cloister.cli.app import main
from cloister.cli.options import moment
from cloister.client.evidence import PLATFORMS, Given, verify_evidence
from cloister.errors import CloisterError, Malformed, Misuse
from tests.adversarial import evidence_forge
from tests.vendor_double import vendor

IN_TIME = "2025-06-20T12:00:00Z"


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, Any, str]:
    """(exit code, the JSON on stdout, stderr)."""
    code = main([*words, "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out), err


@pytest.fixture
def vectors(shared: Path) -> Path:
    return shared / "vectors"


CHAIN = "snp/roots/ask_ark_milan.pem"
REAL: list[tuple[str, list[str], list[str], str, int, dict[str, Any]]] = [
    ("snp", ["snp/milan_report.hex", "snp/milan_vcek.der"], [CHAIN], "2026-01-01", 0, {"debug": False}),
    ("snp", ["snp/milan_debug_report.bin", "snp/milan_debug_vcek.cer"], [CHAIN], "2026-01-01", 3, {}),
    ("snp", ["snp/milan_report.hex", "snp/milan_debug_vcek.cer"], [CHAIN], "2026-01-01", 4, {}),
    ("snp", ["snp/milan_report.hex", "snp/milan_vcek.der"], ["snp/roots/ask_ark_genoa.pem"], "2026-01-01", 1, {}),
    ("snp", ["snp/milan_report.hex", "snp/milan_vcek.der"], [CHAIN], "2019-01-01", 4, {}),
    ("tdx", ["tdx/tdx_v4_quote.dat"], [], "2026-11-28", 0, {"debug": False}),
    ("tdx", ["tdx/tdx_quote"], ["tdx/tdx_quote_collateral.json"], IN_TIME, 0, {"tcb_status": "UpToDate"}),
    ("tdx", ["tdx/tdx_quote"], ["tdx/tdx_quote_collateral.json"], "2026-11-28", 4, {}),
    ("tdx", ["tdx/tdx_quote"], ["tdx/sgx_quote_collateral.json"], IN_TIME, 1, {}),
    ("tdx", ["tdx/tdx_quote"], ["tdx/intel_sgx_root_ca.pem"], IN_TIME, 2, {}),
    ("sgx", ["tdx/sgx_quote"], ["tdx/sgx_quote_collateral.json"], IN_TIME, 0, {"debug": False}),
    ("sgx", ["tdx/tdx_quote"], [], IN_TIME, 2, {}),
    ("nvidia", ["nvidia/hopperAttestationReport.txt", "nvidia/hopperCertChain.txt"], [], "2026-01-01", 0, {}),
    ("nvidia", ["nvidia/hopper_evidence.json"], [], "2026-01-01", 0, {"mode": "ppcie"}),
    ("nvidia", ["nvidia/hopper_evidence.json"], ["nvidia/NV_GPU_DRIVER_GH100_550.144.03.xml"], "2026-01-01", 4, {}),
    ("az-snp-vtpm", ["tpm/azure_snp_vtpm_evidence_v1.json"], [CHAIN], "2026-01-01", 0, {"debug": False}),
    ("az-tdx-vtpm", ["tpm/azure_tdx_vtpm_evidence_v1.json"], [], "2026-01-01", 0, {"debug": False}),
    ("az-snp-vtpm", ["tpm/azure_tdx_vtpm_evidence_v1.json"], [CHAIN], "2026-01-01", 4, {}),
]


@pytest.mark.parametrize(("platform", "files", "beside", "at", "code", "facts"), REAL)
def test_real_evidence_gets_its_verdict(
    capsys: pytest.CaptureFixture[str], vectors: Path, platform: str, files: list[str], beside: list[str], at: str,
    code: int, facts: dict[str, Any],
) -> None:  # fmt: skip
    words = [str(vectors / name) for name in files]
    more = [word for name in beside for word in ("--collateral", str(vectors / name))]
    got, body, err = run(capsys, "evidence", "verify", *words, "--platform", platform, *more, "--at", at)
    assert got == code, err
    if code == 0:
        assert body["verified"] is True
        found = body["devices"][0]["facts"]
        assert {name: found[name] for name in facts} == facts
    else:
        assert "error" in body


def test_debug_evidence_can_be_looked_at(capsys: pytest.CaptureFixture[str], vectors: Path) -> None:
    files = [str(vectors / "snp" / name) for name in ("milan_debug_report.bin", "milan_debug_vcek.cer")]
    words = [*files, "--platform", "snp", "--collateral", str(vectors / CHAIN), "--allow-debug"]
    code, body, _ = run(capsys, "evidence", "verify", *words)
    assert code == 0
    assert body["devices"][0]["facts"]["debug"] is True


def test_a_nonce_is_compared(capsys: pytest.CaptureFixture[str], vectors: Path) -> None:
    files = [str(vectors / "nvidia" / name) for name in ("hopperAttestationReport.txt", "hopperCertChain.txt")]
    good = "931d8dd0add203ac3d8b4fbde75e115278eefcdceac5b87671a748f32364dfcb"
    words = ["evidence", "verify", *files, "--platform", "nvidia", "--nonce"]
    assert run(capsys, *words, good)[0] == 0
    assert run(capsys, *words, "00" * 32)[0] == 4
    assert run(capsys, *words, "zz")[0] == 2


def test_a_tpms_quote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forge = evidence_forge.Forge()
    primary = forge.evidence(evidence_forge.Log()).primary
    path = tmp_path / "quote.json"
    path.write_text(json.dumps(primary))
    words = ["evidence", "verify", str(path), "--platform", "tpm"]
    code, body, _ = run(capsys, *words, "--allow-unvouched")
    assert (code, body["devices"][0]["tee"], body["verified"], body["unvouched"]) == (0, "tpm", False, ["tpm0"])
    path.write_text(json.dumps(primary | {"pcrs": {**primary["pcrs"], "3": "00" * 32}}))
    assert run(capsys, *words)[0] == 4
    assert run(capsys, *words, "--allow-unvouched")[0] == 4


def test_a_quote_under_a_self_made_key_is_not_called_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "quote.json"
    path.write_text(json.dumps(evidence_forge.Forge().evidence(evidence_forge.Log()).primary))
    words = ["evidence", "verify", str(path), "--platform", "tpm"]
    code, body, _ = run(capsys, *words)
    assert (code, body["error"]["code"]) == (3, "evidence.unvouched")
    assert main(words) == 3
    shown = capsys.readouterr()
    assert "verified" not in shown.out
    assert "anybody can make such a quote" in shown.err
    assert main([*words, "--allow-unvouched"]) == 0
    text = capsys.readouterr().out
    assert "tpm0: not verified." in text
    assert "No maker vouches for this TPM's key" in text


def test_words_for_people(capsys: pytest.CaptureFixture[str], vectors: Path) -> None:
    words = [str(vectors / "tdx" / "tdx_quote"), "--platform", "tdx"]
    assert main(["evidence", "verify", *words, "--at", "2026-01-01"]) == 0
    text = capsys.readouterr().out
    assert "cpu0: verified. Intel TDX" in text
    assert "revocations were not checked" in text


@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("data", [b"", b"\0", b"{}", b"[]", b"zz" * 600, b'{"quote": 1}', b"ab" * 700])
def test_rubbish_gives_our_errors_only(platform: str, data: bytes) -> None:
    with pytest.raises(CloisterError):
        verify_evidence(platform, [Given("a", data), Given("b", data)], [Given("c", data)], at=1_790_000_000)


def test_an_unknown_platform_and_no_file() -> None:
    for platform, files in (("sev", [Given("a", b"")]), ("snp", [])):
        with pytest.raises(Misuse):
            verify_evidence(platform, files, [], at=0)


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("1750420800", 1_750_420_800), (IN_TIME, 1_750_420_800), ("1970-01-02", 86_400)]
)
def test_times(text: str, seconds: int) -> None:
    assert moment(text) == seconds


@pytest.mark.parametrize("text", ["", "today", "2025", "20250620", "2025-13-01", "-5", "2025-06-20 12:00"])
def test_times_that_are_none(text: str) -> None:
    with pytest.raises(Misuse):
        moment(text)


def test_collateral_goes_in_and_out(capsys: pytest.CaptureFixture[str], vectors: Path, tmp_path: Path) -> None:
    first, second, bundle = (str(tmp_path / name) for name in ("first", "second", "bundle"))
    code, body, _ = run(capsys, "collateral", "export", bundle, "--folder", first)
    assert (code, body["error"]["code"]) == (2, "collateral.empty")
    real = str(vectors / "tdx" / "tdx_quote_collateral.json")
    code, body, _ = run(capsys, "collateral", "import", real, "--folder", first)
    assert (code, len(body["items"])) == (0, 4)
    assert {item["code"] for item in body["items"]} <= {"collateral.stale", ""}  # as of today
    assert run(capsys, "collateral", "export", bundle, "--folder", first)[0] == 0
    assert run(capsys, "collateral", "export", bundle, "--folder", first)[0] == 2  # never over a file
    assert run(capsys, "collateral", "import", bundle, "--folder", second)[0] == 0
    code, body, _ = run(capsys, "collateral", "show", "--folder", second, "--at", IN_TIME)
    assert code == 0
    assert {item["checked"] for item in body["items"]} == {True}
    words = [str(vectors / "tdx" / "tdx_quote"), "--platform", "tdx", "--at", IN_TIME, "--collateral", bundle]
    assert run(capsys, "evidence", "verify", *words)[1]["devices"][0]["facts"]["tcb_status"] == "UpToDate"
    assert main(["collateral", "show", "--folder", second]) == 0
    assert "has run out" in capsys.readouterr().out


def test_files_that_hold_no_collateral(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b'{"a": 1}')
    code, body, _ = run(capsys, "collateral", "import", str(tmp_path / "x"), "--folder", str(tmp_path / "c"))
    assert (code, body["error"]["kind"]) == (2, Malformed.kind)


def test_fetching_on_demand(capsys: pytest.CaptureFixture[str], tmp_path: Path, vectors: Path) -> None:
    folder = ["--folder", str(tmp_path / "c")]
    with vendor() as double:
        double.pages["/vcek/v1/Milan/cert_chain"] = (200, {}, (vectors / CHAIN).read_bytes())
        sources = ["--amd-kds", double.url]
        code, body, _ = run(capsys, "collateral", "fetch", "amd-chain:milan", *folder, *sources)
        assert (code, [item["checked"] for item in body["items"]]) == (0, [True])
        assert run(capsys, "collateral", "fetch", *folder, *sources)[0] == 0  # what is here, anew
        assert len(double.asked) == 2
        code = main(["collateral", "fetch", "amd-chain:turin", *folder, *sources])
        assert code == 1
        assert "does not have that piece" in capsys.readouterr().err
    assert main(["collateral", "fetch", "milan", *folder]) == 2
