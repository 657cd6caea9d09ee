"""``python -m cloister.node --home DIR --control URL --image DIR``: the node agent of one machine."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from ..crypto import SigningKey, parse_json, sha256
from ..errors import CloisterError, Misuse
from .agent import Agent
from .attesters import ATTESTERS, DEVICE, GPUS, Choice, choose, open_attester
from .control_link import ControlLink
from .enrolment import prove_document, request_document
from .launcher import Launcher, image_measurement
from .measure import TreeEntry, tree_digest
from .uids import allocate_uid

__all__ = ["main"]


def main() -> int:
    """Print one JSON line: ready with what this node claims of itself, or why not; then serve until SIGTERM."""
    os.umask(0o077)
    parser = argparse.ArgumentParser(prog="python -m cloister.node")
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--control")
    parser.add_argument("--image", type=Path)
    parser.add_argument(
        "--attester",
        choices=ATTESTERS,
        help="what vouches for this node: swtpm (a software TPM, insecure: level none; the default unless --tpm names "
        "another), tpm (the machine's), or tsm (a SEV-SNP or TDX guest, through Linux' configfs-tsm)",
    )
    parser.add_argument("--tpm", metavar="TCTI", help=f"where the TPM is: swtpm, or a TCTI such as {DEVICE}")
    parser.add_argument("--gpus", choices=GPUS, help="attest this guest's GPUs beside it, all of them for each sandbox")
    parser.add_argument("--enrolment", action="store_true", help="print the TPM's enrolment request, and end")
    parser.add_argument("--prove", type=Path, metavar="FILE", help="print the proof for an owner's challenge, and end")
    options = parser.parse_args()
    try:
        state = options.home.absolute() / "tpm"
        choice = choose(options.attester, options.tpm, options.gpus)
        if options.enrolment or options.prove is not None:
            print(json.dumps(_enrolment(choice, state, options.prove)), flush=True)
            return 0
        if options.control is None or options.image is None:
            raise Misuse("node.arguments", "Give --control and --image, or one of --enrolment and --prove.")
        _serve(options.home.absolute(), options.control, options.image.absolute(), choice)
    except CloisterError as fault:
        print(json.dumps({"error": fault.to_wire(), "ready": False}), flush=True)
        return fault.exit_code
    return 0


def _enrolment(choice: Choice, state: Path, challenge: Path | None) -> dict[str, Any]:
    if choice.attester == "tsm":
        raise Misuse("node.enrolment", "A confidential guest is not enrolled: its maker's certificates speak for it.")
    if challenge is None:
        return request_document(choice.tcti, state)
    return prove_document(choice.tcti, state, _read_challenge(challenge))


def _serve(home: Path, control: str, image: Path, choice: Choice) -> None:
    key = _read_key()
    with open_attester(choice, home / "tpm", _own_measurement()) as opened:
        link = ControlLink(control, key)
        claims = {
            "agent": opened.agent,
            "attester": opened.attester.attester_id,
            "hardware": opened.hardware,
            "level": "none",  # nobody has verified anything yet; each owner's broker does
            "measurement": image_measurement(image).hex(),
        }
        link.post("/v1/node/hello", claims)
        # The sandbox never runs as root; an agent that is root starts it as a user of its own.
        run_as = (allocate_uid(home, "sandbox"),) * 2 if os.geteuid() == 0 else None
        agent = Agent(home, link, Launcher(image, opened.attester, run_as=run_as))
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: _stop(stop))
        print(json.dumps({"ready": True, **claims}), flush=True)
        agent.serve(stop.is_set)


def _own_measurement() -> bytes:
    """This agent's source, 32 bytes. Compiled files are left out: they come and go, and whoever could plant one
    could replace the interpreter too. What vouches for the agent is measured boot, where there is any."""
    root = Path(__file__).resolve().parents[1]
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.py"))
    return tree_digest(tuple(TreeEntry(name, "f", sha256((root / name).read_bytes())) for name in files))


def _stop(stop: threading.Event) -> None:
    stop.set()
    raise SystemExit(0)  # out of a long poll or a running job; sandboxes die with this process


def _read_challenge(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes()[: 64 * 1024])
    except OSError as error:
        raise Misuse("node.challenge", f"The challenge can't be read: {error.strerror}.") from None


def _read_key() -> SigningKey:
    """The node's request-signing seed, from standard input: never argv, environment or disk."""
    line = sys.stdin.readline().strip()
    try:
        return SigningKey(bytes.fromhex(line))
    except ValueError:
        raise Misuse("node.key", "Give the node's signing seed as one line of hex on standard input.") from None


if __name__ == "__main__":
    sys.exit(main())
