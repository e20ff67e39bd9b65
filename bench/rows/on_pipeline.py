"""The five stages in one process on NATS or Kafka: 100 workflows at once, one at a time; by hand, by FastStream."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import beside
from by_hand import NAMED, on
from measure import Figure, Row, Side
from rows import latency, pipeline

SECONDS, ALONE = 4.0, 200


async def measured(request: Any) -> dict[str, float]:
    """100 at once, then one at a time."""
    await pipeline.flood(request, 100, pipeline.AT_ONCE)
    rate = await pipeline.flood(request, pipeline.lasting(SECONDS), pipeline.AT_ONCE)
    return {"engine": rate, "answers": rate} | await latency.one_by_one(request, ALONE)


def side(make: Callable[[str], Any]) -> Side:
    """Return the side that measures what `make` makes for a name."""

    def measure(folder: Path) -> dict[str, float]:
        async def main() -> dict[str, float]:
            async with make(beside.space(folder)) as request:
                return await measured(request)

        return asyncio.run(main())

    return measure


def refold(kind: str) -> Side:
    """Engine: a workflow is over when its last stage has ended. Answers: a client waits for each answer."""

    def measure(folder: Path) -> dict[str, float]:
        url = beside.url(kind, beside.space(folder))
        found = asyncio.run(
            pipeline.refold_at(f"{url}-flood", lambda: 100, lambda: pipeline.lasting(SECONDS))
        )
        return found | asyncio.run(latency.refold_at(f"{url}-alone", ALONE))

    return measure


def row(kind: str) -> Row:
    """Return the row of a broker."""
    sides: dict[str, Side] = {
        "raw": side(lambda space: on(kind).pipeline(space, pipeline.nothing)),
        "promised": side(lambda space: on(kind).promised(space, pipeline.nothing)),
        "refold": refold(kind),
        "faststream": side(lambda space: importlib.import_module("peers.faststream_pipeline").pipeline(kind, space)),
    }
    if kind == "nats":
        sides["lockstep"] = side(lambda space: on(kind).pipeline(space, pipeline.nothing, lockstep=True))
    figures = [
        Figure("engine", "100 at once", "workflows/s", "ratio >= 0.6"),
        Figure("answers", "100 at once, a client waits for each answer", "workflows/s"),
        Figure("answers", "the same beside FastStream", "workflows/s", "ratio >= 1", base="faststream"),
        Figure("answers", "the same beside a small engine by hand", "workflows/s", base="promised"),
        Figure("p50", "one at a time p50", "ms", "ratio <= 2", better="less"),
        Figure("p50", "one at a time p50, beside the small engine", "ms", better="less", base="promised"),
        Figure("p50", "one at a time p50, beside FastStream", "ms", better="less", base="faststream"),
    ]
    if kind == "nats":
        figures.append(Figure("engine", "100 at once, beside a loop in lockstep", "workflows/s", base="lockstep"))
    return Row(f"5-stage pipeline on {NAMED[kind]}", figures, sides, turns=3, server=kind)
