"""The home folder: where the parts of one machine live, and how to reach each of them."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..crypto import canonical_json, parse_json
from ..errors import Malformed, Misuse, Unavailable, error_from_wire
from ..keys import DriverConfig
from .agent import OwnerAgent
from .control import ControlClient

__all__ = ["Home", "check_owner", "default_home"]

_LINE = 1 << 20
_SECONDS = 180.0  # starting a party runs Argon2 and asks its peers
_MIGRATION_SECONDS = 3900.0  # longer than the supervisor gives it


def default_home(environment: Mapping[str, str] = os.environ) -> Path:
    """``$CLOISTER_HOME``, or /var/lib/cloister for root, or ~/.local/share/cloister."""
    if named := environment.get("CLOISTER_HOME"):
        return Path(named).absolute()
    return Path("/var/lib/cloister") if os.geteuid() == 0 else Path.home() / ".local" / "share" / "cloister"


def check_owner(path: Path) -> None:
    """Misuse for a home that somebody else made or may write to: they could answer in the supervisor's place, and be
    told passphrases. A home that isn't there yet is nobody's."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return
    except OSError:
        raise Misuse("home.folder", "The home folder can't be entered; choose another with --home.") from None
    if status.st_uid != os.geteuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise Misuse(
            "home.owner",
            f"The home folder {path} belongs to another user, or others may write to it; use one that is yours alone.",
        )


class Home:
    """One machine's parts, through the supervisor's owner-only socket. Raises Unavailable when it does not run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._agents: dict[str, OwnerAgent] = {}
        self._clients: dict[str, ControlClient] = {}

    @property
    def socket(self) -> Path:
        return self.path / "supervisor.sock"

    def ask(self, request: dict[str, Any], *, seconds: float = _SECONDS) -> dict[str, Any]:
        """One line to the supervisor, one line back. Raises its error, and Misuse for somebody else's home."""
        check_owner(self.path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(seconds)
            try:
                connection.connect(str(self.socket))
                connection.sendall(canonical_json(request) + b"\n")
                line = _read_line(connection)
            except TimeoutError:
                raise Unavailable("home.slow", "Cloister did not answer in time; look into supervisor.log.") from None
            except OSError:
                raise Unavailable("home.down", "Cloister is not running here; start it with 'cloister up'.") from None
        answer = parse_json(line, limit=_LINE)
        if not isinstance(answer, dict) or answer.get("ok") is not True:
            raise error_from_wire(answer.get("error") if isinstance(answer, dict) else None)
        return answer

    def status(self) -> dict[str, Any]:
        return self.ask({"op": "status"})

    def running(self) -> bool:
        try:
            self.status()
        except Unavailable:
            return False
        return True

    def start_party(
        self,
        name: str,
        passphrase: str,
        *,
        create: bool,
        part_of: str | None = None,
        vault: DriverConfig | None = None,
        database: Path | None = None,
        switches: Mapping[str, bool] | None = None,
    ) -> int:
        """Start a party's broker; returns its port. The passphrase crosses this socket once and is kept nowhere; of
        ``database``, the file with the URL of the PostgreSQL for its record, only the place does.
        ``switches``: see ``parties.broker_switches``."""
        request = {"create": create, "name": name, "op": "start-party", "part_of": part_of, "passphrase": passphrase}
        request["vault"] = None if vault is None else {"name": vault.name, "options": dict(vault.options)}
        request["database"] = None if database is None else _place(database)
        request["switches"] = dict(switches or {})
        return int(self.ask(request)["port"])

    def migrate_party(self, name: str, passphrase: str, database: Path) -> dict[str, Any]:
        """Move a locked party's record into a database, and start its broker there: ``aside``, ``entries``, ``rows``,
        ``port``. It takes as long as the log is; nothing else is answered meanwhile."""
        request = {"database": _place(database), "name": name, "op": "migrate-party", "passphrase": passphrase}
        return self.ask(request, seconds=_MIGRATION_SECONDS)

    def parties(self) -> dict[str, dict[str, Any]]:
        return dict(self.status()["parties"])

    def choose(self, named: str | None, *, among: tuple[str, ...] | None = None) -> str:
        """The party that acts: the named one, else the only one here (of ``among``, where given)."""
        parties = self.parties()
        if named is not None:
            if named not in parties:
                raise Misuse(
                    "party.unknown", f"There is no party {named} here; 'cloister org list' shows those there are."
                )
            return named
        here = sorted(p for p in parties if among is None or p in among)
        if not here:
            raise Misuse("party.none", "No party lives here; create one with 'cloister org create NAME'.")
        if len(here) > 1:
            raise Misuse("party.choose", f"Say for which party with --as: {', '.join(here)}.")
        return here[0]

    def agent(self, party: str) -> OwnerAgent:
        """The party's broker. Raises Misuse if there is none here, Unavailable while its vault is locked."""
        if party not in self._agents:
            known = self.parties().get(party)
            if known is None:
                raise Misuse(
                    "party.unknown", f"There is no party {party} here; 'cloister org list' shows those there are."
                )
            if known["state"] != "running":
                raise Unavailable("party.locked", f"The vault of {party} is locked; run 'cloister org unlock {party}'.")
            self._agents[party] = OwnerAgent(Path(known["admin"]), name=party)
        return self._agents[party]

    def running_agents(self) -> dict[str, OwnerAgent]:
        """Of every party here whose vault is open."""
        return {n: self.agent(n) for n, p in sorted(self.parties().items()) if p["state"] == "running"}

    def control(self, party: str | None = None) -> ControlClient:
        """The control plane, as ``party`` (None: unsigned, for ``info``)."""
        key = party or ""
        if key not in self._clients:
            url = str(self.status()["control"]["url"])
            self._clients[key] = ControlClient(url, None if party is None else self.agent(party))
        return self._clients[key]

    def close(self) -> None:
        for agent in self._agents.values():
            agent.close()
        for client in self._clients.values():
            client.close()


def _place(database: Path) -> str:
    """Where the file with the URL is. Raises Misuse for the URL itself, which must not become part of a message."""
    if str(database).startswith(("postgres:", "postgresql:")):
        raise Misuse(
            "home.database",
            "Name a file (0600) with the URL, not the URL: others see its password in an argument, so change it.",
        )
    return str(database.absolute())


def _read_line(connection: socket.socket) -> bytes:
    line = bytearray()
    while b"\n" not in line:
        part = connection.recv(65536)
        if not part or len(line) > _LINE:
            raise Malformed("home.answer", "Cloister's answer broke off; look into supervisor.log.")
        line += part
    return bytes(line.partition(b"\n")[0])
