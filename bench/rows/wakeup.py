"""Two processes and a log on which nothing happens: how soon a message is seen, and what waiting costs."""

from __future__ import annotations

import asyncio
import statistics
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import psutil
import raw as hand
from measure import Figure, Row
from rows.processes import member, started, wait_for

TIMES, PAUSE, IDLE = 100, 0.05, 20.0


def listener(path: str) -> Any:
    """Writes down when its handler began."""
    from refold import Agent

    agent = Agent("listener")

    @agent.on_task
    async def hear(payload):  # type: ignore[no-untyped-def]
        now = time.time()
        with open(path, "a") as file:
            file.write(f"{now}\n")

    return agent


def refold(folder: Path) -> dict[str, float]:
    """A client sends, a worker in another process begins its handler. The idle worker has 16 partitions."""
    from refold import MessageBus

    url, seen = f"sqlite:///{folder}/refold.db", folder / "seen"

    async def main() -> dict[str, float]:
        async with MessageBus.open(url) as bus:
            with started([__file__, url, str(seen)]) as (process,):
                await bus.request("listener", None)
                sent = []
                for _ in range(TIMES):
                    await asyncio.sleep(PAUSE)
                    before = time.time()
                    handle = await bus.start("listener", hand.PAYLOAD)
                    sent.append((before, time.time()))
                    await handle.result(10)
                return delays(seen, sent) | {"idle": await idle(process.pid)}

    return asyncio.run(main())


async def idle(pid: int) -> float:
    """Return how much of a core a process uses while nothing happens, in percent."""
    await asyncio.sleep(6)  # the checkpoint of what went before
    process = psutil.Process(pid)
    before = process.cpu_times()
    await asyncio.sleep(IDLE)
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / IDLE * 100


def delays(seen: Path, sent: list[tuple[float, float]]) -> dict[str, float]:
    """Compare when messages were sent, and durable, with when they were seen; milliseconds."""
    heard = [float(line) for line in seen.read_text().split()][-len(sent) :]
    call = [(at - before) * 1000 for at, (before, _) in zip(heard, sent, strict=True)]
    durable = [(at - after) * 1000 for at, (_, after) in zip(heard, sent, strict=True)]
    return {"call": statistics.median(call), "durable": statistics.median(durable)}


def raw(folder: Path) -> dict[str, float]:
    """The shared table and its datagrams."""
    seen = folder / "seen"

    async def main() -> dict[str, float]:
        async with member(str(folder), "client") as loop:
            with started([__file__, "raw", str(folder)]):
                await asyncio.to_thread(wait_for, [f"{folder}/stage5.sock"])
                sent = []
                for _ in range(TIMES):
                    await asyncio.sleep(PAUSE)
                    before = time.time()
                    r = hand.new_start(str(uuid.uuid4()))
                    r.receiver_id = "stage5"
                    await loop.log.append(r.correlation_id, hand.encode(r))
                    sent.append((before, time.time()))
                await asyncio.sleep(0.2)
                return delays(seen, sent)

    return asyncio.run(main())


def worker(url: str, where: str) -> None:
    """Be the one that waits."""
    if url != "raw":
        from refold.agents.runtime import serve

        asyncio.run(serve([listener(where)], url, group="listener"))
        return

    async def hear(payload: Any) -> Any:
        now = time.time()
        with open(f"{where}/seen", "a") as file:
            file.write(f"{now}\n")
        return payload

    async def main() -> None:
        async with member(where, "stage5") as loop:
            loop.handlers["stage5"] = hear
            await asyncio.Event().wait()

    asyncio.run(main())


ROW = Row(
    "two processes, idle log",
    [
        Figure("call", "from `send` to the handler's start, p50", "ms", "refold <= 3", better="less"),
        Figure("durable", "from durable to the handler's start, p50", "ms", better="less"),
        Figure("idle", "an idle worker", "% of a core", "refold <= 1", better="less", base="refold"),
    ],
    {"raw": raw, "refold": refold},
    turns=3,
)

if __name__ == "__main__":
    worker(*sys.argv[1:])
