"""Plain functions as handlers and effects: a bounded pool of threads, time limits, and threads that hang."""

from __future__ import annotations

import asyncio
import json
import logging
import threading

import pytest
from hosting import QUICK, hosted, kinds_of, opened, working

from refold import Agent, AgentError, Context, EffectFailed, MessageBus, RetryPolicy, run
from refold.agents import threads as pool
from refold.agents.threads import Late, Threads
from refold.cli.logs import AboutHandling, JsonLines

ONCE = RetryPolicy(attempts=1)


def test_plain_functions_run_in_at_most_so_many_threads(go):
    async def main():
        agent, lock, inside, most = Agent("a"), threading.Lock(), [], []
        full = threading.Barrier(3)

        @agent.on_task
        def handle(n: int) -> int:
            with lock:
                inside.append(n)
                most.append(len(inside))
            full.wait(5)  # three are in here at once
            with lock:
                inside.remove(n)
            return n

        async with hosted(agent, threads=3, partitions=4) as (bus, _):
            assert await asyncio.gather(*(bus.request(handle, n) for n in range(12))) == list(range(12))
        assert max(most) == 3

    go(main())


def test_a_step_in_a_plain_handler_shows_the_two_line_change(go):
    async def main():
        agent = Agent("a", retry=ONCE)

        @agent.on_task
        def handle(ctx, n: int) -> int:
            assert ctx.attempt == 1
            assert ctx.message.payload == n
            assert ctx.correlation_id == "w"
            return ctx.effect("x", lambda: n)

        async with hosted(agent) as (bus, _):
            with pytest.raises(AgentError) as info:
                await bus.request("a", 1, id="w")
        assert info.value.error == "NeedsAsyncHandler"
        assert "-    def handler(ctx, payload):  ...  ctx.effect(...)" in str(info.value)
        assert "+    async def handler(ctx, payload):  ...  await ctx.effect(...)" in str(info.value)

    go(main())


def test_a_plain_handler_that_outlives_its_timeout_fails_and_its_thread_is_replaced(go, until):
    async def main():
        agent, gate, echo = Agent("a", retry=ONCE, timeout=0.05), threading.Event(), Agent("echo")

        @agent.on_task
        def hang(n: int) -> int:
            gate.wait(20)
            return n

        echo.on_task(lambda n: n)
        async with hosted(agent, echo, threads=1) as (bus, worker):
            with pytest.raises(AgentError, match=r"'.*hang' did not return within 0\.05 s; its thread is abandoned"):
                await bus.request(hang, 1, id="w")
            assert worker.threads.abandoned == 1
            assert await bus.request("echo", 2) == 2  # the only thread hangs: it was replaced
            gate.set()
            await until(lambda: worker.threads.abandoned == 0)
            assert await kinds_of(bus.broker, "w") == ["task_request", "dead_lettered", "error_report"]

    go(main())


def test_at_the_eighth_thread_that_hangs_the_worker_drains_and_ends_with_70(go, until):
    async def main():
        agent, gate = Agent("a", retry=ONCE, timeout=0.05), threading.Event()

        @agent.on_task
        def hang(n: int) -> int:
            gate.wait(20)
            return n

        broker = await opened()
        async with MessageBus.open(broker) as bus, working(broker, agent) as worker:
            for n in range(pool.ABANDONED_LIMIT):
                assert worker.exit_code == 0
                assert not worker.draining
                with pytest.raises(AgentError):
                    await bus.request(hang, n)
            await until(lambda: worker.exit_code == 70)
            await until(lambda: not worker.places)
            gate.set()

    go(main())


def test_threads_of_runs_that_were_cancelled_do_not_count_as_hanging_before_their_grace_is_over(go, until, monkeypatch):
    async def main():
        agent, gate, begun = Agent("a"), threading.Event(), []

        def call(n: int) -> int:
            begun.append(n)
            gate.wait(20)
            return n

        @agent.on_task
        async def handle(ctx: Context, n: int) -> int:
            return await ctx.effect("call", call, n)

        async with hosted(agent) as (bus, worker):
            for n in range(pool.ABANDONED_LIMIT):
                handle_ = await bus.start(handle, n)
                await until(lambda n=n: len(begun) > n)
                await handle_.cancel()
                with pytest.raises(AgentError):
                    await handle_.result(5)
            assert worker.threads.abandoned == 0
            monkeypatch.setattr(pool, "GRACE", 0.01)
            handle_ = await bus.start(handle, 9)
            await until(lambda: 9 in begun)
            await handle_.cancel()
            await until(lambda: worker.threads.abandoned == 1)
            gate.set()
            await until(lambda: worker.threads.abandoned == 0)

    go(main())


def test_a_call_that_no_thread_has_begun_is_not_made_when_nobody_waits_for_it_any_more(go, until):
    async def main():
        threads, gate, made = Threads(size=1), threading.Event(), []
        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(threads.run(gate.wait, (20,), {}))
            second = tasks.create_task(threads.run(made.append, (2,), {}))
            third = tasks.create_task(threads.run(made.append, (3,), {}))
            await asyncio.sleep(0)
            second.cancel()
            await asyncio.wait([second])
            gate.set()
            await third
            await first
        assert made == [3]
        assert threads.abandoned == 0

    go(main())


def test_a_time_limit_counts_from_when_a_thread_begins(go, until):
    async def main():
        threads, gate, begun = Threads(size=1), threading.Event(), threading.Event()

        def hold() -> None:
            begun.set()
            gate.wait(20)

        async with asyncio.TaskGroup() as tasks:
            first = tasks.create_task(threads.run(hold, (), {}))
            await until(begun.is_set)
            second = tasks.create_task(threads.run(int, (), {}, 0.02))
            done, _ = await asyncio.wait([second], timeout=0.1)
            assert not done  # it waits for a thread, longer than it may run
            gate.set()
            assert await second == 0
            await first
        with pytest.raises(Late, match="did not return within"):
            await threads.run(threading.Event().wait, (1,), {}, 0.01)

    go(main())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (StopIteration(3), "RuntimeError: raised StopIteration: 3"),
        (KeyboardInterrupt(), "RuntimeError: raised KeyboardInterrupt"),
        (asyncio.CancelledError(), "RuntimeError: raised CancelledError"),
        (SystemExit(2), "SystemExit: 2"),
        (TimeoutError("its own"), "TimeoutError: its own"),
    ],
    ids=lambda x: type(x).__name__ if isinstance(x, BaseException) else "",
)
def test_whatever_a_plain_function_raises_is_its_outcome(go, error, said):
    async def main():
        agent = Agent("a")

        def fail() -> None:
            raise error

        @agent.on_task
        async def handle(ctx: Context, n: int) -> str:
            try:
                await ctx.effect("f", fail, retry=ONCE)
            except EffectFailed as failed:
                return str(failed)
            return "?"

        async with hosted(agent) as (bus, worker):
            assert await bus.request(handle, 1) == f"effect 'f' failed: {said}"
            assert worker.threads.abandoned == 0
            assert await bus.request(handle, 1) == f"effect 'f' failed: {said}"

    go(main())


def test_every_line_logged_inside_a_handler_says_which_one_also_from_its_threads(go):
    async def main():
        agent, log, lines = Agent("a", retry=QUICK), logging.getLogger("some.library"), []

        class Keep(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if record.name == "some.library":
                    line = json.loads(JsonLines().format(record))
                    lines.append([line.get(k) for k in ("message", "workflow", "agent", "message_id", "attempt")])
                    assert f"[a w message {lines[-1][3]} attempt {lines[-1][4]}] " == record.about

        keep = Keep()
        keep.addFilter(AboutHandling())

        def plain() -> None:
            log.warning("in a thread")

        async def coroutine() -> None:
            log.warning("in a coroutine")

        async def branch(ctx: Context) -> None:
            await ctx.effect("c", coroutine)
            log.warning("in a branch")

        @agent.on_task
        async def handle(ctx: Context, n: int) -> None:
            log.warning("in the handler")
            await ctx.gather(ctx.effect("p", plain), branch(ctx))
            if ctx.attempt == 1:
                raise RuntimeError

        @agent.on("note")
        def noted(n: int) -> None:
            log.warning("in a plain handler")

        logging.getLogger().addHandler(keep)
        try:
            async with hosted(agent) as (bus, _):
                handle_ = await bus.start(handle, 1, id="w")
                await handle_.result(5)
                note = await bus.send(agent, 1, kind="note", id="w")
                async for _event in handle_.events():
                    pass
        finally:
            logging.getLogger().removeHandler(keep)
        asked = handle_.request_id
        assert {line[0] for line in lines} == {
            "in the handler", "in a thread", "in a coroutine", "in a branch", "in a plain handler",
        }  # fmt: skip
        for text, workflow, name, message, attempt in lines:
            assert (workflow, name) == ("w", "a")
            assert message == (note.id if text == "in a plain handler" else asked)
            assert attempt in ((1, 2) if text in ("in the handler", "in a branch") else (1,))

    go(main())


def test_where_no_thread_can_be_started_nothing_was_called_and_the_handling_is_tried_again(go, monkeypatch):
    agent, refused = Agent("plain"), [True, True]
    start = threading.Thread.start

    def grudging(thread):
        if thread.name.startswith("refold-") and thread.name != "refold-watchdog" and refused:
            refused.pop()
            raise RuntimeError("can't start new thread")
        start(thread)

    @agent.on_task
    async def work(ctx: Context, n: int) -> int:
        return await ctx.effect("double", lambda: 2 * n, retry=RetryPolicy(attempts=1))

    async def main():
        monkeypatch.setattr(threading.Thread, "start", grudging)
        async with run(agent, broker="memory://") as bus:
            assert await bus.request("plain", 21) == 42
        assert not refused

    go(main())
