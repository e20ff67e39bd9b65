"""Reading one workflow of 50 records out of a long log on NATS or Kafka."""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import beside
import logs
import raw as hand
from by_hand import NAMED
from measure import Figure, Row

RECORDS = int(os.environ.get("BENCH_ON_WORKFLOW", "50000"))
EACH, AT_ONCE, READS = 50, 100, 60
TARGET = {"nats": "refold <= 10", "kafka": "refold <= 50"}


def records(ids: list[str]) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Return the log: a hundred workflows at once, a record of each in turn."""
    for at in range(0, len(ids), AT_ONCE):
        for _ in range(EACH):
            for correlation in ids[at : at + AT_ONCE]:
                r = hand.new_start(correlation)
                r.id = str(uuid.uuid4())
                yield correlation, [(r.id, hand.encode(r))]


def row(kind: str) -> Row:
    """Return the row of a broker."""

    def refold(folder: Path) -> dict[str, float]:
        from refold.brokers import open_broker

        url = beside.url(kind, beside.space(folder))

        async def main() -> dict[str, float]:
            ids = [logs.id_at(int(time.time() * 1000)).decode() for _ in range(RECORDS // EACH)]
            await logs.write(url, records(ids))
            times = []
            async with open_broker(url) as broker:
                await broker.ensure_log()
                for correlation in random.Random(1).choices(ids, k=READS):
                    before = time.perf_counter()
                    page = await broker.read_workflow(correlation)
                    times.append((time.perf_counter() - before) * 1000)
                    assert len(page.records) == EACH
            return {"first": times[0], "p50": statistics.median(times[READS // 2 :])}

        return asyncio.run(main())

    return Row(
        f"one workflow of {EACH} records among {RECORDS:,} on {NAMED[kind]}",
        [
            Figure("p50", "p50", "ms", TARGET[kind], better="less"),
            Figure("first", "the first one that a process reads", "ms", better="less"),
        ],
        {"refold": refold}, turns=1, limit=1800, server=kind,
    )  # fmt: skip
