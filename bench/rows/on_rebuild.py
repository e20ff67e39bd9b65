"""Rebuilding a projection from a log on NATS or Kafka, beside a loop that consumes, decodes and folds."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import beside
import logs
from by_hand import NAMED, on
from measure import Figure, Row
from rows import rebuild

WORKFLOWS = int(os.environ.get("BENCH_ON_RECORDS", "30000")) // 6


def row(kind: str) -> Row:
    """Return the row of a broker."""

    def raw(folder: Path) -> dict[str, float]:
        space = beside.space(folder)

        async def main() -> float:
            done, _ = await logs.templates(folder)
            rows = [(key, value) for key, [(_, value)] in logs.singly(logs.newest(done, WORKFLOWS))]
            await on(kind).filled(space, rows)
            fold = rebuild.bare({})
            return float(await on(kind).consume(space, len(rows), lambda key, value: fold(value)))

        return {"rate": asyncio.run(main())}

    def refold(folder: Path) -> dict[str, float]:
        url = beside.url(kind, beside.space(folder))

        async def main() -> float:
            done, _ = await logs.templates(folder)
            await logs.write(url, logs.singly(logs.newest(done, WORKFLOWS)))
            return await rebuild.refold_at(url, folder)

        return {"rate": asyncio.run(main())}

    return Row(
        f"projection rebuild from {6 * WORKFLOWS:,} records on {NAMED[kind]}",
        [Figure("rate", "", "records/s", "ratio >= 0.5")], {"raw": raw, "refold": refold}, turns=3, server=kind,
    )  # fmt: skip
