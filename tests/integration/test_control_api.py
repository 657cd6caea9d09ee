"""The control plane behind its real socket: the path of a job, long polls, restarts of the node, resumed uploads."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from cloister.client import Step
from cloister.contracts import revocation_envelope
from cloister.control import Limits
from cloister.crypto import SigningKey, sha256
from cloister.errors import Denied, Malformed, Misuse, Unavailable, Untrusted
from cloister.sealed import check_ciphertext
from tests.control_world import CANARY, RECIPE, World, running_world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running_world(tmp_path) as made:
        yield made


def state(world: World, digest: str, **body: object) -> None:
    world.node_post(f"/v1/node/jobs/{digest}/state", body)


def test_one_job_from_seal_to_output(world: World, tmp_path: Path) -> None:
    contract = world.agreed()
    hospital, lab = world.client(world.hospital), world.client(world.lab)
    job = world.job(contract)
    digest = job.digest.hex()
    assert hospital.submit(job)["state"] == "queued"
    claimed = world.node_post("/v1/node/claim", {})
    assert set(claimed) == {"assets", "contract", "directory", "job", "revocations"}
    assert set(claimed["directory"]) == {"hospital", "lab", "bank"}
    progress = {"kind": "progress", "stage": "train", "step": 1, "total": 2, "values": {"loss": "0.5"}}
    events = [{"kind": "state", "code": "keys"}, progress]
    assert world.node_post(f"/v1/node/jobs/{digest}/events", {"events": events}) == {"ok": True, "stop": None}
    assert [e["event"] for e in lab.events(digest, 0)["events"]] == events
    assert [e["seq"] for e in lab.events(digest, 1)["events"]] == [2]
    manifest, record = world.node_release(job, contract)
    world.node_put(f"/v1/jobs/{digest}/release", record)
    world.node_put(f"/v1/jobs/{digest}/release", record)  # asked again: the same answer
    state(world, digest, state="succeeded", timings={"train": "1.5"})
    done = hospital.job(digest)
    assert (done["state"], done["timings"]) == ("succeeded", {"train": "1.5"})
    assert hospital.events(digest, 2)["final"] is True
    found = hospital.output("hospital/adapter")
    assert found["manifest"] == manifest
    assert found["release"].encode() == record == hospital.release(digest)
    hospital.download(manifest, tmp_path / "got")
    assert check_ciphertext(tmp_path / "got").name == "hospital/adapter"


def test_success_needs_a_release(world: World) -> None:
    contract = world.agreed()
    job = world.job(contract)
    world.client(world.hospital).submit(job)
    world.node_post("/v1/node/claim", {})
    with pytest.raises(Misuse) as caught:
        state(world, job.digest.hex(), state="succeeded")
    assert caught.value.code == "job.release"
    with pytest.raises(Malformed):
        state(world, job.digest.hex(), state="running")


def test_a_failed_job_keeps_its_reason(world: World) -> None:
    contract = world.agreed()
    job = world.job(contract)
    hospital = world.client(world.hospital)
    hospital.submit(job)
    world.node_post("/v1/node/claim", {})
    reason = {"code": "job.gate", "details": {"metric": "accuracy"}, "kind": "denied", "message": "A gate failed."}
    state(world, job.digest.hex(), state="denied", error=reason)
    assert hospital.job(job.digest.hex())["error"] == reason
    state(world, job.digest.hex(), state="denied", error=reason)  # asked again


def test_a_long_poll_wakes_when_something_happens(world: World) -> None:
    contract = world.agreed()
    job = world.job(contract)
    hospital, answers = world.client(world.hospital), []
    thread = threading.Thread(target=lambda: answers.append(world.node_post("/v1/node/claim", {})))
    thread.start()
    time.sleep(0.2)
    assert not answers, "nothing is queued, so the claim waits"
    hospital.submit(job)
    thread.join(120)
    assert answers[0]["job"] == job.to_bytes().decode()
    follower = threading.Thread(target=lambda: answers.append(hospital.events(job.digest.hex(), 0)))
    follower.start()
    world.node_post(f"/v1/node/jobs/{job.digest.hex()}/events", {"events": [{"kind": "state", "code": "x"}]})
    follower.join(120)
    assert answers[1]["events"][0]["event"]["code"] == "x"


def test_a_poll_may_be_told_not_to_wait(world: World) -> None:
    contract = world.agreed()
    job = world.job(contract)
    hospital = world.client(world.hospital)
    hospital.submit(job)
    assert hospital.events(job.digest.hex(), 0, wait=0) == {"events": [], "final": False, "state": "queued"}
    with pytest.raises(Malformed):
        hospital._get(f"/v1/jobs/{job.digest.hex()}/events", after="x")


def test_a_node_that_restarts_gets_its_jobs_again_a_few_times(world: World) -> None:
    contract = world.agreed()
    job = world.job(contract)
    hospital = world.client(world.hospital)
    hospital.submit(job)
    hello = {"agent": "11" * 32, "attester": "22" * 32, "hardware": "test", "level": "none", "measurement": "33" * 32}
    assert hospital.info()["node"] is None
    for _ in range(Limits().attempts):
        assert world.node_post("/v1/node/claim", {})["job"]
        world.node_post("/v1/node/hello", hello)
    assert hospital.info()["node"] == hello
    lost = hospital.job(job.digest.hex())
    assert (lost["state"], lost["error"]["code"]) == ("failed", "job.lost")


def test_cancelling_reaches_the_node(world: World) -> None:
    contract = world.agreed()
    first, second = world.job(contract, salt=1), world.job(contract, salt=2)
    hospital, lab = world.client(world.hospital), world.client(world.lab)
    hospital.submit(first)
    hospital.submit(second)
    assert lab.cancel(second.digest.hex())["state"] == "cancelled", "any party may, not only who submitted"
    running = world.node_post("/v1/node/claim", {})
    assert running["job"] == first.to_bytes().decode()
    hospital.cancel(first.digest.hex())
    path = f"/v1/node/jobs/{first.digest.hex()}"
    assert world.node_post(f"{path}/events", {"events": [{"kind": "state", "code": "x"}]})["stop"] == "cancelled"
    state(world, first.digest.hex(), state="failed")
    assert hospital.job(first.digest.hex())["state"] == "cancelled"
    with pytest.raises(Misuse):
        hospital.cancel(first.digest.hex())


def test_revoking_ends_queued_jobs_and_tells_the_node(world: World) -> None:
    contract = world.agreed()
    first, second = world.job(contract, salt=1), world.job(contract, salt=2)
    hospital, lab = world.client(world.hospital), world.client(world.lab)
    hospital.submit(first)
    world.node_post("/v1/node/claim", {})
    hospital.submit(second)
    word = revocation_envelope(contract.digest, "lab", world.lab.status, now=1, reason="enough")
    lab.report_revocation(contract.digest.hex(), word)
    lab.report_revocation(contract.digest.hex(), word)  # twice is once
    assert hospital.job(second.digest.hex())["state"] == "revoked"
    assert hospital.job(second.digest.hex())["error"]["code"] == "contract.revoked"
    answer = world.node_post(f"/v1/node/jobs/{first.digest.hex()}/events", {"events": []})
    assert answer["stop"] == "revoked"
    lease = {"code": "lease.refused", "details": {}, "kind": "denied", "message": "The broker refused."}
    state(world, first.digest.hex(), state="revoked", error=lease)
    assert hospital.job(first.digest.hex())["error"]["message"] == "The contract was revoked by lab."
    shown = hospital.contract("intents")
    assert (shown["state"], len(shown["revocations"])) == ("contract.revoked", 1)


def test_signatures_come_together(world: World) -> None:
    contract = world.contract(world.store_assets())
    hospital, lab = world.client(world.hospital), world.client(world.lab)
    assert hospital.offer(contract.envelope)["missing"] == ["hospital", "lab"]
    assert lab.offer(contract.envelope.signed_by(world.lab.signing))["missing"] == ["hospital"]
    whole = hospital.offer(contract.envelope.signed_by(world.hospital.signing))
    assert (whole["missing"], whole["state"]) == ([], "contract.in-force")
    assert hospital.contract(contract.digest.hex())["signed"] == ["hospital", "lab"]
    assert [c["digest"] for c in lab.contracts()] == [contract.digest.hex()]


def test_a_signature_that_does_not_hold_is_left_out(world: World) -> None:
    contract = world.contract(world.store_assets())
    forged = contract.envelope.signed_by(world.hospital.signing).with_signature(
        world.lab.signing.public.hex(), b"x" * 64
    )
    answer = world.client(world.hospital).offer(forged.signed_by(SigningKey.generate()))
    assert (answer["signed"], answer["missing"]) == (["hospital"], ["lab"])


def test_a_newer_serial_supersedes(world: World) -> None:
    assets = world.store_assets()
    old = world.agreed(assets)
    new = world.agreed(assets, serial=2)
    hospital = world.client(world.hospital)
    assert hospital.contract("intents")["digest"] == new.digest.hex(), "the name means the newest"
    assert hospital.contract(old.digest.hex())["state"] == "contract.superseded"
    with pytest.raises(Denied) as caught:
        hospital.submit(world.job(old))
    assert caught.value.code == "contract.superseded"


def test_an_interrupted_upload_goes_on_where_it_was(world: World) -> None:
    hospital = world.client(world.hospital)
    folder = world.sealed(world.hospital, "hospital/queries", "dataset", b"text,label\n" + b"x" * 3_000_000)
    (folder / "0001.sealed").rename(folder / "away")
    with pytest.raises(Unavailable) as caught:
        hospital.upload(folder)
    assert caught.value.code == "upload.read"
    (folder / "away").rename(folder / "0001.sealed")
    seen: list[Step] = []
    hospital.upload(folder, progress=seen.append)
    first = (folder / "0000.sealed").stat().st_size
    assert seen, "progress is told"
    assert all(step.done > first for step in seen), "only the second file was sent again"
    assert hospital.assets("hospital/queries")[0]["files"] == 2
    seen.clear()
    hospital.upload(folder, progress=seen.append)
    assert not seen, "what is stored is not sent again"


def test_ranges_of_ciphertext(world: World) -> None:
    folder = world.sealed(world.hospital, "hospital/queries", "dataset")
    digest = world.client(world.hospital).upload(folder)
    path = f"/v1/objects/{digest}/files/0"
    headers = {"Authorization": world.hospital.authorize("GET", path, None, world.plane.id), "Range": "bytes=5-9"}
    answer = httpx.get(world.url + path, headers=headers)
    assert (answer.status_code, answer.content) == (206, (folder / "0000.sealed").read_bytes()[5:10])


def test_a_job_needs_its_assets_in_the_store(world: World) -> None:
    folder = world.sealed(world.hospital, "hospital/queries", "dataset")
    data = bytes.fromhex(world.client(world.hospital).upload(folder))
    contract = world.agreed({"hospital/queries": data, "lab/minilm": sha256(b"not stored")})
    with pytest.raises(Misuse) as caught:
        world.client(world.hospital).submit(world.job(contract))
    assert caught.value.code == "asset.missing"
    assert "lab/minilm" in caught.value.message


def test_queues_and_proposals_are_bounded(tmp_path: Path) -> None:
    with running_world(tmp_path, limits=Limits(queued_jobs=1, unsigned_contracts=1)) as world:
        contract = world.agreed()
        hospital = world.client(world.hospital)
        job = world.job(contract, salt=1)
        hospital.submit(job)
        hospital.submit(job)  # the same job again is the same job
        with pytest.raises(Denied) as queue:
            hospital.submit(world.job(contract, salt=2))
        assert queue.value.code == "job.queue"
        assets = {a.name: a.digest for a in contract.assets}
        hospital.offer(world.contract(assets, serial=2).envelope)
        with pytest.raises(Denied) as proposals:
            hospital.offer(world.contract(assets, serial=3).envelope)
        assert proposals.value.code == "contract.proposals"


def test_events_beyond_the_bound_are_not_kept(tmp_path: Path) -> None:
    with running_world(tmp_path, limits=Limits(events=3)) as world:
        contract = world.agreed()
        job = world.job(contract)
        hospital = world.client(world.hospital)
        hospital.submit(job)
        world.node_post("/v1/node/claim", {})
        batch = {"events": [{"kind": "state", "code": f"c{i}"} for i in range(5)]}
        world.node_post(f"/v1/node/jobs/{job.digest.hex()}/events", batch)
        assert len(hospital.events(job.digest.hex(), 0)["events"]) == 3


def test_routes_and_methods_that_do_not_exist(world: World) -> None:
    for method, path, status, code in (
        ("GET", "/v1/nothing", 404, "route.unknown"),
        ("DELETE", "/v1/jobs", 405, "route.method"),
    ):
        answer = httpx.request(method, world.url + path)
        assert answer.status_code == status
        assert answer.json()["error"]["code"] == code


def test_a_bug_is_reported_without_its_text(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(world.plane.directory, "listing", broken)
    with pytest.raises(Exception, match="see its log"):
        world.client(world.hospital).directory()
    line = next(json.loads(text) for text in world.log.getvalue().splitlines() if "bug" in text)
    assert line["bug"] == "RuntimeError"
    assert CANARY not in world.log.getvalue()


def test_a_release_of_another_run_is_refused(world: World) -> None:
    contract = world.agreed()
    first, second = world.job(contract, salt=1), world.job(contract, salt=2)
    hospital = world.client(world.hospital)
    for job in (first, second):
        hospital.submit(job)
        world.node_post("/v1/node/claim", {})
    _, record = world.node_release(first, contract)
    with pytest.raises(Malformed) as caught:
        world.node_put(f"/v1/jobs/{second.digest.hex()}/release", record)
    assert caught.value.code == "release.other"
    with pytest.raises(Misuse):
        hospital.release(second.digest.hex())
    with pytest.raises(Misuse):
        hospital.output("hospital/adapter")


def test_a_second_release_of_a_run_is_refused(world: World) -> None:
    contract = world.agreed()
    job = world.job(contract)
    world.client(world.hospital).submit(job)
    world.node_post("/v1/node/claim", {})
    _, record = world.node_release(job, contract)
    world.node_put(f"/v1/jobs/{job.digest.hex()}/release", record)
    shutil.rmtree(world.home / "sealed" / f"output-{job.digest.hex()[:8]}")
    _, other = world.node_release(job, contract)
    with pytest.raises(Denied) as caught:
        world.node_put(f"/v1/jobs/{job.digest.hex()}/release", other)
    assert caught.value.code == "release.twice"


def test_only_what_still_holds_is_handed_to_the_node(world: World) -> None:
    contract = world.agreed(expires=int(time.time()) + 600)
    job = world.job(contract)
    hospital = world.client(world.hospital)
    hospital.submit(job)
    world.plane._clock = lambda: time.time() + 700
    world.hospital.now = int(time.time()) + 700
    assert world.plane.runs.claim(now=world.plane.now()) is None
    assert hospital.job(job.digest.hex())["error"]["code"] == "contract.expired"


def test_full_fine_tuning_is_not_what_this_contract_lets_out(world: World) -> None:
    contract = world.agreed()
    job = world.job(contract, recipe=RECIPE.replace("lora", "full"))
    with pytest.raises(Denied) as caught:
        world.client(world.hospital).submit(job)
    assert caught.value.code == "recipe.method"


def test_an_output_needs_a_run_that_goes_on(world: World) -> None:
    contract = world.agreed()
    job = world.job(contract)
    world.client(world.hospital).submit(job)
    with pytest.raises(Denied) as caught:
        world.node_release(job, contract)
    assert caught.value.code == "object.node"
    with pytest.raises((Denied, Untrusted)):
        world.node.upload(world.home / "sealed" / "hospital-queries")
