"""Durable waits: messages from outside, time, and deadlines that are passed on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hosting import hosted, kinds_of, opened, records, working

from refold import Agent, AgentError, Context, MessageBus, WaitExpired
from refold.projections.status import Status


def receiver(*kinds: str, first: Any = None, timeout: float | None = None) -> Agent:
    """Receives messages of these kinds, one after the other."""
    agent = Agent("a")

    @agent.on_task
    async def handle(ctx: Context, n: int) -> list[Any]:
        if first is not None:
            await ctx.effect("first", first)
        return [await ctx.receive(kind, timeout=timeout) for kind in kinds]

    return agent


def test_a_receive_takes_what_came_before_it_in_order_and_each_message_once(go):
    async def main():
        gate = asyncio.Event()
        async with hosted(receiver("x", "y", "x", "x", first=gate.wait)) as (bus, _):
            handle = await bus.start("a", 1)
            for n, kind in enumerate(["x", "x", "y", "z"]):
                await handle.send(n, kind=kind)
            gate.set()
            await handle.send(4, kind="x")
            assert await handle.result(5) == [0, 2, 1, 4]

    go(main())


def test_a_message_that_a_receive_took_obliges_nobody(go, until):
    async def main():
        gate, heard = asyncio.Event(), []
        agent = receiver("x", first=gate.wait)
        agent.on("x")(lambda n: heard.append(n) or None)
        async with hosted(agent) as (bus, worker):
            handle = await bus.start("a", 1, id="w")
            await handle.send("early", kind="x")  # behind the request, which is being handled
            gate.set()
            assert await handle.result(5) == ["early"]
            await handle.send("late", kind="x")
            await until(lambda: heard)
            await until(lambda: not worker.scheduler.used)
            assert heard == ["late"]
            assert (await handle.status()).status is Status.COMPLETED

    go(main())


def test_a_message_to_everybody_is_taken_too_and_one_to_another_agent_is_not(go):
    async def main():
        async with hosted(receiver("x", "x"), Agent("b")) as (bus, _):
            handle = await bus.start("a", 1, id="w")
            await handle.send("not mine", kind="x", to="b")
            await bus.send("*", "everybody's", kind="x", id="w")
            await bus.send("a", "mine", kind="x", id="w")
            assert await handle.result(5) == ["everybody's", "mine"]

    go(main())


def test_receives_in_branches_of_a_gather_take_different_messages_and_a_rerun_gives_each_its_own(go, until):
    async def main():
        agent, runs = Agent("a"), []

        @agent.on_task
        async def handle(ctx: Context, n: int) -> list[Any]:
            got = await ctx.gather(*(ctx.receive("x") for _ in range(4)))
            runs.append(got)
            return [*got, await ctx.receive("end")]

        async with hosted(agent, max_live=0) as (bus, _):  # each wait is parked, each message runs it again
            handle_ = await bus.start("a", 1)
            for n in range(4):
                await handle_.send(n, kind="x")

            async def waits_for_the_end():
                return [w.target for w in (await handle_.status()).waits] == ["end"]

            await until(waits_for_the_end)
            await handle_.send("end", kind="end")
            assert await handle_.result(5) == [0, 1, 2, 3, "end"]
            assert all(run == [0, 1, 2, 3] for run in runs)
            assert len(runs) > 1

    go(main())


def test_a_message_that_comes_after_the_time_is_the_next_receives(go, until):
    async def main():
        agent = Agent("a")

        @agent.on_task
        async def handle(ctx: Context, n: int) -> list[Any]:
            with pytest.raises(WaitExpired):
                await ctx.receive("x", timeout=0.02)
            return [await ctx.receive("y"), await ctx.receive("x")]

        async with hosted(agent) as (bus, _):
            handle_ = await bus.start("a", 1, id="w")

            async def fired():
                return "timer_fired" in await kinds_of(bus.broker, "w")

            await until(fired)
            await handle_.send("late", kind="x")
            await handle_.send("y", kind="y")
            assert await handle_.result(5) == ["y", "late"]

    go(main())


def test_of_a_message_and_the_time_the_one_that_is_first_in_the_log_wins_on_every_run(go):
    async def main():
        agent, runs = Agent("a"), []

        @agent.on_task
        async def handle(ctx: Context, n: int) -> Any:
            try:
                got = await ctx.receive("x", timeout=0.03)
            except WaitExpired:
                got = "late"
            runs.append((n, got))
            return [got, await ctx.receive("end")]

        async with hosted(agent, max_live=0, partitions=4) as (bus, _):

            async def race(n: int) -> None:
                handle_ = await bus.start("a", n, id=f"w{n}")
                await asyncio.sleep(0.02 + n * 0.001)
                await handle_.send("x", kind="x")
                await handle_.send("end", kind="end")
                got, _ = await handle_.result(10)
                kinds = await kinds_of(bus.broker, f"w{n}")
                won = "x" if "timer_fired" not in kinds or kinds.index("x") < kinds.index("timer_fired") else "late"
                assert got == won
                assert {g for m, g in runs if m == n} == {got}

            await asyncio.gather(*(race(n) for n in range(20)))

    go(main())


def test_a_sleep_goes_on_over_a_restart_and_nothing_runs_before_its_time(go, until):
    async def main():
        agent, runs = Agent("a"), []

        @agent.on_task
        async def handle(ctx: Context, n: int) -> float:
            runs.append(1)
            began = await ctx.now()
            await ctx.sleep(0.3)
            return await ctx.now() - began

        broker = await opened()
        async with MessageBus.open(broker) as bus:
            async with working(broker, agent) as worker:
                handle_ = await bus.start("a", 1, id="w")
                await until(lambda: worker.crew.waiting)
            async with working(broker, agent) as worker:
                await until(lambda: worker.places and worker.places[0].active)
                assert runs == [1]
                assert await handle_.result(5) >= 0.3
            assert len(runs) == 2
            assert (await kinds_of(broker, "w")).count("timer_set") == 1

    go(main())


def test_the_deadline_of_a_request_is_passed_on_to_what_its_callee_asks(go):
    async def main():
        first, second, third = Agent("first"), Agent("second"), Agent("third")

        @first.on_task
        async def ask(ctx: Context, how: str) -> Any:
            return await ctx.request("second", how, timeout=0.2)

        @second.on_task
        async def pass_on(ctx: Context, how: str) -> Any:
            call = ctx.spawn if how == "spawn" else ctx.request
            try:
                return await call("third", how, timeout=None if how == "plain" else 60)
            except AgentError as error:
                return type(error).__name__

        @third.on_task
        async def never(ctx: Context, how: str) -> Any:
            return await ctx.receive("never")

        async with hosted(first, second, third, partitions=2) as (bus, _):
            for how in ("plain", "longer", "spawn"):
                handle = await bus.start("first", how, id=how)
                with pytest.raises(AgentError, match="'second' did not answer within"):
                    await handle.result(5)
                asked = [r for r in await records(bus.broker, how) if r.message_type == "task_request"]
                assert len(asked) == 3
                assert asked[0].deadline is None
                assert asked[1].deadline == asked[2].deadline == pytest.approx(asked[1].timestamp + 0.2, abs=0.05)

    go(main())


def test_when_one_wait_of_a_workflow_is_over_the_others_wait_on(go, until):
    agent = Agent("a")

    @agent.on_task
    async def handle(ctx: Context, _: None) -> str:
        _, got = await ctx.gather(ctx.sleep(0.05), ctx.receive("word", timeout=60))
        return got

    async def main():
        async with hosted(agent) as (bus, _):
            started = await bus.start(handle, None)
            fired = "timer_fired"
            await until(lambda: _has(bus, started, fired))
            await started.send("hello", kind="word")
            assert await started.result(5) == "hello"
            assert (await kinds_of(bus.broker, started.correlation_id)).count(fired) == 1

    async def _has(bus, started, kind):
        return kind in await kinds_of(bus.broker, started.correlation_id)

    go(main())
