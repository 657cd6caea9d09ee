"""Keys in hardware and ciphertext in S3, from the first key to the last: seal, run, rotate, lose the token, hold,
shred, stop and start. Told in order on one home of its own; each chapter is a fixture that follows the one before."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import pexpect
import pytest

from cloister.client import Pulled, operations
from cloister.client.keys import Shredded
from tests.e2e.keys_story import PAGES, Backup, KeysStory
from tests.e2e.keys_story import keys_story as keys_story
from tests.e2e.search import places, search
from tests.e2e.story import DATA, MODEL, Run, refused, until
from tests.key_chores import openable
from tests.readme import commands, printed

pytestmark = pytest.mark.timeout(600)
PARTIES = ("hospital", "lab")
STEPS = [40, 80, 120, 160, 200, 240]  # at which a run of 40 epochs writes checkpoints
HARDWARE = {"hospital": "pkcs11", "lab": "tpm"}


@pytest.fixture(scope="module")
def first(keys_story: KeysStory) -> Backup:
    """What a thief took of the hospital's broker when the dataset was sealed."""
    return keys_story.backup("hospital", "first")


@pytest.fixture(scope="module")
def finished(keys_story: KeysStory, first: Backup) -> tuple[Run, Pulled]:
    """A run that ended well, though the hospital's token was out in the middle of it, and what its recipient pulled."""
    run = keys_story.submit(keys_story.agree(lease_seconds=120), epochs=40, checkpoint_steps=STEPS[0])
    until("the first checkpoint's log entries", lambda: run.recorded("hospital") and run.recorded("lab"))
    with keys_story.hsm.removed(keys_story.token):
        time.sleep(1)  # one that was being recorded in that moment may still come into the log
        steps = run.recorded("hospital")
        until("the next checkpoint, which waits", lambda: run.checkpoints()[-1:] > steps[-1:])
        assert run.recorded("hospital") == steps
    assert run.ended() == ("succeeded", None)
    return run, keys_story.pull("pulled")


@pytest.fixture(scope="module")
def rotated(keys_story: KeysStory, finished: tuple[Run, Pulled]) -> Backup:
    """A new KEK in both vaults, and what a thief took after that."""
    for party in PARTIES:
        done = operations.rotate_kek(keys_story.home, party)
        assert (done["epochs"], done["last"]["rewrapped"], done["last"]["destroyed"]) == ([2], 1, 1)
    return keys_story.backup("hospital", "rotated")


@pytest.fixture(scope="module")
def shredded(keys_story: KeysStory, rotated: Backup) -> Shredded:
    return operations.shred(keys_story.home, DATA, None, reason="the study is over")


@pytest.fixture(scope="module")
def stopped(keys_story: KeysStory, shredded: Shredded) -> KeysStory:
    """Everything was stopped and started again; the vaults are locked."""
    operations.down(keys_story.home)
    for party in (*PARTIES, ""):
        keys_story.forget(party)
    keys_story.up()
    return keys_story


def test_keys_are_in_devices_and_can_t_be_taken_out(keys_story: KeysStory, first: Backup) -> None:
    for party, driver in HARDWARE.items():
        code, found = keys_story.json("key", "list", "--as", party)
        assert (code, found["driver"], found["warnings"]) == (0, driver, [])
        keys = {key["kind"]: key for key in found["keys"]}
        # A TPM keeps its keys out of files, but hands them to the broker for each use, and the list says so.
        assert (keys["kek"]["where"], keys["kek"]["extractable"]) == (driver, driver == "tpm")
        inside = [key["name"] for key in found["keys"] if key["kind"] == "signing" and not key["extractable"]]
        assert inside == (["receipt", "signing", "status"] if driver == "pkcs11" else [])
    with keys_story.vault(first.vault) as vault:
        assert list(openable(first.state, vault).values()) == [keys_story.deks[0]], "until it is destroyed"


def test_ciphertext_is_in_the_bucket_and_nothing_else_is(keys_story: KeysStory) -> None:
    for asset, files in ((keys_story.data, 1), (keys_story.base, len(list(keys_story.model.glob("*"))))):
        objects = keys_story.bucket(asset.digest)
        assert "manifest.json" in objects
        assert len([name for name in objects if name.endswith(".sealed")]) == files
        assert all(keys_story.canary.encode() not in data for data in objects.values())
    assert not list((keys_story.home.path / "control").glob("objects/*/*.sealed"))


def test_the_run_s_bundle_verifies_and_its_use_is_told(keys_story: KeysStory, finished: tuple[Run, Pulled]) -> None:
    run, pulled = finished
    verified = operations.verify_bundle(pulled.folder, keys_story.home.agent("hospital").pinned_cards())
    assert (verified.job, verified.assurance) == (run.digest, "none")
    for party, name in (("hospital", DATA), ("lab", MODEL)):
        code, found = keys_story.json("key", "usage", "--as", party)
        used = {key["name"]: key for key in found["keys"]}
        assert code == 0
        for key in (used[name], used["1"]):  # the asset's own, and the KEK of that epoch
            assert (key["jobs"], key["releases"], key["last_job"], key["unusual"]) == (1, 1, run.digest, 0)


def test_a_token_that_was_out_in_the_middle_of_a_run_cost_nothing(
    keys_story: KeysStory, finished: tuple[Run, Pulled]
) -> None:
    """Each checkpoint stands in both logs, once; the keys were not asked for again."""
    run, _ = finished
    assert (run.recorded("hospital"), run.recorded("lab")) == (STEPS, STEPS)
    for party in PARTIES:
        assert keys_story.released(party) == 2  # the asset's key and a share of the checkpoints'
        operations.verify_log(keys_story.home, party)


def test_after_a_rotation_old_copies_open_nothing_and_what_was_made_stays(
    keys_story: KeysStory, first: Backup, finished: tuple[Run, Pulled], rotated: Backup
) -> None:
    with keys_story.vault(rotated.vault) as vault:
        assert openable(first.state, vault) == {}
        assert openable(rotated.state, vault) == {keys_story.data.digest: keys_story.deks[0]}
    with keys_story.vault(first.vault) as vault:  # an old vault file names a key that the token no longer has
        assert openable(first.state, vault) == {}
    again = keys_story.pull("pulled-again")
    assert again.files == finished[1].files
    for name in again.files:
        assert (again.folder / name).read_bytes() == (finished[1].folder / name).read_bytes()


def test_a_token_that_is_gone_is_said_so_and_when_it_is_back_all_goes_on(
    keys_story: KeysStory, rotated: Backup
) -> None:
    size = keys_story.home.agent("hospital").audit_head()["size"]
    with keys_story.hsm.removed(keys_story.token):
        for _ in range(2):
            code, answer = keys_story.json("key", "rotate", "--as", "hospital")
            assert (code, answer["error"]["code"]) == (1, "vault.token")
        ran = keys_story.cli("key", "hold", DATA, "--reason", "x")
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr == (
            "cloister: The token can't be reached; put it back or start its service, and try again.\n"
        )
        assert keys_story.cli("key", "list", "--as", "hospital").returncode == 0, "looking needs no key"
        assert keys_story.home.agent("hospital").audit_head()["size"] == size
    assert keys_story.home.parties()["hospital"]["state"] == "running"
    operations.rotate_kek(keys_story.home, "hospital")
    operations.verify_log(keys_story.home, "hospital")
    assert keys_story.log("hospital", "asset.held") == [], "what was refused did not happen"


def test_a_hold_stops_a_shredding(keys_story: KeysStory, rotated: Backup) -> None:
    code, answer = keys_story.json("key", "hold", DATA, "--reason", "asked for by a court")
    assert (code, answer) == (0, {"held": "asked for by a court", "name": DATA})
    assert refused(lambda: operations.shred(keys_story.home, DATA, None, reason="x")) == ("Denied", "asset.held")
    code, answer = keys_story.json("key", "shred", DATA, "--reason", "x", "--yes")
    assert (code, answer["error"]["code"]) == (3, "asset.held")
    assert [row["shredded"] for row in keys_story.home.agent("hospital").assets()] == [None]
    assert keys_story.json("key", "unhold", DATA, "--reason", "the case is closed")[0] == 0


def test_a_shredding_says_what_it_can_t_recall(
    keys_story: KeysStory, finished: tuple[Run, Pulled], shredded: Shredded
) -> None:
    run, _ = finished
    assert shredded.versions[0]["jobs"] == [run.digest]
    learned, device = shredded.beyond_recall
    assert re.search(
        r"was released 1 times, to 1 starts of 1 jobs, .* what they learned from it stays learned", learned
    )
    assert device.startswith("The key is gone from the token; backups and clones of the token")
    assert device in keys_story.cli("key", "status", "--as", "hospital").stdout
    code, again = keys_story.json("key", "shred", DATA, "--reason", "again", "--yes")
    assert (code, again["versions"], again["beyond_recall"][0]) == (0, list(shredded.versions), learned)
    (row,) = keys_story.json("key", "list", "--as", "hospital")[1]["assets"]
    assert row["reason"] == "the study is over"


def test_nothing_that_is_left_opens_the_ciphertext_in_the_bucket(
    keys_story: KeysStory, first: Backup, rotated: Backup, shredded: Shredded
) -> None:
    """Every copy of the broker's files that anybody has, with the token itself and its true PIN."""
    assert set(keys_story.bucket(keys_story.data.digest)) == {"manifest.json", "0000.sealed"}, "still there"
    last = keys_story.backup("hospital", "last")
    for copy in (first, rotated, last):
        with keys_story.vault(copy.vault) as vault:
            assert [openable(other.state, vault) for other in (first, rotated, last)] == [{}, {}, {}]
    others = {row["name"]: row for row in keys_story.home.agent("lab").assets()}
    assert others[MODEL]["shredded"] is None


def test_a_new_job_under_the_contract_is_refused(keys_story: KeysStory, shredded: Shredded) -> None:
    contracts = operations.list_contracts(keys_story.home, "hospital")
    released = {party: keys_story.released(party) for party in PARTIES}
    digest = str(operations.submit(keys_story.home, keys_story.recipe(), contracts[0]["name"], "hospital")["digest"])
    assert Run(digest, keys_story).ended() == ("denied", "asset.shredded")
    assert keys_story.released("hospital") == released["hospital"]
    for party in PARTIES:
        code, answer = keys_story.json("audit", "verify", "--as", party)
        assert (code, answer["party"]) == (0, party)


@pytest.mark.parametrize("party", PARTIES)
def test_a_wrong_credential_is_refused_and_tried_once(stopped: KeysStory, party: str) -> None:
    assert stopped.home.parties()[party]["state"] == "locked"
    counted = stopped.tpm.wrong_credentials()
    code, answer = stopped.json("org", "unlock", party, credential="a wrong one")
    assert (code, answer["error"]["code"]) == (3, "vault.pin" if party == "hospital" else "vault.credential")
    assert stopped.tpm.wrong_credentials() - counted == (party == "lab"), "the TPM itself counts them"
    assert stopped.home.parties()[party]["state"] == "locked"


@pytest.mark.parametrize(
    ("party", "words"),
    [
        ("hospital", ["--vault", "file"]),
        ("hospital", ["--vault", "pkcs11", "--vault-option", "module=MODULE", "--vault-option", "token=another"]),
        ("lab", ["--vault", "tpm", "--vault-option", "tcti=swtpm:host=127.0.0.1,port=1"]),
    ],
)
def test_another_driver_gets_no_credential(stopped: KeysStory, party: str, words: list[str]) -> None:
    """The broker compares before it connects to anything: a port that nobody listens at is not even tried."""
    module = stopped.drivers["hospital"].options["module"]
    words = [word.replace("MODULE", module) for word in words]
    code, answer = stopped.json("org", "unlock", party, *words, credential=party)
    assert (code, answer["error"]["code"]) == (3, "vault.driver")


def test_without_its_token_a_vault_stays_locked_and_the_driver_is_remembered(stopped: KeysStory) -> None:
    with stopped.hsm.removed(stopped.token):
        ran = stopped.cli("org", "unlock", "hospital")
        assert (ran.returncode, ran.stdout) == (1, "")
        assert ran.stderr == (
            "cloister: The token can't be reached; put it back or start its service, and try again.\n"
        )
    code, answer = stopped.json("org", "unlock", "hospital")
    assert (code, answer["locked"]) == (0, ["lab"])
    assert stopped.cli("org", "unlock", "lab", credential="lab").returncode == 0
    assert {row["state"] for row in stopped.home.parties().values()} == {"running"}
    assert stopped.pull("pulled-after-restart").verified.output
    for party in PARTIES:
        operations.verify_log(stopped.home, party)


def test_pins_keys_and_passphrases_are_found_nowhere(stopped: KeysStory) -> None:
    assert search(stopped) == []
    assert len(stopped.secrets()) >= 7
    seen = [place for place, _ in places(stopped)]
    for part in ("/hsm/tokens/", "/store/s3/sealed/cloister/", "/tpm/", "supervisor.json", "control.log", "backups/"):
        assert any(part in place for place in seen), part


def test_the_readme_s_commands_work_as_printed(stopped: KeysStory) -> None:
    pin = "pin-of-the-clinic"
    stopped.hsm.create("clinic", pin.encode())
    stopped.share_tokens()
    (stopped.sources / "train.csv").write_bytes(stopped.table.read_bytes())
    assert "up" in stopped.printed[0].split(), "the home was started by it"
    told = {command.split()[2]: stopped.shell(command, credential=pin).stdout for command in stopped.printed[1:]}
    assert "can't be extracted" in told["list"]
    assert "epoch 2: 1 wrapped." in told["rotate"]
    assert "is shredded: its key is destroyed here." in told["shred"]


def test_the_page_of_vaults_sets_softhsm_up_as_printed(stopped: KeysStory) -> None:
    """By somebody at a terminal, who is asked for every PIN."""
    page = PAGES / "docs" / "vaults.md"
    home, pin = stopped.home.path, "pin-of-the-owner"
    (home / ".config" / "softhsm2" / "softhsm2.conf").unlink()
    environment: dict[str, Any] = {
        "CLOISTER_HOME": str(home),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    block = commands(printed(page, "softhsm"))
    code, told = _typed(["set -e", *block], environment, pin)
    if stopped.separate:
        assert (code, "The PKCS#11 module can't be loaded or started" in told) == (1, True)
        code, told = _typed(["set -e", *commands(printed(page, "softhsm-as-root"))], environment, pin)
    assert code == 0, told
    assert "owner is created." in told
    assert stopped.json("key", "list", "--as", "owner")[1]["driver"] == "pkcs11"


def _typed(script: list[str], environment: dict[str, Any], pin: str) -> tuple[int, str]:
    """Exit status and what stood on the terminal, with ``pin`` typed wherever something is asked."""
    child = pexpect.spawn("bash", ["-c", "\n".join(script)], env=environment, encoding="utf-8", timeout=180)
    told = ""
    while child.expect([r"PIN: $", r"hospital: $|owner: $|again: $", pexpect.EOF]) != 2:
        told += child.before
        child.sendline(pin)
    told += child.before
    child.close()
    return int(child.exitstatus), told
