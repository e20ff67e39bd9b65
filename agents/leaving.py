"""How a worker leaves: what runs comes to its end, partitions are given up, nobody is waited for in vain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

from ..bus.errors import TryAgain
from .crew import ABANDONED_AFTER
from .ownership import say_released
from .place import Place

if TYPE_CHECKING:
    from .worker import Worker

log = logging.getLogger("refold.worker")

SAY_AFTER = 2.0
"""Seconds after which a worker that is told to stop says what it waits for."""
HAND_OVER = 5.0
"""Seconds that giving a partition up may take, however short the lease is."""


async def leave(worker: Worker) -> None:
    """When the worker is told to stop: start nothing more, drain, give everything up."""
    await worker.stopping.wait()
    worker.draining = True
    for run in list(worker.crew.waiting):
        worker.crew.park(run)
    await _drain(worker)
    for place in list(worker.places.values()):
        if worker.reached:
            worker.reached = await _in_time(worker, _hand_over(worker, place))
        else:
            worker.end_place(place, "the worker stops", let_calls_finish=False)
    if not worker.reached:
        log.warning("the log cannot be reached: partitions are not given up, others wait for this worker's lease")
    worker.stopped = True


async def _drain(worker: Worker) -> None:
    """Let what runs come to its end, for as long as it may."""
    began = worker.clock.monotonic()
    say_at = began + SAY_AFTER
    while text := worker.crew.under_way(worker.places.values()):
        now = worker.clock.monotonic()
        if now - began >= worker.drain_time:
            log.warning("stopping: waits no more for %s", text)
            return
        if now >= say_at:
            log.info("stopping: waits up to %g s for %s", worker.drain_time, text)
            say_at = began + worker.drain_time
        await worker.clock.sleep(0.02)


async def _in_time(worker: Worker, work: Coroutine[Any, Any, bool]) -> bool:
    """Others wait for no more than this worker's lease: what takes longer than that is of no use."""
    try:
        async with asyncio.timeout(_patience(worker)):
            return await work
    except TimeoutError:
        return False


def _patience(worker: Worker) -> float:
    return max(worker.lease, HAND_OVER)


async def _hand_over(worker: Worker, place: Place) -> bool:
    """Save what is folded, say that the partition is given up, give it up. False, and nothing more is tried, where the
    log cannot be reached."""
    saved = await worker.tried(worker.save(place), "the last checkpoint") if place.active else None
    worker.end_place(place, "the worker stops", let_calls_finish=False)
    if isinstance(saved, TryAgain):
        return False
    said = await worker.tried(say_released(worker, place), "that a partition is given up")
    if isinstance(said, TryAgain):
        return False
    released = await worker.tried(worker.sub.release(place.partition, place.epoch), "a release")
    return not isinstance(released, TryAgain)


async def see_off(worker: Worker) -> None:
    """What is being said has a lease's time for it. Runs that were told to end have a moment; `on_stuck` hears of those
    that go on regardless."""
    if worker.saying and (late := (await asyncio.wait(worker.saying, timeout=_patience(worker)))[1]):
        log.warning("the log could not be told in time who owns what: others wait for this worker's lease")
        for task in late:
            task.cancel()
    tasks = worker.crew.ending
    if tasks and (await asyncio.wait(tasks, timeout=ABANDONED_AFTER))[1]:
        log.error("%d handlers do not end although they were cancelled", len(tasks))
        worker.on_stuck()
