"""Many open workflows: few of them are objects, and those that only wait hold up nobody after a takeover."""

from __future__ import annotations

import asyncio

import pytest
from hosting import crash, opened, working

from refold import Agent, AgentMessage, Context, MessageBus, Worker
from refold.agents import worker as workers
from refold.bus import codec, facts, kinds
from refold.bus.broker import Item, Outgoing
from refold.bus.ids import record_key

MANY = 200


@pytest.fixture(autouse=True)
def few_objects(monkeypatch):
    """What is kept as objects, made small enough for a test to go beyond it."""
    monkeypatch.setattr(workers, "LIVE_WORKFLOWS", 32)


def waiting_agent() -> tuple[Agent, list[str]]:
    """An agent that waits for a message, and who began."""
    agent, began = Agent("a"), list[str]()

    @agent.on_task
    async def wait(ctx: Context, what: str) -> str:
        began.append(ctx.correlation_id)
        return what if what == "now" else await ctx.receive("go")

    return agent, began


def objects(worker: Worker) -> int:
    """How many workflows the worker keeps as objects."""
    return sum(len(place.fold.live) for place in worker.places.values())


async def killed_with_many_waiting(broker, bus, until) -> list[str]:
    """Let a worker open many workflows that wait, and die before it has written a checkpoint."""
    agent, began = waiting_agent()
    worker = Worker(broker, [agent], group="g", max_live=10)
    task = asyncio.create_task(worker.run())
    for i in range(MANY):
        await bus.start("a", "later", id=f"w{i}")
    await until(lambda: len(set(began)) == MANY and not worker.scheduler.used)
    await crash(broker, worker, task)
    return [f"w{i}" for i in range(MANY)]


def test_a_takeover_without_a_checkpoint_keeps_few_of_many_open_workflows_as_objects(go, until):
    async def main():
        broker = await opened()
        async with MessageBus.open(broker) as bus:
            names = await killed_with_many_waiting(broker, bus, until)
            agent, began = waiting_agent()
            async with working(broker, agent, max_live=10) as worker:
                await until(lambda: len(set(began)) == MANY and not worker.scheduler.used)
                await until(lambda: objects(worker) <= 64)
                assert len(began) == MANY  # none of them more than once
                handles = [await bus.attach(name) for name in names]
                for handle in handles:
                    await handle.send("yes", kind="go", to="a")
                assert [await handle.result(10) for handle in handles] == ["yes"] * MANY

    go(main())


def test_what_only_waited_runs_again_after_a_takeover_and_holds_up_no_new_message(go, until):
    async def main():
        broker = await opened()
        async with MessageBus.open(broker) as bus:
            await killed_with_many_waiting(broker, bus, until)
            agent, began = waiting_agent()
            async with working(broker, agent, concurrency=1) as worker:
                await until(worker.caught_up.is_set)
                assert await bus.request("a", "now", id="new", timeout=10) == "now"
                assert began.index("new") < MANY / 2
                await until(lambda: set(began) == {"new", *(f"w{i}" for i in range(MANY))})

    go(main())


def test_completed_workflows_are_stubs_before_a_long_log_is_folded_to_its_end(go, until, monkeypatch):
    async def main():
        broker = await opened()
        agent, _ = waiting_agent()
        async with MessageBus.open(broker) as bus:
            async with working(broker, agent):
                for i in range(MANY):
                    await bus.request("a", "now", id=f"w{i}")
            broker.log.checkpoints.clear()
            most = 0
            one = workers.fold_batch

            async def watched(worker, place, records):
                nonlocal most
                for record in records:
                    await one(worker, place, [record])
                    most = max(most, len(place.fold.live))

            monkeypatch.setattr(workers, "fold_batch", watched)
            async with working(broker, agent) as worker:
                await until(worker.caught_up.is_set)
                assert await bus.request("a", "now", id="new") == "now"
            assert most < 5

    go(main())


def test_what_completes_while_others_are_cooled_leaves_a_stub_and_no_entry(go, until, monkeypatch):
    """One batch ends many workflows; the first record of it is enough to have the coldest of them put away."""

    async def main():
        broker = await opened()
        agent, began = waiting_agent()
        async with MessageBus.open(broker) as bus, working(broker, agent) as worker:
            names = [f"w{i}" for i in range(8)]
            for name in names:
                await bus.start("a", "later", id=name)
            await until(lambda: len(set(began)) == len(names) and not worker.scheduler.used)
            monkeypatch.setattr(workers, "LIVE_WORKFLOWS", 1)
            new = AgentMessage.request("a", "later", correlation_id="new")
            ends = [
                AgentMessage(
                    sender_id="operator", receiver_id="*", message_type=kinds.CANCELLED, correlation_id=name,
                    payload=None, fact=facts.Cancelled(actor="operator"),
                )
                for name in names
            ]  # fmt: skip
            items = [Item(0, m.correlation_id, (Outgoing(m.id, codec.encode(m)),)) for m in (new, *ends)]
            await broker.append(items)
            await until(lambda: "new" in began)
            fold = worker.places[0].fold
            assert [*fold.live, *fold.entries] == ["new"]
            assert all(record_key(name) in fold.stubs for name in names)

    go(main())
