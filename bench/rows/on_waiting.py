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
from rows.processes import started

WORKFLOWS = int(os.environ.get("BENCH_ON_WAITING", "20000"))
LEASE_OVER = 9.0
"""Seconds after which a lease of 8 s is over."""


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
                with started([waiting.__file__, url]) as (process,):
                    found["fold"] = await waiting.settled(bus.broker, waiting.GROUP)
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                await asyncio.sleep(LEASE_OVER)
                with started([waiting.__file__, url]) as (process,):
                    found["again"] = await waiting.answered(bus, workflows[0][0])
                    found["memory"] = psutil.Process(process.pid).memory_info().rss / 2**20

        asyncio.run(main())
        return found

    return Row(
        f"takeover with {WORKFLOWS:,} open, waiting workflows on {NAMED[kind]}, no local files",
        [
            Figure("again", "beyond the lease: from the start to the answer of one", "s", "refold <= 5", better="less"),
            Figure("memory", "the new worker's memory then", "MB", better="less"),
            Figure("fold", "(folding the log for the first time, until the checkpoint)", "s", better="less"),
        ],
        {"refold": refold}, turns=1, limit=1800, server=kind,
    )  # fmt: skip
