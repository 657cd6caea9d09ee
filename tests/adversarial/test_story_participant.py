"""One participant runs the servers for all: the hospital has root's view of the machine, its own vault, its own
broker's admin socket, and every document. It must not get the lab's base model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cloister.client import Agreement, operations
from cloister.contracts import (
    CONTRACT_TYPE,
    job_envelope,
    parse_recipe,
    read_contract,
    revocation_envelope,
)
from cloister.crypto import Envelope, SigningKey, canonical_json, parse_json, random_bytes
from cloister.errors import Untrusted
from cloister.sealed import open_sealed
from tests.e2e.kbs import Asker, Kbs
from tests.e2e.operator import as_user
from tests.e2e.story import MODEL, OUTPUT, Story, refused
from tests.e2e.story import story as story

_READ = """
import sys
for path in sys.argv[1:]:
    try:
        open(path, "rb").read(1)
        print("read", path)
    except PermissionError:
        pass
"""
_CONNECT = """
import socket, sys
try:
    socket.socket(socket.AF_UNIX).connect(sys.argv[1])
    print("connected")
except PermissionError:
    print("no permission")
"""


@pytest.fixture(scope="module")
def agreement(story: Story) -> Agreement:
    return story.agree()


@pytest.fixture(autouse=True)
def lab_gives_nothing(story: Story) -> Iterator[None]:
    before = operations.show_log(story.home, "lab", last=100_000)
    yield
    after = operations.show_log(story.home, "lab", last=100_000)
    given = ("key.released", "permit.issued", "output.unwrapped")
    assert not [e for e in after[len(before) :] if e["kind"] in given]


@pytest.fixture(scope="module")
def own_key(story: Story) -> SigningKey:
    return story.signing_key("hospital")


def test_the_lab_s_key_is_not_at_the_hospital_s_broker(story: Story, agreement: Agreement) -> None:
    agent = story.home.agent("hospital")
    assert MODEL not in {a["name"] for a in agent.assets()}
    # Claiming the lab's asset as one's own, to have "its" key wrapped and served.
    code = refused(lambda: agent.register_secret_dek(story.base.manifest.payload, random_bytes(32)))
    assert code[0] in ("Denied", "Misuse", "Untrusted")
    with Kbs(story.home, "hospital") as kbs:
        status, body = kbs.get(f"/kbs/v0/resource/lab/asset-key/{story.base.digest}")
        assert (status, body["error"]["code"]) == (401, "session.absent")


def test_own_keys_don_t_open_the_lab_s_ciphertext(story: Story, agreement: Agreement, tmp_path: Path) -> None:
    """As a party to a contract the hospital may fetch the ciphertext, and has data keys of its own."""
    story.home.control("hospital").download(story.base.digest, tmp_path / "base")
    for dek in (story.deks[0], random_bytes(32)):
        with pytest.raises(Untrusted) as caught:
            open_sealed(
                tmp_path / "base",
                dek=dek,
                expected_digest=bytes.fromhex(story.base.digest),
                signer_keys=[story.home.agent("lab").card.keys.signing],
                owner="lab",
            )
        assert caught.value.code.startswith("sealed.")


def test_the_lab_s_files_and_socket_are_closed_to_the_hospital_s_user(story: Story) -> None:
    if not story.separate:
        pytest.skip("all parts run as one user here; run as root to give each its own")
    parties = story.home.path / "parties"
    uid = (parties / "hospital").stat().st_uid
    lab = [str(p) for p in (parties / "lab").rglob("*") if p.is_file()]
    assert len(lab) > 4
    assert as_user(uid, _READ, *lab) == ""
    assert as_user(uid, _CONNECT, str(parties / "lab" / "run" / "admin.sock")) == "no permission"
    assert as_user(uid, _CONNECT, str(story.home.socket)) == "no permission"


def test_the_hospital_signs_for_the_lab(story: Story, own_key: SigningKey) -> None:
    """A contract with a platform of the hospital's choice, and a signature under the lab's name."""
    text = story.contract_text("takeover", platform={
        "measurements": ["11" * 32], "agents": ["22" * 32], "attesters": ["33" * 32],
    })  # fmt: skip
    draft = operations.new_contract(story.home, text, folder=story.folder, party="hospital").contract
    agent = story.home.agent("hospital")
    assert refused(lambda: operations.sign_contract(story.home, _agreed(draft), "mallory"))[0] == "Misuse"
    alone = agent.sign_contract(draft.envelope)
    lab = story.home.agent("lab").card.keys.signing
    forged = alone.with_signature(lab.hex(), alone.signatures[0][1])
    for envelope in (alone, forged):
        assert refused(lambda e=envelope: agent.store_contract(e)) == ("Denied", "contract.unsigned")  # type: ignore[misc]
        _not_served(story, envelope, own_key, "contract.unsigned")


def test_the_hospital_puts_its_own_keys_under_the_lab_s_name(story: Story, own_key: SigningKey) -> None:
    """Then both signatures verify, by keys that the document itself carries."""
    agreement = story.agree()
    document = parse_json(agreement.contract.envelope.payload)
    document["parties"]["lab"] = document["parties"]["hospital"]
    envelope = Envelope(CONTRACT_TYPE, canonical_json(document)).signed_by(own_key)
    _not_served(story, envelope, own_key, "contract.keys")


def test_the_hospital_signs_a_job_beyond_the_contract(story: Story, own_key: SigningKey) -> None:
    """Its own broker would not sign this; its own key does."""
    agreement = story.agree(recipes={"tasks": ["classification"], "methods": ["lora"], "max_epochs": 2})
    assert refused(lambda: story.submit(agreement, epochs=3)) == ("Denied", "recipe.epochs")
    contract = agreement.contract
    recipe = parse_recipe(story.recipe(epochs=3))
    job = job_envelope(contract, "hospital", recipe, OUTPUT, own_key, now=contract.not_before, salt=bytes(16))
    with Kbs(story.home, "lab") as kbs:
        status, body = kbs.post("/kbs/v0/auth", Asker(story.home, contract, job).request())
        assert (status, body["error"]["code"]) == (401, "recipe.epochs")
    # The control plane knows better, too.
    assert refused(lambda: story.home.control("hospital").submit(job)) == ("Denied", "recipe.epochs")


def test_the_hospital_vouches_for_a_contract_that_the_lab_revoked(story: Story, own_key: SigningKey) -> None:
    agreement = story.agree()
    operations.revoke_contract(story.home, agreement, "lab", "no longer")
    envelope = agreement.contract.envelope
    recipe = parse_recipe(story.recipe())
    job = job_envelope(agreement.contract, "hospital", recipe, OUTPUT, own_key, now=1_700_000_000, salt=bytes(16))
    asker = Asker(story.home, read_contract(envelope), job)
    asker.statements = list  # type: ignore[method-assign]
    with Kbs(story.home, "lab") as kbs:
        status, body = kbs.post("/kbs/v0/auth", asker.request())
        assert (status, body["error"]["code"]) == (401, "contract.revoked")


def test_the_hospital_revokes_in_the_lab_s_name(story: Story, agreement: Agreement, own_key: SigningKey) -> None:
    contract = agreement.contract
    forged = revocation_envelope(contract.digest, "lab", own_key, now=contract.not_before, reason="forged")
    body = {"contract": contract.envelope.to_bytes().decode(), "revocation": forged.to_bytes().decode()}
    with Kbs(story.home, "lab") as kbs:
        status, answer = kbs.post("/cloister/v1/revocations", body)
        assert (status, answer["error"]["kind"]) == (403, "untrusted")
    assert story.in_force("lab", agreement)


def _agreed(contract: Any) -> Agreement:
    return Agreement(contract, "", None, (), ())


def _not_served(story: Story, envelope: Envelope, own_key: SigningKey, code: str) -> None:
    """The lab's broker gives no challenge for a job under this contract."""
    contract = read_contract(envelope)
    recipe = parse_recipe(story.recipe())
    job = job_envelope(contract, "hospital", recipe, OUTPUT, own_key, now=contract.not_before, salt=bytes(16))
    asker = Asker(story.home, contract, job)
    asker.statements = list  # type: ignore[method-assign]
    with Kbs(story.home, "lab") as kbs:
        status, body = kbs.post("/kbs/v0/auth", asker.request())
        assert (status, body["error"]["code"]) == (401, code)
