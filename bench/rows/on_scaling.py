"""Three worker processes against one on NATS or Kafka: handlers of 20 ms, two at once in each process."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

import beside
import raw as hand
from by_hand import NAMED
from measure import Figure, Row, Side
from rows.pipeline import AT_ONCE, flood, lasting
from rows.processes import started

TAKES, CONCURRENCY, SECONDS = 0.02, 2, 6.0
GROUP = "slow"


def slow() -> Any:
    """An agent that takes 20 ms."""
    from refold import Agent

    agent = Agent("slow")

    @agent.on_task
    async def work(payload):  # type: ignore[no-untyped-def]
        await asyncio.sleep(TAKES)
        return payload

    return agent


async def shared(broker: Any, processes: int) -> None:
    """Wait until the partitions are shared out among so many."""
    async with asyncio.timeout(60):
        while True:
            owned = [len(m.presence.partitions) for m in await broker.members(GROUP)]
            if len(owned) == processes and max(owned) - min(owned) <= 1 and sum(owned) == broker.meta.partitions:
                return
            await asyncio.sleep(0.2)


def with_processes(kind: str, processes: int) -> Side:
    """Return the side that measures so many workers."""

    def side(folder: Path) -> dict[str, float]:
        from refold import MessageBus

        url = beside.url(kind, beside.space(folder))

        async def main() -> float:
            async with MessageBus.open(url) as bus:
                with started(*([__file__, url] for _ in range(processes))):
                    await shared(bus.broker, processes)
                    request = lambda: bus.request("slow", hand.PAYLOAD, timeout=60)
                    await flood(request, 200, AT_ONCE)
                    return await flood(request, lasting(SECONDS), AT_ONCE)

        return {"rate": asyncio.run(main())}

    return side


def row(kind: str) -> Row:
    """Return the row of a broker."""
    return Row(
        f"three worker processes against one on {NAMED[kind]}, handlers of 20 ms, {CONCURRENCY} at once in each",
        [Figure("rate", "", "workflows/s", "ratio >= 2.7", base="one")],
        {"one": with_processes(kind, 1), "refold": with_processes(kind, 3)}, turns=2, server=kind,
    )  # fmt: skip


def worker(url: str) -> None:
    """Be one of the workers."""
    from refold.agents.runtime import serve

    asyncio.run(serve([slow()], url, group=GROUP, concurrency=CONCURRENCY))


if __name__ == "__main__":
    worker(*sys.argv[1:])
