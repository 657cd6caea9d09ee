"""The supervisor's own socket: one request of its owner, one answer."""

from __future__ import annotations

import json
import socket
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..crypto import parse_json
from ..errors import CloisterError, Internal, Malformed
from ..fields import Fields
from .brokers import read_switches, read_vault

if TYPE_CHECKING:
    from .embedded import Supervisor

__all__ = ["serve"]

_LINE_LIMIT = 64 * 1024
_WATCH_SECONDS = 2.0


def serve(supervisor: Supervisor, path: Path) -> None:
    """Answer one JSON line per connection until asked to stop. Only this user (and root) may connect."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        server.bind(str(path))
        path.chmod(0o600)
        server.listen(16)
        server.settimeout(_WATCH_SECONDS)
        stopping = False
        while not stopping:
            try:
                connection, _ = server.accept()
            except TimeoutError:
                supervisor.watch()
                continue
            with connection:
                connection.settimeout(10)
                stopping = _answer(supervisor, connection)
    path.unlink(missing_ok=True)


def _answer(supervisor: Supervisor, connection: socket.socket) -> bool:
    """Whether to stop."""
    stopping = False
    try:
        answer, stopping = _act(supervisor, _read_line(connection))
    except CloisterError as fault:
        answer = {"error": fault.to_wire(), "ok": False}
    except Exception as bug:  # noqa: BLE001  one request that nobody foresaw must not end every part of this machine
        where = traceback.extract_tb(bug.__traceback__)[-1]  # not the bug's own text: it may quote a passphrase
        print(f"bug: {type(bug).__name__} at {where.filename}:{where.lineno}", file=sys.stderr, flush=True)
        said = Internal("supervisor.bug", "This is a bug in Cloister; please report what supervisor.log says of it.")
        answer = {"error": said.to_wire(), "ok": False}
    try:
        connection.sendall(json.dumps(answer).encode() + b"\n")
    except OSError as gone:
        print(f"a client left before its answer: {gone}", file=sys.stderr, flush=True)
    return stopping


def _act(supervisor: Supervisor, line: bytes) -> tuple[dict[str, Any], bool]:
    f = Fields(parse_json(line), "supervisor request")
    op = f.text("op", choices=("status", "start-party", "migrate-party", "stop"))
    if op == "stop":
        return {"ok": True}, True
    if op == "start-party":
        part_of = None if f.raw("part_of", optional=True) is None else f.party("part_of")
        vault = None if f.raw("vault", optional=True) is None else read_vault(f.child("vault"))
        database = None if f.raw("database", optional=True) is None else f.text("database", limit=4096)
        switches = None if f.raw("switches", optional=True) is None else read_switches(f.child("switches"))
        port = supervisor.start_party(
            f.party("name"),
            part_of,
            f.text("passphrase"),
            create=f.boolean("create"),
            vault=vault,
            database=database,
            switches=switches,
        )
        return {"ok": True, "port": port}, False
    if op == "migrate-party":
        name, database = f.party("name"), f.text("database", limit=4096)
        return {"ok": True, **supervisor.migrate_party(name, f.text("passphrase"), database)}, False
    return supervisor.status(), False


def _read_line(connection: socket.socket) -> bytes:
    line = bytearray()
    while not line.endswith(b"\n"):
        try:
            part = connection.recv(4096)
        except OSError:
            raise Malformed("supervisor.line", "The request broke off.") from None
        if not part or len(line) > _LINE_LIMIT:
            raise Malformed("supervisor.line", "The request is not one line of JSON.")
        line += part
    return bytes(line)
