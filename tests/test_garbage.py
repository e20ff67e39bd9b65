"""What a workflow leaves behind is freed when it is over: nothing waits for the garbage collector."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections import Counter
from typing import Any

import pytest
from hosting import hosted

from refold import Agent, AgentError, Context, RetryPolicy
from refold.bus.collector import YOUNG, rarely

AT_ONCE = 40


def helper() -> Agent:
    agent = Agent("helper")

    @agent.on_task
    async def echo(n: int) -> int:
        return n

    return agent


async def effect(ctx: Context, n: int) -> Any:
    async def call() -> int:
        return n

    return await ctx.effect("call", call)


async def failing_effect(ctx: Context, n: int) -> Any:
    async def call() -> int:
        raise ValueError("no")

    return await ctx.effect("call", call, retry=RetryPolicy(attempts=2, initial=0.001, jitter=0))


async def request(ctx: Context, n: int) -> Any:
    return await ctx.request("helper", n)


async def gather(ctx: Context, n: int) -> Any:
    return await ctx.gather(*(ctx.request("helper", i) for i in range(3)))


async def spawn(ctx: Context, n: int) -> Any:
    return await ctx.spawn("helper", n)


async def sleep(ctx: Context, n: int) -> Any:
    await ctx.sleep(0.001)


async def forward(ctx: Context, n: int) -> Any:
    return ctx.forward("helper", n)


async def failure(ctx: Context, n: int) -> Any:
    raise ValueError("no")


def plain(n: int) -> Any:
    return n


HANDLERS = [effect, failing_effect, request, gather, spawn, sleep, forward, failure, plain]


@pytest.mark.parametrize("handler", HANDLERS, ids=lambda h: h.__name__)
def test_a_workflow_leaves_nothing_to_the_garbage_collector(go, handler):
    """Each run was in a cycle once: what the collector did about it took a fifth of a pipeline's time."""
    agent = Agent("a", retry=RetryPolicy(attempts=2, initial=0.001, jitter=0))
    agent.on_task(handler)

    async def main():
        async with hosted(agent, helper()) as (bus, worker):

            async def ask() -> None:
                with contextlib.suppress(AgentError):
                    await bus.request("a", 1)

            async def ask_many() -> None:
                async with asyncio.TaskGroup() as tasks:
                    for _ in range(AT_ONCE):
                        tasks.create_task(ask())
                while any(place.runs for place in worker.places.values()):
                    await asyncio.sleep(0.001)

            await ask_many()
            gc.collect()
            gc.disable()
            try:
                await ask_many()
                gc.set_debug(gc.DEBUG_SAVEALL)
                left = gc.collect()
                kinds = Counter(type(o).__name__ for o in gc.garbage)
            finally:
                gc.set_debug(0)
                gc.garbage.clear()
                gc.enable()
            assert left < AT_ONCE, kinds.most_common(10)

    go(main())


def test_the_collector_looks_more_rarely_in_a_worker_and_as_before_afterwards():
    before = gc.get_threshold()
    try:
        for mine, inside in ((700, YOUNG), (0, 0), (2 * YOUNG, 2 * YOUNG)):  # 0: whoever switched it off wants it off
            gc.set_threshold(mine, 7, 7)
            with rarely():
                assert gc.get_threshold() == (inside, 7, 7)
            assert gc.get_threshold() == (mine, 7, 7)
    finally:
        gc.set_threshold(*before)
