"""100,000 open workflows that wait: their cost in memory, and how soon a new process works on them after kill -9."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import logs
import psutil
from measure import Figure, Row
from rows.processes import started

WORKFLOWS = int(os.environ.get("BENCH_WAITING", "100000"))
GROUP = "waiter"


async def answered(bus: Any, correlation: str, limit: float = 120.0) -> float:
    """Send the message that a workflow waits for; seconds until it has answered."""
    before = time.perf_counter()
    handle = await bus.attach(correlation)
    await handle.send("yes", kind="go", to="waiter")
    await handle.result(limit)
    return time.perf_counter() - before


async def settled(broker: Any, group: str, limit: float = 600.0) -> float:
    """Wait until the group's checkpoints are at the log's end; the seconds that took."""
    started_at = time.perf_counter()
    while time.perf_counter() - started_at < limit:
        ends, committed = await broker.positions("end"), await broker.positions("committed", group)
        if all(committed[p] >= ends[p] for p in ends):
            return time.perf_counter() - started_at
        await asyncio.sleep(0.2)
    raise TimeoutError("the checkpoints did not reach the log's end")


def refold(folder: Path) -> dict[str, float]:
    """A worker meets the log, folds it, keeps a checkpoint; it is killed, and another one starts."""
    from refold import MessageBus

    url = logs.copied("waiting", WORKFLOWS, folder)
    first = (folder / "first").read_text()

    async def main() -> dict[str, float]:
        found = {}
        async with MessageBus.open(url) as bus:
            with started([__file__, url]) as (process,):
                found["fold"] = await settled(bus.broker, GROUP)
                await answered(bus, last(url))
                found["memory"] = psutil.Process(process.pid).memory_info().rss / 2**20
                process.send_signal(signal.SIGKILL)
                process.wait()
            with started([__file__, url]) as (process,):
                found["again"] = await answered(bus, first)
                await asyncio.sleep(10)
                found["memory_again"] = psutil.Process(process.pid).memory_info().rss / 2**20
        return found

    return asyncio.run(main())


def last(url: str) -> str:
    """Return the id of the newest workflow of a log."""
    import sqlite3

    with sqlite3.connect(url.removeprefix("sqlite:///")) as db:
        (key,) = db.execute("SELECT key FROM records WHERE key IS NOT NULL ORDER BY at DESC LIMIT 1").fetchone()
    return str(key)


def worker(url: str) -> None:
    """Host the agent."""
    from refold.agents.runtime import serve

    asyncio.run(serve([logs.waiter()], url, group=GROUP))


ROW = Row(
    f"{WORKFLOWS:,} open, waiting workflows",
    [
        Figure("memory", "the worker's memory, after folding them all", "MB", "refold <= 300", better="less"),
        Figure("memory_again", "the same, after a restart", "MB", "refold <= 300", better="less"),
        Figure("again", "from the start after kill -9 to the answer of one of them", "s", "refold <= 5", better="less"),
        Figure("fold", "(folding the log for the first time, until the checkpoint)", "s", better="less"),
    ],
    {"refold": refold},
    turns=3, limit=900,
)  # fmt: skip

if __name__ == "__main__":
    worker(*sys.argv[1:])
