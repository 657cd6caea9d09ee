"""One real broker in this process, with its home, its clock and the means to look inside. See ``broker_world``."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloister.attestation import Verifier
from cloister.attestation.guests import GuestJudge
from cloister.attestation.insecure import InsecureAttestationWarning, InsecureAttester, InsecureVerifier
from cloister.audit import Facts, parse_event
from cloister.broker import Broker, Limits, Settings, create_home
from cloister.contracts import Terms, parse_recipe
from cloister.crypto import Argon2Params, SigningKey, random_bytes
from cloister.errors import Unavailable
from cloister.sealed import Sealed, SealIdentity, seal_object

NOW = 1_790_000_000
PASSPHRASE = b"correct horse battery"
CHEAP = Argon2Params(8 * 1024, 1, 1)
TERMS = Terms(("CC-BY-4.0",), "confidential", ("metrics", "adapter"))
MEASUREMENT, AGENT = b"\xaa" * 32, b"\xbb" * 32
OUTPUT = "hospital/queries-adapter"
LEASE = 30


def recipe(**changes: Any) -> dict[str, Any]:
    return {
        "task": "classification",
        "method": "lora",
        "data": "hospital/queries",
        "base": "lab/minilm",
        "columns": {"text": "text", "label": "category"},
        **changes,
    }


def recipe_document(**changes: Any) -> dict[str, Any]:
    """As a client sends it to its broker."""
    return parse_recipe(recipe(**changes)).to_document()


class FakeClock:
    """Time that only tests move."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> int:
        return self.now

    def pass_seconds(self, seconds: int) -> None:
        self.now += seconds


def insecure_judges() -> Mapping[str, Verifier]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureAttestationWarning)
        return {"insecure": InsecureVerifier()}


def insecure_attester(key: SigningKey | None = None, agent: bytes = AGENT) -> InsecureAttester:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", InsecureAttestationWarning)
        return InsecureAttester(key or SigningKey(b"attester".ljust(32, b".")), agent)


@dataclass
class Party:
    """One broker, its home, and how to start it again."""

    name: str
    home: Path
    clock: FakeClock
    judges: Mapping[str, Verifier]
    limits: Limits = field(default_factory=lambda: Limits(heads_interval=3600.0, peer_seconds=30.0))
    # Of guests that speak plain KBS; None: the owner has not switched them on.
    guests: Mapping[str, GuestJudge] | None = None
    broker: Broker = field(init=False)

    def __post_init__(self) -> None:
        if not self.home.exists():
            create_home(self.settings, self.name, PASSPHRASE, part_of=None, clock=self.clock, params=CHEAP)
        self.start()

    @property
    def settings(self) -> Settings:
        return Settings(self.home, limits=self.limits, stock_guests=self.guests is not None)

    def start(self) -> Broker:
        self.broker = Broker.start(self.settings, PASSPHRASE, clock=self.clock, judges=self.judges, guests=self.guests)
        return self.broker

    def restart(self) -> Broker:
        self.broker.close()
        return self.start()

    def log(self) -> list[Facts]:
        log = self.broker.core.ledger.log
        with suppress(Unavailable):  # a log that can't be written still shows what it has
            log.settle()
        return [parse_event(entry) for entry in log.entries(0, log.size)]

    def kinds(self) -> list[str]:
        return [facts.kind for facts in self.log()]

    def revision(self) -> int:
        return self.broker.core.ledger.state.progress().revision

    def tables(self) -> dict[str, Any]:
        """Everything that is logged state: what must not change when something is refused."""
        names = ("facts", "pins", "contracts", "jobs", "instances", "permits", "assets", "holds", "tasks")
        return {name: self.broker.core.ledger.state.rows(name) for name in names}

    def seal(self, folder: Path, name: str, asset_class: str, *, content: bytes = b"rows", terms: Any = None) -> Sealed:
        following = self.broker.core.assets.next(name)
        dek = random_bytes(32)
        previous = following["previous"]
        return seal_object(
            [("file.bin", io.BytesIO(content))],
            folder,
            dek=dek,
            identity=SealIdentity(
                owner=self.name,
                asset_id=bytes.fromhex(following["asset_id"]),
                name=name,
                version=following["version"],
                asset_class=asset_class,
                created=self.clock(),
                previous=None if previous is None else bytes.fromhex(previous),
            ),
            sign=lambda _, payload: self.broker.core.assets.seal(payload, dek),
            terms={"terms": (terms or TERMS).document()},
        )
