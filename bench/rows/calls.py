"""1,000 handlers that await slow calls (0.5 to 5 s, log-normal): what the engine adds."""

from __future__ import annotations

import asyncio
import random
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import raw as hand
from measure import Figure, Row

HANDLERS, SECONDS, WARM = 1000, 20.0, 6.0


def duration(rng: random.Random) -> float:
    """How long a call takes: log-normal, median 1.5 s, cut at 0.5 and 5 s."""
    return min(max(rng.lognormvariate(0.4, 0.6), 0.5), 5.0)


class Watch:
    """When calls were over, when their callers went on, and what the processor did meanwhile."""

    def __init__(self) -> None:
        self.delays: list[float] = []
        self.calls = 0
        self.on = False

    async def call(self, seconds: float) -> float:
        """A slow call; returns when it ought to have been over."""
        due = time.monotonic() + seconds
        await asyncio.sleep(seconds)
        return due

    def went_on(self, due: float) -> None:
        """Its caller has the value."""
        if self.on:
            self.calls += 1
            self.delays.append((time.monotonic() - due) * 1000)

    async def measure(self) -> dict[str, float]:
        """Watch for a while."""
        await asyncio.sleep(WARM)
        self.on = True
        cpu, wall = time.process_time(), time.monotonic()
        await asyncio.sleep(SECONDS)
        cpu, wall = time.process_time() - cpu, time.monotonic() - wall
        self.on = False
        q = statistics.quantiles(self.delays, n=100)
        return {"p50": q[49], "p99": q[98], "cpu": cpu / wall * 100, "each": cpu / self.calls * 1e6}


async def by_hand(watch: Watch, went_on: Callable[[str, float], Awaitable[None]]) -> dict[str, float]:
    """The same calls by tasks of asyncio; `went_on(correlation, due)` after each."""

    async def handler(seed: int) -> None:
        rng, correlation = random.Random(seed), str(uuid.uuid4())
        while True:
            await went_on(correlation, await watch.call(duration(rng)))

    async with asyncio.TaskGroup() as tasks:
        running = [tasks.create_task(handler(i)) for i in range(HANDLERS)]
        found = await watch.measure()
        for task in running:
            task.cancel()
    return found


def raw(folder: Path) -> dict[str, float]:
    """Nothing is recorded."""
    watch = Watch()

    async def went_on(correlation: str, due: float) -> None:
        watch.went_on(due)

    return asyncio.run(by_hand(watch, went_on))


def recorded(folder: Path) -> dict[str, float]:
    """Each call is durable before its handler goes on: the least that recording costs."""
    watch = Watch()

    async def main() -> dict[str, float]:
        async with hand.opened(str(folder / "raw.db")) as log:

            async def went_on(correlation: str, due: float) -> None:
                await log.append(correlation, hand.encode(hand.new_start(correlation, due)))
                watch.went_on(due)

            return await by_hand(watch, went_on)

    return asyncio.run(main())


def refold(folder: Path) -> dict[str, float]:
    """Each call is an effect, recorded before its handler goes on."""
    from refold import Agent, run

    watch = Watch()
    agent = Agent("caller", concurrency=1)

    @agent.on_task(timeout=600)
    async def work(ctx, seed):  # type: ignore[no-untyped-def]
        rng = random.Random(seed)
        for _ in range(60):
            watch.went_on(await ctx.effect("call", watch.call, duration(rng)))

    async def main() -> dict[str, float]:
        url = f"sqlite:///{folder}/refold.db"
        async with run(agent, broker=url, concurrency=HANDLERS, drain=0.1) as bus:
            await asyncio.gather(*(bus.start("caller", i) for i in range(HANDLERS)))
            return await watch.measure()

    return asyncio.run(main())


ROW = Row(
    "1,000 handlers that await calls of 0.5 to 5 s",
    [
        Figure("p99", "from a call's end to its handler going on, p99", "ms", "refold <= 50", better="less"),
        Figure("p50", "the same, p50", "ms", better="less"),
        Figure("cpu", "the process", "% of a core", "difference <= 5", better="less"),
        Figure("each", "processor time of a call", "us", better="less"),
        Figure("each", "the same, beside the loop that records each call", "us", better="less", base="recorded"),
        Figure("p99", "p99, beside the loop that records each call", "ms", better="less", base="recorded"),
    ],
    {"raw": raw, "recorded": recorded, "refold": refold},
    turns=3,
)
