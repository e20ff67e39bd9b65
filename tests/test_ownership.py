"""Taking a partition over and giving it up: what the log says of it, and what who has lost it must not write."""

from __future__ import annotations

import asyncio
import socket

import pytest
from hosting import crash, opened, working

from refold import Agent, Context, MessageBus, Worker
from refold.brokers.memory import MemoryBroker
from refold.bus import codec, kinds
from refold.bus.broker import LogSpec
from refold.bus.clock import Clock
from refold.bus.message import AgentMessage
from refold.projections.status import Status


def quick() -> Agent:
    agent = Agent("a")
    agent.on_task(lambda n: n)
    agent.on("note")(lambda n: None)
    return agent


def own(broker: MemoryBroker, partition: int = 0) -> list[AgentMessage]:
    """The partition's own records."""
    return [codec.decode(s.value) for s in broker.log.partitions[partition] if s.key is None]


class Stopped(Clock):
    def now(self) -> float:
        return 1234.5


def test_an_owner_says_who_it_is_since_when_and_what_it_hosts(go, until):
    async def main():
        broker = await opened(2)
        async with working(broker, quick(), group="g", member="me", clock=Stopped()) as worker:
            await until(lambda: len(worker.places) == 2 and all(p.active for p in worker.places.values()))
            epochs = {p: place.epoch for p, place in worker.places.items()}
            found = {p: place.owner_id for p, place in worker.places.items()}
        for partition in (0, 1):
            owner, released = own(broker, partition)
            assert (owner.message_type, owner.sender_id, owner.timestamp) == (kinds.OWNER, "me", 1234.5)
            assert owner.id == found[partition]
            fact = owner.fact
            assert (fact.group, fact.epoch, fact.member) == ("g", epochs[partition], "me")
            assert (fact.pid, fact.host) == (worker.pid, socket.gethostname())
            assert fact.agents == {"a": ("note",)}
            assert (released.message_type, released.sender_id, released.timestamp) == (
                kinds.OWNER_RELEASED, "me", 1234.5,
            )  # fmt: skip
            assert (released.fact.group, released.fact.epoch, released.fact.member) == ("g", epochs[partition], "me")

    go(main())


def test_who_comes_after_a_worker_that_stopped_hears_of_no_death_and_after_one_that_died_of_one(go, until):
    async def main():
        broker = await opened(1)

        async def after_death() -> bool:
            async with working(broker, quick(), group="g") as worker:
                await until(lambda: worker.places and worker.places[0].active)
                place = worker.places[0]
                assert place.after_death == place.fold.groups["g"].after_death
                return place.after_death

        assert [await after_death(), await after_death()] == [False, False]
        dies = Worker(broker, [quick()], group="g")
        task = asyncio.ensure_future(dies.run())
        await until(lambda: dies.places and dies.places[0].active)
        await crash(broker, dies, task)
        assert [await after_death(), await after_death()] == [True, False]

    go(main())


def test_a_partition_that_was_lost_during_its_takeover_gets_no_owner_record(go, until):
    class Contested(MemoryBroker):
        async def append(self, items, fence=None):
            if not self.lost and items[0].key is None:
                self.lost = True
                self.steal("g", 0)  # claimed anew, in the next epoch, before the record is there
            return await super().append(items, fence)

        lost = False

    async def main():
        broker = Contested()
        await broker.ensure_log(LogSpec(partitions=1))
        async with working(broker, quick(), group="g") as worker:
            await until(lambda: worker.places and worker.places[0].active)
            assert worker.places[0].epoch == 2
        assert [r.fact.epoch for r in own(broker) if r.message_type == kinds.OWNER] == [2]

    go(main())


@pytest.mark.parametrize("drain", [0.0, 5.0])
def test_a_run_that_was_about_to_go_on_when_its_worker_stopped_goes_on(go, until, drain):
    agent, holder, gate = Agent("a"), Agent("holder"), asyncio.Event()

    @agent.on_task
    async def waits(ctx: Context, n: int) -> str:
        return await ctx.receive("word")

    @holder.on_task
    async def holds(ctx: Context, n: int) -> None:
        await gate.wait()

    async def main():
        broker = await opened(1)
        async with MessageBus.open(broker) as bus:
            async with working(broker, agent, holder, concurrency=1, drain=drain) as worker:
                handle = await bus.start("a", 1)
                await until(lambda: worker.crew.waiting)
                await bus.start("holder", 1)
                await until(lambda: worker.scheduler.used == 1)
                await handle.send("hello", kind="word")
                await until(lambda: any(run.wants_slot for run in worker.crew.waiting))
                assert (await handle.status()).status is Status.RUNNING
                worker.stop()
                await until(lambda: worker.draining)
                asyncio.get_running_loop().call_later(0.05, gate.set)
            async with working(broker, agent, holder):
                assert await handle.result(5) == "hello"

    go(main())


def test_no_handler_starts_before_all_that_was_acknowledged_is_folded(go, until):
    agent, calls = Agent("a"), []

    @agent.on_task
    def handle(n: int) -> None:
        calls.append(n)

    async def main():
        broker = await opened(1)
        async with MessageBus.open(broker) as bus:
            handle = await bus.start("a", 1)
            note = AgentMessage(
                id="n", sender_id="x", receiver_id="*", message_type="note", correlation_id="other", timestamp=1.0
            )
            await broker.append_raw(0, [("other", codec.encode(note))] * 3000)  # more than one batch
            await handle.cancel()
            async with working(broker, agent) as worker:
                await until(lambda: worker.places and worker.places[0].active)
                assert await bus.request("a", 2) is None
            assert calls == [2]

    go(main())
