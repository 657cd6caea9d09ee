"""The arithmetic of the benchmarks of key release and attestation, with invented figures. Nothing is timed."""

from __future__ import annotations

import pytest

from benchmarks._release_floor import Floor, Sizes, recording
from benchmarks.attestation import raw, turns
from benchmarks.key_release import Purse, percentile


@pytest.mark.parametrize(("share", "expected"), [(0.5, 50), (0.99, 99), (1.0, 100), (0.01, 1), (0.991, 100)])
def test_a_percentile_is_one_of_the_values(share: float, expected: int) -> None:
    assert percentile(list(range(100, 0, -1)), share) == expected
    assert percentile([7.0], share) == 7.0


def test_a_job_is_spent_once() -> None:
    purse = Purse(["a", "b", "c"])  # type: ignore[list-item]
    assert [purse.take(2), purse.take(1)] == [["a", "b"], ["c"]]
    with pytest.raises(ValueError, match="more releases"):
        purse.take(1)


def test_sizes_survive_a_command_line() -> None:
    sizes = Sizes(((100, 20), (0, 5000)))
    assert Sizes.read(sizes.argument()) == sizes


def test_recording_sees_bodies_and_takes_itself_away() -> None:
    class Client:
        def _send(self, method: str, path: str, body: bytes | None) -> bytes:
            return f"{method} {path}".encode() + (body or b"")

    before = Client._send
    with recording(Client) as recorded:
        Client()._send("POST", "/a", b"12345")
        Client()._send("GET", "/b", None)
    assert recorded().pairs == ((5, 12), (0, 6))
    assert Client._send is before


def test_a_floor_is_the_sum_of_its_parts() -> None:
    seen = {"quote": [1.0, 2.0], "append": [0.5, 0.5], "https": [3.0, 3.0], "raw": [1.0, 1.0]}
    floor = Floor(None, 0, b"", 0, 0, Sizes(()), seen)  # type: ignore[arg-type]
    assert floor.totals("https") == [4.5, 5.5]
    assert floor.totals("raw") == [2.5, 3.5]
    assert floor.parts() == {"quote": 1.5, "append": 0.5, "https": 3.0, "raw": 1.0}


def test_evidence_takes_turns() -> None:
    said: list[int] = []
    call = turns([lambda n=n: said.append(n) for n in range(3)])  # type: ignore[misc]
    for _ in range(4):
        call()
    assert said == [0, 1, 2, 0]


def test_a_bare_verification_verifies() -> None:
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    raw(ec.generate_private_key(ec.SECP256R1()), b"message", hashes.SHA256())()
