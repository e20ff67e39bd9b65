"""A handler asks a child workflow whose agent lives in another process."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import raw as hand
from measure import Figure, Row
from rows.processes import started

TIMES = 200


def parent() -> Any:
    """Spawns one child after another, and answers with how long each took (milliseconds)."""
    from refold import Agent

    agent = Agent("parent")

    @agent.on_task
    async def ask(ctx, times):  # type: ignore[no-untyped-def]
        found = []
        for _ in range(times):
            before = time.perf_counter()
            await ctx.spawn("child", hand.PAYLOAD)
            found.append((time.perf_counter() - before) * 1000)
        return found

    return agent


def child() -> Any:
    """Answers at once."""
    from refold import Agent

    agent = Agent("child")

    @agent.on_task
    async def answer(payload):  # type: ignore[no-untyped-def]
        return payload

    return agent


def refold(folder: Path) -> dict[str, float]:
    """Two processes; the client only starts it."""
    from refold import MessageBus

    url = f"sqlite:///{folder}/refold.db"

    async def main() -> list[float]:
        async with MessageBus.open(url) as bus:
            with started([__file__, url, "parent"], [__file__, url, "child"]):
                await bus.request("parent", 10)
                return list(await bus.request("parent", TIMES))

    times = asyncio.run(main())
    return {"p50": statistics.median(times), "p99": statistics.quantiles(times, n=100)[98]}


def worker(url: str, name: str) -> None:
    """Be one of the two."""
    from refold.agents.runtime import serve

    asyncio.run(serve([parent() if name == "parent" else child()], url, group=name))


ROW = Row(
    "request to a child workflow in another process and back",
    [
        Figure("p50", "p50", "ms", "refold <= 10", better="less", base="refold"),
        Figure("p99", "p99", "ms", better="less", base="refold"),
    ],
    {"refold": refold},
)

if __name__ == "__main__":
    worker(*sys.argv[1:])
