"""The helper thread: what is handed over is done once, its error comes to whoever waits, and no thread stays behind."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from cloister.crypto.buffers import copy, on_huge_pages
from cloister.crypto.helper import Helper
from cloister.errors import Internal

LONG = 60  # seconds


class Interrupted(BaseException):
    """What a signal's handler raises."""


@pytest.fixture
def helper() -> Iterator[Helper]:
    helper = Helper()
    yield helper
    helper.close()


def threads() -> set[threading.Thread]:
    return {t for t in threading.enumerate() if t.name == "cloister-read"}


def nothing() -> None:
    pass


def failing() -> None:
    raise ValueError("as it was")


def test_both_are_done_each_in_a_thread_of_its_own(helper: Helper) -> None:
    met, seen = threading.Barrier(2, timeout=LONG), {}
    helper.both(
        lambda: (met.wait(), seen.update(mine=threading.get_ident())),
        lambda: (met.wait(), seen.update(other=threading.get_ident())),
    )
    assert seen["mine"] == threading.get_ident()
    assert seen["other"] != threading.get_ident()


def test_a_busy_helper_is_not_waited_for(helper: Helper) -> None:
    go, begun, seen = threading.Event(), threading.Event(), []
    busy = threading.Thread(target=helper.both, args=(lambda: go.wait(LONG), lambda: (begun.set(), go.wait(LONG))))
    busy.start()
    begun.wait(LONG)
    helper.both(lambda: seen.append("mine"), lambda: seen.append(threading.get_ident()))
    assert seen == ["mine", threading.get_ident()]
    go.set()
    busy.join()
    helper.close()
    assert len(seen) == 2  # the helper came to it, and left it alone


@pytest.mark.parametrize(("mine", "other"), [(failing, nothing), (nothing, failing)])
def test_an_error_of_either_is_raised(helper: Helper, mine: Callable[[], None], other: Callable[[], None]) -> None:
    with pytest.raises(ValueError, match="as it was"):
        helper.both(mine, other)


def test_nobody_is_at_it_any_longer_when_mine_failed(helper: Helper) -> None:
    begun, seen = threading.Event(), []

    def mine() -> None:
        begun.wait(LONG)
        failing()

    def other() -> None:
        begun.set()
        time.sleep(0.2)
        seen.append("done")

    with pytest.raises(ValueError, match="as it was"):
        helper.both(mine, other)
    assert seen == ["done"]


def test_an_error_of_mine_is_raised_where_the_helper_had_not_begun() -> None:
    helper, seen = Helper(), []
    helper.close()
    with pytest.raises(ValueError, match="as it was"):
        helper.both(failing, lambda: seen.append("never"))
    assert seen == []


@pytest.mark.parametrize("times", [1, 3])
def test_an_interruption_waits_until_nobody_writes_any_longer(helper: Helper, times: int) -> None:
    """Else the caller would have its memory back, and the helper would go on writing plaintext into it."""
    memory, begun = bytearray(4), threading.Event()

    def interrupt(*_: object) -> None:
        raise Interrupted

    def other() -> None:
        begun.set()
        for _ in range(times):
            time.sleep(0.1)  # until the other thread waits
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGALRM)
        time.sleep(0.1)
        memory[:] = b"done"

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(Interrupted):
            helper.both(lambda: begun.wait(LONG), other)
        assert memory == b"done"
    finally:
        signal.signal(signal.SIGALRM, before)
    helper.both(nothing, lambda: memory.extend(b" again"))
    assert memory == b"done again"


def test_an_interruption_of_work_that_fell_to_this_thread_is_raised() -> None:
    helper, seen = Helper(), []
    helper.close()

    def other() -> None:
        seen.append("begun")
        raise Interrupted

    with pytest.raises(Interrupted):
        helper.both(nothing, other)
    assert seen == ["begun"]


def test_a_process_that_may_have_no_more_threads_reads_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    helper, seen = Helper(), []
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refused)
        helper.both(lambda: seen.append("mine"), lambda: seen.append("other"))
    assert seen == ["mine", "other"]
    helper.close()


def test_a_closed_helper_has_no_thread() -> None:
    before = threads()
    helper = Helper()
    assert threads() == before  # none before the first work
    helper.both(nothing, nothing)
    (thread,) = threads() - before
    helper.close()
    assert not thread.is_alive()
    helper.both(nothing, nothing)
    assert threads() == before
    helper.close()


def test_a_helper_that_nobody_closes_ends_with_its_last_holder() -> None:
    before = threads()
    helper = Helper()
    helper.both(nothing, nothing)
    (thread,) = threads() - before
    del helper
    gc.collect()
    thread.join(LONG)
    assert not thread.is_alive()


@pytest.mark.parametrize("size", [0, 1, 100, 64 * 1024, 3 * 1024 * 1024 + 5])
def test_memory_is_copied_whole(size: int) -> None:
    source, out = bytearray(i % 251 for i in range(size)), bytearray(size + 2)
    copy(memoryview(source), memoryview(out)[1 : size + 1])
    assert out == b"\0" + source + b"\0"


def test_memory_of_another_size_is_not_copied() -> None:
    out = bytearray(200_000)
    with pytest.raises(Internal):
        copy(memoryview(bytearray(b"x" * 200_001)), memoryview(out))
    assert out == bytes(200_000)


@pytest.mark.parametrize("size", [0, 1, 2**21 - 1, 2**21, 2**22 + 7, 2**23])
def test_huge_pages_change_nothing_but_the_time(size: int) -> None:
    memory = bytearray(b"y" * size)
    on_huge_pages(memoryview(memory))
    assert memory == b"y" * size
