"""The worker: takeover with a checkpoint, strays, groups, what it refuses."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from refold import Agent, AgentError, AgentMessage, Context, MessageBus, Worker
from refold.agents.execution import append_records
from refold.agents.ownership import save_checkpoint
from refold.brokers.memory import MemoryBroker
from refold.bus import codec
from refold.bus.broker import LogSpec
from refold.bus.errors import ConfigError, GroupConflict, WorkflowExists
from refold.bus.ids import record_key
from refold.bus.partition import partition_of
from refold.projections.history import read_workflow
from refold.projections.status import Status


@contextlib.asynccontextmanager
async def working(broker, *agents, group="g", **settings):
    """A worker on a broker that is open; stopped at the end."""
    worker = Worker(broker, agents, group=group, **settings)
    task = asyncio.ensure_future(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is not None:
            raise task.exception()


async def opened(partitions=2):
    broker = MemoryBroker()
    await broker.ensure_log(LogSpec(partitions=partitions))
    return broker


def asker(starts):
    agent = Agent("asker")

    @agent.on_task
    async def ask(ctx: Context, n: int) -> int:
        starts.append(n)
        x = await ctx.effect("n", lambda: n)
        return x + await ctx.receive("more")

    return agent


def test_waiting_workflows_go_on_from_the_checkpoint_after_a_restart(go, until):
    async def main():
        broker, starts = await opened(), []
        async with MessageBus.open(broker) as bus:
            async with working(broker, asker(starts)):
                handles = [await bus.start("asker", n, id=f"w{n}") for n in range(30)]

                async def all_wait():
                    return all([(await h.status()).status is Status.WAITING for h in handles])

                await until(all_wait)
            saved = [await broker.checkpoint("g", p) for p in range(2)]
            ends = await broker.positions("end")
            assert all(c is not None and c.position >= ends[p] - 3 for p, c in enumerate(saved))
            started = len(starts)
            async with working(broker, asker(starts)) as worker:
                await until(lambda: len(worker.places) == 2 and all(p.active for p in worker.places.values()))
                assert len(starts) == started  # what only waits is not run, it is a few bytes
                for h in handles:
                    await h.send(100, kind="more")
                assert [await h.result(10) for h in handles] == [100 + n for n in range(30)]

    go(main())


def test_a_late_message_to_a_completed_workflow_is_judged_with_its_history(go, until):
    async def main():
        broker = await opened()
        agent = Agent("echo")
        agent.on_task(lambda n: n)
        async with MessageBus.open(broker) as bus:
            async with working(broker, agent):
                handle = await bus.start("echo", 1, id="w")
                await handle.result(5)
            async with working(broker, agent) as worker:
                assert await handle.request(2) == 2
                with pytest.raises(WorkflowExists):
                    await bus.start("echo", 99, id="w")
                again = await bus.start("echo", 1, id="w")
                assert await again.result(5) == 1
                await until(lambda: worker.handled)
                assert worker.handled == 1

    go(main())


def test_a_record_in_the_wrong_partition_is_moved_where_it_belongs(go, until):
    async def main():
        broker = await opened(4)
        agent = Agent("echo")
        agent.on_task(lambda n: n)
        message = AgentMessage.request("echo", 5, correlation_id="stray")
        wrong = (partition_of("stray", 4) + 1) % 4
        await broker.append_raw(wrong, [("stray", codec.encode(message))])
        async with MessageBus.open(broker) as bus, working(broker, agent) as worker:

            async def moved():
                with contextlib.suppress(Exception):
                    return (await bus.attach("stray")).request_id == message.id

            await until(moved)
            assert await (await bus.attach("stray")).result(5) == 5
            await until(lambda: not any(p.fold.strays for p in worker.places.values()))
        kinds = [codec.envelope(s.value).message_type for s in (await broker.read(wrong)).records]
        assert kinds.count("forwarded") == 1
        async with working(broker, agent) as worker:  # a new owner skips what is marked
            await until(lambda: len(worker.places) == 4 and all(p.active for p in worker.places.values()))
        records = (await read_workflow(broker, "stray")).records
        assert [j.envelope.message_type for j in records] == ["task_request", "task_response"]

    go(main())


def test_undecodable_bytes_stop_nobody(go):
    async def main():
        broker = await opened(1)
        agent = Agent("echo")
        agent.on_task(lambda n: n)
        await broker.append_raw(0, [("w", b"\xff\x00 no record"), (None, b"{}"), ("w", b'{"id": 1}')])
        async with MessageBus.open(broker) as bus, working(broker, agent) as worker:
            assert await bus.request("echo", 1) == 1
            assert worker.places[0].fold.undecodable == 3

    go(main())


def test_an_agent_without_a_handler_for_the_kind_refuses(go):
    async def main():
        broker = await opened()
        agent = Agent("mute")
        agent.on("news")(lambda n: n)
        async with MessageBus.open(broker) as bus, working(broker, agent):
            with pytest.raises(AgentError, match="no handler of 'task_request'"):
                await bus.request("mute", 1)

    go(main())


def test_a_worker_is_refused_where_its_group_hosts_other_agents(go, until):
    a, b, c = Agent("a"), Agent("b"), Agent("c")

    async def main():
        broker = await opened()
        async with working(broker, a, b) as first:
            await until(lambda: first.places)
            members = await broker.members()
            assert members[0].presence.agents.keys() == {"a", "b"}
            with pytest.raises(GroupConflict, match="choose another --group"):
                await Worker(broker, [b, c], group="g").run()
            with pytest.raises(GroupConflict, match="use --group g"):
                await Worker(broker, [a], group="other").run()
            async with working(broker, a, b, c) as wider:  # a deploy that adds an agent
                await until(lambda: wider.places)

    go(main())


def test_a_worker_without_agents_or_with_two_of_a_name_is_refused(go):
    async def main():
        broker = await opened()
        for agents in ([], [Agent("a"), Agent("a")]):
            with pytest.raises(ConfigError, match="different names"):
                Worker(broker, agents, group="g")

    go(main())


def test_two_workers_share_the_partitions_and_hand_them_over_in_good_order(go, until):
    async def main():
        broker = await opened(4)
        agent = Agent("echo")
        agent.on_task(lambda n: n)
        async with MessageBus.open(broker) as bus, working(broker, agent, member="one") as one:
            await until(lambda: len(one.places) == 4)
            async with working(broker, agent, member="two") as two:
                await until(lambda: len(one.places) == 2 and len(two.places) == 2)
                assert set(one.places) & set(two.places) == set()
                assert await asyncio.gather(*(bus.request("echo", n) for n in range(40))) == list(range(40))
                assert one.handled
                assert two.handled
            await until(lambda: len(one.places) == 4)
            assert not any(p.after_death for p in one.places.values())
            assert await bus.request("echo", 7) == 7

    go(main())


def test_a_log_that_lost_records_stops_the_partition(go, until):
    async def main():
        broker = await opened(1)
        agent = Agent("echo")
        agent.on_task(lambda n: n)
        async with MessageBus.open(broker) as bus, working(broker, agent):
            await bus.request("echo", 1)
        saved = await broker.checkpoint("g", 0)
        assert saved is not None
        broker.log.partitions[0] = broker.log.partitions[0][: saved.position - 2]
        async with working(broker, agent) as worker:
            await until(lambda: worker.truncated)
            assert "truncated, restored or recreated" in worker.truncated[0]
            assert not worker.places

    go(main())


def test_a_record_that_is_there_already_takes_none_of_those_beside_it_with_it(go, until):
    """An append whose end was not known, and then more was due: the broker refuses the second for what they share."""

    async def main():
        broker = await opened(1)
        async with working(broker, Agent("a")) as worker:
            await until(lambda: worker.places and worker.places[0].active)
            fence = worker.places[0].fence("g")
            notes = [
                AgentMessage(
                    sender_id="x", receiver_id="a", message_type="note", payload=n, correlation_id="w", id=f"n{n}"
                )
                for n in range(3)
            ]
            await append_records(worker, 0, "w", notes[1:2], fence)
            await append_records(worker, 0, "w", notes, fence)
        page = await broker.read_workflow("w")
        assert sorted(codec.decode(s.value).id for s in page.records if s.key is not None) == ["n0", "n1", "n2"]

    go(main())


def test_a_workflow_that_is_found_complete_after_its_last_record_was_saved_leaves_the_checkpoint_too(go, until):
    async def main():
        broker, starts = await opened(1), []
        async with MessageBus.open(broker) as bus, working(broker, asker(starts)) as worker:
            handle = await bus.start("asker", 1, id="w")
            await until(lambda: starts)
            (place,) = worker.places.values()
            await save_checkpoint(worker, worker.sub, place)
            kept = set((await broker.checkpoint("g", 0)).entries)
            await handle.send(2, kind="more")
            assert await handle.result(10) == 3
            await until(lambda: place.fold.gone)
            place.saved_position = place.fold.position  # it was saved between the record and its settling
            await save_checkpoint(worker, worker.sub, place)
            assert set((await broker.checkpoint("g", 0)).entries).isdisjoint({record_key("w")})
            assert record_key("w") in kept

    go(main())
