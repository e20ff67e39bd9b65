"""Taking a partition over and giving it up: what the log says of it, and what who has lost it must not write."""

from __future__ import annotations

import asyncio
import socket

import pytest
from hosting import crash, opened, working
from test_checkpoints import bare

from refold import Agent, Context, MessageBus, Worker
from refold.agents.ownership import save_checkpoint
from refold.brokers.memory import MemoryBroker
from refold.bus import codec, kinds
from refold.bus.broker import LogSpec
from refold.bus.clock import Clock, Source
from refold.bus.ids import record_key
from refold.bus.message import AgentMessage
from refold.projections.checkpoint import fold_records, restore
from refold.projections.partition import PartitionFold
from refold.projections.status import Status
from refold.projections.workflow import Workflow


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


class Numbered(Source):
    def new_id(self) -> str:
        return f"{super().new_id()[:-4]}beef"


def test_an_owner_says_who_it_is_since_when_and_what_it_hosts(go, until):
    async def main():
        broker = await opened(2)
        async with working(broker, quick(), group="g", member="me", clock=Stopped(), source=Numbered()) as worker:
            await until(lambda: len(worker.places) == 2 and all(p.active for p in worker.places.values()))
            epochs = {p: place.epoch for p, place in worker.places.items()}
            found = {p: place.owner_id for p, place in worker.places.items()}
        for partition in (0, 1):
            owner, released = own(broker, partition)
            assert (owner.message_type, owner.sender_id, owner.timestamp) == (kinds.OWNER, "me", 1234.5)
            assert owner.id == found[partition]
            assert owner.id.endswith("beef") and released.id.endswith("beef")
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


def test_all_that_a_worker_appends_but_the_outcome_of_a_call_claims_its_right(go, until):
    parent, child = Agent("parent"), Agent("child")
    child.on_task(lambda n: n + 1)
    child.on("note")(lambda n: None)

    @parent.on_task
    async def ask(ctx: Context, n: int) -> int:
        ctx.send("child", n, kind="note")
        ctx.update({"n": n})
        await ctx.effect("call", lambda: n)
        await ctx.sleep(0.01)
        if ctx.attempt == 1:
            raise RuntimeError("once more")
        return await ctx.spawn("child", n) + await ctx.request("child", n)

    class Seen(MemoryBroker):
        async def append(self, items, fence=None):
            for item in items:
                kinds_of_it = {codec.envelope(r.value).message_type for r in item.records}
                appends.append((kinds_of_it, fence and (fence.group, fence.partition, fence.epoch)))
            return await super().append(items, fence)

    appends: list[tuple[set[str], tuple[str, int, int] | None]] = []

    async def main():
        broker = Seen()
        await broker.ensure_log(LogSpec(partitions=1))
        async with MessageBus.open(broker) as bus, working(broker, parent, child, group="g"):
            handle = await bus.start("parent", 1)
            appends.clear()
            assert await handle.result(10) == 4
        claimed = {kind for found, fence in appends for kind in found if fence == ("g", 0, 1)}
        free = {kind for found, fence in appends for kind in found if fence is None}
        assert free == {kinds.EFFECT_COMPLETED, kinds.OWNER_RELEASED}
        assert claimed >= {
            "note", kinds.STATE_CHANGED, kinds.TIMER_SET, kinds.TIMER_FIRED, kinds.ATTEMPT_FAILED, kinds.TASK_REQUEST,
            kinds.TASK_RESPONSE, kinds.DELIVERED,
        }  # fmt: skip

    go(main())


def test_whatever_was_saved_last_with_what_follows_it_is_the_fold_of_the_log(go, until):
    agent = Agent("a")

    @agent.on_task
    async def wait(ctx: Context, n: int) -> int:
        return await ctx.receive("word")

    async def folded(broker: MemoryBroker, fold: PartitionFold) -> dict[str, Workflow]:
        async for _ in fold_records(broker, fold, broker.log.partitions[0][fold.position :]):
            pass
        return {name: bare(w) for name in [*fold.live, *fold.entries] if (w := fold.find(name)) is not None}

    async def main():
        broker, saves = await opened(1), []
        async with MessageBus.open(broker) as bus, working(broker, agent, group="g") as worker:
            await until(lambda: worker.places and worker.places[0].active)
            place, save = worker.places[0], worker.sub.save_checkpoint

            async def looked_at(*args):
                saved = await save(*args)
                kept = await broker.checkpoint("g", 0)
                again = PartitionFold(0, 1)
                assert restore(again, kept)
                assert await folded(broker, again) == await folded(broker, PartitionFold(0, 1))
                saves.append(kept.position)
                return saved

            worker.sub.save_checkpoint = looked_at
            handles = [await bus.start("a", n, id=f"w{n}") for n in range(6)]
            for n in range(6):
                await until(lambda: place.fold.position == len(broker.log.partitions[0]) and not worker.scheduler.used)
                worker.sub.pause([0])  # the log is ahead of the fold
                before = place.fold.position
                await handles[n].send(n, kind="word")
                await bus.start("a", 9, id=f"x{n}")
                assert await save_checkpoint(worker, worker.sub, place)
                assert saves[-1] == before < len(broker.log.partitions[0])
                worker.sub.resume([0])
                assert await handles[n].result(5) == n
        assert len(saves) >= 6

    go(main())


def test_a_checkpoint_writes_what_has_changed_since_the_one_before(go, until):
    agent = Agent("a")

    @agent.on_task
    async def wait(ctx: Context, n: int) -> int:
        return await ctx.receive("word")

    async def main():
        broker, saved = await opened(1), []
        async with MessageBus.open(broker) as bus, working(broker, agent, group="g") as worker:
            await until(lambda: worker.places and worker.places[0].active)
            place, save = worker.places[0], worker.sub.save_checkpoint

            async def seen(partition, epoch, position, anchor, changed, gone):
                saved.append(set(changed))
                return await save(partition, epoch, position, anchor, changed, gone)

            worker.sub.save_checkpoint = seen
            for n in range(3):
                await bus.start("a", n, id=f"w{n}")
                await until(lambda n=n: len(worker.crew.waiting) == n + 1)
                assert await save_checkpoint(worker, worker.sub, place)
            workflows = {record_key(f"w{n}"): n for n in range(3)}
            assert [{workflows[key] for key in keys if key in workflows} for keys in saved] == [{0}, {1}, {2}]

    go(main())
