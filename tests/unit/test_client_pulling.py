"""Pulling: verified before the key is asked for, decrypted, verified again, and nothing left behind on failure."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cloister.client import Home, Step, operations
from cloister.client.verify import RELEASE_FILE
from cloister.crypto import Envelope
from cloister.errors import CloisterError, Denied, Malformed, Misuse, Unavailable, Untrusted
from cloister.workload.release.provenance import provenance_statement
from tests.bundles import FILES, INSTANCE, MEASUREMENT, NOW, PINS, Bundle

OUTPUT = "hospital/queries-adapter"


class Stand:
    """A home whose broker and control plane are stand-ins, around one real bundle."""

    def __init__(self, folder: Path, *, files: dict[str, bytes] | None = None, signed: bool = False) -> None:
        bundle = Bundle(folder / "logs")
        named = files if signed and files else FILES
        statement = provenance_statement(named, bundle.contract, bundle.job, INSTANCE, MEASUREMENT, bundle.workload)
        bundle.files = {**(files or FILES), "provenance.dsse.json": statement.to_bytes()}
        manifest = bundle.manifest(folder / "sealed")
        self.sealed = folder / "sealed"
        self.record: dict[str, Any] = bundle.record(manifest) | {"wraps": {"hospital": {"sealed": "AAAA"}}}
        self.digest = manifest.digest.hex()
        self.asked: list[dict[str, Any]] = []
        self.home = cast(Home, self)

    def agent(self, _: str) -> Any:
        def open_output(request: dict[str, Any]) -> bytes:
            self.asked.append(request)
            return b"d" * 32

        return SimpleNamespace(pinned_cards=lambda: PINS, open_secret_output=open_output)

    def control(self, _: str) -> Any:
        def download(digest: str, into: Path, **_: Any) -> None:
            shutil.copytree(self.sealed, into)

        answer = {"job": "", "manifest": self.digest, "release": json.dumps(self.record)}
        return SimpleNamespace(output=lambda _: answer, download=download)


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


def refused(
    stand: Stand, to: Path, kind: type[CloisterError], code: str, *, output: str = OUTPUT, party: str = "hospital"
) -> None:
    with pytest.raises(kind) as caught:
        operations.pull(stand.home, output, to, party)
    assert caught.value.code == code
    assert not to.exists()
    assert [p.name for p in to.parent.iterdir() if p.name.startswith(".")] == [], "no plaintext is left beside it"


def test_an_output_is_verified_and_decrypted(stand: Stand, tmp_path: Path) -> None:
    steps: list[Step] = []
    to = tmp_path / "new" / "out"
    pulled = operations.pull(stand.home, OUTPUT, to, "hospital", progress=steps.append)
    assert {name: (to / name).read_bytes() for name in FILES} == FILES
    assert json.loads((to / RELEASE_FILE).read_text()) == stand.record
    assert pulled.verified.output == OUTPUT
    assert operations.verify_bundle(to, PINS).steps == pulled.verified.steps
    assert steps[-1].done == steps[-1].total
    asked = stand.asked[0]
    assert set(asked) == {"contract", "job", "manifest", "permits", "wrap"}
    assert len(asked["permits"]) == 2
    assert pulled.document()["verified"] is True


def test_the_figures_are_the_workloads_own(tmp_path: Path) -> None:
    evaluation = b'{"accuracy":"0.95","base_accuracy":"0.9","base_kind":"untuned","rows":100}'
    stand = Stand(tmp_path, files={**FILES, "evaluation.json": evaluation}, signed=True)
    pulled = operations.pull(stand.home, OUTPUT, tmp_path / "out", "hospital")
    assert pulled.figures == {"accuracy": ("0.9", "0.95")}
    assert pulled.document()["figures"] == {"accuracy": {"base": "0.9", "tuned": "0.95"}}
    assert pulled.verified.permitted == NOW
    other = Stand(tmp_path / "other", files={**FILES, "evaluation.json": b"[]"}, signed=True)
    refused(other, tmp_path / "none", Malformed, "pull.evaluation")


def test_an_empty_folder_may_be_filled(stand: Stand, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    operations.pull(stand.home, OUTPUT, tmp_path / "out", "hospital")
    assert (tmp_path / "out" / RELEASE_FILE).is_file()


def test_nothing_is_overwritten(stand: Stand, tmp_path: Path) -> None:
    to = tmp_path / "out"
    to.mkdir()
    (to / "mine").write_text("x")
    with pytest.raises(Misuse) as caught:
        operations.pull(stand.home, OUTPUT, to, "hospital")
    assert caught.value.code == "pull.exists"
    assert [p.name for p in to.iterdir()] == ["mine"]
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(Misuse):
        operations.pull(stand.home, OUTPUT, tmp_path / "link", "hospital")
    assert stand.asked == []


def test_no_key_is_asked_for_before_the_story_holds(stand: Stand, tmp_path: Path) -> None:
    stand.record["permits"].pop("lab")
    refused(stand, tmp_path / "out", Untrusted, "verify.permits")
    assert stand.asked == []


def test_another_output_than_the_one_asked_for(stand: Stand, tmp_path: Path) -> None:
    refused(stand, tmp_path / "out", Untrusted, "pull.other", output="hospital/else")
    stand.digest = "ab" * 32
    refused(stand, tmp_path / "out", Untrusted, "pull.other")
    assert stand.asked == []


def test_a_party_that_is_no_recipient(stand: Stand, tmp_path: Path) -> None:
    refused(stand, tmp_path / "out", Denied, "output.recipient", party="lab")
    stand.record["wraps"] = {"hospital": 1}
    refused(stand, tmp_path / "out", Malformed, "release.form")


def test_changed_ciphertext(stand: Stand, tmp_path: Path) -> None:
    path = stand.sealed / "0000.sealed"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(Untrusted):
        operations.pull(stand.home, OUTPUT, tmp_path / "out", "hospital")
    assert not (tmp_path / "out").exists()


def test_another_manifest_from_the_store(stand: Stand, tmp_path: Path) -> None:
    path = stand.sealed / "manifest.json"
    envelope = Envelope.from_bytes(path.read_bytes())
    path.write_bytes(Envelope(envelope.payload_type, envelope.payload + b" ", envelope.signatures).to_bytes())
    refused(stand, tmp_path / "out", Untrusted, "sealed.digest")


def test_files_that_the_provenance_does_not_name(tmp_path: Path) -> None:
    stand = Stand(tmp_path, files={**FILES, "extra.txt": b"?"})
    refused(stand, tmp_path / "out", Untrusted, "verify.foreign")


def test_a_target_that_cannot_be_made(stand: Stand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "move", full)
    refused(stand, tmp_path / "out", Unavailable, "pull.disk")
