"""A job of two processes in the real sandbox: what they share, what the second one never has, and a kill."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from cloister.client import operations
from tests.e2e.operator import children, frozen, workload_pid
from tests.e2e.search import search
from tests.e2e.story import Story, until
from tests.e2e.story import story as story
from tests.patience import PATIENCE

_EVERY = 7


def _member(story: Story) -> int | None:
    """The second process of the training, once there is one."""
    first = workload_pid(story)
    found = [] if first is None else children(first, "cloister.workload.training.distributed.member")
    return found[0] if found else None


def _descriptors(pid: int) -> list[str]:
    return sorted(os.readlink(path) for path in Path(f"/proc/{pid}/fd").iterdir())


def _remembers(pid: int, secret: bytes) -> bool:
    """Whether ``secret`` stands anywhere in a process's memory. For root only."""
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        for line in maps:
            places, rights = line.split()[:2]
            start, end = (int(place, 16) for place in places.split("-"))
            if rights.startswith("r") and not line.rstrip().endswith(("[vvar]", "[vsyscall]", "[vvar_vclock]")):
                memory.seek(start)
                if secret in memory.read(end - start):
                    return True
    return False


@pytest.mark.slow
@pytest.mark.timeout(900)  # two starts of a sandbox that loads the libraries twice each
def test_a_job_of_two_processes_that_is_killed_goes_on_and_its_second_process_never_has_a_key(story: Story) -> None:
    agreement = story.agree(lease_seconds=120)
    run = story.submit(agreement, epochs=40, checkpoint_steps=_EVERY, processes=2, threads=2)
    # Both load the training libraries first, one after the other.
    until("two checkpoints", lambda: run.checkpoints()[-1:] >= [2 * _EVERY], 4 * PATIENCE)
    first, second = workload_pid(story), _member(story)
    assert first is not None
    assert second is not None
    with frozen(first, second):
        # Loopback for gradients, the anonymous memory, and nothing that leads to the node agent or a file.
        opened = [name for name in _descriptors(second) if not name.startswith(("socket:", "anon_inode:", "pipe:"))]
        assert set(opened) <= {"/dev/null", "/memfd:group (deleted)"}
        network = Path(f"/proc/{second}/net/unix").read_text()
        sockets = {name[8:-1] for name in _descriptors(second) if name.startswith("socket:")}
        assert not any(line.split()[6] in sockets for line in network.splitlines()[1:])
        if os.geteuid() == 0:
            assert any(_remembers(first, dek) for dek in story.deks)  # it would be found
            assert not any(_remembers(second, dek) for dek in story.deks)
        assert search(story) == []
    os.kill(first, signal.SIGKILL)
    until("the second's end", lambda: not Path(f"/proc/{second}").exists())
    assert run.ended() == ("succeeded", None)
    assert run.codes().count("relaunched") == 1
    pulled = story.pull("two-processes")
    evaluation = json.loads((pulled.folder / "evaluation.json").read_text())
    assert evaluation["resumed_from"] >= _EVERY
    assert evaluation["processes"] == 2
    assert operations.verify_bundle(pulled.folder, story.home.agent("hospital").pinned_cards()).job == run.digest
