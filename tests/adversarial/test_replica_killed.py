"""A replica is killed with SIGKILL at a stage of a release, while the other one goes on releasing.

Whatever the moment: no key without its entry, no run that counts twice, one log that the independent checker accepts,
and the replica that is left finishes the run.
"""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cloister.contracts import Job
from cloister.errors import Denied
from tests.broker_world import Workload
from tests.deaths import Death, Nursery, nursery_of
from tests.replica_victims import order
from tests.replicas import SharedWorld, checked

pytest_plugins = ["tests.broker_fixtures", "tests.postgres_fixtures"]

NEVER = Death(lines=1 << 30)


class Story:
    """Two replicas, one contract with room for just so many runs, and what happened under it."""

    def __init__(self, world: SharedWorld, folder: Path, runs: int) -> None:
        self.world, self.folder = world, folder
        self.contract = world.sign(world.contract_fields(serial=2, runs=runs))
        self.doomed = world.hospital.replica("doomed")
        self.doomed.broker.close()
        self.head = world.hospital.broker.core.ledger.log.head()
        self.last: list[str] = []
        self.late = self.job(99_999)  # signed while there is room

    def job(self, number: int) -> Job:
        return self.world.make_job(self.contract, seed=number)

    def released(self, job: Job) -> list[int]:
        log = self.world.hospital.log()
        return [
            i for i, facts in enumerate(log)
            if facts.kind == "key.released" and facts.details["job"] == job.digest.hex()
        ]  # fmt: skip

    def admitted(self) -> set[str]:
        return {row["digest"] for row in self.world.hospital.tables()["jobs"]}

    def fetch(self, workload: Workload) -> bytes:
        hospital, digest = self.world.hospital, self.world.data.digest
        return workload.open(workload.fetch(hospital, workload.attested(hospital), digest), digest)[0]

    def kill_once(self, nursery: Nursery, number: int) -> bool:
        """One life of the doomed replica; whether it got through before it died."""
        lost, other = self.job(2 * number), self.job(2 * number + 1)
        workload = self.world.workload(contract=self.contract, job=lost)
        order(self.folder, workload, self.doomed, self.world.data.digest)
        keys: list[bytes] = []
        beside = threading.Thread(
            target=lambda: keys.append(self.fetch(self.world.workload(contract=self.contract, job=other)))
        )
        beside.start()
        lines = nursery.life("victim", self.folder, number, NEVER)
        beside.join()
        assert len(keys) == 1, "the other replica was not held up"
        self.last = [str(word) for word in lines[-1][:2]]
        through = lines[-1][0] == "key"
        entries = self.released(lost)
        assert len(entries) <= 1, "nothing is released twice"
        assert not through or entries == [lines[-1][2]], "no key without its entry"
        assert (lost.digest.hex() in self.admitted()) is bool(entries), "entry and budget are in step"
        # The replica that is left takes the run over; it counts once, whatever became of the first try.
        key = self.fetch(self.world.workload(contract=self.contract, job=lost))
        assert key == keys[0]
        assert len(self.released(lost)) == len(entries) + 1
        return through

    def check(self, runs: int) -> None:
        hospital = self.world.hospital
        assert len(self.admitted()) == runs
        with pytest.raises(Denied) as refused:
            self.fetch(self.world.workload(contract=self.contract, job=self.late))
        assert refused.value.code == "budget.runs"
        checked(hospital, self.folder / "log", older=self.head)
        assert hospital.broker.core.ledger.state.intents() == []
        # And whoever starts next finds nothing to mend.
        hospital.restart()
        assert "state.recovered" not in hospital.kinds()


def test_killed_at_some_stages(shared_world: SharedWorld, folder: Path) -> None:
    numbers = [1, 46, 55, 60, 9999]
    story = Story(shared_world, folder, 2 * len(numbers))
    with nursery_of("tests.replica_victims") as nursery:
        through = [story.kill_once(nursery, number) for number in numbers]
    assert through[-1]
    assert not through[0]
    story.check(2 * len(numbers))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_every_stage(shared_world: SharedWorld, folder: Path) -> None:
    most = 160
    story = Story(shared_world, folder, 2 * most)
    stages: set[str] = set()
    runs = 0
    with nursery_of("tests.replica_victims") as nursery:
        for number in range(1, most):
            runs += 2
            if story.kill_once(nursery, number):
                break
            stages.add(" ".join(story.last))
    assert {"dies before COMMIT", "dies after COMMIT", "dies after BEGIN", "dies before UPDATE"} <= stages
    assert runs > 80
    assert len(story.admitted()) == runs
    checked(shared_world.hospital, folder / "log", older=story.head)
