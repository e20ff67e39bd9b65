"""Handlers and their steps, on both brokers: what a first run does, and what a rerun takes from the log."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TypedDict

import msgspec
import pytest
from jetstream_logs import BROKERS, url_of

import refold
from refold import Agent, AgentError, Context, EffectFailed, Refuse, RetryPolicy, WaitExpired
from refold.bus.errors import RequestExpired, SchemaError
from refold.projections.status import Status

HERE = {"url": "memory://"}


@pytest.fixture(params=BROKERS, autouse=True)
def _on(request, tmp_path, monkeypatch):
    monkeypatch.setitem(HERE, "url", url_of(request, tmp_path))


def run(*agents, **settings):
    return refold.run(*agents, broker=HERE["url"], **settings)


QUICK = RetryPolicy(attempts=3, initial=0.01, jitter=0)


def test_an_effect_is_recorded_and_a_rerun_takes_its_value_from_the_log(go):
    agent, calls, attempts = Agent("a", retry=QUICK), [], []

    @agent.on_task
    async def handle(ctx: Context, n: int) -> list[int]:
        attempts.append(ctx.attempt)
        x = await ctx.effect("add", lambda a: calls.append(a) or a + 1, n)
        if ctx.attempt < 3:
            raise RuntimeError("not yet")
        return [x, ctx.attempt]

    async def main():
        async with run(agent) as bus:
            return await bus.request(handle, 4)

    assert go(main()) == [5, 3]
    assert calls == [4]
    assert attempts == [1, 2, 3]


def test_agents_ask_each_other_in_one_workflow(go):
    a, b = Agent("a"), Agent("b")

    @b.on_task
    async def double(ctx: Context, n: int) -> int:
        return n * 2

    @a.on_task
    async def ask(ctx: Context, n: int) -> int:
        return await ctx.request(double, n) + await ctx.request("b", n)

    async def main():
        async with run(a, b) as bus:
            return await bus.request(ask, 5)

    assert go(main()) == 20


def test_agents_that_ask_each_other_in_a_circle_do_not_lock(go):
    a, b = Agent("a"), Agent("b")

    @a.on_task
    async def count(ctx: Context, n: int) -> int:
        return n if n <= 0 else 1 + await ctx.request("b", n - 1)

    @b.on_task
    async def back(ctx: Context, n: int) -> int:
        return await ctx.request("a", n - 1) + 1 if n > 0 else n

    async def main():
        async with run(a, b, concurrency=1) as bus:
            return await bus.request(count, 6)

    assert go(main()) == 6


def test_spawned_children_run_in_workflows_of_their_own(go):
    parent, child = Agent("parent"), Agent("child")
    seen = set()

    @child.on_task
    async def square(ctx: Context, n: int) -> int:
        seen.add(ctx.correlation_id)
        return n * n

    @parent.on_task
    async def fan(ctx: Context, n: int) -> list[int]:
        return await ctx.gather(*(ctx.spawn(square, i) for i in range(n)), limit=7)

    async def main():
        async with run(parent, child) as bus:
            return await bus.request(fan, 40)

    assert go(main()) == [i * i for i in range(40)]
    assert len(seen) == 40


def test_an_error_of_the_callee_is_an_exception_of_the_caller(go):
    a, b = Agent("a"), Agent("b")

    @b.on_task
    async def refuse(ctx: Context, n: int) -> int:
        raise Refuse(f"not {n}")

    @a.on_task
    async def ask(ctx: Context, n: int) -> str:
        try:
            await ctx.request(refuse, n)
        except AgentError as error:
            return f"{error.agent} {error.error}"
        return "?"

    async def main():
        async with run(a, b) as bus:
            assert await bus.request(ask, 1) == "b Refuse"
            with pytest.raises(AgentError, match="not 2"):
                await bus.request(refuse, 2)

    go(main())


def test_a_handler_that_always_fails_is_dead_lettered_and_its_asker_told(go):
    agent = Agent("a", retry=QUICK)

    @agent.on_task
    async def fail(ctx: Context, n: int) -> int:
        raise ValueError("never")

    async def main():
        async with run(agent) as bus:
            handle = await bus.start(fail, 1)
            with pytest.raises(AgentError, match="ValueError: never"):
                await handle.result(5)
            kinds = [e.message.message_type async for e in handle.events()]
            assert kinds == ["task_request", "attempt_failed", "attempt_failed", "dead_lettered", "error_report"]
            assert (await handle.status()).status is Status.FAILED

    go(main())


def test_an_effect_is_retried_by_its_own_policy_and_then_fails_for_good(go):
    agent, keys = Agent("a"), []

    def flaky(key: str) -> str:
        keys.append(key)
        raise OSError("down")

    @agent.on_task
    async def handle(ctx: Context, n: int) -> str:
        try:
            await ctx.effect("call", flaky, ctx.idempotency_key, retry=QUICK)
        except EffectFailed as error:
            return error.error
        return "?"

    async def main():
        async with run(agent) as bus:
            return await bus.request(handle, 1)

    assert go(main()) == "OSError"
    assert len(keys) == 3
    assert len(set(keys)) == 1


def test_a_receive_takes_a_message_from_outside_and_sleep_waits(go):
    agent = Agent("a")

    @agent.on_task
    async def handle(ctx: Context, n: int) -> list[object]:
        await ctx.sleep(0.01)
        return [await ctx.receive("approval", timeout=20), await ctx.receive("approval")]

    async def main():
        async with run(agent) as bus:
            handle_ = await bus.start(handle, 1)
            await handle_.send("yes", kind="approval")
            await handle_.send({"n": 2}, kind="approval")
            assert await handle_.result(5) == ["yes", {"n": 2}]
            assert (await handle_.status()).status is Status.COMPLETED

    go(main())


def test_a_receive_that_nobody_answers_expires(go):
    agent = Agent("a")

    @agent.on_task
    async def handle(ctx: Context, n: int) -> str:
        try:
            await ctx.receive("approval", timeout=0.02)
        except WaitExpired:
            return "late"
        return "?"

    async def main():
        async with run(agent) as bus:
            return await bus.request(handle, 1)

    assert go(main()) == "late"


def test_a_request_with_a_timeout_ends_with_request_expired(go):
    a, b = Agent("a"), Agent("b")

    @b.on_task
    async def slow(ctx: Context, n: int) -> int:
        await ctx.receive("never")
        return 1

    @a.on_task
    async def ask(ctx: Context, n: int) -> str:
        try:
            await ctx.request(slow, n, timeout=0.05)
        except RequestExpired as error:
            return error.agent
        return "?"

    async def main():
        async with run(a, b) as bus:
            handle = await bus.start(ask, 1)
            assert await handle.result(5) == "b"
            assert (await handle.status()).status is Status.COMPLETED

    go(main())


class Topic(msgspec.Struct):
    name: str
    weight: float = 1.0


@dataclass
class Draft:
    text: str
    pages: tuple[int, ...] = ()


class Note(TypedDict):
    body: str


def test_payloads_and_results_are_typed_by_annotation(go):
    agent = Agent("a")

    @agent.on_task
    async def write(ctx: Context, topic: Topic) -> Draft:
        note = await ctx.effect("note", make_note, topic)
        return Draft(note["body"], pages=(1, 2))

    def make_note(topic: Topic) -> Note:
        return {"body": topic.name.upper()}

    async def main():
        async with run(agent) as bus:
            assert await bus.request(write, Topic("tides")) == Draft("TIDES", (1, 2))
            with pytest.raises(AgentError, match="SchemaError") as info:
                await bus.request(write, {"name": 3})
            assert info.value.error == SchemaError.__name__

    go(main())


def test_pydantic_models_are_payloads_too(go):
    pydantic = pytest.importorskip("pydantic")

    class Job(pydantic.BaseModel):
        n: int

    agent = Agent("a")

    async def handle(ctx: Context, job) -> object:
        return Job(n=job.n + 1)

    handle.__annotations__ = {"ctx": Context, "job": Job, "return": Job}
    agent.on_task(handle)

    async def main():
        async with run(agent) as bus:
            assert await bus.request(handle, Job(n=1)) == Job(n=2)

    go(main())


def test_a_plain_function_is_a_handler_and_runs_in_a_thread(go):
    agent = Agent("a")

    @agent.on_task
    def handle(n: int) -> int:
        import threading

        assert threading.current_thread() is not threading.main_thread()
        return n + 1

    async def main():
        async with run(agent) as bus:
            return await bus.request("a", 1)

    assert go(main()) == 2


def test_a_forwarded_request_is_answered_by_the_last_stage(go):
    first, second, third = Agent("first"), Agent("second"), Agent("third")

    @first.on_task
    async def one(ctx: Context, xs: list[int]) -> object:
        return ctx.forward(second, [*xs, 1])

    @second.on_task
    async def two(ctx: Context, xs: list[int]) -> object:
        return ctx.forward("third", [*xs, 2])

    @third.on_task
    async def three(ctx: Context, xs: list[int]) -> list[int]:
        return [*xs, 3]

    async def main():
        async with run(first, second, third) as bus:
            handle = await bus.start("first", [0])
            assert await handle.result(5) == [0, 1, 2, 3]
            kinds = [e.message.message_type async for e in handle.events()]
            assert kinds == ["task_request"] * 3 + ["task_response"]

    go(main())


def test_state_updates_are_merge_patches_seen_by_later_messages(go):
    agent = Agent("a")

    @agent.on_task
    async def handle(ctx: Context, patch: dict) -> dict:
        ctx.update(patch)
        return ctx.state

    async def main():
        async with run(agent) as bus:
            handle_ = await bus.start(handle, {"x": 1, "y": {"z": 2}})
            assert await handle_.result(5) == {}
            assert await handle_.request({"x": None}) == {"x": 1, "y": {"z": 2}}
            assert await handle_.request({}) == {"y": {"z": 2}}

    go(main())


def test_notifications_reach_everybody_who_listens_but_the_sender(go):
    a, b, c = Agent("a"), Agent("b"), Agent("c")
    got = []

    @a.on_task
    async def tell(ctx: Context, n: int) -> None:
        ctx.send("*", n, kind="news")
        ctx.send(b, n + 1)

    for agent in (a, b, c):
        agent.on("news")(lambda n, agent=agent: got.append((agent.name, n)))
    b.on("status_update")(lambda n: got.append(("b status", n)))

    async def main():
        async with run(a, b, c) as bus:
            handle = await bus.start(tell, 1)
            await handle.result(5)
            async for _ in handle.events():
                pass

    go(main())
    assert sorted(got) == [("b", 1), ("b status", 2), ("c", 1)]


def test_branches_of_a_gather_run_beside_each_other_and_random_is_stable(go):
    agent, order, drawn = Agent("a", retry=QUICK), [], []

    async def slow(i: int, seconds: float) -> int:
        order.append(i)
        await asyncio.sleep(seconds)
        return i

    @agent.on_task
    async def handle(ctx: Context, n: int) -> list[object]:
        async def branch(i: int) -> int:
            x = await ctx.effect("slow", slow, i, 0.05 - i * 0.01)
            return x + await ctx.effect("again", slow, i, 0)

        got = await ctx.gather(branch(0), branch(1), ctx.effect("plain", slow, 2, 0), branch(3))
        drawn.append((ctx.random().random(), str(ctx.uuid())))
        if ctx.attempt == 1:
            raise RuntimeError("again")
        return got

    async def main():
        async with run(agent) as bus:
            return await bus.request(handle, 1)

    assert go(main()) == [0, 2, 2, 6]
    assert len(order) == 7
    assert drawn[0] == drawn[1]


def test_a_gather_raises_the_first_failure_and_stops_the_other_branches(go):
    agent, reached = Agent("a"), []

    @agent.on_task
    async def handle(ctx: Context, n: int) -> str:
        async def bad() -> None:
            await ctx.effect("ok", lambda: 1)
            raise ValueError("bad")

        async def other() -> None:
            await ctx.sleep(0.05)
            reached.append(1)
            await ctx.effect("more", lambda: reached.append(2))

        try:
            await ctx.gather(bad(), other())
        except ValueError as error:
            return str(error)
        return "?"

    async def main():
        async with run(agent) as bus:
            return await bus.request(handle, 1)

    assert go(main()) == "bad"
    assert reached == [1]


def test_waiting_runs_beyond_max_live_are_parked_and_go_on(go):
    agent, starts = Agent("a"), []

    @agent.on_task
    async def handle(ctx: Context, n: int) -> int:
        x = await ctx.effect("n", lambda: starts.append(n) or n)
        y = await ctx.receive("go")
        return x + y

    async def main():
        async with run(agent, max_live=3) as bus:
            handles = [await bus.start(handle, i) for i in range(20)]
            for h in handles:
                await h.send(100, kind="go")
            return [await h.result(10) for h in handles]

    assert go(main()) == [100 + i for i in range(20)]
    assert sorted(starts) == list(range(20))


def test_cancel_ends_a_workflow_and_its_children(go, until):
    parent, child = Agent("parent"), Agent("child")
    ids = []

    @child.on_task
    async def wait(ctx: Context, n: int) -> int:
        ids.append(ctx.correlation_id)
        return await ctx.receive("never")

    @parent.on_task
    async def spawn(ctx: Context, n: int) -> int:
        return await ctx.spawn(wait, n)

    async def main():
        async with run(parent, child) as bus:
            handle = await bus.start(spawn, 1)
            await until(lambda: ids)
            await handle.cancel("enough")
            with pytest.raises(AgentError, match="cancelled"):
                await handle.result(5)
            inner = await bus.attach(ids[0])

            async def cancelled():
                return (await inner.status()).status is Status.CANCELLED

            await until(cancelled)
            assert (await handle.status()).status is Status.CANCELLED

    go(main())
