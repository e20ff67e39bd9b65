"""Retries, dead letters, time to live, priority, and how many run at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hosting import QUICK, hosted, kinds_of, opened, records, working
from hypothesis import given, strategies as st

from refold import Agent, AgentError, AgentMessage, Context, MessageBus, RetryPolicy
from refold.agents import client
from refold.agents.control import discard, redrive
from refold.agents.records import Records
from refold.agents.scheduler import FAIR_EVERY, Scheduler
from refold.bus.errors import BrokerUnavailable
from refold.projections.status import Status


# ---- retries ---------------------------------------------------------------------------------------------------------
def test_waits_between_attempts_follow_the_policy(go):
    async def main():
        agent = Agent("a", retry=RetryPolicy(attempts=5, initial=0.01, factor=3.0, maximum=0.05, jitter=0))

        @agent.on_task
        async def handle(ctx: Context, n: int) -> None:
            raise RuntimeError(str(ctx.attempt))

        async with hosted(agent) as (bus, _):
            handle_ = await bus.start("a", 1, id="w")
            with pytest.raises(AgentError, match="RuntimeError: 5"):
                await handle_.result(10)
            seen = await records(bus.broker, "w")
            failed = [r for r in seen if r.message_type == "attempt_failed"]
            waits = [r.fact.due - r.timestamp for r in failed]
            assert waits == pytest.approx([0.01, 0.03, 0.05, 0.05], abs=0.005)
            for earlier, later in zip(failed, [*failed[1:], seen[-1]], strict=True):
                assert later.timestamp >= earlier.fact.due

    go(main())


@given(st.integers(1, 200), st.floats(0, 1, exclude_max=True), st.floats(0, 1), st.floats(0, 100), st.floats(1, 10))
def test_jitter_takes_off_at_most_its_share_and_no_wait_is_longer_than_the_maximum(n, chance, jitter, initial, factor):
    policy = RetryPolicy(initial=initial, factor=factor, maximum=60.0, jitter=jitter)
    whole = min(initial * factor ** min(n - 1, 60), 60.0)
    assert whole * (1 - jitter) <= policy.delay(n, chance) <= whole <= 60.0


def test_the_retry_of_an_effect_goes_on_where_it_was_after_a_restart(go, until):
    async def main():
        agent, calls = Agent("a"), []

        def fail() -> None:
            calls.append(1)
            raise OSError("down")

        @agent.on_task
        async def handle(ctx: Context, n: int) -> None:
            await ctx.effect("f", fail, retry=RetryPolicy(attempts=2, initial=0.3, jitter=0))

        broker = await opened()
        async with MessageBus.open(broker) as bus:
            async with working(broker, agent):
                handle_ = await bus.start("a", 1, id="w")

                async def failed_once():
                    return "effect_failed" in await kinds_of(broker, "w")

                await until(failed_once)
            async with working(broker, agent):
                with pytest.raises(AgentError, match="OSError: down"):
                    await handle_.result(10)
            assert len(calls) == 2
            first, second = [r for r in await records(broker, "w") if r.message_type == "effect_failed"]
            assert second.timestamp >= first.fact.due
            assert (first.fact.final, second.fact.final) == (False, True)

    go(main())


# ---- dead letters ----------------------------------------------------------------------------------------------------
def fragile(handled: list[Any], broken: set[Any]) -> Agent:
    agent = Agent("fragile", retry=QUICK)

    @agent.on("note")
    async def note(ctx: Context, n: Any) -> None:
        if n in broken:
            raise RuntimeError(f"cannot do {n}")
        handled.append((ctx.correlation_id, n))

    return agent


@pytest.mark.parametrize("way_out", ["discard", "redrive"])
def test_a_dead_letter_holds_up_its_own_workflow_and_agent_and_nobody_else(go, until, way_out):
    async def main():
        handled, broken, other, heard = [], {1}, Agent("other"), []
        other.on("note")(lambda n: heard.append(n) or None)
        async with hosted(fragile(handled, broken), other) as (bus, _):
            dead = await bus.send("fragile", 1, kind="note", id="w")
            await bus.send("fragile", 2, kind="note", id="w")
            await bus.send("other", 3, kind="note", id="w")
            await bus.send("fragile", 4, kind="note", id="v")
            await until(lambda: heard == [3] and handled == [("v", 4)])

            async def is_dead():
                return "dead_lettered" in await kinds_of(bus.broker, "w")

            await until(is_dead)
            report = await (await bus.attach("w")).status()
            assert report.status is Status.BLOCKED
            assert report.blocked == [f"dead letter of fragile for message {dead.id}"]
            broken.clear()
            if way_out == "discard":
                await discard(bus, "w", "fragile", dead.id)
                await until(lambda: handled == [("v", 4), ("w", 2)])
            else:
                await redrive(bus, "w", "fragile", dead.id)
                await until(lambda: handled == [("v", 4), ("w", 1), ("w", 2)])

            async def completed():
                return (await (await bus.attach("w")).status()).status is Status.COMPLETED

            await until(completed)

    go(main())


# ---- time to live ----------------------------------------------------------------------------------------------------
def test_time_to_live_counts_from_the_messages_timestamp(go, monkeypatch):
    monkeypatch.setattr(client, "LOOK_AGAIN", 0.01)

    async def main():
        echo = Agent("echo")
        echo.on_task(lambda n: n)
        async with hosted(echo) as (bus, _):
            now = bus.clock.now()
            for age, ttl, lives in ((10, 5, False), (10, 60, True), (0, 60, True), (0, 0, False)):
                sent = AgentMessage.request("echo", 7, timestamp=now - age, ttl=ttl, correlation_id=f"{age}-{ttl}")
                await bus.send_message(sent)
                handle = await bus.attach(sent.correlation_id)
                if lives:
                    assert await handle.result(5) == 7
                else:
                    with pytest.raises(AgentError, match="let the request expire") as info:
                        await handle.result(5)
                    assert info.value.kind == "expired"
                    assert await kinds_of(bus.broker, sent.correlation_id) == ["task_request", "expired"]

    go(main())


def test_what_has_begun_in_time_never_expires(go, until):
    async def main():
        agent, gate = Agent("a", retry=QUICK), asyncio.Event()

        @agent.on_task
        async def handle(ctx: Context, n: int) -> int:
            await gate.wait()
            if ctx.attempt == 1:
                raise RuntimeError("once more")
            return n

        async with hosted(agent) as (bus, _):
            handle_ = await bus.start("a", 1, id="w", ttl=0.1)

            async def begun():
                return "attempt_started" in await kinds_of(bus.broker, "w")

            await until(begun)
            sent = (await records(bus.broker, "w"))[0]
            await until(lambda: bus.clock.now() > sent.timestamp + 0.15)
            gate.set()
            assert await handle_.result(5) == 1
            assert "expired" not in await kinds_of(bus.broker, "w")

    go(main())


# ---- who runs, and how many ------------------------------------------------------------------------------------------
def test_the_most_urgent_starts_first_and_equals_in_their_order(go, until):
    async def main():
        agent, order, gate = Agent("a"), [], asyncio.Event()

        @agent.on_task
        async def handle(ctx: Context, n: int) -> None:
            if n < 0:
                await ctx.effect("gate", gate.wait)
            order.append(n)

        async with hosted(agent, concurrency=1) as (bus, worker):
            first = await bus.start("a", -1)
            await until(lambda: worker.scheduler.used)
            handles = [await bus.start("a", n, priority=p) for n, p in enumerate([1, 9, 5, 0, 9, 5])]
            await until(lambda: worker.scheduler.queued == 6)
            gate.set()
            for h in [first, *handles]:
                await h.result(5)
            assert order == [-1, 1, 4, 2, 5, 0, 3]

    go(main())


@given(st.lists(st.integers(0, 9), min_size=1, max_size=12), st.integers(0, 11))
def test_a_message_starts_at_the_latest_after_so_many_starts_for_each_that_was_queued_before_it(waiting, chosen):
    chosen %= len(waiting)
    started: list[Any] = []
    scheduler = Scheduler(1)
    scheduler.start("blocker", 9, lambda: None)
    for n, priority in enumerate(waiting):
        scheduler.start(n, priority, lambda n=n: started.append(n))
    for turn in range(FAIR_EVERY * (chosen + 1)):
        scheduler.start(("urgent", turn), 9, lambda turn=turn: started.append(("urgent", turn)))
        scheduler.release()
    assert chosen in started


def test_what_goes_on_comes_before_what_starts():
    order: list[str] = []
    scheduler = Scheduler(1)
    scheduler.start("blocker", 0, lambda: None)
    scheduler.start("urgent", 9, lambda: order.append("start"))
    scheduler.resume("waited", lambda: order.append("resume"))
    scheduler.release()
    scheduler.release()
    assert order == ["resume", "start"]


@pytest.mark.parametrize("concurrency", [1, 3])
def test_at_most_so_many_handlers_run_at_once_and_the_log_is_read_on_meanwhile(go, until, concurrency):
    async def main():
        agent, gate, inside = Agent("a"), asyncio.Event(), []

        @agent.on_task
        async def handle(ctx: Context, n: int) -> int:
            inside.append(n)
            await ctx.effect("gate", gate.wait)
            return n

        async with hosted(agent, concurrency=concurrency, partitions=2) as (bus, worker):
            handles = [await bus.start("a", n) for n in range(10)]
            await until(lambda: worker.scheduler.queued == 10 - concurrency)
            await until(lambda: len(inside) == concurrency)
            assert worker.scheduler.used == concurrency
            assert sum(len(p.fold.live) for p in worker.places.values()) == 10
            gate.set()
            assert [await h.result(5) for h in handles] == list(range(10))

    go(main())


@pytest.mark.parametrize("concurrency", [1, 3])
def test_an_agent_handles_so_many_messages_of_one_workflow_at_once_in_log_order(go, until, concurrency):
    async def main():
        agent, gate, started = Agent("a", concurrency=concurrency), asyncio.Event(), []

        @agent.on("note")
        async def handle(ctx: Context, n: int) -> None:
            started.append(n)
            await ctx.effect("gate", gate.wait)

        async with hosted(agent) as (bus, worker):
            for n in range(6):
                await bus.send("a", n, kind="note", id="w")
            await until(lambda: worker.folded >= 6 and len(started) >= concurrency)
            assert started == list(range(concurrency))
            gate.set()
            await until(lambda: len(started) == 6)
            assert started == list(range(6))

    go(main())


def test_a_handlers_time_is_its_running_time_and_waiting_does_not_count(go, until):
    async def main():
        agent = Agent("a", timeout=0.15, retry=RetryPolicy(attempts=1))

        @agent.on_task
        async def handle(ctx: Context, seconds: float) -> str:
            await ctx.sleep(0.3)
            await ctx.receive("go")
            await asyncio.sleep(seconds)
            return "done"

        async with hosted(agent) as (bus, _):
            quick, slow = await bus.start("a", 0.0), await bus.start("a", 20.0)
            for handle_ in (quick, slow):

                async def waits(handle_=handle_):
                    return [w.target for w in (await handle_.status()).waits] == ["go"]

                await until(waits)
                await handle_.send(1, kind="go")
            assert await quick.result(5) == "done"
            with pytest.raises(AgentError, match=r"HandlerTimeout: the handler ran for more than 0\.15 s"):
                await slow.result(5)

    go(main())


def test_a_value_that_cannot_be_read_now_is_no_failure_of_the_handler(go, until):
    agent, gate = Agent("a", retry=RetryPolicy(attempts=1)), asyncio.Event()

    @agent.on_task
    async def work(ctx: Context, n: int) -> str:
        await ctx.effect("gate", gate.wait)
        return await ctx.receive("word")

    async def main():
        async with hosted(agent) as (bus, worker):
            handle = await bus.start("a", 1, id="w")
            await until(lambda: worker.scheduler.used == 1)
            word = await handle.send("hello", kind="word")
            await until(lambda: next(iter(worker.places.values())).fold.position >= word.position)
            read_at, failures = bus.broker.read_at, []

            async def once(partition, positions):
                if word.position in positions and not failures:
                    failures.append(positions)
                    raise BrokerUnavailable("out of reach")
                return await read_at(partition, positions)

            worker.records = Records(bus.broker, 0)
            bus.broker.read_at = once
            gate.set()
            assert await handle.result(10) == "hello"
            assert failures

    go(main())
