"""Takeover on NATS or Kafka: the owner of all partitions is killed, another process starts; its first handling."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from pathlib import Path

import beside
import logs
import raw as hand
from by_hand import NAMED
from measure import Figure, Row
from rows.pipeline import agents
from rows.processes import started

CASES = {"default": (8.0, "there"), "short": (2.0, "there"), "here": (8.0, "here")}
"""Lease in seconds, and where the next one is: a dead process of its own host is known to be dead (on NATS)."""
TARGET = {"nats": {"default": 10, "short": 3, "here": 10}, "kafka": {"default": 13, "short": 5}}


def hosting(url: str, hosted: str = "stages", lease: float = 8.0, place: str = "here") -> list[str]:
    """Return what starts a worker. Place "there": it takes itself for one of another host."""
    return [__file__, url, hosted, str(lease), place]


async def after_death(url: str, lease: float, place: str) -> float:
    """Seconds from kill -9 of the owner to the answer of a workflow that was asked then."""
    from refold import MessageBus

    async with MessageBus.open(url) as bus:
        with started(hosting(url, lease=lease)) as (process,):
            for _ in range(50):
                await bus.request("stage1", hand.PAYLOAD, timeout=60)
            process.send_signal(signal.SIGKILL)
            process.wait()
        before = time.perf_counter()
        with started(hosting(url, lease=lease, place=place)):
            await bus.request("stage1", hand.PAYLOAD, timeout=60)
            return time.perf_counter() - before


def row(kind: str) -> Row:
    """Return the row of a broker."""

    def refold(folder: Path) -> dict[str, float]:
        url = beside.url(kind, beside.space(folder))
        return {name: asyncio.run(after_death(f"{url}-{name}", *CASES[name])) for name in TARGET[kind]}

    titles = {name: f"a lease of {lease:g} s, {'another' if place == 'there' else 'the same'} host"
              for name, (lease, place) in CASES.items()}  # fmt: skip
    return Row(
        f"takeover on {NAMED[kind]}, from kill -9 of the owner to the first answer of the next, just started",
        [Figure(n, titles[n], "s", f"refold <= {limit}", better="less") for n, limit in TARGET[kind].items()],
        {"refold": refold}, turns=2, server=kind,
    )  # fmt: skip


def worker(url: str, hosted: str, lease: str, place: str) -> None:
    """Host the five stages, or the agent that waits."""
    from refold.agents.runtime import serve
    from refold.brokers import pids

    if place == "there":
        pids.place = lambda: "another host"  # type: ignore[assignment]
    asyncio.run(serve([logs.waiter()] if hosted == "waiter" else agents(), url, group="all", lease=float(lease)))


if __name__ == "__main__":
    worker(*sys.argv[1:])
