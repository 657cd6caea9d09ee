"""The whole machine is stopped in the middle of a run and started again."""

from __future__ import annotations

import json
import warnings

import pytest

from cloister.client import operations
from tests.e2e.operator import workload_pid
from tests.e2e.search import search
from tests.e2e.story import Story, until
from tests.e2e.story import story as story


@pytest.mark.slow
def test_everything_is_stopped_in_the_middle_of_a_run(story: Story) -> None:
    """The image is built anew and measures the same, so the contract still holds; the run waits until its owners have
    unlocked their vaults, and goes on."""
    node = story.home.control().info()["node"]
    run = story.submit(story.agree(), epochs=60, checkpoint_steps=20)
    until("checkpoints", lambda: len(run.recorded("lab")) > 1)
    assert workload_pid(story) is not None
    operations.down(story.home)
    for party in (*story.passphrases, ""):
        story.forget(party)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # the supervisor outlives the call that starts it
        operations.up(story.home)
    for party in story.passphrases:
        assert story.home.parties()[party]["state"] == "locked"
        story.unlock(party)
    assert story.home.control().info()["node"] == node, "measured anew: was src/ edited while this ran?"
    assert run.ended() == ("succeeded", None)
    assert "waiting" in run.codes()
    pulled = story.pull("restarted")
    assert pulled.verified.job == run.digest
    assert json.loads((pulled.folder / "evaluation.json").read_text())["resumed_from"] >= 20
    assert search(story) == []
