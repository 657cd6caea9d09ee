"""Another user of the machine asks the owner's socket to sign, reveal or open something."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from cloister.broker import RunningBroker
from tests.broker_world import World, serving

pytest_plugins = ["tests.broker_fixtures"]

NOBODY = 65534
REQUEST = b"GET /v1/card HTTP/1.1\r\nHost: broker\r\nConnection: close\r\n\r\n"


def ask_as(uid: int, path: Path) -> bytes:
    """What a child process with that user id hears on the socket; its errno in text where it may not even connect."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(10)
                sock.connect(str(path))
                sock.sendall(REQUEST)
                heard = b""
                while chunk := sock.recv(4096):
                    heard += chunk
        except OSError as error:
            heard = os.strerror(error.errno or 0).encode()
        os.write(write, heard[:4000])
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        heard = pipe.read()
    os.waitpid(child, 0)
    return heard


def open_up(running: RunningBroker) -> None:
    """Every file mode is wrong; only the kernel's word about the caller is left."""
    path = running.admin_socket
    path.chmod(0o666)
    for folder in path.parents:
        if folder == Path("/dev/shm") or folder == Path("/"):
            break
        folder.chmod(folder.stat().st_mode | 0o755)


pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="taking another user's id needs root"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


def test_the_files_modes_keep_others_out(world: World) -> None:
    with serving(world.hospital) as running:
        assert ask_as(NOBODY, running.admin_socket) == b"Permission denied"
        assert ask_as(0, running.admin_socket).startswith(b"HTTP/1.1 200")


def test_the_kernel_says_who_asks_where_the_modes_are_wrong(world: World) -> None:
    with serving(world.hospital) as running:
        open_up(running)
        before = world.hospital.tables()
        assert b"HTTP" not in ask_as(NOBODY, running.admin_socket)
        assert ask_as(0, running.admin_socket).startswith(b"HTTP/1.1 200")
        assert world.hospital.tables() == before
