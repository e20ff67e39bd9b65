"""Rebuilding a projection from a million records, in one process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import logs
import raw as hand
from measure import Figure, Row

PARTITIONS = 16
RECORDS = int(os.environ.get("BENCH_RECORDS", "1000000"))
PAGE = 1000


class Kinds:
    """How many records of each kind a workflow has, and who wrote last."""

    name, version, scope = "kinds", 1, "workflow"

    def start(self) -> dict[str, Any]:
        return {"last": "", "kinds": {}}

    def key(self, record: Any) -> str:
        return record.envelope.correlation_id  # type: ignore[no-any-return]

    def apply(self, state: dict[str, Any], record: Any) -> dict[str, Any]:
        kind = record.envelope.message_type
        kinds = state["kinds"]
        return {"last": record.envelope.sender_id, "kinds": {**kinds, kind: kinds.get(kind, 0) + 1}}


def pages() -> Iterator[list[tuple[int, str, bytes]]]:
    """Read the log by pages: (rowid, key, bytes)."""
    after = -1
    with contextlib.closing(hand.connect(str(logs.prepared("completed", RECORDS) / "log.db"))) as db:
        while rows := db.execute(
            "SELECT at, key, value FROM records WHERE at > ? ORDER BY at LIMIT ?", (after, PAGE)
        ).fetchall():
            after = rows[-1][0]
            yield rows


def timed(fold_page: Callable[[list[tuple[int, str, bytes]]], None]) -> dict[str, float]:
    """Fold all pages; records per second."""
    count, started = 0, time.perf_counter()
    for rows in pages():
        fold_page(rows)
        count += len(rows)
    return {"rate": count / (time.perf_counter() - started)}


def raw(folder: Path) -> dict[str, float]:
    """Read pages, decode each record, fold it into the state of its workflow; states are kept in memory."""
    fold = bare({})

    def fold_page(rows: list[tuple[int, str, bytes]]) -> None:
        for _, _, value in rows:
            fold(value)

    return timed(fold_page)


def bare(states: dict[str, dict[str, Any]]) -> Callable[[bytes], None]:
    """Return what decodes a record and folds it."""

    def fold(value: bytes) -> None:
        r = hand.decode(value)
        state = states.get(r.correlation_id)
        if state is None:
            state = states[r.correlation_id] = {"last": "", "kinds": {}}
        kinds = state["kinds"]
        kinds[r.message_type] = kinds.get(r.message_type, 0) + 1
        state["last"] = r.sender_id

    return fold


def admitted(folder: Path) -> dict[str, float]:
    """The same loop, which asks admission what is true: nothing is stored, checked against damage, or shown."""
    fold = admitting(PARTITIONS)

    def fold_page(rows: list[tuple[int, str, bytes]]) -> None:
        for at, key, value in rows:
            fold(at >> 44, at & (1 << 44) - 1, key, value)

    return timed(fold_page)


def admitting(partitions: int) -> Callable[[int, int, str, bytes], None]:
    """Return what judges a record (its partition, position, key, bytes) and folds it if it is admitted."""
    from refold.bus.broker import Stored
    from refold.projections.partition import PartitionFold

    folds = {p: PartitionFold(p, partitions) for p in range(partitions)}
    states: dict[str, dict[str, Any]] = {}
    kinds = Kinds()

    def judge(partition: int, position: int, key: str, value: bytes) -> None:
        fold, stored = folds[partition], Stored(position, key, value, 0.0)
        r = fold.open_envelope(stored)
        assert r is not None
        assert not fold.missing(r)
        folded = fold.fold(stored, r)
        w = folded.workflow
        if w is not None and folded.verdict == "admitted":
            states[key] = kinds.apply(states.get(key) or kinds.start(), folded)
            fold.settle(w)

    return judge


def refold(folder: Path) -> dict[str, float]:
    """`refold rebuild`: judged by admission, states and position stored, blue/green."""
    url = f"sqlite:///{logs.prepared('completed', RECORDS)}/log.db"
    return {"rate": asyncio.run(refold_at(url, folder))}


async def refold_at(url: str, folder: Path) -> float:
    """Measure refold on the log of that URL; records per second."""
    from refold.brokers import open_broker
    from refold.projections.runner import rebuild
    from refold.projections.store import ProjectionStore

    async with contextlib.AsyncExitStack() as stack:
        broker = await stack.enter_async_context(open_broker(url))
        meta = await broker.ensure_log()
        store = await stack.enter_async_context(ProjectionStore.open(folder / "projections.db", meta.log_id))
        started = time.perf_counter()
        folded, _ = await rebuild(broker, store, Kinds())
        return folded / (time.perf_counter() - started)


ROW = Row(
    "projection rebuild from 1M records",
    [
        Figure("rate", "", "records/s", "ratio >= 0.7 or refold >= 300000"),
        Figure("rate", "beside the bare loop with admission", "records/s", base="admitted"),
    ],
    {"raw": raw, "admitted": admitted, "refold": refold},
    turns=3, limit=300,
)  # fmt: skip
