"""The five stages by what a user would pick instead: LangGraph and DBOS on SQLite, taskiq in memory."""

from __future__ import annotations

import asyncio
import importlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import raw as hand
from measure import Figure, Row, Side
from rows.pipeline import AT_ONCE, agents, flood

ALONE = 60


def measured(workflows: int) -> Callable[[Any], Any]:
    """Return what measures a request: 100 at once, then one at a time."""

    async def measure(request: Any) -> dict[str, float]:
        await flood(request, AT_ONCE, AT_ONCE)
        rate = await flood(request, workflows, AT_ONCE)
        times = []
        for _ in range(ALONE):
            before = time.perf_counter()
            await request()
            times.append((time.perf_counter() - before) * 1000)
        return {"rate": rate, "p50": statistics.median(times)}

    return measure


def peer(name: str, workflows: int, **settings: Any) -> Side:
    """Return the side that measures a peer."""

    def side(folder: Path) -> dict[str, float]:
        module = importlib.import_module(f"peers.{name}")
        found: dict[str, float] = asyncio.run(module.pipeline(folder, measured(workflows), **settings))
        return found

    return side


def refold(folder: Path) -> dict[str, float]:
    """`bus.request`, client and worker in one process."""
    from refold import run

    async def main() -> dict[str, float]:
        async with run(*agents(), broker=f"sqlite:///{folder}/refold.db") as bus:
            found: dict[str, float] = await measured(2000)(lambda: bus.request("stage1", hand.PAYLOAD, timeout=60))
            return found

    return asyncio.run(main())


PEERS = {
    "taskiq": "taskiq in memory (nothing is stored)",
    "langgraph": "LangGraph, AsyncSqliteSaver, durability sync",
    "langgraph_async": "LangGraph, AsyncSqliteSaver, durability async (its default)",
    "dbos": "DBOS on SQLite (WAL)",
}

ROW = Row(
    "5-stage pipeline",
    [
        *(
            Figure("rate", f"100 at once, beside {title}", "workflows/s", "ratio >= 1", base=name)
            for name, title in PEERS.items()
        ),
        *(
            Figure("p50", f"one at a time p50, beside {title}", "ms", better="less", base=name)
            for name, title in PEERS.items()
        ),
    ],
    {
        "refold": refold,
        "taskiq": peer("taskiq_pipeline", 5000),
        "langgraph": peer("langgraph_pipeline", 300),
        "langgraph_async": peer("langgraph_pipeline", 300, durability="async"),
        "dbos": peer("dbos_pipeline", 300),
    },
    turns=3,
)
