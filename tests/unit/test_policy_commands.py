"""``policy``, ``measurement`` and ``reference-values``, in this process against real brokers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests import firmware_forge as forge
from tests.client_home import LocalHome, Run
from tests.unit.test_releases import image

pytest_plugins = ["tests.client_fixtures"]

CHIP = "ab" * 64
POLICY = {
    "default": True,
    "least_level": "none",
    "name": "two sites",
    "platforms": {"snp": [{"about": "fact tcb.snp", "at_least": 22}, {"about": "identity", "one_of": [CHIP]}]},
    "type": "appraisal-policy/v1",
}
DEVICE = {
    "facts": {"debug": False, "tcb.snp": 22},
    "hardware": "",
    "identity": CHIP,
    "measurements": {},
    "name": "cpu0",
    "notes": [],
    "tee": "snp",
}


def write(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value, indent=2))
    return str(path)


def test_a_policy_is_shown_before_it_is_set(agreed: LocalHome, run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "p.json", POLICY)
    refused = run("policy", "set", file, "--as", "lab")
    assert refused.code == 2
    assert "fact tcb.snp: at_least 22" in refused.err
    before = run("policy", "show", "--as", "lab", "--json").document
    done = run("policy", "set", file, "--as", "lab", "--yes", "--json")
    assert done.code == 0
    shown = run("policy", "show", "--as", "lab", "--json").document
    assert (shown["policy"], shown["digest"]) == (POLICY, done.document["digest"])
    assert shown["digest"] != before["digest"]
    text = run("policy", "show", "--as", "lab").out
    assert "fact debug: is false (built in)" in text
    assert run("policy", "show", "--as", "hospital", "--json").document["digest"] == before["digest"]
    events = run("audit", "show", "--as", "lab", "--kind", "policy.set", "--json").document["entries"]
    assert events[-1]["details"]["digest"] == shown["digest"]


def test_a_policy_is_tried_on_evidence(run: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "p.json", POLICY)
    good = write(tmp_path / "good", {"devices": [DEVICE], "level": "cpu-tee", "tee": "snp"})
    assert run("policy", "check", file, "--evidence", good).code == 0
    bad = write(tmp_path / "bad", {"devices": [{**DEVICE, "identity": "cd"}], "level": "cpu-tee", "tee": "snp"})
    ran = run("policy", "check", file, "--evidence", bad)
    assert ran.code == 3
    assert 'found "cd"' in ran.out
    for text in ("{}", "a.b.c", "", "a.b", json.dumps({"devices": [{}], "level": "none", "tee": "snp"})):
        (tmp_path / "x").write_text(text)
        assert run("policy", "check", file, "--evidence", str(tmp_path / "x")).code == 2


def test_a_result_token_is_evidence_for_a_trial(run: Run, tmp_path: Path) -> None:
    from cloister.attestation import result_token
    from cloister.attestation.models import Device
    from tests.unit.test_attestation_appraisal import GPUS, KEY, NOW, SIGNER, reference, tee_claims

    cpu = Device("cpu0", "snp", CHIP, {}, {"debug": False, "tcb.snp": 21})
    token = result_token(tee_claims(cpu, *GPUS), reference(), signer=SIGNER, now=NOW, ttl=60, tee_pubkey=KEY)
    (tmp_path / "token").write_text(token + "\n")
    found = run("policy", "check", write(tmp_path / "p", POLICY), "--evidence", str(tmp_path / "token"), "--json")
    document = json.JSONDecoder().raw_decode(found.out)[0]
    assert (found.code, document["level"], document["devices"]) == (3, "gpu-tee", ["cpu0", "gpu0", "gpu1"])
    assert [finding["found"] for finding in document["findings"]] == ["21"]


@pytest.mark.parametrize("change", [{"type": "x"}, {"platforms": {"snp": [{"about": "x"}]}}])
def test_a_file_that_is_no_policy(agreed: LocalHome, run: Run, tmp_path: Path, change: dict[str, Any]) -> None:
    ran = run("policy", "set", write(tmp_path / "p", POLICY | change), "--as", "lab", "--yes")
    assert (ran.code, ran.out) == (2, "")


def test_from_a_release_to_its_approval_and_a_revocation(agreed: LocalHome, run: Run, tmp_path: Path) -> None:
    old, new = image(tmp_path / "old", "1.0"), image(tmp_path / "new", "1.1")
    changed = run("measurement", "show-changes", str(old), str(new))
    assert "package some-package: 1.0 -> 1.1" in changed.out
    assert run("measurement", "manifest", str(new), "--out", str(tmp_path / "m")).code == 0
    key = run("measurement", "key", str(tmp_path / "key"), "--json").document
    made = run(
        "measurement", "release", "--version", "1.1", "--key", str(tmp_path / "key"), "--image", str(tmp_path / "m"),
        "--fix", "a hole", "--vulnerable", "11" * 32, "--out", str(tmp_path / "r"), "--json",
    )  # fmt: skip
    assert made.document["number"] == 1
    words = ["measurement", "approve", str(tmp_path / "r"), "--all", "--as"]
    assert "No release key is pinned" in run(*words, "hospital", "--yes").err
    for party in ("hospital", "lab"):
        assert run("measurement", "trust", key["public"], "--as", party, "--yes").code == 0
    asked = run(*words, "hospital")
    assert "fixes: a hole" in asked.err
    assert f"vulnerable: {'11' * 32}, not revoked here yet" in asked.err
    first = run(*words, "hospital", "--yes")
    assert "once the other parties have" in first.out
    second = run(*words, "lab", "--yes")
    assert "every party has approved 1.1; it may run" in second.out
    for party in ("hospital", "lab"):
        assert "may run" in run("measurement", "list", "--as", party).out
    nothing = run("measurement", "approve", str(tmp_path / "r"), "--as", "lab", "--yes")
    assert (nothing.code, "--all" in nothing.err) == (2, True)
    revoked = run("measurement", "revoke", "11" * 32, "--reason", "a hole", "--as", "lab", "--yes")
    assert revoked.code == 0
    assert "a hole" in run("measurement", "list", "--as", "lab").out
    assert run("measurement", "revoke", "x", "--reason", "y", "--as", "lab", "--yes").code == 2


def test_reference_values_from_files_to_a_policy(run: Run, tmp_path: Path) -> None:
    (tmp_path / "ovmf").write_bytes(forge.snp_image())
    (tmp_path / "line").write_text("console=ttyS0\n")
    (tmp_path / "kernel").write_bytes(b"kernel")
    key = run("measurement", "key", str(tmp_path / "key"), "--json").document
    (tmp_path / "public").write_text(key["public"])
    words = [
        "reference-values", "compute", "--name", "r 1", "--signer", "Us", "--key", str(tmp_path / "key"),
        "--measurement", "11" * 32, "--platform", "snp", "--firmware", str(tmp_path / "ovmf"),
        "--kernel", str(tmp_path / "kernel"), "--cmdline", str(tmp_path / "line"), "--least", "tcb.snp=22",
    ]  # fmt: skip
    for name in ("a", "b"):
        assert run(*words, "--out", str(tmp_path / name)).code == 0
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read = ["reference-values", "read", str(tmp_path / "a"), "--key", str(tmp_path / "public")]
    assert "signed by Us" in run(*read).out
    assert run(*read, "--policy", str(tmp_path / "policy")).code == 0
    bad = write(tmp_path / "bad", {"devices": [DEVICE], "level": "cpu-tee", "tee": "snp"})
    assert run("policy", "check", str(tmp_path / "policy"), "--evidence", bad).code == 3
    for wrong in (["--least", "x"], ["--least", "x=y"], ["--register", "pcr7=00"], ["--until", "never"]):
        assert run(*words, "--out", str(tmp_path / "c"), *wrong).code == 2
    (tmp_path / "public").write_text("00" * 32)
    assert run(*read).code == 4
