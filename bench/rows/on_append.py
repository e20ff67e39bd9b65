"""Append on NATS or Kafka: as many on their way at once as there are senders."""

from __future__ import annotations

import asyncio
from pathlib import Path

import beside
from by_hand import NAMED, on
from measure import Figure, Row
from rows import append

SENDERS = (100, 1000)
RECORDS = 10_000
TARGET = {"nats": "ratio >= 0.6", "kafka": "ratio >= 0.7"}
BY_HAND = {"nats": "windowed publishing", "kafka": "two batches on their way, together"}


def row(kind: str) -> Row:
    """Return the row of a broker."""

    def raw(folder: Path) -> dict[str, float]:
        loop, count = on(kind), RECORDS * (5 if kind == "kafka" else 2)
        space = beside.space(folder)
        return {f"rate{n}": asyncio.run(loop.append(f"{space}-{n}", n, count)) for n in SENDERS}

    def refold(folder: Path) -> dict[str, float]:
        url = beside.url(kind, beside.space(folder))
        return {f"rate{n}": asyncio.run(append.refold_at(f"{url}-{n}", n, RECORDS // n)) for n in SENDERS}

    titles = {n: f"{n:,} senders beside {BY_HAND[kind]} of {n:,}" for n in SENDERS}
    figures = [Figure(f"rate{n}", title, "records/s", TARGET[kind]) for n, title in titles.items()]
    return Row(f"append on {NAMED[kind]}", figures, {"raw": raw, "refold": refold}, turns=3, server=kind)
