"""The thread of its own in which the embedded log is written."""

from __future__ import annotations

import asyncio
import threading

import pytest

from refold.brokers.sqlite.lane import Lane


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "a lane"]


def test_jobs_are_carried_out_in_order_in_one_thread_which_ends_after_the_last(go, until):
    done: list[tuple[int, str]] = []

    async def main():
        lane = Lane("a lane")
        assert not threads(), "it is begun when it is needed"
        for n in range(500):
            lane.put(lambda n=n: done.append((n, threading.current_thread().name)))
        await lane.aclose(lambda: done.append((500, threading.current_thread().name)))
        assert done == [(n, "a lane") for n in range(501)]
        await until(lambda: not threads())

    go(main())


def test_what_was_never_begun_is_closed_without_a_thread(go):
    go(Lane("a lane").aclose(lambda: pytest.fail("there is nothing to end")))
    assert not threads()


def test_closing_that_is_cancelled_lets_the_last_job_end(go, until):
    may, done = threading.Event(), list[str]()

    async def main():
        lane = Lane("a lane")
        lane.put(lambda: done.append("waited") if may.wait(10) else None)
        closing = asyncio.create_task(lane.aclose(lambda: done.append("closed")))
        await asyncio.sleep(0)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        assert done == []
        may.set()
        await until(lambda: not threads())
        assert done == ["waited", "closed"]

    go(main())
