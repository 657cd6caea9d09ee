"""Attack: the door that opens for processes that train together (TCP over loopback) is used for anything else."""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterator

import pytest

from tests.sandbox_kit import Box, box

INET, NETLINK = "socket.AF_INET", "socket.AF_NETLINK"


@pytest.fixture
def inside() -> Iterator[Box]:
    with box() as made:
        made.probe = functools.partial(made.probe, loopback=True)  # type: ignore[method-assign]
        made.run = functools.partial(made.run, loopback=True)  # type: ignore[method-assign]
        yield made


def test_processes_of_one_sandbox_reach_each_other_over_tcp(inside: Box) -> None:
    """So that what is refused below is refused by what is tested."""
    code = """
listener = socket.create_server(("127.0.0.1", 0))
if os.fork() == 0:
    socket.create_connection(listener.getsockname()).sendall(b"gradient")
    os._exit(0)
print(listener.accept()[0].recv(8).decode(), [name for _, name in socket.if_nameindex()])
os.wait()
"""
    assert inside.run(code) == "gradient ['lo']\n"


@pytest.mark.parametrize("family", ["AF_INET6", "AF_PACKET", "AF_VSOCK", "AF_ALG", "AF_X25", "AF_CAN", "AF_TIPC"])
def test_no_other_family_can_be_made(inside: Box, family: str) -> None:
    kinds = "SOCK_STREAM SOCK_DGRAM SOCK_RAW SOCK_SEQPACKET".split()  # noqa: SIM905
    refused = inside.probe(f"[attempt(socket.socket, socket.{family}, getattr(socket, k)) for k in {kinds}]")
    assert refused == ["EPERM"] * 4


def test_only_tcp_is_spoken_over_ipv4(inside: Box) -> None:
    # UDP, raw, a raw flag among the type's flags, ICMP, SCTP, SMC's and MPTCP's protocol numbers
    wanted = [(2, 0), (3, 0), (3 | 0x80000, 255), (2, 1), (1, 132), (5, 132), (1, 256), (1, 262), (10, 0), (6, 33)]
    assert inside.probe(f"[syscall(41, 2, kind, protocol) for kind, protocol in {wanted}]") == ["EPERM"] * len(wanted)


def test_no_netlink_but_the_list_of_interfaces(inside: Box) -> None:
    others = list(range(1, 23))
    assert inside.probe(f"[attempt(socket.socket, {NETLINK}, socket.SOCK_RAW, n) for n in {others}]") == ["EPERM"] * 22


def test_high_bits_open_no_door(inside: Box) -> None:
    # The kernel reads 32 bits of each argument, the filter 64.
    calls = [
        ((1 << 32) | 2, 1, 0), ((1 << 63) | 17, 3, 0), ((1 << 32) | 10, 1, 0), (2, (1 << 32) | 2, 0),
        (2, 1, (1 << 32) | 132), (16, 3, (1 << 32) | 12), ((1 << 32) | 16, 3, 12),
    ]  # fmt: skip
    wide = ", ".join(f"syscall(41, *map(ctypes.c_ulong, {call}))" for call in calls)
    assert inside.probe(f"[{wide}]") == ["EPERM"] * len(calls)


def test_no_other_protocol_is_put_over_a_connection(inside: Box) -> None:
    for_tls = "attempt(socket.socket(socket.AF_INET).setsockopt, socket.IPPROTO_TCP, 31, b'tls')"
    assert inside.probe(f"[{for_tls}, syscall(54, 3, ctypes.c_ulong((1 << 32) | 6), 31, b'smc', 3)]") == ["EPERM"] * 2


def test_the_host_and_the_world_are_not_reached(inside: Box) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.create_connection(listener.getsockname()):
        listener.accept()[0].close()  # from the host it answers, so a refusal inside means something
        port = listener.getsockname()[1]
        answers = inside.probe(
            f"[attempt(socket.socket({INET}).connect, a) for a in [('127.0.0.1', {port}), ('192.0.2.1', 443)]]"
        )
        assert answers == ["ECONNREFUSED", "ENETUNREACH"]
        listener.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()


def test_another_sandbox_is_not_reached(inside: Box) -> None:
    code = """
listener = socket.create_server(("127.0.0.1", 4242))
print("listening", flush=True)
listener.settimeout(30)
try:
    listener.accept()
except TimeoutError:
    pass
"""
    from tests.patience import until

    with inside.start(code, loopback=True) as other, box() as second:
        until("it to listen", lambda: "listening" in inside.log.read_text())
        connect = f"attempt(socket.socket({INET}).connect, ('127.0.0.1', 4242))"
        assert second.probe(connect, loopback=True) == "ECONNREFUSED"
        assert not other.ended


def test_the_network_can_not_be_changed(inside: Box) -> None:
    code = """
import fcntl, struct
netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
# RTM_NEWLINK for an interface of kind dummy (rtnetlink(7)), and RTM_NEWADDR for lo
kind = struct.pack("HH5s3x", 9, 1, b"dummy")
link = struct.pack("BxHiII", 0, 0, 0, 0, 0) + struct.pack("HH", 4 + len(kind), 18) + kind
address = struct.pack("BBBBI", 2, 24, 0, 0, 1) + struct.pack("HH4s", 8, 2, bytes([10, 0, 0, 1]))
for number, body in ((16, link), (20, address)):
    netlink.send(struct.pack("IHHII", 16 + len(body), number, 0x605, 1, 0) + body)
    print(errno.errorcode[-struct.unpack_from("i", netlink.recv(4096), 16)[0]])
down = struct.pack("16sH14x", b"lo", 0)
print(attempt(fcntl.ioctl, socket.socket(socket.AF_INET), 0x8914, down))
"""
    assert inside.run(code).split() == ["EPERM"] * 3
