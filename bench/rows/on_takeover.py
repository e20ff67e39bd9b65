"""Takeover on NATS or Kafka: the owner of all partitions is killed, another process starts; its first handling."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path

import beside
import raw as hand
from by_hand import NAMED
from measure import Figure, Row
from rows.pipeline import agents
from rows.processes import started

LEASES = {"default": 8.0, "short": 2.0}
TARGET = {("nats", "default"): 10, ("nats", "short"): 3, ("kafka", "default"): 13, ("kafka", "short"): 13}


async def after_death(url: str, lease: float) -> float:
    """Seconds from kill -9 of the owner to the answer of a workflow that was asked then."""
    from refold import MessageBus

    command = [__file__, url, str(lease)]
    async with MessageBus.open(url) as bus:
        with started(command) as (process,):
            for _ in range(50):
                await bus.request("stage1", hand.PAYLOAD, timeout=60)
            process.send_signal(signal.SIGKILL)
            process.wait()
        before = time.perf_counter()
        with started(command):
            await bus.request("stage1", hand.PAYLOAD, timeout=60)
            return time.perf_counter() - before


def row(kind: str) -> Row:
    """Return the row of a broker."""

    def refold(folder: Path) -> dict[str, float]:
        url = beside.url(kind, beside.space(folder))
        return {name: asyncio.run(after_death(f"{url}-{name}", lease)) for name, lease in LEASES.items()}

    return Row(
        f"takeover on {NAMED[kind]}, from kill -9 of the owner to the first answer of the next, just started",
        [
            Figure(name, f"a lease of {lease:g} s", "s", f"refold <= {TARGET[kind, name]}", better="less")
            for name, lease in LEASES.items()
        ],
        {"refold": refold}, turns=3, server=kind,
    )  # fmt: skip


def worker(url: str, lease: str) -> None:
    """Host the five stages."""
    from refold.agents.runtime import serve

    asyncio.run(serve(agents(), url, group="all", lease=float(lease)))


if __name__ == "__main__":
    worker(*sys.argv[1:])
