"""``cloister up``: every part on one machine, each as its own user where that is possible.

This is a composition root for evaluation and small sites: it starts the processes that a real deployment would
start on different machines, with the same programs, keys and protocols. It never holds a party's key; a party's
passphrase passes through it to the party's broker, once, over a pipe.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

from ..crypto import SigningKey
from ..errors import CloisterError, Misuse
from ..fields import party_name
from ..node.attesters import ATTESTERS, GPUS
from ..node.image import build_image, image_stamp
from ..node.uids import allocate_uid, who_can_traverse
from .brokers import broker_arguments, broker_secrets
from .nodes import is_hardware, node_arguments, node_choice, node_folder
from .processes import Part, PartProcess
from .storage import DEFAULT_CACHE_MIB, store_arguments, store_choice, store_credentials
from .supervisor_socket import serve

__all__ = ["Supervisor", "main", "serve"]

_MIGRATION_SECONDS = 3600.0  # every entry of a log is copied and compared
_RESTARTS = 3  # of one part; then something is wrong that starting again does not mend


class Supervisor:
    """Starts, watches and stops the parts. State that must survive lies in ``supervisor.json``."""

    def __init__(
        self,
        home: Path,
        *,
        separate_users: bool,
        objects: dict[str, Any] | None = None,
        node: dict[str, Any] | None = None,
    ) -> None:
        """``objects``: a store's ``url``, ``credentials`` (a path or None) and ``cache_mib``. ``node``: what vouches
        for the node, as of ``nodes.node_choice``. None keeps the last of each."""
        self._home = home
        self._separate = separate_users
        self._state_file = home / "supervisor.json"
        self._state: dict[str, Any] = {"ports": {}, "parties": {}, "node_key": secrets.token_hex(32)}
        if self._state_file.exists():
            self._state = json.loads(self._state_file.read_text())
        self._objects = objects or self._state.get("objects")
        self._node = node or self._state.get("node")
        self._parts: dict[str, PartProcess] = {}
        self._restarts: dict[str, int] = {}

    # --- parts ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Control plane and node. Raises the part's own error when one does not come up."""
        node_key = SigningKey(bytes.fromhex(self._state["node_key"]))
        control: tuple[str, ...] = ("--home", str(self._folder("control")), "--listen", self._listen("control"))
        control = (*control, "--node-key", node_key.public.hex(), *store_arguments(self._objects))
        self._start("control", "cloister.control", control)
        self._state["objects"] = self._objects  # only now: a store that did not open is not remembered
        self._save()
        image = self._image()
        # A chip's devices and configfs are root's: such a node is whoever started Cloister, its sandboxes never are.
        folder = self._folder(node_folder(self._node), "node")
        node = ("--home", str(folder), "--control", self._url(), "--image", str(image))
        self._start("node", "cloister.node", (*node, *node_arguments(self._node)))
        self._state["node"] = self._node  # only now: what this machine doesn't have is not remembered
        self._save()

    def start_party(
        self,
        name: str,
        part_of: str | None,
        passphrase: str,
        *,
        create: bool,
        vault: dict[str, Any] | None = None,
        database: str | None = None,
        switches: dict[str, bool] | None = None,
    ) -> int:
        """A party's broker; returns its port. ``vault`` names what keeps its KEKs (a driver's ``name`` and
        ``options``), None what kept them last: the passphrase goes where that points, so it never comes from the vault
        file. ``database``: the path of the file with the URL of the PostgreSQL for its record; None keeps the last.
        ``switches``: those of the broker (``brokers.SWITCHES``); each that is left out is as it was last."""
        role = f"party/{party_name(name)}"
        exists = (self._home / "parties" / name / "vault.json").exists()
        if create and exists:
            raise Misuse("party.exists", f"The party {name} exists already; use 'cloister org unlock {name}'.")
        if not create and not exists:
            raise Misuse("party.unknown", f"There is no party {name} here; use 'cloister org create {name}'.")
        if self._running(role):
            raise Misuse("party.running", f"The broker of {name} is already running.")
        known = self._state["parties"].get(name, {})
        vault, database = vault or known.get("vault"), database or self._database(name)
        more = (*(("--init", name) if create else ()), *(("--part-of", part_of) if create and part_of else ()))
        switches = {**known.get("switches", {}), **(switches or {})}
        more = (*more, *broker_arguments(vault, database, switches))
        self._start(role, *self._broker(name, more), secret=broker_secrets(passphrase, database))
        kept = {"database": database, "part_of": part_of or known.get("part_of"), "vault": vault}
        kept["switches"] = switches
        self._state["parties"][name] = {what: value for what, value in kept.items() if value or what == "part_of"}
        self._save()
        return int(self._listen(role).rpartition(":")[2])

    def migrate_party(self, name: str, passphrase: str, database: str) -> dict[str, Any]:
        """Move a locked party's record from its home into the empty database of the URL in the file ``database``, and
        start its broker there. Returns what was moved, and the port. Nothing else is answered meanwhile.

        Where it goes is noted before it begins: if this process is killed in the middle, the party is unlocked where
        its record then lies."""
        role, known = f"party/{party_name(name)}", self._state["parties"].get(name)
        if known is None:
            raise Misuse("party.unknown", f"There is no party {name} here; use 'cloister org create {name}'.")
        if self._database(name):
            raise Misuse(
                "migration.done", f"The record of {name} lies in a database already; use 'cloister org unlock {name}'."
            )
        if self._running(role):
            raise Misuse(
                "party.running",
                f"The broker of {name} is running; run 'cloister down' and 'cloister up', then move it, still locked.",
            )
        module, arguments = self._broker(name, ("--migrate", *broker_arguments(known.get("vault"), database)))
        part = Part(role, module, arguments, allocate_uid(self._home, role) if self._separate else None)
        secret = broker_secrets(passphrase, database)
        known["moving"] = database
        self._save()
        moving = PartProcess.start(part, self._home, secret=secret, seconds=_MIGRATION_SECONDS)
        moving.process.wait()  # what it said was its last
        moving.stop()
        known["database"] = known.pop("moving")  # from now on there is nothing in the home that it could start from
        self._save()
        return {**moving.claims, "port": self.start_party(name, None, passphrase, create=False)}

    def _database(self, name: str) -> str | None:
        """The file with the URL of the database where a party's record lies; None for one in its home. A move that was
        begun is over once the home's own record is set aside, also where nobody lived to hear of that."""
        known, place = self._state["parties"].get(name, {}), self._home / "parties" / name
        moved = known.get("moving") and not any((place / own).exists() for own in ("state.db", "log"))
        found: str | None = known["moving"] if moved else known.get("database")
        return found

    def _broker(self, name: str, more: tuple[str, ...]) -> tuple[str, tuple[str, ...]]:
        """Module and arguments of a party's broker; its folder is made."""
        (self._home / "parties").mkdir(mode=0o711, exist_ok=True)
        role = f"party/{name}"
        place = ("--home", str(self._folder(f"parties/{name}", role)), "--listen", self._listen(role))
        return "cloister.broker", (*place, *more)

    def watch(self) -> None:
        """Start control plane and node again if they ended. A broker needs its passphrase, so its owner starts it."""
        for name in ("control", "node"):
            if not self._running(name) and self._restarts.get(name, 0) < _RESTARTS:
                self._restarts[name] = self._restarts.get(name, 0) + 1
                part = self._parts[name].part
                print(f"{time.strftime('%FT%T')} the part {name} ended; starting it again", file=sys.stderr, flush=True)
                try:
                    self._start(name, part.module, part.arguments)
                except CloisterError as fault:
                    print(f"{time.strftime('%FT%T')} {fault.message}", file=sys.stderr, flush=True)

    def status(self) -> dict[str, Any]:
        """What runs, and what this way of running costs."""
        parties = {
            name: {
                "admin": str(self._home / "parties" / name / "run" / "admin.sock"),
                "port": self._state["ports"].get(f"party/{name}"),
                "state": "running" if self._running(f"party/{name}") else "locked",
                "switches": sorted(what for what, on in known.get("switches", {}).items() if on),
            }
            for name, known in self._state["parties"].items()
        }
        return {
            "control": {**self._claims("control"), "url": self._url()},
            "node": {**self._claims("node"), "chosen": self._node},
            "notes": self._notes(),
            "ok": True,
            "parties": parties,
            "pid": os.getpid(),
            "users": "separate" if self._separate else "single",
        }

    def stop(self) -> None:
        """Node first, so that no job outlives the brokers it depends on."""
        for name in sorted(self._parts, key=lambda n: n != "node"):
            self._parts[name].stop()

    def _notes(self) -> list[str]:
        notes = ["All parts share this machine: its administrator could read the memory of each of them."]
        if not self._separate:
            notes.append(
                "All parts run as one user, so a break-in into one part reaches the others' files; "
                "start as root to give each its own user."
            )
        return notes

    def _claims(self, name: str) -> dict[str, Any]:
        claims = self._parts[name].claims if name in self._parts else {}
        return {**claims, "running": self._running(name)}

    # --- where things are -------------------------------------------------------------------------------------

    def _start(self, name: str, module: str, arguments: tuple[str, ...], *, secret: str | None = None) -> None:
        uid = allocate_uid(self._home, name) if self._is_apart(name) else None
        # The node's key to sign requests with also goes through the pipe.
        given = self._state["node_key"] if name == "node" else secret
        if name == "control":
            # Read anew at each start: who replaced the store's keys only starts again.
            given = store_credentials(self._objects)
        self._parts[name] = PartProcess.start(Part(name, module, arguments, uid), self._home, secret=given)

    def _image(self) -> Path:
        """The workload's image, built from what is installed; kept while that does not change. What is in it when a
        job starts is measured then, so a kept image that was tampered with gets no keys."""
        image, stamp = self._home / "image", image_stamp()
        if not image.is_dir() or self._state.get("image") != stamp:
            shutil.rmtree(image, ignore_errors=True)
            build_image(image)
            self._state["image"] = stamp
            self._save()
        return image

    def _folder(self, relative: str, role: str | None = None) -> Path:
        """A part's own folder. Only the folder itself changes hands: what a part put into it may be a trap."""
        folder = self._home / relative
        folder.mkdir(mode=0o700, exist_ok=True)
        uid = allocate_uid(self._home, role or relative) if self._is_apart(role or relative) else os.geteuid()
        if folder.stat().st_uid != uid:
            if any(folder.iterdir()):
                raise Misuse(
                    "home.owner",
                    f"The folder {folder} belongs to another user; start Cloister as it was started before.",
                )
            os.chown(folder, uid, uid)
        return folder

    def _is_apart(self, role: str) -> bool:
        """Whether a part has a user of its own."""
        return self._separate and not (role == "node" and is_hardware(self._node))

    def _url(self) -> str:
        return f"http://{self._listen('control')}"

    def _listen(self, name: str) -> str:
        """A loopback address that stays the same over restarts."""
        ports = self._state["ports"]
        if name not in ports:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                ports[name] = probe.getsockname()[1]
            self._save()
        return f"127.0.0.1:{ports[name]}"

    def _running(self, name: str) -> bool:
        return name in self._parts and self._parts[name].running

    def _save(self) -> None:
        draft = self._state_file.with_suffix(".draft")
        draft.touch(mode=0o600)
        with draft.open("w") as file:
            file.write(json.dumps(self._state, indent=1, sort_keys=True))
            file.flush()
            os.fsync(file.fileno())  # an empty file after a loss of power would have forgotten where records lie
        draft.rename(self._state_file)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run in the foreground; prints one JSON line when everything is up."""
    parser = argparse.ArgumentParser(prog="python -m cloister.control.embedded")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--single-user", action="store_true")
    parser.add_argument("--objects", help="where objects lie: s3://bucket/prefix; else in the home")
    parser.add_argument("--objects-credentials", type=Path, help="file of the store's credentials, mode 0600")
    parser.add_argument("--objects-cache", type=int, default=DEFAULT_CACHE_MIB, help="MiB of ciphertext kept here")
    parser.add_argument("--attester", choices=ATTESTERS, help="what vouches for the node; see cloister.node")
    parser.add_argument("--tpm", metavar="TCTI", help="where the node's TPM is")
    parser.add_argument("--gpus", choices=GPUS, help="attest the guest's GPUs beside it")
    options = parser.parse_args()
    home: Path = options.home.absolute()
    separate = os.geteuid() == 0 and not options.single_user
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o711 if os.geteuid() == 0 else 0o700)  # the sandbox has a user of its own in either case
        if separate:
            uid = allocate_uid(home, "control")
            for path in (home, Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parent):
                who_can_traverse(path, uid, uid)
        objects, node = store_choice(options), node_choice(options)
        supervisor = Supervisor(home, separate_users=separate, objects=objects, node=node)
        try:
            supervisor.start()
            print(json.dumps({"ready": True, **supervisor.status()}), flush=True)
            serve(supervisor, home / "supervisor.sock")
        except KeyboardInterrupt:
            (home / "supervisor.sock").unlink(missing_ok=True)
        finally:
            supervisor.stop()
    except CloisterError as fault:
        print(json.dumps({"error": fault.to_wire(), "ready": False}), flush=True)
        return fault.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
