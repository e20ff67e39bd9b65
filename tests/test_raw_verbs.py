"""What a worker makes of control records whose verbs are still to come: rolled back, redriven, cancelled, forked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hosting import records, working

from refold import Agent, AgentError, AgentMessage, Context, MessageBus, RetryPolicy
from refold.brokers import open_broker
from refold.bus import codec, facts, ids, kinds
from refold.bus.broker import Appended, Broker, Item, LogSpec, Outgoing
from refold.bus.message import Expected, new_id
from refold.bus.partition import partition_of
from refold.projections.history import History, read_workflow
from refold.projections.status import Status
from refold.projections.verdict import Verdict

ONCE = RetryPolicy(attempts=1)


@pytest.fixture(params=["memory", "sqlite"])
def url(request, tmp_path):
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/log.db"


def item_of(broker: Broker, r: AgentMessage) -> Item:
    partition = partition_of(r.correlation_id, broker.meta.partitions)
    return Item(partition, r.correlation_id, (Outgoing(r.id, codec.encode(r)),))


async def put(broker: Broker, r: AgentMessage) -> None:
    """Append a record as it is, past every check."""
    (result,) = await broker.append([item_of(broker, r)])
    assert isinstance(result, Appended)


def control(correlation: str, fact: facts.Fact, **fields: Any) -> AgentMessage:
    kind = next(kind for kind, of in facts.FACTS.items() if of is type(fact))
    return AgentMessage(
        sender_id="operator", receiver_id="*", message_type=kind, correlation_id=correlation, fact=fact, **fields
    )


async def rollback(broker: Broker, correlation: str, to: int, *inputs: AgentMessage, **fact: Any) -> AgentMessage:
    w = (await read_workflow(broker, correlation)).workflow
    raws = tuple(msgspec.Raw(codec.encode(m)) for m in inputs)
    rolled = facts.RolledBack(to_version=to, op_id=new_id(), with_inputs=raws, **fact)
    expected = Expected(generation=w.generation, inputs=w.view.inputs)
    return control(correlation, rolled, expected=expected)


def verdicts(history: History, kind: str) -> list[Verdict]:
    return [j.verdict for j in history.records if j.envelope.message_type == kind]


def put_before(broker: Any, kind: str, make: Callable[[], Any]) -> None:
    """Let one record slip into the log right before the first one of that kind that is appended from now on."""
    append, waiting = broker.append, [True]

    async def patched(items: Any, *args: Any, **more: Any) -> Any:
        found = any(codec.envelope(r.value).message_type == kind for item in items for r in item.records)
        if not (found and waiting):
            return await append(items, *args, **more)
        waiting.clear()
        return (await append([item_of(broker, await make()), *items], *args, **more))[1:]

    broker.append = patched


def test_a_rollback_in_the_middle_of_running_work_ends_it_and_does_not_repeat_the_steps_that_stay(go, until, url):
    clerk, helper = Agent("clerk"), Agent("helper")
    calls, keys, ended = [], [], []

    @helper.on_task
    async def help(ctx: Context, n: int) -> int:
        calls.append("helper")
        return n + 1

    @clerk.on_task
    async def work(ctx: Context, n: int) -> list[Any]:
        async def slow() -> str:
            calls.append("slow")
            keys.append(ctx.idempotency_key)
            if len(keys) == 1:
                try:
                    await asyncio.Event().wait()
                except asyncio.CancelledError:
                    ended.append("slow")
                    raise
            return "slowly"

        first = await ctx.effect("first", lambda: calls.append("first"))
        helped = await ctx.request("helper", n)
        return [first, helped, await ctx.effect("slow", slow), await ctx.receive("more")]

    async def main():
        async with open_broker(url) as broker:
            await broker.ensure_log(LogSpec(partitions=1))
            async with MessageBus.open(broker) as bus, working(broker, clerk, helper):
                handle = await bus.start(work, 1, id="w")
                await until(lambda: calls == ["first", "helper", "slow"])
                before = await read_workflow(broker, "w")
                kept = [e.envelope.message_type for e in before.path()]
                assert kept == ["task_request", "effect_completed", "task_request", "task_response"]
                await put(broker, await rollback(broker, "w", 4))
                await until(lambda: calls == ["first", "helper", "slow", "slow"])
                assert ended == ["slow"]
                assert keys[0] == keys[1]  # it may have happened: the same key again
                await handle.send("now", kind="more")
                assert await handle.result(10) == [None, 2, "slowly", "now"]
            assert calls == ["first", "helper", "slow", "slow"]
            history = await read_workflow(broker, "w")
            assert (history.workflow.generation, history.workflow.is_complete()) == (1, True)
            assert [e.id for e in history.path()][:4] == [e.id for e in before.path()]

    go(main())


def test_the_outcome_of_an_effect_that_a_rollback_overtook_is_in_the_ledger_and_not_on_the_path(go, url):
    clerk, keys = Agent("clerk"), []

    @clerk.on_task
    async def work(ctx: Context, n: int) -> int:
        await ctx.effect("pay", lambda: keys.append(ctx.idempotency_key))
        return n

    async def main():
        async with open_broker(url) as broker:
            await broker.ensure_log(LogSpec(partitions=1))
            async with MessageBus.open(broker) as bus, working(broker, clerk):
                put_before(broker, "effect_completed", lambda: rollback(broker, "w", 1))
                assert await bus.request(work, 7, id="w") == 7
            history = await read_workflow(broker, "w")
            assert verdicts(history, "effect_completed") == [Verdict.LEDGER, Verdict.ADMITTED]
            effects = history.workflow.ledger.effects
            assert [effects[key].status for key in keys] == ["completed", "completed"]
            assert keys[0] != keys[1]  # it did happen, in a history that is gone: another effect now
            assert [e.envelope.message_type for e in history.path()] == [
                "task_request", "effect_completed", "task_response",
            ]  # fmt: skip

    go(main())


def test_what_a_handler_of_the_old_generation_still_appends_is_stale(go, url):
    clerk, runs = Agent("clerk"), []

    @clerk.on_task
    async def work(ctx: Context, n: int) -> int:
        runs.append(n)
        await ctx.effect("first", lambda: None)
        ctx.update({"seen": n})
        return n

    async def main():
        async with open_broker(url) as broker:
            await broker.ensure_log(LogSpec(partitions=1))
            async with MessageBus.open(broker) as bus, working(broker, clerk):
                put_before(broker, "task_response", lambda: rollback(broker, "w", 2))
                assert await bus.request(work, 7, id="w") == 7
            history = await read_workflow(broker, "w")
            assert runs == [7, 7]
            assert verdicts(history, "task_response") == [Verdict.STALE, Verdict.ADMITTED]
            assert verdicts(history, "state_changed") == [Verdict.STALE, Verdict.ADMITTED]
            assert verdicts(history, "effect_completed") == [Verdict.ADMITTED]
            assert history.state() == {"seen": 7}

    go(main())


def test_a_rollback_behind_a_spawn_cancels_the_old_child_and_asks_a_new_one(go, until, url):
    parent, child, started = Agent("parent"), Agent("child"), []

    @child.on_task
    async def wait(ctx: Context, n: int) -> str:
        started.append(ctx.correlation_id)
        return await ctx.receive("go")

    @parent.on_task
    async def ask(ctx: Context, n: int) -> str:
        await ctx.effect("first", lambda: None)
        return await ctx.spawn(wait, n)

    async def main():
        async with open_broker(url) as broker:
            await broker.ensure_log(LogSpec(partitions=2))
            async with MessageBus.open(broker) as bus, working(broker, parent, child):
                handle = await bus.start(ask, 1, id="w")
                await until(lambda: len(started) == 1)
                await put(broker, await rollback(broker, "w", 2))
                await until(lambda: len(started) == 2)
                old, new = [await bus.attach(id) for id in started]

                async def cancelled():
                    return (await old.status()).status is Status.CANCELLED

                await until(cancelled)
                await new.send("done", kind="go")
                assert await handle.result(10) == "done"

                async def settled():
                    return (await read_workflow(broker, "w")).workflow.is_complete()

                await until(settled)

    go(main())


def test_a_rollback_opens_a_completed_workflow_again_with_a_correction_in_place_of_what_was_asked(go, until, url):
    clerk, seen = Agent("clerk"), []

    @clerk.on_task
    async def work(ctx: Context, n: int) -> int:
        seen.append(n)
        return n * 2

    async def main():
        async with open_broker(url) as broker:
            await broker.ensure_log(LogSpec(partitions=1))
            async with MessageBus.open(broker) as bus, working(broker, clerk):
                assert await bus.request(work, 1, id="w") == 2
                fix = AgentMessage.request("clerk", 21, correlation_id="w")
                r = await rollback(broker, "w", 0, fix)
                await put(broker, r)
                await until(lambda: seen == [1, 21])
                assert await (await bus.attach("w")).result(10) == 42
            w = (await read_workflow(broker, "w")).workflow
            assert w.view.path[0].id == ids.correction_id(r.id, 0)
            assert len(w.path_at(0, 10)) == 2

    go(main())


def test_a_rollback_that_expects_another_history_or_comes_twice_changes_nothing(go, url):
    clerk, runs = Agent("clerk"), []

    @clerk.on_task
    async def work(ctx: Context, n: int) -> int:
        runs.append(n)
        return n

    async def main():
        async with open_broker(url) as broker:
            await broker.ensure_log(LogSpec(partitions=1))
            async with MessageBus.open(broker) as bus, working(broker, clerk):
                handle = await bus.start(work, 1, id="w")
                assert await handle.result(10) == 1
                r = await rollback(broker, "w", 1)
                await put(broker, codec.with_changes(r, id=new_id(), expected=Expected(generation=0, inputs=2)))
                await put(broker, codec.with_changes(r, id=new_id(), expected=None))
                await put(broker, r)  # what was refused did not burn its op_id
                await put(broker, codec.with_changes(r, id=new_id(), expected=Expected(generation=1, inputs=1)))
                assert await handle.request(2) == 2
            history = await read_workflow(broker, "w")
            assert verdicts(history, "rolled_back") == ["conflict", "invalid", "admitted", "duplicate"]
            assert history.workflow.generation == 1
            assert runs == [1, 1, 2]

    go(main())


def test_a_redrive_does_again_what_failed_and_what_followed_it_and_nothing_else(go, until, url):
    clerk, calls = Agent("clerk"), []

    def fails() -> None:
        calls.append("fails")
        if calls.count("fails") == 1:
            raise ValueError("not yet")

    @clerk.on_task
    async def work(ctx: Context, n: int) -> int:
        await ctx.effect("first", lambda: calls.append("first"))
        await ctx.effect("fails", fails, retry=ONCE)
        await ctx.effect("last", lambda: calls.append("last"))
        return n

    async def main():
        async with open_broker(url) as broker:
            await broker.ensure_log(LogSpec(partitions=1))
            async with MessageBus.open(broker) as bus, working(broker, clerk):
                handle = await bus.start(work, 5, id="w")
                with pytest.raises(AgentError, match="not yet"):
                    await handle.result(10)
                fact = facts.Redriven(agent="clerk", message=handle.request_id)
                await put(broker, control("w", fact))

                async def complete():
                    return (await read_workflow(broker, "w")).workflow.is_complete()

                await until(lambda: calls == ["first", "fails", "fails", "last"])
                await until(complete)
                assert await handle.result(10) == 5
                await put(broker, control("w", fact))  # it has not failed since
            history = await read_workflow(broker, "w")
            assert verdicts(history, "redriven") == [Verdict.ADMITTED, Verdict.INVALID]
            assert calls == ["first", "fails", "fails", "last"]

    go(main())


def test_a_cancel_ends_a_workflow_and_its_children_and_a_later_message_starts_anew(go, until, url):
    parent, child = Agent("parent"), Agent("child")
    started, again = [], []

    @child.on_task
    async def wait(ctx: Context, n: int) -> str:
        started.append(ctx.correlation_id)
        return await ctx.receive("never")

    @parent.on_task
    async def fan(ctx: Context, n: int) -> list[str]:
        if n == 0:
            again.append(n)
            return []
        return await ctx.gather(*(ctx.spawn(wait, i) for i in range(n)))

    async def main():
        async with open_broker(url) as broker:
            await broker.ensure_log(LogSpec(partitions=2))
            async with MessageBus.open(broker) as bus, working(broker, parent, child):
                handle = await bus.start(fan, 3, id="w")
                await until(lambda: len(started) == 3)
                await put(broker, control("w", facts.Cancelled(actor="operator")))
                with pytest.raises(AgentError, match="cancelled"):
                    await handle.result(10)

                async def all_cancelled():
                    found = [(await (await bus.attach(id)).status()).status for id in ["w", *started]]
                    return found == [Status.CANCELLED] * 4

                await until(all_cancelled)
                assert await handle.request(0) == []
            assert again == [0]
            for id in started:
                assert [r.message_type for r in await records(broker, id)][-1] == "delivered"  # to its parent

    go(main())


def test_forked_is_the_first_record_of_a_workflow_or_none(go, url):
    clerk = Agent("clerk")
    clerk.on_task(lambda n: n + 1)

    async def main():
        async with open_broker(url) as broker:
            await broker.ensure_log(LogSpec(partitions=1))
            fork = facts.Forked(parent="w", parent_generation=0, parent_version=1)
            async with MessageBus.open(broker) as bus, working(broker, clerk):
                await put(broker, control("f", fork))
                await put(broker, AgentMessage.request("clerk", 1, correlation_id="f"))
                await put(broker, control("f", fork))
                assert await (await bus.attach("f")).result(10) == 2
            history = await read_workflow(broker, "f")
            assert verdicts(history, "forked") == [Verdict.ADMITTED, Verdict.INVALID]
            assert history.path()[0].envelope.message_type == kinds.FORKED

    go(main())


def test_a_record_under_a_key_that_is_not_its_workflows_is_moved_where_it_belongs(go, until, url):
    clerk = Agent("clerk")
    clerk.on_task(lambda n: n + 1)

    async def main():
        async with open_broker(url) as broker:
            await broker.ensure_log(LogSpec(partitions=1))
            lost = AgentMessage.request("clerk", 1, correlation_id="w")
            await broker.append_raw(0, [("elsewhere", codec.encode(lost))])
            async with MessageBus.open(broker) as bus, working(broker, clerk) as worker:

                async def moved():
                    return [r.id for r in await records(broker, "w")][:1] == [lost.id]

                await until(moved)
                assert await (await bus.attach("w")).result(10) == 2
                await until(lambda: not any(p.fold.strays for p in worker.places.values()))
                await until(lambda: worker.handled == 1)  # counted when its append returns: a reader may see it sooner

    go(main())
