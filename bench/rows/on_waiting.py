"""Open workflows that wait, on NATS or Kafka: how soon a new process works on them, with no files of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import beside
import logs
import psutil
from by_hand import NAMED
from measure import Figure, Row
from rows import waiting
from rows.on_takeover import hosting
from rows.processes import started

WORKFLOWS = int(os.environ.get("BENCH_ON_WAITING", "20000"))
LEASE = 8.0


def row(kind: str) -> Row:
    """Return the row of a broker."""

    def refold(folder: Path) -> dict[str, float]:
        from refold import MessageBus

        url, found = beside.url(kind, beside.space(folder)), dict[str, float]()

        async def main() -> None:
            _, waits = await logs.templates(folder)
            workflows = list(logs.newest(waits, WORKFLOWS))
            before = time.perf_counter()
            await logs.write(url, iter(workflows))
            found["written"] = time.perf_counter() - before
            async with MessageBus.open(url) as bus:
                with started(hosting(url, "waiter", LEASE)) as (process,):
                    found["fold"] = await waiting.settled(bus.broker, "all")
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                before = time.perf_counter()
                with started(hosting(url, "waiter", LEASE, "there")) as (process,):
                    await waiting.answered(bus, workflows[0][0])
                    found["again"] = time.perf_counter() - before - LEASE
                    found["memory"] = psutil.Process(process.pid).memory_info().rss / 2**20

        asyncio.run(main())
        return found

    return Row(
        f"takeover with {WORKFLOWS:,} open, waiting workflows on {NAMED[kind]}, no local files",
        [
            Figure("again", "from kill -9 to the answer of one, beyond the lease", "s", "refold <= 5", better="less"),
            Figure("memory", "the new worker's memory then", "MB", better="less"),
            Figure("fold", "(folding the log for the first time, until the checkpoint)", "s", better="less"),
        ],
        {"refold": refold}, turns=1, limit=1800, server=kind,
    )  # fmt: skip
