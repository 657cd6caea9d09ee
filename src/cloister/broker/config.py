"""Where a broker lives and every limit that it enforces, in one place."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ..errors import Misuse
from ..keys import DriverConfig

__all__ = ["LIMITS", "Limits", "Settings", "parse_listen"]

_SOCKET_PATH = 107  # sockaddr_un holds 108 bytes with the final zero


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes and times in seconds, unless said otherwise."""

    body: int = 256 * 1024
    body_seconds: float = 10.0  # for the whole of one request's body to arrive
    header: int = 16 * 1024
    statements: int = 64  # status statements in one request
    nonce_seconds: int = 60
    session_seconds: int = 300
    sessions: int = 1024
    answers: int = 256  # resources that one session may fetch
    first_seconds: float = 10.0  # for the TLS handshake and the first request's header to arrive
    idle_seconds: float = 20.0  # between an answer and the next request's header
    connections: int = 512
    source_connections: int = 128  # of one address; a site's nodes may share one
    admin_connections: int = 64
    address_rate: float = 1000.0  # connections and requests a second from one address
    address_burst: float = 4000.0
    contract_rate: float = 500.0  # KBS requests a second under one contract
    contract_burst: float = 2000.0
    stock_rate: float = 20.0  # KBS requests a second from one address, of guests that have named no contract yet
    stock_burst: float = 100.0
    rate_names: int = 4096  # addresses, and contracts, whose requests are counted apart
    refusals_per_minute: int = 30  # log entries a contract and stage; the rest is counted
    stranger_refusals: int = 6  # log entries a minute about requests that no known contract stands behind
    refusal_buckets: int = 32  # of contracts and stages that are counted apart
    peer_seconds: float = 3.0  # for one exchange with a peer
    peer_answer: int = 512 * 1024
    token_seconds: int = 300
    entries_page: int = 256  # log entries in one admin answer
    heads_interval: float = 1.0  # between pushes of the own log's head
    rewrap_batch: int = 256  # data keys that one log entry of a rotation tells of
    start_rewraps: int = 1024  # data keys that are wrapped anew before a broker serves; the rest follows meanwhile
    keeper_interval: float = 30.0  # between looks at what is due: rotations and expiries
    expiry_notice: float = 3600.0  # an asset is shredded when it has been seen to be overdue for so long
    clock_jump: float = 600.0  # by how much the clock may run ahead of the time since the machine's start
    clock_gap: float = 2_592_000.0  # by how much the clock may be ahead of the log's newest entry at start
    gap_notice: float = 86_400.0  # so long nothing expires after a start with a wider gap
    database_seconds: float = 10.0  # to reach a shared database, to get a lock in it, to find out what it committed
    turn_seconds: float = 5.0  # a turn in which the database hears nothing for so long is over: others go on
    notices_interval: float = 30.0  # between rounds of telling and asking about revocations while the log rests


LIMITS = Limits()


@dataclass(frozen=True)
class Settings:
    """One broker process. ``home`` holds vault, card and admin socket, and state and log unless replicas share a
    database. It belongs to its user alone."""

    home: Path
    host: str = "127.0.0.1"
    port: int = 0
    allow_insecure_attester: bool = False
    # What keeps the KEKs. It comes from whoever starts the broker: the vault's own file only has to agree.
    vault_driver: DriverConfig = field(default_factory=DriverConfig)
    limits: Limits = field(default=LIMITS)
    # A file with the URL of the PostgreSQL that replicas share. None: state and log lie in the home.
    database: Path | None = None
    # Seconds for which collateral counts after its own end, where the owner would rather bridge a vendor's outage.
    collateral_grace: int = 0
    # Whether to ask the vendors for collateral, in the background. Nothing is fetched unless the owner wants it.
    fetch_collateral: bool = False
    # A file that pins verifiers whose results this broker takes. None: nobody's but its own.
    external_verifiers: Path | None = None
    # Whether guests without our parameters are served, too, under contracts that allow it.
    stock_guests: bool = False

    @property
    def vault(self) -> Path:
        return self.home / "vault.json"

    @property
    def card(self) -> Path:
        return self.home / "card.json"

    @property
    def state(self) -> Path:
        return self.home / "state.db"

    @property
    def collateral(self) -> Path:
        return self.home / "collateral"

    @property
    def log(self) -> Path:
        return self.home / "log"

    @property
    def admin_socket(self) -> Path:
        """Raises Misuse where the path is too long for a Unix socket."""
        path = self.home / "run" / "admin.sock"
        if len(str(path).encode()) > _SOCKET_PATH:
            raise Misuse("broker.path", "The broker's folder has too long a path for a Unix socket; use a shorter one.")
        return path


def parse_listen(text: str) -> tuple[str, int]:
    """``127.0.0.1:PORT``. Misuse for anything that is not a numeric loopback or interface address with a port."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise Misuse("broker.listen", "Give the address to listen on as ADDRESS:PORT, for example 127.0.0.1:0.")
    return host, int(port)
