"""``cloister up``: every part on one machine, each as its own user where that is possible.

This is a composition root for evaluation and small sites: it starts the processes that a real deployment would
start on different machines, with the same programs, keys and protocols. It never sees a key; a party's
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
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from ..crypto import SigningKey, parse_json
from ..errors import CloisterError, Malformed, Misuse, Unavailable, error_from_wire
from ..fields import Fields, party_name
from ..node.image import build_image
from ..node.uids import allocate_uid, who_can_traverse

__all__ = ["Supervisor", "main"]

_READY_SECONDS = 120
_LINE_LIMIT = 64 * 1024


class Supervisor:
    """Starts, watches and stops the parts. State that must survive lies in ``supervisor.json``."""

    def __init__(self, home: Path, *, separate_users: bool) -> None:
        self._home = home
        self._separate = separate_users
        self._state_file = home / "supervisor.json"
        self._state: dict[str, Any] = {"ports": {}, "parties": {}, "node_key": secrets.token_hex(32)}
        if self._state_file.exists():
            self._state = json.loads(self._state_file.read_text())
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._ready: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    # --- parts ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Control plane and node. Raises the part's own error when one does not come up."""
        node_key = SigningKey(bytes.fromhex(self._state["node_key"]))
        control = ["--home", str(self._folder("control")), "--listen", self._listen("control")]
        self._spawn("control", "cloister.control", [*control, "--node-key", node_key.public.hex()])
        url = f"http://{self._listen('control')}"
        node = ["--home", str(self._folder("node")), "--control", url, "--image", str(self._image())]
        self._spawn("node", "cloister.node", node, secret=self._state["node_key"])

    def start_party(self, name: str, part_of: str | None, passphrase: str, *, create: bool) -> int:
        """A party's broker; returns its port."""
        folder = self._folder(f"parties/{party_name(name)}")
        if create and (folder / "vault.json").exists():
            raise Misuse("party.exists", f"The party {name} exists already; use 'cloister org unlock {name}'.")
        if not create and not (folder / "vault.json").exists():
            raise Misuse("party.unknown", f"There is no party {name} here; use 'cloister org create {name}'.")
        if self._running(f"party/{name}"):
            raise Misuse("party.running", f"The broker of {name} is already running.")
        listen = self._listen(f"party/{name}")
        arguments = ["--home", str(folder), "--listen", listen]
        if create:
            arguments += ["--init", name, *(["--part-of", part_of] if part_of else [])]
        self._spawn(f"party/{name}", "cloister.broker", arguments, secret=passphrase)
        self._state["parties"][name] = {"part_of": part_of}
        self._save()
        return int(listen.rpartition(":")[2])

    def status(self) -> dict[str, Any]:
        """What runs, and what this way of running costs."""
        parties = {
            name: {
                "admin": str(self._home / "parties" / name / "run" / "admin.sock"),
                "port": self._state["ports"].get(f"party/{name}"),
                "state": "running" if self._running(f"party/{name}") else "locked",
            }
            for name in self._state["parties"]
        }
        return {
            "control": {
                **self._ready.get("control", {}),
                "running": self._running("control"),
                "url": f"http://{self._listen('control')}",
            },
            "node": {**self._ready.get("node", {}), "running": self._running("node")},
            "notes": self._notes(),
            "ok": True,
            "parties": parties,
            "pid": os.getpid(),
            "users": "separate" if self._separate else "single",
        }

    def _notes(self) -> list[str]:
        notes = ["All parts share this machine: its administrator could read the memory of each of them."]
        if not self._separate:
            notes.append(
                "All parts run as one user, so a break-in into one part reaches the others' files; "
                "start as root to give each its own user."
            )
        return notes

    def stop(self) -> None:
        """Node first, so that no job outlives the brokers it depends on."""
        for name in sorted(self._processes, key=lambda n: n != "node"):
            process = self._processes[name]
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(timeout=15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()

    # --- starting one -----------------------------------------------------------------------------------------

    def _spawn(self, name: str, module: str, arguments: list[str], *, secret: str | None = None) -> None:
        command = [sys.executable, "-m", module, *arguments]
        identity: dict[str, Any] = {}
        if self._separate:
            uid = self._uid(name)
            identity = {"user": uid, "group": uid, "extra_groups": []}
        log_name = name.replace("/", "-")
        with (self._home / f"{log_name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=_environment(self._home),
                start_new_session=True,
                umask=0o077,
                **identity,
            )
        assert process.stdin is not None
        if secret is not None:
            process.stdin.write(secret.encode() + b"\n")  # a pipe: never argv, environment or disk
        process.stdin.close()
        self._ready[name] = _await_ready(name, process)
        self._processes[name] = process

    def _image(self) -> Path:
        """The workload's image, built anew from what is installed: the same files measure the same."""
        image = self._home / "image"
        shutil.rmtree(image, ignore_errors=True)
        return build_image(image)

    def _folder(self, relative: str) -> Path:
        folder = self._home / relative
        folder.mkdir(parents=True, exist_ok=True)
        if self._separate:
            uid = self._uid(relative.replace("parties/", "party/"))
            for path in (folder, *folder.rglob("*")):
                os.chown(path, uid, uid, follow_symlinks=False)
        folder.chmod(0o700)
        return folder

    def _uid(self, name: str) -> int:
        return allocate_uid(self._home, name)

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
        process = self._processes.get(name)
        return process is not None and process.poll() is None

    def _save(self) -> None:
        draft = self._state_file.with_suffix(".draft")
        draft.write_text(json.dumps(self._state, indent=1, sort_keys=True))
        draft.chmod(0o600)
        draft.rename(self._state_file)

    # --- its socket -------------------------------------------------------------------------------------------

    def serve(self, path: Path) -> None:
        """Answer one JSON line per connection until asked to stop. Only this user (and root) may connect."""
        path.unlink(missing_ok=True)
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        server.bind(str(path))
        path.chmod(0o600)
        server.listen(16)
        stopping = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: _wake(path, stopping))
        signal.signal(signal.SIGINT, lambda *_: _wake(path, stopping))
        while not stopping.is_set():
            connection, _ = server.accept()
            with connection:
                connection.settimeout(10)
                self._answer(connection, stopping)
        path.unlink(missing_ok=True)

    def _answer(self, connection: socket.socket, stopping: threading.Event) -> None:
        try:
            answer = self._act(_read_line(connection), stopping)
        except CloisterError as fault:
            answer = {"error": fault.to_wire(), "ok": False}
        try:
            connection.sendall(json.dumps(answer).encode() + b"\n")
        except OSError as gone:
            print(f"a client left before its answer: {gone}", file=sys.stderr)

    def _act(self, line: bytes, stopping: threading.Event) -> dict[str, Any]:
        f = Fields(parse_json(line), "supervisor request")
        op = f.text("op", choices=("status", "start-party", "stop"))
        if op == "stop":
            stopping.set()
            return {"ok": True}
        if op == "start-party":
            part_of = None if f.raw("part_of", optional=True) is None else f.party("part_of")
            with self._lock:
                port = self.start_party(f.party("name"), part_of, f.text("passphrase"), create=f.boolean("create"))
            return {"ok": True, "port": port}
        return self.status()


def _wake(path: Path, stopping: threading.Event) -> None:
    stopping.set()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as poke:
        poke.connect(str(path))


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


def _environment(home: Path) -> dict[str, str]:
    """What a part needs and no more; in particular nothing of the caller's own environment."""
    return {
        "HOME": str(home),
        "LANG": "C.UTF-8",
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }


def _await_ready(name: str, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The part's one JSON line on stdout."""
    lines: list[bytes] = []
    assert process.stdout is not None
    reader = threading.Thread(target=lambda: lines.append(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
    reader.start()
    reader.join(_READY_SECONDS)
    if not lines or not lines[0].strip():
        process.kill()
        process.wait()
        raise Unavailable(
            "embedded.start", f"The {name} process did not start; its log is {name.replace('/', '-')}.log."
        )
    answer = parse_json(lines[0], limit=_LINE_LIMIT)
    if not isinstance(answer, dict) or answer.get("ready") is not True:
        process.wait()
        raise error_from_wire(answer.get("error") if isinstance(answer, dict) else None)
    return {k: v for k, v in answer.items() if k != "ready"}


def main() -> int:
    """Run in the foreground; prints one JSON line when everything is up."""
    parser = argparse.ArgumentParser(prog="python -m cloister.control.embedded")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--single-user", action="store_true")
    options = parser.parse_args()
    home: Path = options.home.absolute()
    separate = os.geteuid() == 0 and not options.single_user
    try:
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o711 if separate else 0o700)
        if separate:
            uid = allocate_uid(home, "control")
            for path in (home, Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parent):
                who_can_traverse(path, uid, uid)
        supervisor = Supervisor(home, separate_users=separate)
        try:
            supervisor.start()
            print(json.dumps({"ready": True, **supervisor.status()}), flush=True)
            supervisor.serve(home / "supervisor.sock")
        finally:
            supervisor.stop()
    except CloisterError as fault:
        print(json.dumps({"error": fault.to_wire(), "ready": False}), flush=True)
        return fault.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
