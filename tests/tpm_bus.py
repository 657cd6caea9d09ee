"""The wire between a program and a TPM, as somebody sees it who sits on it: to listen, and to change answers."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

__all__ = ["TpmBus"]

Change = Callable[[int, bytes], bytes]  # (TPM2_CC of the command, its response) -> the response that is passed on


class TpmBus:
    """A proxy before swtpm's sockets, in ``folder``. ``seen``: every byte that passed; ``change`` may alter answers."""

    def __init__(self, tcti: str, folder: Path) -> None:
        self._real = tcti.removeprefix("swtpm:path=")
        self._path = folder / "bus"
        (folder / "bus.ctrl").symlink_to(f"{self._real}.ctrl")
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(self._path))
        self._listener.listen()
        self.seen = bytearray()
        self.change: Change = lambda _, response: response
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    @property
    def tcti(self) -> str:
        return f"swtpm:path={self._path}"

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            threading.Thread(target=self._pass_on, args=(client,), daemon=True).start()

    def _pass_on(self, client: socket.socket) -> None:
        # Either side may hang up in the middle.
        with suppress(OSError), client, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as tpm:
            tpm.connect(self._real)
            while command := _message(client):
                tpm.sendall(command)
                response = _message(tpm)
                self.seen += command + response
                client.sendall(self.change(struct.unpack(">I", command[6:10])[0], response))

    def __enter__(self) -> TpmBus:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)


def _message(stream: socket.socket) -> bytes:
    """One command or response: tag (2), size of the whole (4), … (TPM 2.0 Part 1 §18)."""
    head = _exactly(stream, 10)
    return head + _exactly(stream, struct.unpack(">I", head[2:6])[0] - 10) if head else b""


def _exactly(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = stream.recv(size - len(data))
        if not part:
            return b""
        data += part
    return data
