"""Append on NATS or Kafka: as many on their way at once as there are senders."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import beside
import raw as hand
from by_hand import NAMED, on
from measure import Figure, Row
from rows import append

SENDERS = (100, 1000)
RECORDS = 10_000
TARGET = {"nats": "ratio >= 0.6", "kafka": "ratio >= 0.7"}
BY_HAND = {"nats": "windowed publishing", "kafka": "two batches on their way, together"}


async def calls_at(url: str, window: int, count: int) -> float:
    """Two callers, each of half a window of messages at once; records per second."""
    from refold import AgentMessage, MessageBus

    async with MessageBus.open(url) as bus:

        async def lane(records: int) -> None:
            for _ in range(records // window):
                await bus.send_messages([AgentMessage.request("stage1", hand.PAYLOAD) for _ in range(window // 2)])

        await asyncio.gather(lane(2 * window), lane(2 * window))
        started = time.perf_counter()
        await asyncio.gather(lane(count), lane(count))
        return count / (time.perf_counter() - started)


def row(kind: str) -> Row:
    """Return the row of a broker."""

    def raw(folder: Path) -> dict[str, float]:
        loop, count = on(kind), RECORDS * (5 if kind == "kafka" else 2)
        space = beside.space(folder)
        rates = {n: asyncio.run(loop.append(f"{space}-{n}", n, count)) for n in SENDERS}
        return {f"rate{n}": rate for n, rate in rates.items()} | {f"calls{n}": rate for n, rate in rates.items()}

    def refold(folder: Path) -> dict[str, float]:
        url = beside.url(kind, beside.space(folder))
        rates = {f"rate{n}": asyncio.run(append.refold_at(f"{url}-{n}", n, RECORDS // n)) for n in SENDERS}
        calls = {f"calls{n}": asyncio.run(calls_at(f"{url}-calls-{n}", n, RECORDS)) for n in SENDERS}
        return rates | calls

    titles = {n: f"{n:,} senders beside {BY_HAND[kind]} of {n:,}" for n in SENDERS}
    figures = [Figure(f"rate{n}", title, "records/s", TARGET[kind]) for n, title in titles.items()]
    figures += [
        Figure(f"calls{n}", f"`send_messages` of {n // 2} twice at once, beside the same", "records/s", TARGET[kind])
        for n in SENDERS
    ]
    return Row(f"append on {NAMED[kind]}", figures, {"raw": raw, "refold": refold}, turns=3, server=kind)
