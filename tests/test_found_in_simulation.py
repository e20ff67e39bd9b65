"""What the simulation found, as stories small enough to read: each was a wedge, lost work, or a call made twice."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from hosting import QUICK, opened, working

from refold import Agent, AgentMessage, Context, MessageBus
from refold.agents import worker as worker_module
from refold.agents.ownership import save_checkpoint
from refold.brokers.memory import MemoryBroker
from refold.bus import codec, kinds
from refold.bus.broker import Item, LogSpec
from refold.bus.errors import BrokerUnavailable
from refold.bus.ids import record_key
from refold.bus.partition import partition_of
from refold.projections.status import Status


class Unreliable(MemoryBroker):
    """A log that fails when it is told to: `fails` says of a call's name and items whether this one does."""

    fails: Callable[[str, Any], bool] = staticmethod(lambda name, items: False)

    def _may(self, name: str, items: Any = ()) -> None:
        if self.fails(name, items):
            raise BrokerUnavailable(f"{name} fails")

    async def append(self, items, fence=None):
        self._may("append", items)
        return await super().append(items, fence)

    async def read_workflow(self, correlation_id, *, after=0, limit=1000):
        self._may("read_workflow", correlation_id)
        return await super().read_workflow(correlation_id, after=after, limit=limit)

    async def read_at(self, partition, positions):
        self._may("read_at", positions)
        return await super().read_at(partition, positions)

    async def notify(self, address, hint):
        self._may("notify")
        await super().notify(address, hint)


def once(wanted: str, holds: Callable[[Any], bool] = lambda _: True) -> Callable[[str, Any], bool]:
    """Fail the first call of that name for which the condition holds. `.happened` says whether it did."""

    def fails(name: str, items: Any) -> bool:
        if name == wanted and not fails.happened and holds(items):  # type: ignore[attr-defined]
            fails.happened = True  # type: ignore[attr-defined]
            return True
        return False

    fails.happened = False  # type: ignore[attr-defined]
    return fails


def brings(kind: str) -> Callable[[list[Item]], bool]:
    """One of the items has a record of this kind."""
    return lambda items: any(codec.envelope(r.value).message_type == kind for item in items for r in item.records)


async def unreliable(partitions: int = 1) -> Unreliable:
    broker = Unreliable()
    await broker.ensure_log(LogSpec(partitions=partitions))
    return broker


async def waits(handle: Any) -> bool:
    return (await handle.status()).status is Status.WAITING


def test_a_request_made_inside_does_not_queue_behind_a_message_that_queues_behind_its_asker(go):
    a, b = Agent("a"), Agent("b")
    asked, heard = asyncio.Event(), []

    @a.on_task
    async def ask(ctx: Context, n: int) -> int:
        if n == 0:
            return 1
        await ctx.effect("gate", asked.wait)
        return await ctx.request("a", 0) + await ctx.request("b", 0)

    @b.on_task
    async def back(ctx: Context, n: int) -> int:
        return 10 * await ctx.request("a", 0)

    @a.on("note")
    async def note(ctx: Context, text: str) -> None:
        heard.append(text)

    async def main():
        broker = await opened()
        async with MessageBus.open(broker) as bus, working(broker, a, b):
            handle = await bus.start("a", 1, id="w")
            await handle.send("in between", kind="note")
            asked.set()
            assert await handle.result(5) == 11
            assert await handle.request(0) == 1
            assert heard == ["in between"]

    go(main())


def test_a_worker_rests_while_a_call_is_tried_again(go, until, monkeypatch):
    agent, calls, fired, gate = Agent("a"), [], [], asyncio.Event()
    fire = worker_module.fire

    async def counted(worker, place):
        fired.append(1)
        await fire(worker, place)

    monkeypatch.setattr(worker_module, "fire", counted)

    async def call() -> None:
        calls.append(1)
        if len(calls) == 1:
            raise RuntimeError("once")
        await gate.wait()

    @agent.on_task
    async def handle(ctx: Context, n: int) -> int:
        await ctx.effect("call", call, retry=QUICK)
        return n

    async def main():
        broker = await opened()
        async with MessageBus.open(broker) as bus, working(broker, agent):
            handle = await bus.start("a", 1)
            await until(lambda: len(calls) == 2)
            before = len(fired)
            for _ in range(300):
                await asyncio.sleep(0)
            assert len(fired) - before < 10
            gate.set()
            assert await handle.result(5) == 1

    go(main())


def test_a_timer_that_could_not_be_written_takes_no_other_with_it(go):
    agent = Agent("a")

    @agent.on_task
    async def sleep(ctx: Context, n: int) -> int:
        await ctx.sleep(0.05)
        return n

    async def main():
        broker = await unreliable()
        broker.fails = once("append", brings(kinds.TIMER_FIRED))
        async with MessageBus.open(broker) as bus, working(broker, agent):
            handles = [await bus.start("a", n) for n in range(5)]
            assert [await h.result(10) for h in handles] == list(range(5))
        assert broker.fails.happened

    go(main())


def test_a_partition_whose_release_fails_still_goes_to_the_other_worker(go, until):
    agent = Agent("a")
    agent.on_task(lambda n: n)

    async def main():
        broker, failed = await opened(2), []
        async with working(broker, agent, member="one") as one:
            await until(lambda: len(one.places) == 2)
            release = one.sub.release

            async def fails(partition, epoch):
                if not failed:
                    failed.append(partition)
                    raise BrokerUnavailable("the release fails")
                await release(partition, epoch)

            one.sub.release = fails
            async with working(broker, agent, member="two") as two:
                await until(lambda: two.places)
                assert failed

    go(main())


def test_a_worker_lives_on_when_earlier_records_cannot_be_read(go):
    agent = Agent("a")
    agent.on_task(lambda n: n)

    async def main():
        broker = await unreliable()
        async with MessageBus.open(broker) as bus:
            async with working(broker, agent):
                handle = await bus.start("a", 1, id="w")
                await handle.result(5)
            async with working(broker, agent):
                await bus.request("a", 2)
                broker.fails = once("read_workflow")
                await handle.send("late", kind="note", to="a")  # its verdict needs what came before
                assert await bus.request("a", 3) == 3
        assert broker.fails.happened

    go(main())


def test_an_answer_that_could_not_be_read_is_delivered_later(go):
    parent, child = Agent("parent"), Agent("child")
    child.on_task(lambda n: n + 1)

    @parent.on_task
    async def ask(ctx: Context, n: int) -> int:
        return await ctx.spawn("child", n)

    async def main():
        broker = await unreliable()
        async with MessageBus.open(broker) as bus, working(broker, parent, child) as worker:
            worker.records._limit = 0  # nothing is at hand: every record is read from the log
            wanted = once("read_at", lambda positions: worker._owed == {} and bool(worker.handled))
            broker.fails = wanted
            assert await bus.request("parent", 1, timeout=10) == 2
        assert wanted.happened

    go(main())


def test_a_checkpoint_that_could_not_be_saved_leaves_nothing_of_what_is_complete(go, until):
    agent = Agent("a")

    @agent.on_task
    async def wait(ctx: Context, n: int) -> int:
        return await ctx.receive("go")

    async def main():
        broker = await opened()
        async with MessageBus.open(broker) as bus, working(broker, agent) as worker:
            handle = await bus.start("a", 1, id="w")
            await until(lambda: waits(handle))
            place = worker.places[0]
            assert await save_checkpoint(worker, worker.sub, place)
            assert record_key("w") in (await broker.checkpoint("g", 0)).entries
            await handle.send(7, kind="go")
            assert await handle.result(5) == 7
            await until(lambda: not place.fold.live)
            save = worker.sub.save_checkpoint

            async def fails(*_):
                raise BrokerUnavailable("not now")

            worker.sub.save_checkpoint = fails
            with contextlib.suppress(BrokerUnavailable):
                await save_checkpoint(worker, worker.sub, place)
            worker.sub.save_checkpoint = save
            assert await save_checkpoint(worker, worker.sub, place)
            assert record_key("w") not in (await broker.checkpoint("g", 0)).entries

    go(main())


def test_a_group_that_began_with_another_groups_checkpoint_keeps_all_of_it_in_its_own(go, until):
    a, b = Agent("a"), Agent("b")

    @a.on_task
    async def ask(ctx: Context, n: int) -> int:
        await ctx.receive("go")
        return await ctx.request("b", n)

    b.on_task(lambda n: n * 2)

    async def main():
        broker = await opened()
        async with MessageBus.open(broker) as bus, working(broker, a, group="first") as first:
            handle = await bus.start("a", 4, id="w")
            await until(lambda: waits(handle))
            assert await save_checkpoint(first, first.sub, first.places[0])
            for _ in range(2):  # the second one loads what the first one saved
                async with working(broker, b, group="second") as second:
                    await until(lambda s=second: s.places and s.places[0].active)
            async with working(broker, b, group="second"):
                await handle.send(kind="go")
                assert await handle.result(5) == 8

    go(main())


def test_a_run_that_waits_for_a_slot_is_not_taken_for_one_that_waits_for_a_message(go, until):
    agent, gate = Agent("a"), asyncio.Event()

    @agent.on_task
    async def work(ctx: Context, what: str) -> str:
        if what == "wait":
            return await ctx.receive("go")
        await ctx.effect("gate", gate.wait)
        return what

    async def main():
        broker = await opened()
        async with MessageBus.open(broker) as bus, working(broker, agent, concurrency=1) as worker:
            waiting = await bus.start("a", "wait", id="w")
            await until(lambda: waits(waiting))
            busy = await bus.start("a", "busy")
            await until(lambda: worker.scheduler.used)
            place = worker.places[0]
            assert place.may_freeze(place.fold.find("w"), {"a"})
            await waiting.send("now", kind="go")
            await until(lambda: any(run.wants_slot for _, run in place.all_runs()))
            assert not place.may_freeze(place.fold.find("w"), {"a"})
            gate.set()
            assert [await waiting.result(5), await busy.result(5)] == ["now", "busy"]

    go(main())


def test_a_stray_that_comes_while_another_is_moved_is_moved_too(go, until):
    agent = Agent("a")
    agent.on_task(lambda n: n)

    async def main():
        broker = await opened(2)
        wrong = (partition_of("w", 2) + 1) % 2
        gate, arrived, append = asyncio.Event(), asyncio.Event(), broker.append

        async def slow(items, fence=None):
            if brings(kinds.FORWARDED)(items):
                arrived.set()
                await gate.wait()
            return await append(items, fence)

        broker.append = slow
        async with MessageBus.open(broker) as bus, working(broker, agent) as worker:
            strays = [AgentMessage.request("a", n, correlation_id="w") for n in range(2)]
            await broker.append_raw(wrong, [("w", codec.encode(strays[0]))])
            await arrived.wait()
            await broker.append_raw(wrong, [("w", codec.encode(strays[1]))])
            await until(lambda: len(worker.places[wrong].fold.strays) == 2)
            gate.set()
            await until(lambda: not worker.places[wrong].fold.strays)
            assert await (await bus.attach("w")).result(5) == 0

    go(main())


def test_a_call_whose_record_comes_while_it_waits_for_the_lease_is_not_made_again(go, until):
    agent, calls = Agent("a"), []

    @agent.on_task
    async def pay(ctx: Context, n: int) -> int:
        return await ctx.effect("pay", lambda: calls.append(n) or len(calls))

    async def main():
        broker, late = await unreliable(), []

        def loses(name: str, items: Any) -> bool:
            if name == "append" and not late and brings(kinds.EFFECT_COMPLETED)(items):
                late.extend(items)
                return True
            return False

        broker.fails = loses
        async with MessageBus.open(broker) as bus, working(broker, agent) as worker:
            gate, waiting = asyncio.Event(), asyncio.Event()

            async def lease_good(place):
                if late:
                    waiting.set()
                    await gate.wait()

            worker.lease_good = lease_good
            handle = await bus.start("a", 1, id="w")
            await waiting.wait()
            await broker.append(late)  # it had been written after all
            await until(lambda: worker.places[0].fold.position >= len(broker.log.partitions[0]))
            gate.set()
            assert await handle.result(5) == 1
            assert calls == [1]

    go(main())


def test_a_run_whose_append_is_under_way_is_not_parked(go, until):
    agent, paid, written = Agent("a"), asyncio.Event(), asyncio.Event()

    @agent.on_task
    async def work(ctx: Context, n: int) -> list[Any]:
        async def nap() -> str:
            await ctx.effect("paid", paid.wait)
            await ctx.sleep(0.05)
            return "slept"

        return await ctx.gather(ctx.receive("go"), nap())

    async def main():
        broker = await opened()
        append, under_way = broker.append, []

        async def slow(items, fence=None):
            if brings(kinds.TIMER_SET)(items) and paid.is_set():
                under_way.append(items)
                await written.wait()
            return await append(items, fence)

        broker.append = slow
        async with MessageBus.open(broker) as bus, working(broker, agent, max_live=0) as worker:
            handle = await bus.start("a", 1)
            await until(lambda: broker.log.partitions[0][-1].key is not None and len(broker.log.partitions[0]) >= 3)
            paid.set()
            await until(lambda: under_way)
            await handle.send("now", kind="go")
            await until(lambda: worker.places[0].fold.position >= len(broker.log.partitions[0]))
            for _ in range(20):
                await asyncio.sleep(0)
            written.set()
            assert await handle.result(5) == ["now", "slept"]

    go(main())


def test_a_stray_that_could_not_be_moved_is_moved_later(go, until):
    agent = Agent("a")
    agent.on_task(lambda n: n)

    async def main():
        broker = await unreliable(2)
        wrong = (partition_of("w", 2) + 1) % 2
        broker.fails = once("append", lambda items: items[0].key == "w")
        async with MessageBus.open(broker) as bus, working(broker, agent):
            stray = AgentMessage.request("a", 7, correlation_id="w")
            await broker.append_raw(wrong, [("w", codec.encode(stray))])
            await until(lambda: broker.log.by_key[1 - wrong].get("w"))
            assert broker.fails.happened
            assert await (await bus.attach("w")).result(5) == 7

    go(main())


def test_a_request_that_could_not_be_delivered_is_delivered_later(go, until):
    parent, child = Agent("parent"), Agent("child")
    child.on_task(lambda n: n + 1)

    @parent.on_task
    async def ask(ctx: Context, n: int) -> int:
        return await ctx.spawn("child", n)

    async def main():
        broker = await unreliable(2)
        broker.fails = once("append", lambda items: items[0].key not in (None, "w"))
        async with MessageBus.open(broker) as bus, working(broker, parent, child):
            assert await (await bus.start("parent", 1, id="w")).result(10) == 2
            assert broker.fails.happened

    go(main())


def test_a_run_whose_branch_could_not_append_is_not_parked_but_tried_again(go, until):
    agent = Agent("a", retry=QUICK)

    @agent.on_task
    async def both(ctx: Context, n: int) -> list[Any]:
        return await ctx.gather(ctx.receive("first"), said_and_received(ctx))

    async def said_and_received(ctx: Context) -> Any:
        ctx.send("*", "on the way")
        return await ctx.receive("second")

    async def main():
        broker = await unreliable(1)
        broker.fails = once("append", brings(kinds.TIMER_SET))
        async with MessageBus.open(broker) as bus, working(broker, agent, max_live=0):
            handle = await bus.start("a", 1)
            await until(lambda: broker.fails.happened)
            await handle.send(1, kind="first")
            await handle.send(2, kind="second")
            assert await handle.result(10) == [1, 2]

    go(main())


def test_a_hint_that_cannot_be_sent_ends_no_worker(go):
    agent = Agent("a")
    agent.on_task(lambda n: n)

    async def main():
        broker = await unreliable(1)
        broker.fails = once("notify")
        async with MessageBus.open(broker) as bus, working(broker, agent):
            assert await bus.request("a", 1, timeout=10) == 1
            assert broker.fails.happened
            assert await bus.request("a", 2, timeout=10) == 2

    go(main())
