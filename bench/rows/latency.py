"""The same pipeline, one workflow at a time: how long an answer takes."""

from __future__ import annotations

import asyncio
import statistics
import time
import uuid
from pathlib import Path
from typing import Any

import raw as hand
from measure import Figure, Row
from rows.pipeline import agents, nothing

WORKFLOWS = 400


async def one_by_one(request: Any, workflows: int = WORKFLOWS) -> dict[str, float]:
    """Ask again and again; milliseconds a workflow."""
    for _ in range(50):
        await request()
    times = []
    for _ in range(workflows):
        started = time.perf_counter()
        await request()
        times.append((time.perf_counter() - started) * 1000)
    return {"p50": statistics.median(times), "p99": statistics.quantiles(times, n=100)[98]}


def raw(folder: Path) -> dict[str, float]:
    """The hand-written pipeline."""

    async def main() -> dict[str, float]:
        async with hand.opened(str(folder / "raw.db")) as log:
            loop = hand.Pipeline(log, {f"stage{i}": nothing for i in range(1, hand.STAGES + 1)})
            task = asyncio.create_task(loop.run())
            found = await one_by_one(lambda: loop.request(str(uuid.uuid4())))
            task.cancel()
            return found

    return asyncio.run(main())


def refold(folder: Path) -> dict[str, float]:
    """`bus.request`: from the call to the decoded answer."""
    return asyncio.run(refold_at(f"sqlite:///{folder}/refold.db"))


async def refold_at(url: str, workflows: int = WORKFLOWS) -> dict[str, float]:
    """Measure refold on the log of that URL."""
    from refold import run

    async with run(*agents(), broker=url) as bus:
        return await one_by_one(lambda: bus.request("stage1", hand.PAYLOAD), workflows)


ROW = Row(
    "5-stage pipeline in one process, one at a time",
    [
        Figure("p50", "p50", "ms", "ratio <= 1.5", better="less"),
        Figure("p99", "p99", "ms", better="less"),
    ],
    {"raw": raw, "refold": refold},
)
