"""A workload that is killed goes on from the checkpoint that every owner's broker recorded, and from no other."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

from cloister.client import Agreement
from tests.e2e.operator import broker_pid, frozen, node_pid, workload_pid
from tests.e2e.search import search
from tests.e2e.story import Run, Story, refused, until
from tests.e2e.story import story as story

_EVERY = 7  # steps between two checkpoints; six make an epoch


def _kill_workload(story: Story) -> None:
    pid = workload_pid(story)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


def _recorded(run: Run, count: int) -> int:
    """Wait until both owners' brokers have recorded ``count`` checkpoints; the newest such step."""
    # Sealed after the one before it was recorded.
    return until("checkpoints", lambda: run.checkpoints()[-1:] >= [_EVERY * (count + 1)]) and _EVERY * count


def test_a_run_that_is_killed_goes_on_where_it_was(story: Story) -> None:
    run = story.submit(story.agree(), epochs=20, checkpoint_steps=_EVERY)
    step = _recorded(run, 2)
    _kill_workload(story)
    assert run.ended() == ("succeeded", None)
    assert run.codes().count("relaunched") == 1
    pulled = story.pull("resumed")
    assert pulled.verified.job == run.digest
    resumed_from = json.loads((pulled.folder / "evaluation.json").read_text())["resumed_from"]
    assert resumed_from >= step
    for party in ("hospital", "lab"):
        # Each broker recorded a growing line, and gave the second instance the same keys once more.
        steps = run.recorded(party)
        assert steps == sorted(set(steps))
        assert steps[-1] > resumed_from
        released = [e for e in story.log(party, "key.released") if e["job"] == run.digest]
        assert [e["purpose"] for e in released] == ["release"] * 2 + ["resume"] * 2
        assert len({e["instance"] for e in released}) == 2
    assert search(story) == []


def test_a_run_that_is_killed_between_two_permits_does_not_release_twice(story: Story) -> None:
    """One owner has let the output out, the other not yet. A second instance would make another output for one run of
    the budget, so it gets nothing; the first one's output stays closed."""
    agreement = story.agree(lease_seconds=60)
    run = story.submit(agreement, epochs=10)
    run.wait_for("train")
    with frozen(broker_pid(story, "lab")):
        until("an output", (run.folder / "out" / "output").exists)
        until("one permit", lambda: [e for e in story.log("hospital", "permit.issued") if e["job"] == run.digest])
        _kill_workload(story)
    assert run.ended() == ("denied", "job.released")
    # The dead instance may have asked before it died: then the lab's broker answers that one request once it is awake
    # again, and nobody reads the answer. Either way no owner let out anything but the first instance's one output, and
    # the second instance got no key.
    permits = [e for party in ("hospital", "lab") for e in story.log(party, "permit.issued") if e["job"] == run.digest]
    assert len({(e["instance"], e["output"]) for e in permits}) == 1
    keys = [e for party in ("hospital", "lab") for e in story.log(party, "key.released") if e["job"] == run.digest]
    assert {e["instance"] for e in keys} == {permits[0]["instance"]}
    client = story.home.control("hospital")
    assert refused(lambda: client.release(run.digest)) == ("Misuse", "release.unknown")
    assert story.in_force("lab", agreement)


def _after_tampering(story: Story, tamper: Callable[[Path, list[int]], None]) -> tuple[Run, Agreement]:
    """Kill a run while the node agent is held, change its checkpoints, let the agent start it again."""
    agreement = story.agree()
    run = story.submit(agreement, epochs=1000, checkpoint_steps=_EVERY)
    _recorded(run, 2)
    with frozen(node_pid(story)):
        _kill_workload(story)
        until("its end", lambda: workload_pid(story) is None)
        tamper(run.folder / "out" / "checkpoints", run.checkpoints())
    return run, agreement


def test_an_old_checkpoint_in_place_of_the_newest_is_refused(story: Story) -> None:
    def put_back(folder: Path, steps: list[int]) -> None:
        old, *newer = steps
        for step in newer:
            shutil.rmtree(folder / f"{step:08d}")
            shutil.copytree(folder / f"{old:08d}", folder / f"{step:08d}")
            for path in (folder / f"{step:08d}", *(folder / f"{step:08d}").iterdir()):
                shutil.chown(path, (folder / f"{old:08d}").stat().st_uid, (folder / f"{old:08d}").stat().st_gid)

    run, agreement = _after_tampering(story, put_back)
    assert run.ended() == ("denied", "sealed.digest")
    _nothing_came_of(story, run, agreement)


def test_a_deleted_checkpoint_is_refused_and_not_trained_anew(story: Story) -> None:
    def delete(folder: Path, steps: list[int]) -> None:
        for step in steps:
            shutil.rmtree(folder / f"{step:08d}")

    run, agreement = _after_tampering(story, delete)
    assert run.ended() == ("denied", "checkpoint.missing")
    message = str(story.home.control("hospital").job(run.digest)["error"]["message"])
    assert "checkpoint" in message
    _nothing_came_of(story, run, agreement)


def _nothing_came_of(story: Story, run: Run, agreement: Agreement) -> None:
    for party in ("hospital", "lab"):
        recorded = run.recorded(party)
        assert recorded == sorted(set(recorded))
        assert not [e for e in story.log(party, "permit.issued") if e["job"] == run.digest]
        assert story.in_force(party, agreement)
