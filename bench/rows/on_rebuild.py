"""Rebuilding a projection from a log on NATS or Kafka, beside a loop that consumes, decodes and folds."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable
from pathlib import Path

import beside
import logs
from by_hand import NAMED, on
from measure import Figure, Row
from rows import rebuild

WORKFLOWS = int(os.environ.get("BENCH_ON_RECORDS", "30000")) // 6


def row(kind: str) -> Row:
    """Return the row of a broker."""

    def by_hand(folder: Path, fold: Callable[[str, bytes], None]) -> dict[str, float]:
        space = beside.space(folder)

        async def main() -> float:
            done, _ = await logs.templates(folder)
            rows = [(key, value) for key, [(_, value)] in logs.singly(logs.newest(done, WORKFLOWS))]
            await on(kind).filled(space, rows)
            return float(await on(kind).consume(space, len(rows), fold))

        return {"rate": asyncio.run(main())}

    def raw(folder: Path) -> dict[str, float]:
        fold = rebuild.bare({})
        return by_hand(folder, lambda key, value: fold(value))

    def admitted(folder: Path) -> dict[str, float]:
        judge, positions = rebuild.admitting(1), itertools.count(1)
        return by_hand(folder, lambda key, value: judge(0, next(positions), key, value))

    def refold(folder: Path) -> dict[str, float]:
        url = beside.url(kind, beside.space(folder))

        async def main() -> float:
            done, _ = await logs.templates(folder)
            await logs.write(url, logs.singly(logs.newest(done, WORKFLOWS)))
            return await rebuild.refold_at(url, folder)

        return {"rate": asyncio.run(main())}

    return Row(
        f"projection rebuild from {6 * WORKFLOWS:,} records on {NAMED[kind]}",
        [
            Figure("rate", "", "records/s", "ratio >= 0.5"),
            Figure("rate", "beside the loop with admission", "records/s", base="admitted"),
        ],
        {"raw": raw, "admitted": admitted, "refold": refold}, turns=3, server=kind,
    )  # fmt: skip
