"""Attack: the workload talks to anybody but the node agent. Only its one socket may be there."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Iterator

import pytest

from tests.sandbox_kit import Box, box


@pytest.fixture
def inside() -> Iterator[Box]:
    with box() as made:
        yield made


@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG"])
@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM", "SOCK_RAW"])
def test_no_socket_but_unix_can_be_made(inside: Box, family: str, kind: str) -> None:
    assert inside.probe(f"attempt(socket.socket, socket.{family}, socket.{kind})") == "EPERM"


def test_socket_family_with_high_bits_set_is_refused(inside: Box) -> None:
    # The kernel reads 32 bits of the family, the filter 64: the difference must not open a door.
    families = [(1 << 32) | 2, (1 << 63) | 10, (1 << 32) | 1]
    assert inside.probe(f"[syscall(41, ctypes.c_ulong(f), 1, 0) for f in {families}]") == ["EPERM"] * 3


def test_there_is_no_interface_but_a_dead_loopback(inside: Box) -> None:
    lines = inside.probe("open('/proc/net/dev').read().splitlines()[2:]")
    assert [line.split(":")[0].strip() for line in lines] == ["lo"]
    assert inside.probe("open('/proc/net/route').read().splitlines()[1:]") == []


def test_abstract_socket_of_the_host_can_not_be_reached(inside: Box) -> None:
    name = f"\0cloister-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(name)
        listener.listen()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as control:
            control.connect(name)  # from the host it answers, so a refusal inside means something
        answer = inside.probe(f"attempt(socket.socket(socket.AF_UNIX).connect, {name!r})")
        assert answer == "ECONNREFUSED"
        listener.setblocking(False)
        listener.accept()[0].close()
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_name_lookup_finds_no_server(inside: Box) -> None:
    code = """
try:
    socket.getaddrinfo("example.org", 443)
    print("resolved")
except OSError as error:
    print("refused")
"""
    assert inside.run(code) == "refused\n"
