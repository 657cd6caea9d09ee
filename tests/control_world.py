"""A control plane on a loopback port, and parties with keys of their own, for tests that need no broker."""

from __future__ import annotations

import base64
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from cloister.client import ControlClient
from cloister.contracts import (
    CONTRACT_TYPE,
    Card,
    Contract,
    PartyKeys,
    Terms,
    contract_document,
    job_envelope,
    make_card,
    parse_recipe,
    read_contract,
)
from cloister.contracts.requests import authorization_header
from cloister.control import ControlPlane, Limits
from cloister.control.api import make_app
from cloister.control.api.changes import Changes
from cloister.crypto import Envelope, HpkePrivateKey, SigningKey, canonical_json, sha256
from cloister.sealed import Sealed, SealIdentity, seal_object
from tests.patience import until

CANARY = "canary-7f3a-plaintext"
RECIPE = """
task: classification
method: lora
data: hospital/queries
base: lab/minilm
columns: {text: text, label: label}
"""
_HPKE = HpkePrivateKey.generate()  # slow to make, and not what these tests are about


class Party:
    """A party's keys, without a broker around them. It is a ``Signer`` for ``ControlClient``."""

    def __init__(self, name: str) -> None:
        self.signing, self.status, self.receipt, self.tls = (SigningKey.generate() for _ in range(4))
        self.party = name
        self.now: int | None = None
        keys = [key.public for key in (self.signing, self.status, self.receipt, self.tls)]
        self.card: Card = make_card(name, PartyKeys(*keys, _HPKE.public), (self.signing,), serial=1, issued=1)

    def authorize(self, method: str, path: str, body: str | None, audience: str) -> str:
        now = int(time.time()) if self.now is None else self.now
        return authorization_header(
            self.party, self.signing, method=method, path=path, body=body, audience=audience, now=now
        )


class NodeParty:
    """The node agent's signer."""

    party = "node"

    def __init__(self) -> None:
        self.signing = SigningKey.generate()

    def authorize(self, method: str, path: str, body: str | None, audience: str) -> str:
        return authorization_header(
            "node", self.signing, method=method, path=path, body=body, audience=audience, now=int(time.time())
        )


class World:
    """One control plane with hospital, lab and bank registered, and a client for each."""

    def __init__(self, home: Path, *, limits: Limits | None = None, register: bool = True) -> None:
        self.home = home
        self.node_party = NodeParty()
        self.plane = ControlPlane(home / "control", node_key=self.node_party.signing.public, limits=limits)
        self.log = io.StringIO()
        self.changes = Changes()
        config = uvicorn.Config(
            make_app(self.plane, changes=self.changes, log=self.log), log_config=None, access_log=False, port=0,
            timeout_graceful_shutdown=2, timeout_keep_alive=60,  # longer than clients keep a connection for
        )  # fmt: skip
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run, daemon=True)
        self.thread.start()
        until("the server", lambda: self.server.started)
        port = self.server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.hospital, self.lab, self.bank = (Party(n) for n in ("hospital", "lab", "bank"))
        self._clients: list[ControlClient] = []
        self.node = self.client(self.node_party)
        if register:
            for party in (self.hospital, self.lab, self.bank):
                self.client(party).publish(party.card, "127.0.0.1:4433")

    def client(self, signer: Any) -> ControlClient:
        made = ControlClient(self.url, signer)
        self._clients.append(made)
        return made

    def close(self) -> None:
        for client in self._clients:
            client.close()
        self.server.should_exit = True
        self.thread.join(60)
        self.plane.close()

    # --- documents -------------------------------------------------------------------------------------------------

    def sealed(
        self, party: Party, name: str, asset_class: str, data: bytes = b"text,label\n" + CANARY.encode()
    ) -> Path:
        """A sealed object on disk; its folder is named by the digest."""
        folder = self.home / "sealed" / name.replace("/", "-")
        self.seal_into(folder, party.signing, party.party, name, asset_class, data)
        return folder

    def seal_into(
        self, folder: Path, key: SigningKey, owner: str, name: str, asset_class: str, data: bytes, **identity: Any
    ) -> Sealed:
        return seal_object(
            [("data.csv", io.BytesIO(data)), ("more.csv", io.BytesIO(b"x" * 100))],
            folder,
            dek=b"k" * 32,
            identity=SealIdentity(
                owner=owner,
                asset_id=sha256(name.encode())[:16],
                name=name,
                version=1,
                asset_class=asset_class,
                created=1,
                **identity,
            ),
            sign=lambda kind, payload: Envelope(kind, payload).signed_by(key),
            terms={"schema": ["text", "label"], "terms": Terms(("CC-BY-4.0",)).document()},
        )

    def store_assets(self) -> dict[str, bytes]:
        """Hospital's data and lab's model in the store; name → digest."""
        found = {}
        for party, name, kind in ((self.hospital, "hospital/queries", "dataset"), (self.lab, "lab/minilm", "model")):
            found[name] = bytes.fromhex(self.client(party).upload(self.sealed(party, name, kind)))
        return found

    def contract(self, assets: dict[str, bytes], *parties: Party, **changes: Any) -> Contract:
        """An unsigned contract among hospital and lab (or ``parties``) over ``assets``."""
        cards = {p.party: p.card for p in parties or (self.hospital, self.lab)}
        uses = {"hospital/queries": "data", "lab/minilm": "base"}
        now, terms = int(time.time()), Terms(("CC-BY-4.0",)).document()
        fields = {
            "assets": [
                {"digest": d.hex(), "name": n, "owner": n.partition("/")[0], "terms": terms, "use": uses[n]}
                for n, d in assets.items()
            ],
            "expires": now + 3600,
            "gates": [{"better_than_base_by": "0.0", "metric": "accuracy"}],
            "lease_seconds": 30,
            "name": "intents",
            "not_before": now - 10,
            "outputs": [{"form": "adapter", "name": "hospital/adapter", "recipients": ["hospital"]}],
            "platform": {
                "agents": ["22" * 32], "assurance": "none", "attesters": ["33" * 32], "measurements": ["11" * 32],
                "pcrs": {}, "regions": ["local"], "witness_quorum": 0,
            },
            "purpose": "tests",
            "recipes": {"max_epochs": 5, "methods": ["lora"], "tasks": ["classification"]},
            "runs": 3,
            "serial": 1,
            "telemetry": ["loss"],
            "unbounded_memorization": ["hospital"],
            **changes,
        }  # fmt: skip
        return read_contract(Envelope(CONTRACT_TYPE, canonical_json(contract_document(fields, cards))))

    def agreed(self, assets: dict[str, bytes] | None = None, **changes: Any) -> Contract:
        """A contract that hospital and lab signed and the control plane knows."""
        contract = self.contract(assets or self.store_assets(), **changes)
        for party in (self.hospital, self.lab):
            self.client(party).offer(contract.envelope.signed_by(party.signing))
        return contract

    def job(self, contract: Contract, party: Party | None = None, *, salt: int = 1, recipe: str = RECIPE) -> Envelope:
        submitter = party or self.hospital
        return job_envelope(
            contract, submitter.party, parse_recipe(recipe), "hospital/adapter", submitter.signing,
            now=int(time.time()), salt=salt.to_bytes(16, "big"),
        )  # fmt: skip

    # --- what the node does ----------------------------------------------------------------------------------------

    def node_post(self, path: str, body: dict[str, Any]) -> Any:
        return self.node._post(path, body)

    def node_release(self, job: Envelope, contract: Contract) -> tuple[str, bytes]:
        """Upload an output of ``job`` as the node does; returns (manifest digest, release record)."""
        workload = SigningKey.generate()
        folder = self.home / "sealed" / f"output-{job.digest.hex()[:8]}"
        sealed = self.seal_into(
            folder, workload, "hospital", "hospital/adapter", "artifact", b"weights", contract=contract.digest,
            job=job.digest, parents=tuple(sorted(a.digest for a in contract.assets)),
        )  # fmt: skip
        digest = self.node.upload(folder)
        record = {
            "contract": contract.envelope.to_bytes().decode(), "job": job.to_bytes().decode(), "keys": {},
            "manifest": sealed.envelope.to_bytes().decode(), "permits": {}, "tokens": {}, "version": 1,
            "wraps": {"hospital": {"sealed": base64.b64encode(b"sealed").decode()}},
        }  # fmt: skip
        return digest, canonical_json(record)

    def node_put(self, path: str, body: bytes) -> Any:
        headers = {"Authorization": self.node_party.authorize("PUT", path, sha256(body).hex(), self.plane.id)}
        return self.node._wire.json("PUT", path, content=body, headers=headers)


@contextmanager
def running_world(home: Path, **options: Any) -> Iterator[World]:
    world = World(home, **options)
    try:
        yield world
    finally:
        world.close()
