"""A handler with 1,000 sequential requests: beside 1,000 hops of their own, and run again over what is recorded."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import Any

import raw as hand
from measure import Figure, Row
from rows.processes import started

STEPS = 1000


def agents() -> list[Any]:
    """One asks 1,000 times, then waits; one answers; one passes a message on to itself, 1,000 times."""
    from refold import Agent

    asker, echo, hopper = Agent("asker"), Agent("echo"), Agent("hopper")

    @asker.on_task
    async def ask(ctx, payload):  # type: ignore[no-untyped-def]
        for _ in range(payload["steps"]):
            await ctx.request("echo", hand.PAYLOAD)
        if payload["wait"]:
            await ctx.receive("go")
        return "done"

    @echo.on_task
    async def answer(payload):  # type: ignore[no-untyped-def]
        return payload

    @hopper.on_task
    async def hop(ctx, payload):  # type: ignore[no-untyped-def]
        if payload["left"] <= 1:
            return "done"
        return ctx.forward("hopper", {**payload, "left": payload["left"] - 1})

    return [asker, echo, hopper]


async def timed(work: Any) -> float:
    """Return the seconds that it takes."""
    before = time.perf_counter()
    await work
    return time.perf_counter() - before


def refold(folder: Path) -> dict[str, float]:
    """A request and its answer are two records; so are two hops: 1,000 requests stand beside 1,000 workflows of a
    request and its answer, asked one after another."""
    from refold import run

    url = f"sqlite:///{folder}/refold.db"

    async def main() -> dict[str, float]:
        async with run(*agents(), broker=url) as bus:
            await bus.request("asker", {"steps": 20, "wait": False})
            await bus.request("echo", hand.PAYLOAD)
            inside = await timed(bus.request("asker", {"steps": STEPS, "wait": False}, timeout=120))

            async def hops() -> None:
                for _ in range(STEPS):
                    await bus.request("echo", hand.PAYLOAD)

            separate = await timed(hops())
        return {"inside": inside, "separate": separate, "ratio": inside / separate, "again": await rerun(url)}

    return asyncio.run(main())


async def rerun(url: str) -> float:
    """A handler has taken 1,000 steps and waits, its process is killed: milliseconds from the message that it waits
    for to its answer, by a process that has to run it from its first line."""
    from refold import MessageBus

    async with MessageBus.open(url) as bus:
        with started([__file__, url]) as (process,):
            handle = await bus.start("asker", {"steps": STEPS, "wait": True})
            while (await handle.status()).version < 2 * STEPS + 2:
                await asyncio.sleep(0.1)
            process.send_signal(signal.SIGKILL)
            process.wait()
        with started([__file__, url]):
            await bus.request("echo", hand.PAYLOAD, timeout=60)
            await asyncio.sleep(2)
            before = time.perf_counter()
            await handle.send("yes", kind="go", to="asker")
            await handle.result(30)
            return (time.perf_counter() - before) * 1000


def worker(url: str) -> None:
    """Host them; what waits is dropped at once, so that each message runs its handler from the first line."""
    from refold.agents.runtime import serve

    asyncio.run(serve(agents(), url, group="app", max_live=0))


ROW = Row(
    "1,000 sequential requests in one handler",
    [
        Figure("inside", "seconds", "s", better="less", base="refold"),
        Figure("separate", "1,000 separate requests, one after another", "s", better="less", base="refold"),
        Figure("ratio", "of the two", "times", "refold <= 2", better="less", base="refold"),
        Figure("again", "run again over 1,000 recorded steps, until the answer", "ms", "refold <= 100", better="less"),
    ],
    {"refold": refold},
    turns=3, limit=300,
)  # fmt: skip

if __name__ == "__main__":
    worker(*sys.argv[1:])
