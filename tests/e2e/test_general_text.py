"""A run that replays general text: a third sealed asset, from its seal to the card of what was made with it."""

from __future__ import annotations

import json

import pytest

from cloister.client import operations
from cloister.client.sealing import SealOptions
from cloister.crypto import Envelope
from tests.e2e.story import DATA, Story
from tests.e2e.story import story as story
from tests.tiny_models import WORDS, tiny_llama

GENERAL, DECODER = "lab/prose", "lab/decoder"


@pytest.mark.slow
def test_general_text_is_replayed_and_named_everywhere(story: Story) -> None:
    rows = [" ".join(WORDS[(start + k) % len(WORDS)] for k in range(9)) for start in range(30)]
    prose, folder = story.sources / "prose.jsonl", story.sources / "decoder"
    prose.write_text("".join(json.dumps({"text": row}) + "\n" for row in rows))
    folder.mkdir()
    for name, data in tiny_llama().items():
        (folder / name).write_bytes(data)
    operations.seal(story.home, prose, GENERAL, SealOptions(licences=("CC-BY-4.0",)))
    story.seal(folder, DECODER)
    agreement = story.agree(
        base=DECODER,
        general=[GENERAL],
        recipes={"tasks": ["text"], "methods": ["lora"], "max_epochs": 5},
        gates=[{"metric": "general_loss", "better_than_base_by": "-5"}],
        unbounded_memorization=["hospital", "lab"],
    )
    recipe = {"task": "text", "columns": {"text": "text"}, "base": DECODER, "general": GENERAL, "epochs": 1}
    run = story.submit(agreement, **recipe, replay={"share": "0.2"})
    assert run.ended() == ("succeeded", None)
    (general,) = [asset for asset in agreement.contract.assets if asset.use == "general"]
    # Its owner let go of its key for this run, and logged that, as of the base's and of the share of the checkpoints'.
    released = [entry["resource"] for entry in story.log("lab", "key.released") if entry["job"] == run.digest]
    assert general.digest.hex() in released
    assert len(released) == len(set(released)) == 3
    pulled = story.pull("with-general-text")
    assert pulled.verified.job == run.digest
    card = (pulled.folder / "README.md").read_text()
    assert f"`{GENERAL}` and some of it was replayed" in card
    assert "CC-BY-4.0" in card  # its terms hold for what was made with it
    statement = Envelope.from_bytes((pulled.folder / "provenance.dsse.json").read_bytes()).document()
    names = [one["name"] for one in statement["predicate"]["buildDefinition"]["resolvedDependencies"]]
    assert names == [DATA, DECODER, GENERAL]
    evaluation = json.loads((pulled.folder / "evaluation.json").read_text())
    assert evaluation["general_text"] == GENERAL
    assert evaluation["replay_rows"] > 0
