"""Token buckets with a clock that only the test moves: bursts, refills, bounded memory, what counts as one sender."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.broker.errors_http import kbs_error, public_error
from cloister.broker.rates import Rates, source_of, too_many
from cloister.broker.serving import Paced


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def rates(clock: Clock, per_second: float = 2.0, burst: float = 4.0, names: int = 3) -> Rates:
    return Rates(per_second, burst, names=names, clock=clock)


def test_a_burst_and_then_so_many_a_second() -> None:
    clock = Clock()
    limit = rates(clock)
    assert [limit.take("a") for _ in range(4)] == [0.0] * 4
    assert limit.take("a") == 0.5  # seconds until the next
    assert limit.take("a") == 0.5  # what was refused does not count
    clock.now += 0.5
    assert limit.take("a") == 0.0
    assert limit.take("a") > 0
    clock.now += 1000
    assert [limit.take("a") == 0.0 for _ in range(5)] == [True] * 4 + [False]


def test_names_do_not_take_from_each_other() -> None:
    limit = rates(Clock())
    for _ in range(9):
        limit.take("a")
    assert limit.take("b") == 0.0


def test_a_clock_that_is_set_back_gives_nothing_and_breaks_nothing() -> None:
    clock = Clock()
    limit = rates(clock)
    for _ in range(4):
        limit.take("a")
    clock.now -= 500
    assert limit.take("a") > 0
    clock.now += 1
    assert limit.take("a") == 0.0


def test_names_beyond_the_bound_share_one_bucket_and_push_nobody_out() -> None:
    clock = Clock()
    limit = rates(clock)
    for name in "abc":
        limit.take(name)
    strangers = [limit.take(f"stranger{n}") == 0.0 for n in range(1000)]
    assert strangers.count(True) == 4  # one burst for all of them
    assert len(limit) == 4
    assert [limit.take("a") == 0.0 for _ in range(4)] == [True, True, True, False]


def test_a_name_that_was_quiet_for_long_makes_room() -> None:
    clock = Clock()
    limit = rates(clock)
    for name in "abc":
        limit.take(name)
    clock.now += 2  # all are full again
    for n in range(50):
        assert limit.take(f"newcomer{n}") == 0.0
        clock.now += 2
    assert len(limit) <= 4


@given(st.lists(st.tuples(st.sampled_from("abc"), st.floats(0, 3)), max_size=60))
def test_nobody_gets_more_than_the_rate(steps: list[tuple[str, float]]) -> None:
    clock = Clock()
    limit = rates(clock)
    served: dict[str, int] = {}
    for name, pause in steps:
        clock.now += pause
        served[name] = served.get(name, 0) + (limit.take(name) == 0.0)
    assert all(count <= 4 + 2 * (clock.now - Clock.now) + 1e-6 for count in served.values())


@given(st.lists(st.tuples(st.text(max_size=2), st.floats(0, 3)), max_size=60))
def test_memory_is_bounded_whoever_comes(steps: list[tuple[str, float]]) -> None:
    clock = Clock()
    limit = rates(clock)
    for name, pause in steps:
        clock.now += pause
        limit.take(name)
        assert len(limit) <= 4


@pytest.mark.parametrize(
    ("address", "source"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("somewhere", "somewhere"),
        ("x" * 500, "x" * 64),
    ],
)
def test_what_counts_as_one_sender(address: str, source: str) -> None:
    assert source_of(address) == source


def test_the_refusal_says_when_to_come_back_and_nothing_else() -> None:
    for response in (
        public_error(too_many("rate.address", 1.2), attested=False),
        kbs_error(too_many("rate.contract", 1.2), handshake=True, attested=False),
        kbs_error(too_many("rate.contract", 0.01), handshake=False, attested=True),
    ):
        assert response.status_code == 429
        assert response.headers["retry-after"] in ("1", "2")
        assert json.loads(bytes(response.body))["error"]["kind"] == "unavailable"


def test_nothing_of_a_request_is_read_before_it_is_counted() -> None:
    reached: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        reached.append(scope["path"])

    async def receive() -> Any:
        raise AssertionError

    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    paced = Paced(app, rates(Clock(), burst=2.0))
    scope = {"type": "http", "path": "/a", "client": ("192.0.2.7", 1), "method": "POST", "headers": []}
    for _ in range(3):
        asyncio.run(paced(scope, receive, send))
    assert reached == ["/a", "/a"]
    assert sent[0]["status"] == 429
    asyncio.run(paced({**scope, "client": ("192.0.2.8", 1)}, receive, send))
    assert len(reached) == 3
