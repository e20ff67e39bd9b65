"""What the log's size costs: append, takeover, `ps` and `show` with 10 thousand to a million records before them."""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path

import raw as hand
from measure import Figure, Row
from rows.imports import REFOLD
from rows.takeover import checkpointed, taken_over

SIZES = [int(size) for size in os.environ.get("BENCH_SIZES", "10000 100000 1000000").split()]


def command(url: str, *arguments: str) -> float:
    """Run a command of refold a few times; milliseconds."""
    times = []
    for _ in range(5):
        before = time.perf_counter()
        subprocess.run(
            [sys.executable, REFOLD, *arguments, "--broker", url], check=True, stdout=subprocess.DEVNULL
        )
        times.append((time.perf_counter() - before) * 1000)
    return statistics.median(times)


async def append(url: str) -> float:
    """Append one record after another, each durable; microseconds, median."""
    from refold import AgentMessage, MessageBus

    times = []
    async with MessageBus.open(url) as bus:
        for _ in range(400):
            message = AgentMessage.request("nobody", hand.PAYLOAD, correlation_id=str(uuid.uuid4()))
            before = time.perf_counter()
            await bus.send_message(message)
            times.append((time.perf_counter() - before) * 1e6)
    return statistics.median(times)


def refold(folder: Path) -> dict[str, float]:
    """All sizes, on copies."""
    found = {}
    for size in SIZES:
        place = folder / str(size)
        place.mkdir()
        found[f"takeover{size}"] = taken_over(place, size)["seconds"] * 1000
        url, first = f"sqlite:///{place}/log.db", (checkpointed(size) / "first").read_text()
        found[f"ps{size}"] = command(url, "ps")
        found[f"show{size}"] = command(url, "show", first)
        found[f"append{size}"] = asyncio.run(append(url))
        shutil.rmtree(place)
    return found


def figures() -> list[Figure]:
    """A line for each subject and size."""
    subjects = {"append": ("one append, durable", "us"), "takeover": ("takeover", "ms"), "ps": ("`refold ps`", "ms"),
                "show": ("`refold show` of the oldest workflow", "ms")}  # fmt: skip
    return [
        Figure(f"{key}{size}", f"{title}, {size:,} records", unit, better="less")
        for key, (title, unit) in subjects.items()
        for size in SIZES
    ]


ROW = Row("growth", figures(), {"refold": refold}, turns=3, limit=3600)
