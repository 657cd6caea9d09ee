"""One real home for every story: supervisor, control plane, node with swtpm, two parties' brokers, all on this machine.

Starting it takes half a minute, so that all modules share one. A test makes its own contract on it and leaves
everything running as it found it. A module takes the fixture with ``from tests.e2e.story import story as story``.
"""

from __future__ import annotations

import functools
import json
import os
import secrets
import shutil
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloister.client import Agreement, Home, Outcome, OwnerAgent, Pulled, operations
from cloister.client.sealing import SealedAsset, SealOptions
from cloister.crypto import Envelope, Signer
from cloister.demo.data import generate, write_csv
from cloister.errors import CloisterError
from cloister.keys import open_vault
from tests.e2e.kbs import Kbs
from tests.patience import PATIENCE, until
from tests.tiny_models import tiny_bert

__all__ = ["DATA", "LEASE", "MODEL", "OUTPUT", "Run", "Story", "obstacle", "refused", "story", "until"]

DATA, MODEL, OUTPUT = "hospital/dialogues", "lab/tiny", "hospital/adapter"
LEASE = 30  # seconds: a busy machine may be late with a renewal
ROWS = 200


def refused(attempt: Callable[[], object]) -> tuple[str, str]:
    """(class, code) of the refusal. What the message says must be one sentence for a person."""
    with pytest.raises(CloisterError) as caught:
        attempt()
    assert len(caught.value.message) > 15
    assert "\n" not in caught.value.message
    return type(caught.value).__name__, caught.value.code


@dataclass
class Run:
    """A submitted job."""

    digest: str
    story: Story

    @property
    def folder(self) -> Path:
        """The node's working folder of this job."""
        return self.story.home.path / "node" / "jobs" / self.digest

    def checkpoints(self) -> list[int]:
        folder = self.folder / "out" / "checkpoints"
        return sorted(int(p.name) for p in folder.glob("*") if p.name.isdigit()) if folder.is_dir() else []

    def recorded(self, party: str) -> list[int]:
        """The steps that ``party``'s broker has logged for this run."""
        return [int(e["step"]) for e in self.story.log(party, "checkpoint.recorded") if e["job"] == self.digest]

    def events(self) -> list[dict[str, Any]]:
        client = self.story.home.control("hospital")
        return [entry["event"] for entry in client.events(self.digest, 0, wait=0)["events"]]

    def codes(self) -> list[str]:
        return [event["code"] for event in self.events() if event["kind"] == "state"]

    def wait_for(self, code: str, *, after: int = 0) -> int:
        """Until the stage ``code`` begins; the number of that event, to look for the next one behind it."""
        client, end = self.story.home.control("hospital"), time.monotonic() + PATIENCE
        while time.monotonic() < end:
            answer = client.events(self.digest, after, wait=5)
            for entry in answer["events"]:
                after = entry["seq"]
                if entry["event"].get("code") == code:
                    return after
            assert not answer["final"], f"the run ended before it came to {code}: {self.state()}"
        raise AssertionError(f"waited in vain for the stage {code}")

    def end(self) -> Outcome:
        return operations.follow(self.story.home.control("hospital"), self.digest)

    def state(self) -> tuple[str, str | None]:
        job = self.story.home.control("hospital").job(self.digest)
        return job["state"], (job["error"] or {}).get("code")

    def ended(self) -> tuple[str, str | None]:
        """(state, code of the reason) once it is over."""
        self.end()
        return self.state()


class Story:
    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="cloister-story-", dir="/tmp"))
        self.folder.chmod(0o711)
        self.home = Home(self.folder / "home")
        self.sources = self.folder / "owners"
        self.sources.mkdir(mode=0o700)
        # Sixteen hex digits that stand nowhere else on this machine.
        self.canary = f"canary{secrets.token_hex(8)}"
        self.passphrases = {name: f"pass-{secrets.token_hex(12)}" for name in ("hospital", "lab")}
        self.started = time.time()
        self.deks: list[bytes] = []
        self._patches: pytest.MonkeyPatch | None = None
        self._contracts = 0
        self.pulled: list[Path] = []  # folders with plaintext that a recipient has pulled
        self.strangers: set[int] = set()  # processes that are no part of the home and know some secret rightly

    # --- the stage --------------------------------------------------------------------------------------------------

    def open(self) -> Story:
        self.up()
        for name in self.passphrases:
            self.create(name)
        self.table = self.sources / "dialogues.csv"
        write_csv(self.table, generate(ROWS, seed=5, canary=self.canary))
        self.model = self.write_model(self.sources / "tiny")
        self._patches = _remember_keys(self.deks)
        self.data = self.seal(self.table, DATA)
        self.base = self.seal(self.model, MODEL)
        return self

    def up(self, **options: Any) -> None:
        with warnings.catch_warnings():
            # The supervisor outlives the call that starts it; ``down`` ends it and waits.
            warnings.simplefilter("ignore", ResourceWarning)
            operations.up(self.home, **options)

    def create(self, name: str) -> None:
        operations.create_party(self.home, name, self.passphrases[name])

    def write_model(self, folder: Path, **changes: bytes) -> Path:
        """A tiny real encoder as a Hugging Face folder. ``changes``: files by name (``__`` for ``.``)."""
        files = {**tiny_bert(), **{name.replace("__", "."): data for name, data in changes.items()}}
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        return folder

    def close(self) -> None:
        if self._patches is not None:
            self._patches.undo()
        operations.down(self.home)
        self.home.close()
        shutil.rmtree(self.folder)

    @property
    def status(self) -> dict[str, Any]:
        return self.home.status()

    @property
    def separate(self) -> bool:
        """Whether every part has a user of its own."""
        return bool(self.status["users"] == "separate")

    def seal(self, path: Path, name: str, **options: Any) -> SealedAsset:
        schema = {"schema": ("text", "category")} if path.suffix == ".csv" else {}
        return operations.seal(self.home, path, name, SealOptions(licences=("CC0-1.0",), **{**schema, **options}))

    def forget(self, name: str) -> None:
        """Drop connections to a broker that is about to be another process."""
        agent = self.home._agents.pop(name, None)
        if agent is not None:
            agent.close()
        client = self.home._clients.pop(name, None)
        if client is not None:
            client.close()

    def unlock(self, name: str) -> None:
        self.forget(name)
        operations.unlock(self.home, name, self.passphrases[name])

    def secrets(self) -> dict[str, bytes]:
        """What must never be found outside memory, by a name for the test's message."""
        weights = (self.model / "model.safetensors").read_bytes()
        return {
            "a row": self.canary.encode(),
            "weights of the base": weights[-64:-16],
            **{f"the passphrase of {name}": value.encode() for name, value in self.passphrases.items()},
            **{f"a data key ({n})": dek for n, dek in enumerate(self.deks)},
        }

    def signing_key(self, party: str) -> Signer:
        """A party's own key out of its own vault: what it signs with it, its broker need not agree to."""
        path = self.home.path / "parties" / party / "vault.json"
        with open_vault(path, self.passphrases[party].encode()) as vault:
            keys = vault.keys()
            return vault.signing_key(next(key.name for key in keys if key.name.startswith("signing")))

    # --- contracts and runs -----------------------------------------------------------------------------------------

    def contract_text(self, name: str, *, data: str = DATA, base: str = MODEL, **changes: Any) -> str:
        fields: dict[str, Any] = {
            "name": name,
            "parties": ["hospital", "lab"],
            "assets": [data, base],
            "purpose": "a story that a test tells",
            "recipes": {"tasks": ["classification"], "methods": ["lora"], "max_epochs": 1000},
            "runs": 10,
            "outputs": [{"name": OUTPUT, "form": "adapter", "recipients": ["hospital"]}],
            "gates": [{"metric": "accuracy", "better_than_base_by": "-1"}],
            "unbounded_memorization": ["hospital"],
            "telemetry": ["loss", "accuracy"],
            "lease_seconds": LEASE,
            "assurance": "none",
            "regions": ["local"],
            "expires": "1d",
            **changes,
        }
        return json.dumps(fields)  # which is YAML, too

    def agree(self, **changes: Any) -> Agreement:
        """A contract of its own for one test, signed by both."""
        self._contracts += 1
        text = self.contract_text(f"story-{self._contracts}", **changes)
        agreement = operations.new_contract(self.home, text, folder=self.folder, party="hospital")
        for party in ("hospital", "lab"):
            agreement = operations.sign_contract(self.home, agreement, party)
        return agreement

    def recipe(self, **changes: Any) -> str:
        fields = {
            "task": "classification",
            "method": "lora",
            "data": DATA,
            "base": MODEL,
            "columns": {"text": "text", "label": "category"},
            "epochs": 2,
            "max_length": 24,
            "checkpoint_steps": 0,
            "threads": 1,
            **changes,
        }
        return json.dumps(fields)

    def submit(self, agreement: Agreement, **recipe: Any) -> Run:
        digest = agreement.contract.digest.hex()
        return Run(str(operations.submit(self.home, self.recipe(**recipe), digest, "hospital")["digest"]), self)

    def pull(self, name: str) -> Pulled:
        """The newest release, pulled by its recipient into a folder of its own."""
        self.pulled.append(self.folder / name)
        return operations.pull(self.home, OUTPUT, self.folder / name, "hospital")

    def long_run(self, agreement: Agreement, **recipe: Any) -> Run:
        """A run in the middle of its training; it would go on for hours."""
        run = self.submit(agreement, epochs=1000, **recipe)
        run.wait_for("train")
        return run

    # --- what owners can look up ------------------------------------------------------------------------------------

    def log(self, party: str, kind: str | None = None) -> list[dict[str, Any]]:
        """The details of the party's log entries, oldest first."""
        return [e["details"] for e in operations.show_log(self.home, party, last=100_000, kind=kind)]

    def released(self, party: str) -> int:
        """How many keys the party's broker has given out, ever."""
        return len(self.log(party, "key.released"))

    def in_force(self, party: str, agreement: Agreement) -> bool:
        with Kbs(self.home, party) as kbs:
            return kbs.get(f"/cloister/v1/status/{agreement.contract.digest.hex()}")[0] == 200


def _remember_keys(kept: list[bytes]) -> pytest.MonkeyPatch:
    """Every data key that this process makes or receives from now on, so that it can be searched for."""
    register, opened = OwnerAgent.register_secret_dek, OwnerAgent.open_secret_output

    def registering(self: OwnerAgent, payload: bytes, dek: bytes | bytearray) -> Envelope:
        kept.append(bytes(dek))
        return register(self, payload, dek)

    def opening(self: OwnerAgent, record: dict[str, Any]) -> bytes:
        kept.append(opened(self, record))
        return kept[-1]

    patches = pytest.MonkeyPatch()
    patches.setattr(OwnerAgent, "register_secret_dek", registering)
    patches.setattr(OwnerAgent, "open_secret_output", opening)
    return patches


@functools.cache
def _story() -> Story:
    return Story().open()


def obstacle() -> str | None:
    """Why no story can be told here, or None."""
    for program in ("bwrap", "swtpm", "setpriv"):
        if shutil.which(program) is None:
            return f"{program} is not installed here"
    user: dict[str, Any] = {"user": 64901, "group": 64901, "extra_groups": []} if os.geteuid() == 0 else {}
    probe = ["bwrap", "--unshare-all", "--ro-bind", "/", "/", "/bin/true"]
    done = subprocess.run(probe, capture_output=True, text=True, env={}, cwd="/", check=False, **user)
    return None if done.returncode == 0 else f"no sandbox can be started here: {done.stderr.strip()}"


@pytest.fixture(scope="session")
def story() -> Iterator[Story]:
    """The shared home. Skipped, saying why, where no sandbox can be started."""
    if reason := obstacle():
        pytest.skip(reason)
    yield _story()
    if (
        _story.cache_info().currsize
    ):  # every module's fixture comes here at the end of the session; the first one ends it
        _story().close()
        _story.cache_clear()
