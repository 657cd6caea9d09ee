"""The helper thread: what is handed over is done once, its error comes to whoever waits, and no thread stays behind."""

from __future__ import annotations

import gc
import threading

import pytest

from cloister.crypto.buffers import copy, on_huge_pages
from cloister.crypto.helper import Helper, Task
from cloister.errors import Internal

LONG = 60  # seconds


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "cloister-read"]


def await_end(of: list[threading.Thread]) -> None:
    for thread in of:
        thread.join(LONG)
        assert not thread.is_alive()


def test_work_is_done_by_the_helper_while_this_thread_does_its_own() -> None:
    helper, met, seen = Helper(), threading.Barrier(2, timeout=LONG), []
    task = helper.start(lambda: (met.wait(), seen.append(threading.get_ident())))
    assert task is not None
    met.wait()
    task.finish()
    assert len(seen) == 1
    assert seen != [threading.get_ident()]
    helper.close()


def test_a_task_that_waits_behind_another_is_done_by_who_asks() -> None:
    helper, go, seen = Helper(), threading.Event(), []
    first = helper.start(lambda: go.wait(LONG))
    second = helper.start(lambda: seen.append(threading.get_ident()))
    assert first is not None
    assert second is not None
    second.finish()
    assert seen == [threading.get_ident()]
    go.set()
    first.finish()
    helper.close()
    assert len(seen) == 1  # the helper came to it, and left it alone


def test_an_abandoned_task_is_either_over_or_never_begun() -> None:
    helper, go, begun, seen = Helper(), threading.Event(), threading.Event(), []

    def work() -> None:
        begun.set()
        go.wait(LONG)
        seen.append("first")
        raise ValueError("nobody asks any more")

    first, second = helper.start(work), helper.start(lambda: seen.append("second"))
    assert first is not None
    assert second is not None
    begun.wait(LONG)
    second.abandon()
    go.set()
    first.abandon()
    assert seen == ["first"]
    helper.close()
    assert seen == ["first"]


@pytest.mark.parametrize("claimed", [False, True])
def test_an_error_is_raised_where_the_end_is_asked_for(claimed: bool) -> None:
    def work() -> None:
        raise ValueError("as it was")

    task = Task(work)
    if claimed:
        task.run()
    with pytest.raises(ValueError, match="as it was"):
        task.finish()


def test_a_closed_helper_takes_nothing_and_its_thread_is_gone() -> None:
    before = set(threads())
    helper = Helper()
    assert set(threads()) == before  # none before the first task
    task = helper.start(int)
    assert task is not None
    mine = [t for t in threads() if t not in before]
    assert len(mine) == 1
    helper.close()
    assert not mine[0].is_alive()
    assert helper.start(int) is None
    helper.close()
    task.finish()


def test_a_helper_that_nobody_closes_ends_with_its_last_holder() -> None:
    before = set(threads())
    helper = Helper()
    task = helper.start(int)
    assert task is not None
    task.finish()
    mine = [t for t in threads() if t not in before]
    del helper
    gc.collect()
    await_end(mine)


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
    memory = bytearray(size)
    on_huge_pages(memoryview(memory))
    memory[:] = b"y" * size
    assert memory == b"y" * size
