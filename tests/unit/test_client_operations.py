"""Parties, sealing, logs and homes through the client, against a real control plane and real brokers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloister.client import ControlClient, Home, SealOptions, Step, operations
from cloister.client.sealing import upload_again
from cloister.errors import Denied, Malformed, Misuse, Unavailable
from cloister.sealed import Manifest, read_envelope
from tests.client_home import OPTIONS, PASSPHRASE, LocalHome, rows
from tests.control_world import Party

pytest_plugins = ["tests.client_fixtures"]


def test_parties_of_one_home_are_paired(sealed: LocalHome) -> None:
    parties = {row["name"]: row for row in operations.list_parties(sealed.home)}
    assert set(parties) == {"hospital", "lab"}
    assert parties["hospital"]["pins"]["lab"]["fingerprint"] == parties["lab"]["fingerprint"]
    assert parties["lab"]["pins"]["hospital"]["fingerprint"] == parties["hospital"]["fingerprint"]
    assert set(sealed.home.control("lab").directory()) == {"hospital", "lab"}


def test_sealing_again_makes_the_next_version(sealed: LocalHome, tmp_path: Path) -> None:
    seen: list[Step] = []
    path = rows(tmp_path)
    first = operations.seal(sealed.home, path, "hospital/twice", OPTIONS)
    second = operations.seal(sealed.home, path, "hospital/twice", OPTIONS, progress=seen.append)
    assert (first.version, second.version) == (1, 2)
    manifest = Manifest.from_payload(second.manifest.payload)
    assert manifest.previous is not None
    assert manifest.previous.hex() == first.digest
    assert manifest.terms["schema"] == ["text", "label"]
    assert {step.stage for step in seen} == {"seal", "upload"}
    assert list((sealed.folder / "outbox").iterdir()) == [], "the sealed ciphertext is removed once it is stored"
    assert [a["version"] for a in sealed.home.control("hospital").assets("hospital/twice")] == [2, 1]


def test_a_failed_upload_keeps_the_ciphertext_and_says_how_to_go_on(
    sealed: LocalHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(self: ControlClient, folder: Path, **_: Any) -> str:
        raise Unavailable("control.unreachable", "The control plane does not answer.")

    with monkeypatch.context() as patch:
        patch.setattr(ControlClient, "upload", away)
        with pytest.raises(Unavailable) as caught:
            operations.seal(sealed.home, rows(tmp_path), "hospital/kept", OPTIONS)
    kept = next((sealed.folder / "outbox").iterdir())
    assert f"cloister seal {kept} --as hospital/kept" in caught.value.message
    with pytest.raises(Misuse) as other:
        upload_again(sealed.home, kept, "hospital/else")
    assert other.value.code == "seal.other"
    done = operations.seal(sealed.home, kept, "hospital/kept")
    assert done.digest == read_digest(sealed, "hospital/kept")
    assert not kept.exists()


def read_digest(sealed: LocalHome, name: str) -> str:
    return str(sealed.home.control(name.partition("/")[0]).assets(name)[0]["digest"])


def test_the_data_key_is_overwritten(sealed: LocalHome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytearray] = []
    agent = sealed.home.agent("hospital")
    original = type(agent).register_secret_dek

    def watch(self: Any, payload: bytes, dek: bytearray) -> Any:
        seen.append(dek)
        assert any(dek)
        return original(self, payload, dek)

    monkeypatch.setattr(type(agent), "register_secret_dek", watch)
    operations.seal(sealed.home, rows(tmp_path), "hospital/wiped", OPTIONS)
    assert seen == [bytearray(32)]


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (SealOptions(sensitivity="secretish"), "seal.sensitivity"),
        (SealOptions(forms=("adaptor",)), "seal.forms"),
        (SealOptions(forms=()), "seal.forms"),
        (SealOptions(schema=("a",)), "seal.schema"),
    ],
)
def test_wrong_words_seal_nothing(sealed: LocalHome, tmp_path: Path, options: SealOptions, code: str) -> None:
    before = sealed.home.agent("hospital").assets()
    with pytest.raises(Misuse) as caught:
        operations.seal(sealed.home, rows(tmp_path), "hospital/none", options)
    assert caught.value.code == code
    assert sealed.home.agent("hospital").assets() == before


def test_an_assets_name_has_a_form(sealed: LocalHome, tmp_path: Path) -> None:
    with pytest.raises(Malformed):
        operations.seal(sealed.home, rows(tmp_path), "queries", OPTIONS)
    with pytest.raises(Misuse) as caught:
        operations.seal(sealed.home, rows(tmp_path), "nobody/queries", OPTIONS)
    assert caught.value.code == "party.unknown"


def test_trusting_needs_the_compared_fingerprint(sealed: LocalHome) -> None:
    stranger = Party("clinic").card
    with pytest.raises(Denied) as caught:
        operations.trust(sealed.home, "lab", stranger, "0000-0000")
    assert caught.value.code == "pin.fingerprint"
    operations.trust(sealed.home, "lab", stranger, stranger.fingerprint)
    assert sealed.home.agent("lab").pins()["clinic"][0].fingerprint == stranger.fingerprint
    assert "clinic" not in sealed.home.agent("hospital").pins()


def test_cards_are_parsed_with_one_sentence_for_what_is_none() -> None:
    card = Party("clinic").card
    assert operations.parse_card(card.envelope.to_bytes() + b"\n").name == "clinic"
    with pytest.raises(Malformed) as caught:
        operations.parse_card("hello")
    assert caught.value.code == "card.form"


def test_a_log_is_checked_and_compared_with_the_last_time(sealed: LocalHome) -> None:
    first = operations.verify_log(sealed.home, "hospital")
    again = operations.verify_log(sealed.home, "hospital")
    assert (again.compared, again.size, again.root) == (first.size, first.size, first.root)
    sealed.home.agent("hospital").next_version("hospital/queries")
    operations.seal(sealed.home, rows(sealed.folder), "hospital/logged", OPTIONS)
    grown = operations.verify_log(sealed.home, "hospital")
    assert grown.compared == first.size < grown.size
    assert grown.kinds["asset.sealed"] == again.kinds["asset.sealed"] + 1
    shown = operations.show_log(sealed.home, "hospital", last=2, kind="asset.sealed")
    assert [e["kind"] for e in shown] == ["asset.sealed", "asset.sealed"]
    assert shown[-1]["index"] == grown.size - 1
    assert "leaf" not in shown[0]


def test_an_unlocked_party_works_again(sealed: LocalHome) -> None:
    sealed.lock("lab")
    with pytest.raises(Unavailable) as caught:
        sealed.home.agent("lab")
    assert caught.value.code == "party.locked"
    rows_now = {row["name"]: row for row in operations.list_parties(sealed.home)}
    assert "fingerprint" not in rows_now["lab"]
    with pytest.raises(Denied):
        operations.unlock(sealed.home, "lab", "wrong passphrase")
    opened = operations.unlock(sealed.home, "lab", PASSPHRASE)
    assert opened.paired == ("hospital",)
    assert sealed.home.agent("lab").status()["party"] == "lab"


def test_choosing_a_party(sealed: LocalHome) -> None:
    assert sealed.home.choose("lab") == "lab"
    with pytest.raises(Misuse) as unknown:
        sealed.home.choose("bank")
    assert unknown.value.code == "party.unknown"
    with pytest.raises(Misuse) as several:
        sealed.home.choose(None)
    assert several.value.code == "party.choose"
    assert sealed.home.choose(None, among=("lab",)) == "lab"
    with pytest.raises(Misuse) as nobody:
        sealed.home.choose(None, among=("bank",))
    assert nobody.value.code == "party.none"


def test_nothing_runs_here(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert not home.running()
    with pytest.raises(Unavailable) as caught:
        home.status()
    assert caught.value.code == "home.down"
    assert "cloister up" in caught.value.message


def test_a_control_plane_that_is_away(tmp_path: Path) -> None:
    client = ControlClient("http://127.0.0.1:1")
    with pytest.raises(Unavailable) as caught:
        client.info()
    assert caught.value.code == "control.unreachable"
    client.close()
    with pytest.raises(Misuse) as unsigned:
        client._headers("GET", "/", None)
    assert unsigned.value.code == "control.signer"


def test_sealed_folders_are_what_read_envelope_reads(sealed: LocalHome, tmp_path: Path) -> None:
    digest = read_digest(sealed, "hospital/queries")
    sealed.home.control("hospital").download(digest, tmp_path / "d")
    assert read_envelope(tmp_path / "d").digest.hex() == digest
