"""A party with a stock Trustee instead of a broker, one with a broker, and a node between them: real sockets all."""

from __future__ import annotations

import json
import sys
import tempfile
import types
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cloister.attestation.guests import StockAttester
from cloister.audit import Receipt, parse_event
from cloister.broker.trustee_keys import TrusteeKeys
from cloister.contracts import Contract, Job, trustee_key
from cloister.crypto import Envelope, parse_json
from cloister.node.agent import reached
from cloister.node.socket_server import SocketServer
from cloister.sealed import open_sealed
from cloister.workload.identity import WorkloadIdentity
from cloister.workload.job import Place, run_job
from cloister.workload.key_session import RunContext
from cloister.workload.node_link import NodeLink
from tests.broker_world import MEASUREMENT, World, serving
from tests.trustee_double import Trustee

REPOSITORY = "cloister"
FILES = {"adapter/adapter_model.safetensors": b"weights"}


@dataclass
class Run:
    """One launch of the job on the node. ``events``: what the workload told the operator."""

    world: World
    trustee: Trustee
    contract: Contract
    job: Job
    folder: Path
    instance: bytes
    socket: Path
    events: list[dict[str, Any]]

    def context(self, **changes: Any) -> RunContext:
        fields: dict[str, Any] = {
            "contract": self.contract, "job": self.job, "instance": self.instance, "tee": self.world.attester.tee,
            "identity": WorkloadIdentity(), "link": NodeLink(self.socket), **changes,
        }  # fmt: skip
        return RunContext(**fields)

    def store(self, *, contract: bytes | None = None, asset: bytes | None = None, raw: bytes | None = None) -> None:
        """What lab puts into its Trustee: its base's key, for this contract unless a test wants another."""
        digest, core = self.world.base.digest, self.world.lab.broker.core
        if contract is None and asset is None and raw is None and self.contract.trustees:
            for key in TrusteeKeys(core).open_secret_documents(self.contract.digest):
                self.trustee.resources[key["path"]] = key["document"].encode()
            return
        dek = core.assets.unwrap_secret_dek(digest)
        document = trustee_key(contract or self.contract.digest, asset or digest, dek)
        self.trustee.resources[f"{REPOSITORY}/asset-key/{digest.hex()}"] = document if raw is None else raw

    def train(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        """The workload's whole job but the training itself; the release record that it leaves."""
        monkeypatch.setitem(sys.modules, "cloister.workload.pipeline", _untrained())
        order = {
            "assets": {self.world.data.digest.hex(): str(self.world.folder / "data"),
                       self.world.base.digest.hex(): str(self.world.folder / "base")},
            "contract": self.contract.envelope.to_bytes().decode(), "instance": self.instance.hex(),
            "job": self.job.envelope.to_bytes().decode(), "purpose": "release", "tee": self.world.attester.tee,
        }  # fmt: skip
        (self.folder / "job.json").write_text(json.dumps(order))
        (self.folder / "out").mkdir(exist_ok=True)
        run_job(Place(self.folder / "job.json", self.folder / "out", self.socket))
        record: dict[str, Any] = parse_json((self.folder / "out" / "release.json").read_bytes(), limit=1 << 24)
        return record

    def bundle(self, dek: bytes) -> Path:
        """The folder that ``cloister pull`` would leave."""
        place, record = self.folder / "bundle", self.folder / "out" / "release.json"
        body = parse_json(record.read_bytes(), limit=1 << 24)
        digest = Envelope.from_bytes(body["manifest"].encode()).digest
        signing = parse_event(Receipt.from_wire(body["keys"]["hospital"][0]).leaf).details["signing"]
        keys = [bytes.fromhex(str(signing))]
        with open_sealed(self.folder / "out" / "output", dek=dek, expected_digest=digest, signer_keys=keys) as sealed:
            for path in sealed.paths():
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                (place / path).write_bytes(sealed.read(path))
        (place / "cloister-release.json").write_bytes(record.read_bytes())
        return place


def trustee_contract(world: World, trustee: Trustee, **changes: Any) -> Contract:
    pin, address = trustee.pin.hex(), f"127.0.0.1:{trustee.port}"
    entry = {"address": address, "repository": REPOSITORY, "tls_pin": pin, "unbound": True}
    return world.sign(world.contract_fields(**{"name": "unbound", "trustees": {"lab": entry}, **changes}))


@contextmanager
def launched(world: World, contract: Contract, trustee: Trustee, **recipe: Any) -> Iterator[Run]:
    """The node launched the job's sandbox; hospital's broker and lab's Trustee answer, and lab's broker does not."""
    job = world.make_job(contract, **{"checkpoint_steps": 0, **recipe})
    instance = bytes(range(16))
    world.attester.extend_launch(instance, MEASUREMENT, contract.digest, job.digest)
    events: list[dict[str, Any]] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        running = stack.enter_context(serving(world.hospital))
        # Where a contract names no Trustee, the directory leads to it: somebody put it in the place of lab's broker.
        directory = {
            "hospital": {"address": f"127.0.0.1:{running.port}"},
            "lab": {"address": f"127.0.0.1:{trustee.port}"},
        }
        attester = world.attester
        assert isinstance(attester, StockAttester)
        server = SocketServer(
            folder / "node.sock",
            parties=reached(contract, directory),
            evidence=lambda nonce, key: attester.evidence(instance, nonce, key),  # type: ignore[attr-defined]
            stock_evidence=attester.stock_evidence if contract.trustees else None,
            telemetry=events.append,
        )
        stack.enter_context(server)
        yield Run(world, trustee, contract, job, folder, instance, folder / "node.sock", events)


def _untrained() -> types.ModuleType:
    """Stands where training would: it says what training would have to say, about an adapter of seven bytes."""
    module = types.ModuleType("cloister.workload.pipeline")

    @dataclass
    class Inputs:
        recipe: Any
        data: Any
        base: Any
        gates: Any
        run: Any
        general: Any

    @dataclass
    class Outcome:
        files: Mapping[str, bytes]
        evaluation: Mapping[str, Any]
        gates: list[dict[str, Any]]
        usage: str

    def train_and_evaluate(inputs: Inputs, *, sink: Any, progress: Any, lease: Any) -> Outcome:
        del progress
        for asset in (inputs.data, inputs.base):
            assert [asset.read(path) for path in asset.paths()] == [b"rows"]
        assert sink.latest() is None
        lease.check()
        gate = {"base": "0.9", "margin": "0.01", "metric": "accuracy", "passed": True, "tuned": "0.95"}
        return Outcome(FILES, {"accuracy": "0.95"}, [gate], "load it")

    module.Inputs, module.Outcome = Inputs, Outcome  # type: ignore[attr-defined]
    module.train_and_evaluate = train_and_evaluate  # type: ignore[attr-defined]
    return module
