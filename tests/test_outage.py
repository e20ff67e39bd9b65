"""What fails again and again is said at once, then less and less often."""

from __future__ import annotations

import logging

from hosting import hosted

from refold import Agent
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
            await until(lambda: worker._stopped)
            assert len(tried) - before <= 3
            assert not worker.places

    with caplog.at_level(logging.WARNING, logger="refold.worker"):
        go(main())
    said = [record.getMessage() for record in caplog.records]
    assert [line for line in said if "others wait for this worker's lease" in line]
