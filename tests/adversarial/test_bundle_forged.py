"""Attacks on a release bundle: each must be noticed by ``cloister verify``, with the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cloister.client.verify import RELEASE_FILE, verify_bundle
from cloister.crypto import Envelope
from cloister.errors import CloisterError, Denied, Misuse, Untrusted
from tests.bundles import HOSPITAL, LAB, MALLORY, PINS, Bundle, key, make_contract


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return Bundle(tmp_path / "logs")


def refused(folder: Path, kind: type[CloisterError], code: str, pins: Any = None) -> None:
    with pytest.raises(kind) as caught:
        verify_bundle(folder, PINS if pins is None else pins)
    assert caught.value.code == code


def edit(folder: Path, change: Any) -> None:
    path = folder / RELEASE_FILE
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def test_an_honest_bundle_verifies(bundle: Bundle, tmp_path: Path) -> None:
    verified = verify_bundle(bundle.write(tmp_path / "out"), PINS)
    assert verified.assurance == "none"
    assert len(verified.steps) == 8
    assert verified.document()["verified"] is True


def test_keys_that_the_verifier_did_not_pin(bundle: Bundle, tmp_path: Path) -> None:
    out = bundle.write(tmp_path / "out")
    refused(out, Denied, "verify.unpinned", {})
    refused(out, Denied, "contract.unpinned", {"hospital": HOSPITAL.card})
    forged = make_contract(MALLORY, LAB, cards={"hospital": MALLORY.card, "lab": LAB.card})
    edit(out, lambda r: r.update(contract=forged.envelope.to_bytes().decode()))
    refused(out, Untrusted, "contract.keys")


def test_contract_without_a_signature(bundle: Bundle, tmp_path: Path) -> None:
    bundle.contract = make_contract(HOSPITAL)
    bundle.__post_init__()
    refused(bundle.write(tmp_path / "out"), Denied, "contract.unsigned")


def test_missing_or_foreign_key_releases(bundle: Bundle, tmp_path: Path) -> None:
    out = bundle.write(tmp_path / "out")
    edit(out, lambda r: r["keys"].pop("lab"))
    refused(out, Untrusted, "verify.keys")
    edit(out, lambda r: r["keys"].update(lab=[]))
    refused(out, Untrusted, "verify.keys")
    edit(out, lambda r: r["keys"].update(lab=r["keys"]["hospital"]))
    with pytest.raises(CloisterError):
        verify_bundle(out, PINS)


def test_key_release_of_another_job(bundle: Bundle, tmp_path: Path) -> None:
    bundle.details = {"job": "00" * 32}
    refused(bundle.write(tmp_path / "out"), Untrusted, "verify.entry")


def test_log_entry_that_was_never_logged(bundle: Bundle, tmp_path: Path) -> None:
    out = bundle.write(tmp_path / "out")

    def change(record: dict[str, Any]) -> None:
        receipt = record["keys"]["hospital"][0]
        receipt["leaf"] = record["permits"]["hospital"]["receipt"]["leaf"]

    edit(out, change)
    refused(out, Untrusted, "merkle.inclusion")


def test_manifest_signed_by_another_workload(bundle: Bundle, tmp_path: Path) -> None:
    out = bundle.write(tmp_path / "out")
    other = Bundle(tmp_path / "other", workload=key("another workload"))
    manifest = other.manifest(tmp_path / "other-sealed").to_bytes().decode()
    edit(out, lambda r: r.update(manifest=manifest))
    refused(out, Untrusted, "dsse.unsigned")


def test_output_for_other_recipients_or_in_another_form(bundle: Bundle, tmp_path: Path) -> None:
    out = bundle.write(tmp_path / "out")
    for name, value in {"recipients": ["lab"], "form": "weights", "instance": "00" * 16}.items():
        manifest = bundle.manifest(tmp_path / f"sealed-{name}", **{name: value})
        edit(out, lambda r, m=manifest: r.update(manifest=m.to_bytes().decode()))
        refused(out, Denied, f"output.{name}")


@pytest.mark.parametrize("gates", [[], [{"metric": "accuracy", "margin": "0.01", "passed": False}]])
def test_gate_that_did_not_pass(bundle: Bundle, tmp_path: Path, gates: list[dict[str, Any]]) -> None:
    bundle.gates = gates
    refused(bundle.write(tmp_path / "out"), Denied, "output.gate")


def test_gate_with_a_softer_margin(bundle: Bundle, tmp_path: Path) -> None:
    bundle.gates = [{"metric": "accuracy", "margin": "-1", "passed": True}]
    refused(bundle.write(tmp_path / "out"), Denied, "output.gate")


def test_permit_missing_or_of_another_output(bundle: Bundle, tmp_path: Path) -> None:
    out = bundle.write(tmp_path / "out")
    shutil.copytree(out, tmp_path / "copy")
    edit(out, lambda r: r["permits"].pop("lab"))
    refused(out, Untrusted, "verify.permits")
    edit(tmp_path / "copy", lambda r: r["permits"].update(lab=bundle.permit(LAB, b"\0" * 32)))
    refused(tmp_path / "copy", Untrusted, "verify.permit")


def test_attestation_result_missing_or_of_another_run(bundle: Bundle, tmp_path: Path) -> None:
    out = bundle.write(tmp_path / "out")
    shutil.copytree(out, tmp_path / "copy")
    edit(out, lambda r: r["tokens"].pop("lab"))
    refused(out, Untrusted, "verify.tokens")
    edit(tmp_path / "copy", lambda r: r["tokens"].update(lab=bundle.token(LAB, instance="11" * 16)))
    refused(tmp_path / "copy", Untrusted, "verify.token")


def test_result_of_a_platform_that_the_contract_does_not_name(bundle: Bundle, tmp_path: Path) -> None:
    platform = {**_platform(bundle), "attesters": ["dd" * 32]}
    bundle.contract = make_contract(platform=platform)
    bundle.__post_init__()
    refused(bundle.write(tmp_path / "out"), Denied, "verify.platform")


def _platform(bundle: Bundle) -> dict[str, Any]:
    return dict(json.loads(bundle.contract.envelope.payload)["platform"])


def test_changed_missing_and_added_files(bundle: Bundle, tmp_path: Path) -> None:
    out = bundle.write(tmp_path / "out")
    weights = out / "adapter" / "adapter_model.safetensors"
    weights.write_bytes(b"Weights")
    refused(out, Untrusted, "verify.changed")
    weights.unlink()
    refused(out, Untrusted, "verify.missing")
    weights.symlink_to(out / "README.md")
    refused(out, Untrusted, "verify.missing")
    weights.unlink()
    weights.write_bytes(b"weights")
    (out / "extra.py").write_bytes(b"")
    refused(out, Untrusted, "verify.foreign")


def test_provenance_of_another_run(bundle: Bundle, tmp_path: Path) -> None:
    out = bundle.write(tmp_path / "out")
    path = out / "provenance.dsse.json"
    envelope = Envelope.from_bytes(path.read_bytes())
    statement = json.loads(envelope.payload)
    statement["predicate"]["buildDefinition"]["externalParameters"]["job"] = "00" * 32
    from cloister.crypto import sign_document

    path.write_bytes(sign_document(envelope.payload_type, statement, bundle.workload).to_bytes())
    refused(out, Untrusted, "verify.provenance")
    path.write_bytes(sign_document(envelope.payload_type, statement, key("stranger")).to_bytes())
    refused(out, Untrusted, "dsse.unsigned")


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    refused(tmp_path, Misuse, "bundle.absent")


def test_every_changed_byte_of_the_release_record_is_noticed(bundle: Bundle, tmp_path: Path) -> None:
    """Whitespace aside, the record has no byte that nobody checks (``wraps`` is empty here, and opened elsewhere)."""
    out = bundle.write(tmp_path / "out")
    path = out / RELEASE_FILE
    good = path.read_bytes()
    accepted = []
    for place in range(0, len(good), 61):
        bad = bytearray(good)
        bad[place] ^= 1
        path.write_bytes(bytes(bad))
        try:
            verify_bundle(out, PINS)
        except CloisterError:
            continue
        accepted.append((place, good[max(0, place - 30) : place + 30]))
    # What may change unnoticed is text that carries no meaning: DSSE's keyid hints.
    assert all(b"keyid" in good[max(0, p - 120) : p + 20] for p, _ in accepted), accepted[:3]
