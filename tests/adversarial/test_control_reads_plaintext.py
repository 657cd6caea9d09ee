"""The operator reads everything that the control plane writes: no plaintext, passphrase or data key may be in it."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from cloister.errors import CloisterError
from tests.control_world import CANARY, running_world

DEK = b"k" * 32  # what ``World`` seals with
SECRETS = [CANARY.encode(), DEK, base64.b64encode(DEK), DEK.hex().encode(), base64.urlsafe_b64encode(DEK).rstrip(b"=")]


def written(home: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in (home / "control").rglob("*") if p.is_file()}


def test_no_secret_reaches_disk_or_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with running_world(tmp_path) as world:
        contract = world.agreed()
        job = world.job(contract)
        hospital = world.client(world.hospital)
        hospital.submit(job)
        world.node_post("/v1/node/claim", {})
        path = f"/v1/node/jobs/{job.digest.hex()}"
        # A node, or a workload gone wrong, that tries to smuggle rows out through what is meant for figures.
        for event in (
            {"kind": "state", "code": f"the row is {CANARY}"},
            {"kind": "progress", "stage": CANARY + "!", "step": 1, "total": 2, "values": {}},
            {"kind": "progress", "stage": "train", "step": 1, "total": 2, "values": {"loss": CANARY}},
            {"kind": "progress", "stage": "train", "step": 1, "total": 2, "values": {}, "row": CANARY},
        ):
            with pytest.raises(CloisterError) as caught:
                world.node_post(f"{path}/events", {"events": [event]})
            assert CANARY not in caught.value.message
        _, record = world.node_release(job, contract)
        world.node_put(f"/v1/jobs/{job.digest.hex()}/release", record)
        for body in ({"job": CANARY}, {CANARY: 1}):
            with pytest.raises(CloisterError):
                hospital._post("/v1/jobs", body)
        with pytest.raises(CloisterError):
            hospital.contract(CANARY)
        log = world.log.getvalue()
    out = "".join(capfd.readouterr())
    files = written(tmp_path)
    assert any("catalogue.db" in name for name in files)
    assert any(name.endswith(".sealed") for name in files), "the test looks where ciphertext lies"
    for secret in SECRETS:
        assert [name for name, data in files.items() if secret in data] == []
        assert secret.decode("latin-1") not in log + out


def test_the_log_speaks_of_routes_not_of_content(tmp_path: Path) -> None:
    with running_world(tmp_path) as world:
        world.store_assets()
        lines = world.log.getvalue().splitlines()
    assert any('"route": "/v1/objects/{digest}/files/{index}"' in line for line in lines)
    assert not any("minilm" in line or "queries" in line for line in lines)
