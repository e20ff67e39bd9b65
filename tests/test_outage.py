"""What fails again and again is said at once, then less and less often."""

from __future__ import annotations

import asyncio
import logging
import time

from hosting import hosted

from refold import Agent
from refold.agents import leaving
from refold.bus.broker import Lost
from refold.bus.errors import BrokerUnavailable
from refold.bus.outage import FIRST, LONGEST, Outage


def test_a_failure_that_goes_on_is_said_less_and_less_often_and_a_new_one_at_once():
    now = [100.0]
    outage, said = Outage(lambda: now[0]), []
    for _ in range(4 * 300):
        if outage.is_news():
            said.append(now[0] - 100.0)
        now[0] += 0.25
    assert said[:4] == [0.0, FIRST, 3 * FIRST, 7 * FIRST]
    assert [b - a for a, b in zip(said[-3:], said[-2:], strict=False)] == [LONGEST, LONGEST]
    assert outage.goes_on
    outage.over()
    assert not outage.goes_on
    assert outage.is_news()
    assert not outage.is_news()


def test_a_worker_that_is_told_to_stop_while_the_log_is_out_of_reach_tries_that_once_and_ends(go, until, caplog):
    """Not once for each partition: 16 of them, with 10 s for each append that has no answer, would take minutes."""
    agent, tried = Agent("a"), []

    @agent.on_task
    async def echo(n: int) -> int:
        return n

    async def unreachable(*_: object, **__: object) -> object:
        tried.append(1)
        raise BrokerUnavailable("the cable is out")

    async def main():
        async with hosted(agent, partitions=16) as (bus, worker):
            await until(lambda: len(worker.places) == 16 and all(p.active for p in worker.places.values()))
            assert await bus.request(echo, 1) == 1
            worker.sub.save_checkpoint = worker.sub.release = bus.broker.append = unreachable
            before = len(tried)
            worker.stop()
            await until(lambda: worker.stopped)
            assert len(tried) - before <= 3
            assert not worker.places

    with caplog.at_level(logging.WARNING, logger="refold.worker"):
        go(main())
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "others wait for this worker's lease" in line]


def test_a_worker_that_stops_waits_for_no_word_longer_than_others_wait_for_it(go, until, monkeypatch, caplog):
    """A broker may have more patience with its servers than a lease lasts."""
    monkeypatch.setattr(leaving, "HAND_OVER", 0.1)
    agent, asked = Agent("a"), []

    async def silent(*_: object, **__: object) -> object:
        asked.append(1)
        await asyncio.Event().wait()

    async def main():
        async with hosted(agent, partitions=4, lease=0.2, stall_limit=5.0) as (bus, worker):
            await until(lambda: len(worker.places) == 4 and all(p.active for p in worker.places.values()))
            lost = next(iter(worker.places.values()))
            bus.broker.append = silent
            await worker._lose(Lost(lost.partition, lost.epoch))  # says so, to nobody
            await until(lambda: asked)
            before = time.monotonic()
            worker.stop()
            await until(lambda: worker.stopped)
        assert time.monotonic() - before < 3
        assert len(asked) == 2  # of the three that are left one is tried
        assert not worker.places

    with caplog.at_level(logging.WARNING, logger="refold.worker"):
        go(main())
    assert "the log could not be told in time who owns what: others wait for this worker's lease" in caplog.messages


def test_an_outage_is_not_told_for_each_partition_and_a_new_one_is(go, until, caplog):
    tried = []

    async def unreachable(*_: object, **__: object) -> object:
        tried.append(1)
        raise BrokerUnavailable("the cable is out")

    def said() -> list[str]:
        return [r.getMessage() for r in caplog.records if "a checkpoint could not be written" in r.getMessage()]

    async def main():
        async with hosted(Agent("a"), partitions=16) as (_, worker):
            await until(lambda: len(worker.places) == 16 and all(p.active for p in worker.places.values()))
            works = worker.sub.save_checkpoint
            for times in (1, 2):
                worker.sub.save_checkpoint = unreachable
                for place in worker.places.values():
                    place.fold.changed.add("a workflow")
                    place.fold.position += 1
                    assert await worker.tried(worker.save(place), "a checkpoint") is not None
                assert len(said()) == times
                worker.sub.save_checkpoint = works
                place = next(iter(worker.places.values()))
                place.fold.changed.clear()
                assert await worker.tried(worker.save(place), "a checkpoint") is None
            assert len(tried) == 32

    with caplog.at_level(logging.WARNING, logger="refold.worker"):
        go(main())
