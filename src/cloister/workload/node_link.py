"""The one socket out of the sandbox. What comes through it is untrusted: TLS to the brokers ends in this process."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from pathlib import Path
from typing import Any

from ..crypto import parse_json
from ..deadlines import hung_up_at
from ..errors import CloisterError, Unavailable, error_from_wire

__all__ = ["NodeLink"]

_LINE_LIMIT = 256 * 1024
_TIMEOUT = 30.0
_EXCHANGE = 60.0  # seconds until an answer's last byte: evidence of many devices takes its time


class NodeLink:
    """Asks the node agent for tunnels, evidence, and the passing-on of telemetry."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def tunnel(self, party: str) -> socket.socket:
        """A raw byte tunnel to ``party``'s broker. Raises Unavailable if the node can't reach it."""
        sock, _ = self._ask({"op": "connect", "party": party})
        return sock

    def evidence(self, nonce: str, tee_pubkey: dict[str, str]) -> dict[str, Any]:
        """Evidence that the node's attester made for this very sandbox: tee, primary_evidence, additional_evidence."""
        sock, answer = self._ask({"op": "evidence", "nonce": nonce, "tee-pubkey": tee_pubkey})
        sock.close()
        return answer

    def stock_evidence(self, nonce: str, tee_pubkey: dict[str, str], algorithm: str) -> dict[str, Any]:
        """Evidence about this node's whole guest, for a stock attestation service; fields as those of ``evidence``."""
        request = {"op": "stock-evidence", "nonce": nonce, "tee-pubkey": tee_pubkey, "hash": algorithm}
        sock, answer = self._ask(request)
        sock.close()
        return answer

    def telemetry(self, event: dict[str, Any]) -> None:
        """Hand an already filtered event to the operator. A node that refuses or doesn't listen can't stop the job."""
        with contextlib.suppress(CloisterError):
            sock, _ = self._ask({"op": "telemetry", "event": event})
            sock.close()

    def _ask(self, request: dict[str, Any]) -> tuple[socket.socket, dict[str, Any]]:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(_TIMEOUT)
            sock.connect(str(self._path))
            with hung_up_at(time.monotonic() + _EXCHANGE, sock):
                sock.sendall(json.dumps(request).encode() + b"\n")
                line = self._line(sock)
            answer = parse_json(line, limit=_LINE_LIMIT)
            if not isinstance(answer, dict) or answer.get("ok") is not True:
                raise error_from_wire(answer.get("error") if isinstance(answer, dict) else None)
        except OSError:
            sock.close()
            raise Unavailable("node.link", "The node agent does not answer on its socket.") from None
        except CloisterError:
            sock.close()
            raise
        return sock, answer

    @staticmethod
    def _line(sock: socket.socket) -> bytes:
        """One line, read byte by byte in effect: what follows it belongs to the tunnel."""
        line = bytearray()
        while not line.endswith(b"\n"):
            # Peek, then take exactly up to the newline, so that no byte of the tunnel is swallowed.
            ahead = sock.recv(65536, socket.MSG_PEEK)
            if not ahead or len(line) + len(ahead) > _LINE_LIMIT:
                raise OSError("closed or too long")
            cut = ahead.find(b"\n") + 1 or len(ahead)
            line += sock.recv(cut)
        return bytes(line[:-1])
