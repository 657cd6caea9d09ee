"""A whole home in this process: control plane, supervisor socket, and real brokers, for tests of client and CLI.

Only the supervisor is a stand-in: it starts brokers on threads instead of as processes, with a cheap Argon2.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from cloister.broker import Broker, Limits, RunningBroker, Settings, create_home, steady_clock
from cloister.client import Home, SealOptions, operations
from cloister.crypto import Argon2Params
from cloister.errors import CloisterError, Misuse
from tests.control_world import World

PASSPHRASE = "correct horse battery staple"
CHEAP = Argon2Params(8 * 1024, 1, 1)
CLAIM = {
    "agent": "22" * 32,
    "attester": "33" * 32,
    "hardware": "software TPM",
    "level": "none",
    "measurement": "11" * 32,
}


OPTIONS = SealOptions(schema=("text", "label"), licences=("CC-BY-4.0",))
CONTRACT = """
name: intents
parties: [hospital, lab]
assets: [hospital/queries, lab/minilm]
purpose: tests
recipes: {tasks: [classification], methods: [lora], max_epochs: 5}
runs: 5
outputs: [{name: hospital/adapter, form: adapter, recipients: [hospital]}]
unbounded_memorization: [hospital]
assurance: none
expires: 90d
"""
RECIPE = """
task: classification
method: lora
data: hospital/queries
base: lab/minilm
columns: {text: text, label: label}
"""


class LocalHome:
    """``home`` talks to everything here as to the real thing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.world = World(folder, register=False)
        self.home = Home(folder)
        self._brokers: dict[str, tuple[RunningBroker, threading.Thread]] = {}
        self._known: set[str] = set()
        self.passphrases: list[str] = []
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(folder / "supervisor.sock"))
        self._server.listen(16)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def report_node(self) -> None:
        self.world.node_post("/v1/node/hello", CLAIM)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                request = json.loads(connection.makefile("rb").readline())
                try:
                    answer = self._act(request)
                except CloisterError as error:
                    answer = {"error": error.to_wire(), "ok": False}
                connection.sendall(json.dumps(answer).encode() + b"\n")

    def _act(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["op"] == "start-party":
            self.passphrases.append(request["passphrase"])
            return {
                "ok": True,
                "port": self._start(
                    **{k: v for k, v in request.items() if k not in ("op", "vault", "database", "switches")}
                ),
            }
        if request["op"] == "stop":
            return {"ok": True}
        parties = {
            name: {
                "admin": str(self._settings(name).admin_socket),
                "port": self._brokers[name][0].port if name in self._brokers else None,
                "state": "running" if name in self._brokers else "locked",
            }
            for name in sorted(self._known)
        }
        control = {"id": self.world.plane.id, "url": self.world.url}
        return {
            "control": control,
            "node": {**CLAIM, "running": True},
            "notes": ["A note."],
            "ok": True,
            "parties": parties,
            "users": "single",
        }

    def _settings(self, name: str) -> Settings:
        return Settings(self.folder / "parties" / name, limits=Limits(heads_interval=3600.0, peer_seconds=30.0))

    def _start(self, name: str, part_of: str | None, passphrase: str, create: bool) -> int:
        if create and name in self._known:
            raise Misuse("party.exists", f"The party {name} exists already; use 'cloister org unlock {name}'.")
        secret = passphrase.encode()
        if create:
            create_home(self._settings(name), name, secret, part_of=part_of, clock=steady_clock(), params=CHEAP)
        running = RunningBroker(Broker.start(self._settings(name), secret))
        ready = threading.Event()
        thread = threading.Thread(target=running.run, args=(ready.set,))
        thread.start()
        assert ready.wait(120)
        self._brokers[name] = (running, thread)
        self._known.add(name)
        return running.port

    def lock(self, name: str) -> None:
        """Stop a party's broker, as after a restart of the machine."""
        running, thread = self._brokers.pop(name)
        running.stop()
        thread.join(120)
        self.home.close()
        self.home = Home(self.folder)

    def close(self) -> None:
        self.home.close()
        for name in list(self._brokers):
            self.lock(name)
        self.home.close()
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self._thread.join(10)
        self.world.close()


@contextmanager
def local_home(folder: Path) -> Iterator[LocalHome]:
    made = LocalHome(folder)
    try:
        yield made
    finally:
        made.close()


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


def rows(folder: Path) -> Path:
    (folder / "rows.csv").write_text("text,label\nhello,a\nbye,b\n")
    return folder / "rows.csv"


def model(folder: Path) -> Path:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "model.safetensors").write_bytes(b"w" * 1000)
    return folder / "model"


def proposed(local: LocalHome, name: str, **options: Any) -> Any:
    """A proposal of ``CONTRACT`` under another name."""
    text = CONTRACT.replace("name: intents", f"name: {name}", 1)
    return operations.new_contract(local.home, text, folder=local.folder, **options)


def agreed_on(local: LocalHome, name: str) -> Any:
    made = proposed(local, name)
    for party in ("hospital", "lab"):
        made = operations.sign_contract(local.home, made, party)
    return made
