"""After a death, messages start in small cohorts, the suspects alone; no order of events leaves one waiting."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager

import pytest

from refold import Agent, MessageBus, Worker
from refold.agents.cohorts import FIRST, Cohorts
from refold.brokers.memory import MemoryBroker
from refold.bus import codec, facts, kinds
from refold.bus.broker import Item, LogSpec, Outgoing
from refold.bus.ids import derived
from refold.bus.message import AgentMessage, Work
from refold.bus.partition import partition_of

PARTITIONS = 4


def test_innocents_start_in_cohorts_that_double_and_suspects_alone_at_the_end():
    cohorts, place = Cohorts(), object()
    for n in range(3 * FIRST + 2):
        cohorts.hold((place, n), suspect=n >= 3 * FIRST)
    for size in (FIRST, 2 * FIRST):
        started = cohorts.next(others_running=True)
        assert len(started) == size
        assert cohorts.next(others_running=False) == []
        assert not cohorts.needs_quiet
        for trial in started:
            assert cohorts.passed(trial)
    for n in range(3 * FIRST, 3 * FIRST + 2):
        assert cohorts.needs_quiet
        assert cohorts.next(others_running=True) == []
        assert cohorts.next(others_running=False) == [(place, n)]
        assert cohorts.needs_quiet
        assert cohorts.passed((place, n))
    assert not cohorts.active


def test_a_death_begins_with_a_small_cohort_again():
    cohorts, place = Cohorts(), object()
    for n in range(FIRST):
        cohorts.hold((place, n), suspect=False)
    for trial in cohorts.next(others_running=False):
        cohorts.passed(trial)
    assert cohorts.size == 2 * FIRST
    cohorts.death()
    assert cohorts.size == FIRST


async def left_by_the_dead(broker: MemoryBroker, bus: MessageBus, starts: dict[str, int]) -> None:
    """Append what a worker left that died: its `owner` records, requests, and starts without anything after them."""
    for partition in range(PARTITIONS):
        await append(broker, partition, None, owner())
    for correlation, count in starts.items():
        handle = await bus.start("worker", {"name": correlation}, id=correlation)
        for n in range(count):
            await append(broker, partition_of(correlation, PARTITIONS), correlation, started(correlation, handle, n))


async def append(broker: MemoryBroker, partition: int, key: str | None, record: AgentMessage) -> None:
    await broker.append([Item(partition, key, (Outgoing(record.id, codec.encode(record)),))])


def owner() -> AgentMessage:
    fact = facts.Owner(group="g", epoch=0, agents={"worker": ()}, member="dead", pid=1)
    return AgentMessage(
        sender_id="dead", receiver_id="*", message_type=kinds.OWNER, correlation_id="", timestamp=1.0, fact=fact
    )


def started(correlation, handle, n) -> AgentMessage:
    message = handle.request_id
    return AgentMessage(
        id=derived(correlation, 0, "worker", message, 0, "", n, kinds.ATTEMPT_STARTED), sender_id="worker",
        receiver_id="worker", message_type=kinds.ATTEMPT_STARTED, correlation_id=correlation, timestamp=1.0,
        generation=0, work=Work(message=message, attempt=n, writer="dead#1"), fact=facts.AttemptStarted(),
    )  # fmt: skip


@asynccontextmanager
async def a_worker(broker, agent, **settings):
    worker = Worker(broker, [agent], group="g", **settings)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run())
        yield worker
        worker.stop()


@pytest.mark.parametrize("seed", range(8))
def test_suspects_in_several_partitions_run_alone_one_after_the_other_and_nobody_is_left_behind(go, seed):
    chance = random.Random(seed)
    starts = {f"w{n}": chance.choice((0, 0, 1, 2)) for n in range(40)}
    running: set[str] = set()
    seen: dict[str, int] = {}
    worker = Agent("worker")

    @worker.on_task
    async def work(ctx, job: dict) -> str:
        running.add(job["name"])
        await ctx.effect("turns", turns, chance.randrange(4))
        seen[job["name"]] = max(seen.get(job["name"], 0), len(running))
        running.discard(job["name"])
        await ctx.sleep(0.001)
        return job["name"]

    async def turns(n: int) -> None:
        for _ in range(n):
            seen.update({name: max(seen.get(name, 0), len(running)) for name in running})
            await asyncio.sleep(0)

    async def main():
        async with MemoryBroker() as broker:
            await broker.ensure_log(LogSpec(partitions=PARTITIONS))
            async with MessageBus.open(broker) as bus:
                await left_by_the_dead(broker, bus, starts)
                async with a_worker(broker, worker, concurrency=chance.choice((1, 3, 100))) as made:
                    for name in starts:
                        assert await (await bus.attach(name)).result(20) == name
                    assert not made.cohorts.active
                    assert not made.scheduler.held

    go(main())
    suspects = {name for name, count in starts.items() if count}
    assert {seen[name] for name in suspects} == {1}
