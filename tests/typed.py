"""What type checkers know of a program that uses refold: `make check` reads this file with mypy and pyright.

Nothing here is run. A line with `type: ignore` is a mistake that both must find: an ignore
that is not needed is an error.
"""
# pyright: reportUnnecessaryTypeIgnoreComment=true

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, assert_type

from refold import Agent, AgentMessage, Context, Handle, MessageBus, RetryPolicy, run
from refold.agents.client import Event

writer = Agent("writer", capabilities={"writing": ["technical"]}, retry=RetryPolicy(attempts=2))
counter = Agent("counter")


@dataclass
class Topic:
    name: str


@dataclass
class Draft:
    text: str


@writer.on_task
async def write(ctx: Context, topic: Topic) -> Draft:
    assert_type(ctx.message, AgentMessage)
    assert_type(ctx.attempt, int)
    assert_type(ctx.state, dict[str, Any])
    return Draft(topic.name)


@writer.on("note", timeout=5)
async def note(ctx: Context, text: str) -> None: ...


async def complete(prompt: str, key: str) -> str:
    return prompt + key


def measure(text: str) -> int:
    return len(text)


async def a_decorated_handler_stays_what_it_was(ctx: Context) -> None:
    assert_type(await write(ctx, Topic("tides")), Draft)


@counter.on_task
def one_parameter_is_enough(text: str) -> int:
    return len(text)


async def steps_have_the_types_of_what_they_call(ctx: Context) -> None:
    assert_type(await ctx.request(write, Topic("tides")), Draft)
    assert_type(await ctx.request(write, Topic("tides"), timeout=60), Draft)
    assert_type(await ctx.request("writer", {"name": "tides"}, returns=Draft), Draft)
    assert_type(await ctx.request("writer", {"name": "tides"}), Any)
    assert_type(await ctx.request(writer, {"name": "tides"}, returns=Draft), Draft)
    assert_type(await ctx.spawn(write, Topic("tides")), Draft)
    assert_type(await ctx.effect("draft", complete, "tides", ctx.idempotency_key), str)
    assert_type(await ctx.effect("measure", measure, "tides", timeout=3, retry=RetryPolicy(attempts=1)), int)
    assert_type(await ctx.effect("measure", measure, "tides", returns=float), float)
    assert_type(await ctx.request(one_parameter_is_enough, "tides"), int)
    assert_type(await ctx.now(), float)
    assert_type(ctx.random().random(), float)
    assert_type(ctx.idempotency_key, str)


async def a_payload_that_does_not_fit_is_found(ctx: Context, bus: MessageBus) -> None:
    await ctx.request(write, 7)  # type: ignore
    await ctx.spawn(write, 7)  # type: ignore
    await bus.request(write, 7)  # type: ignore
    await bus.start(write, 7)  # type: ignore


async def a_client_knows_them_too() -> None:
    async with run(writer) as bus:
        assert_type(bus, MessageBus)
        assert_type(await bus.request(write, Topic("tides")), Draft)
        assert_type(await bus.request("writer", {"name": "tides"}, returns=Draft), Draft)
        assert_type(await bus.request("writer", {"name": "tides"}), Any)
        handle = await bus.start(write, Topic("tides"), id="t")
        assert_type(handle, Handle[Draft])
        assert_type(await handle.result(timeout=30), Draft)
        assert_type(await handle.request(Topic("winds")), Draft)
        assert_type(await handle.request("tides", to=one_parameter_is_enough, returns=int), int)
        assert_type(handle.correlation_id, str)
        assert_type(handle.events(), AsyncIterator[Event])
    async with MessageBus.open("sqlite:///refold.db") as bus:
        assert_type(bus, MessageBus)
        assert_type(await bus.attach("t"), Handle[Any])
        assert_type(await bus.attach("t", returns=Draft), Handle[Draft])
        assert_type(await bus.send("*", 1, kind="note"), AgentMessage)
