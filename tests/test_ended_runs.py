"""Runs that were ended append nothing more, whatever their code does; their slot is free and other work goes on."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hosting import QUICK, kinds_of, opened, records, working

from refold import Agent, AgentError, Context, MessageBus
from refold.agents import control, crew, leaving
from refold.agents.writing import work_record
from refold.bus import codec, facts
from refold.bus.broker import Item, Outgoing
from refold.bus.partition import partition_of
from refold.projections.history import read_workflow
from refold.projections.status import Status

ENDS = ("parked", "fenced", "diverged", "cancelled", "redriven", "timed out")
Wait = Callable[[], Awaitable[Any]]


class Zombie:
    """A handler whose first run does not want to end. `tried` is what it called after its end, `done` what worked."""

    def __init__(self) -> None:
        self.tried: list[str] = []
        self.done: list[str] = []
        self.paid: list[int] = []
        self.released = asyncio.Event()
        self.over = asyncio.Event()

    async def mischief(self, ctx: Context) -> None:
        async def branch() -> None:
            await ctx.effect("zombie", self.paid.append, 1)

        calls: dict[str, Callable[[], Any]] = {
            "send": lambda: ctx.send("echo", "zombie", kind="zombie"),
            "update": lambda: ctx.update({"zombie": True}),
            "progress": lambda: ctx.progress("zombie"),
            "effect": lambda: ctx.effect("zombie", self.paid.append, 1),
            "request": lambda: ctx.request("echo", 1),
            "spawn": lambda: ctx.spawn("echo", 1),
            "receive": lambda: ctx.receive("zombie"),
            "sleep": lambda: ctx.sleep(0),
            "now": ctx.now,
            "gather": lambda: ctx.gather(branch(), ctx.effect("zombie", self.paid.append, 2)),
        }
        for name, call in calls.items():
            self.tried.append(name)
            try:
                made = call()
                if inspect.isawaitable(made):
                    await made
            except BaseException:
                continue
            self.done.append(name)

    # ---- ways not to end ---------------------------------------------------------------------------------------------
    async def finally_(self, ctx: Context, wait: Wait) -> None:
        try:
            await wait()
        finally:
            await self.mischief(ctx)

    async def except_exception(self, ctx: Context, wait: Wait) -> None:
        try:
            await wait()
        except Exception:
            await self.mischief(ctx)

    async def bare_except(self, ctx: Context, wait: Wait) -> None:
        try:
            await wait()
        except:  # noqa: E722 - the worst that a handler can do
            await self.mischief(ctx)

    async def async_with(self, ctx: Context, wait: Wait) -> None:
        zombie = self

        class Resource:
            async def __aenter__(self) -> None:
                pass

            async def __aexit__(self, *error: object) -> bool:
                await zombie.mischief(ctx)
                return True

        async with Resource():
            await wait()

    async def suppress(self, ctx: Context, wait: Wait) -> None:
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await wait()
        await self.mischief(ctx)

    async def for_ever(self, ctx: Context, wait: Wait) -> None:
        with contextlib.suppress(BaseException):
            await wait()
        while not self.released.is_set():
            with contextlib.suppress(BaseException):
                await self.mischief(ctx)
                await self.released.wait()


WAYS = ("finally_", "except_exception", "bare_except", "async_with", "suppress", "for_ever")


def agent_of(zombie: Zombie, way: str, end: str, runs: list[int], pace: float = 30) -> Agent:
    """An agent whose first run (of `end`) is the zombie's, and whose next run does what the handler should do."""
    agent = Agent("zombie", retry=QUICK, timeout=0.05 if end == "timed out" else 60)

    @agent.on_task
    async def handle(ctx: Context, n: int) -> Any:
        runs.append(ctx.attempt)
        await ctx.effect("first", lambda: n)
        if end == "diverged" and len(runs) == 1:
            await ctx.effect("second", lambda: n)
            raise RuntimeError("again")
        if len(runs) > (2 if end == "diverged" else 1):
            if end == "diverged":
                await ctx.effect("second", lambda: n)
            return await ctx.receive("go")
        wait: Wait = lambda: ctx.receive("go")
        if end == "timed out":
            wait = lambda: asyncio.sleep(pace)
        elif end == "diverged":
            wait = lambda: ctx.effect("another", zombie.paid.append, 3)
        try:
            await getattr(zombie, way)(ctx, wait)
        finally:
            zombie.over.set()
        return "the zombie's answer"

    return agent


def echo_agent() -> Agent:
    agent = Agent("echo")
    agent.on_task(lambda n: n)
    agent.on("zombie")(lambda n: n)
    return agent


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ENDS)
def test_a_run_that_was_ended_appends_nothing_more_and_frees_its_slot(go, until, monkeypatch, end, way):
    monkeypatch.setattr(crew, "ABANDONED_AFTER", 0.05)

    async def main():
        zombie, runs = Zombie(), []
        broker = await opened()
        agents = agent_of(zombie, way, end, runs), echo_agent()
        async with (
            MessageBus.open(broker) as bus,
            working(broker, *agents, concurrency=1, max_live=1 if end == "parked" else 1000) as worker,
        ):
            handle = await bus.start("zombie", 1, id="w")

            async def is_in_its_wait():
                kinds = await kinds_of(broker, "w")
                return {"timed out": "effect_completed", "diverged": "attempt_failed"}.get(end, "timer_set") in kinds

            await until(is_in_its_wait)
            await end_it(end, bus, broker, worker, until)
            if way == "for_ever":
                await until(lambda: worker.crew.abandoned)
            else:
                await until(zombie.over.is_set)
            if end != "timed out":  # there the next attempt holds the slot only as long as it runs
                assert await bus.request("echo", 7, timeout=10) == 7
            await go_on(end, way, zombie, runs, bus, broker, handle, until)
            zombie.released.set()
            await until(zombie.over.is_set)
            assert zombie.done == []
            assert zombie.paid == []
            if way not in ("except_exception",) or end == "diverged":
                assert "effect" in zombie.tried
            assert worker.crew.abandoned == (way == "for_ever")
            await until(lambda: worker.scheduler.used == 0)
            seen = await records(broker, "w")
            assert not [
                r for r in seen if r.payload == "the zombie's answer" or getattr(r.fact, "name", "") == "zombie"
            ]
            assert [r.message_type for r in seen] == KINDS[end]

    go(main())


JOURNAL = ["task_request", "effect_completed"]
KINDS = {
    "parked": [*JOURNAL, "timer_set", "go", "task_response"],
    "fenced": [*JOURNAL, "timer_set", "go", "task_response"],
    "cancelled": [*JOURNAL, "timer_set", "cancelled"],
    "redriven": [
        *JOURNAL, "timer_set", "attempt_failed", "redriven", "effect_completed", "timer_set", "go", "task_response",
    ],
    "timed out": [*JOURNAL, "attempt_failed", "timer_set", "go", "task_response"],
    "diverged": [*JOURNAL, "effect_completed", "attempt_failed", "attempt_failed", "timer_set", "go", "task_response"],
}


async def end_it(end: str, bus: MessageBus, broker: Any, worker: Any, until: Any) -> None:
    if end == "parked":
        other = await bus.start("zombie", 2, id="other")  # one more that waits: the first is parked
        await until(lambda: _waits(other))
        await until(lambda: len(worker.crew.waiting) == 1)
        await other.cancel()
    elif end == "fenced":
        broker.steal("g", 0)
    elif end == "cancelled":
        await (await bus.attach("w")).cancel()
    elif end == "redriven":
        await park(broker, "w")
        handle = await bus.attach("w")
        await control.redrive(bus, "w", "zombie", handle.request_id, keep="none")


async def park(broker: Any, correlation: str) -> None:
    """An owner with other code has met a divergence meanwhile: only then may a handling that is open start anew."""
    w = (await read_workflow(broker, correlation)).workflow
    (h,) = w.open_handlings()
    r = work_record(
        w, agent=h.agent, message=h.message, round=0, generation=0, writer="other#1", kind="attempt_failed",
        now=time.time(), fact=facts.AttemptFailed(error="Divergence", parked="divergence"),
    )  # fmt: skip
    partition = partition_of(correlation, broker.meta.partitions)
    await broker.append([Item(partition, correlation, (Outgoing(r.id, codec.encode(r)),))])


async def _waits(handle: Any) -> bool:
    return (await handle.status()).status is Status.WAITING


async def go_on(
    end: str, way: str, zombie: Zombie, runs: list[int], bus: MessageBus, broker: Any, handle: Any, until: Any
) -> None:
    """What was ended goes on where its end was not for good."""
    if end == "cancelled":
        with pytest.raises(AgentError, match="cancelled"):
            await handle.result(5)
        return
    if end == "diverged":
        report = await handle.status()
        assert report.status is Status.BLOCKED
        assert any("divergence" in why for why in report.blocked)
        fixed = agent_of(zombie, way, "diverged", runs)
        async with working(broker, fixed, echo_agent(), group="g", member="fixed"):
            broker.steal("g", 0)  # the worker with the old code is the fuller one no more
            await finish(handle, until)
        return
    await finish(handle, until)


async def finish(handle: Any, until: Any) -> None:
    await until(lambda: _waits(handle))
    await handle.send("done", kind="go")
    assert await handle.result(10) == "done"


def test_a_run_that_lost_its_partition_appends_the_outcome_of_its_call_and_nothing_else(go, until):
    async def main():
        agent, gate, ran = Agent("a"), asyncio.Event(), []

        async def pay() -> str:
            ran.append(1)
            await gate.wait()
            return "paid"

        async def refused(ctx: Context) -> None:
            try:
                await ctx.receive("never", timeout=60)
            finally:
                ctx.send("*", "zombie", kind="zombie")

        @agent.on_task
        async def handle(ctx: Context, n: int) -> Any:
            if len(ran) == 2:  # the successor does not call again
                return await ctx.effect("pay", pay)
            with contextlib.suppress(BaseException):
                await ctx.gather(refused(ctx), ctx.effect("pay", pay))
            ctx.send("*", "zombie", kind="zombie")
            return "the zombie's answer"

        broker = await opened()
        async with MessageBus.open(broker) as bus, working(broker, agent, concurrency=1) as worker:
            await bus.start("a", 1, id="w")
            await until(lambda: ran)
            place = worker.places[0]
            broker.steal("g", 0)
            await until(lambda: place.ended)
            assert worker.scheduler.used == 1  # its call holds the slot
            gate.set()

            async def recorded():
                return "effect_completed" in await kinds_of(broker, "w")

            await until(recorded)
            await until(lambda: not worker.scheduler.used)
            assert not worker.crew.abandoned
            seen = await kinds_of(broker, "w")
            assert seen.count("effect_completed") == 1
            assert "zombie" not in seen
            assert "task_response" not in seen
            await (await bus.attach("w")).cancel()

    go(main())


def test_a_call_that_does_not_end_after_its_partition_is_lost_is_ended_by_the_handlers_timeout(go, until):
    async def main():
        agent, runs = Agent("a", timeout=0.3), []

        @agent.on_task
        async def handle(ctx: Context, n: int) -> int:
            runs.append(n)
            await ctx.effect("hangs", asyncio.sleep, 30 if len(runs) == 1 else 0)
            return n

        broker = await opened()
        async with MessageBus.open(broker) as bus, working(broker, agent, concurrency=1) as worker:
            handle_ = await bus.start("a", 1, id="w")
            await until(lambda: runs)
            broker.steal("g", 0)
            assert await handle_.result(10) == 1
            await until(lambda: worker.scheduler.used == 0)
            assert len(runs) == 2

    go(main())


def test_a_run_that_was_abandoned_does_not_keep_later_attempts_from_ending_the_handling(go, until, monkeypatch):
    monkeypatch.setattr(crew, "ABANDONED_AFTER", 0.02)

    async def main():
        agent, released = Agent("a", retry=QUICK, timeout=0.02), asyncio.Event()

        async def stubborn() -> None:
            while not released.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await released.wait()

        @agent.on_task
        async def handle(ctx: Context, n: int) -> None:
            await ctx.effect("stubborn", stubborn)

        broker = await opened()
        async with MessageBus.open(broker) as bus, working(broker, agent, concurrency=1) as worker:
            handle_ = await bus.start("a", 1, id="w")
            with pytest.raises(AgentError, match=r"ran for more than 0\.02 s"):
                await handle_.result(10)
            assert worker.crew.abandoned == 3
            assert worker.scheduler.used == 0
            released.set()
            await until(lambda: not worker.crew.ending)
            ended, late = (seen := await kinds_of(broker, "w"))[:5], seen[5:]
            assert ended == ["task_request", *["attempt_failed"] * 2, "dead_lettered", "error_report"]
            assert set(late) <= {"effect_completed"}  # a call that did happen is entered in the ledger

    go(main())


def test_a_worker_that_stops_ends_the_calls_that_last_longer_than_its_drain(go, until, monkeypatch, caplog):
    monkeypatch.setattr(leaving, "SAY_AFTER", 0.02)
    caplog.set_level(logging.INFO, "refold.worker")

    async def main():
        agent, begun = Agent("a"), []

        async def hang() -> None:
            begun.append(1)
            await asyncio.sleep(60)

        @agent.on_task
        async def handle(ctx: Context, n: int) -> None:
            await ctx.effect("hang", hang)

        broker = await opened()
        async with MessageBus.open(broker) as bus:
            async with working(broker, agent, drain=0.05):
                await bus.start("a", 1, id="w")
                await until(lambda: begun)
            assert await kinds_of(broker, "w") == ["task_request"]  # still open, for whoever comes next

    go(main())
    said = [r.message for r in caplog.records if r.message.startswith("stopping: ")]
    assert said == ["stopping: waits up to 0.05 s for a of w", "stopping: waits no more for a of w"]


def test_a_handler_that_does_not_end_is_told_of_when_its_worker_stops(go, until, monkeypatch):
    monkeypatch.setattr(leaving, "ABANDONED_AFTER", 0.05)

    async def main():
        agent, released, begun, told = Agent("a"), asyncio.Event(), [], []

        @agent.on_task
        async def handle(ctx: Context, n: int) -> None:
            begun.append(n)
            while not released.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await released.wait()

        def stuck() -> None:  # a process of its own ends here
            told.append(dict(worker.places))
            released.set()

        broker = await opened()
        async with MessageBus.open(broker) as bus, working(broker, agent, drain=0.05) as worker:
            worker.on_stuck = stuck
            await bus.start("a", 1, id="w")
            await until(lambda: begun)
        assert told == [{}]  # its partitions are others' already
        assert await kinds_of(broker, "w") == ["task_request"]

    go(main())
