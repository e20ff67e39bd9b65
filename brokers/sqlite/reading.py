"""Reading the log: short queries, each in one hop to the thread of one of a few connections."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import aiosqlite

from ...bus.broker import At, Page, Stored
from ...bus.errors import BrokerUnavailable, LogTruncated
from .connection import Damaged, connect, same_file, same_process, translated
from .schema import MASK, SHIFT, crc_of, key_hash, place

T = TypeVar("T")

READERS = 3
PAGE_BYTES = 8 * 1024 * 1024
"""A page ends when it holds this much, however few records that are."""

RANGE = "SELECT at, key, value, time, crc FROM records WHERE at >= ? AND at < ? ORDER BY at LIMIT ?"
OF_WORKFLOW = (
    "SELECT r.at, r.key, r.value, r.time, r.crc FROM"
    " (SELECT at FROM records INDEXED BY by_key WHERE hash IN (?, ?) AND at > ? AND at < ? ORDER BY at LIMIT ?) AS f"
    " CROSS JOIN records AS r ON r.at = f.at ORDER BY r.at"
)


class Readers:
    """Connections for reading, opened when they are needed."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._opened = (0, 0)
        self._pid = os.getpid()
        self._free: list[aiosqlite.Connection] = []
        self._all: list[aiosqlite.Connection] = []
        self._places = asyncio.Semaphore(READERS)
        self._closed = False

    def watch(self, opened: tuple[int, int]) -> None:
        """Refuse to read when the file is no longer this one."""
        self._opened = opened

    async def run(self, query: Callable[[sqlite3.Connection], T]) -> T:
        """Run a query in a connection's thread. It must not leave a cursor open: that would hold the log's tail."""
        same_process(self._pid, self._path)
        with translated(self._path):
            async with self._places:
                if self._closed:
                    raise BrokerUnavailable(f"{self._path} is closed")
                db = self._free.pop() if self._free else await self._open()
                try:
                    return await self._hop(db, query)
                finally:
                    self._free.append(db)

    async def _open(self) -> aiosqlite.Connection:
        db = await aiosqlite.Connection(self._connect, 64)
        self._all.append(db)
        return db

    def _connect(self) -> sqlite3.Connection:
        same_file(self._path, self._opened)
        return connect(self._path, query_only=True)

    async def _hop(self, db: aiosqlite.Connection, query: Callable[[sqlite3.Connection], T]) -> T:
        hop: Callable[..., Awaitable[T]] = db._execute  # its public calls take one hop per statement
        return await hop(self._query, db._conn, query)

    def _query(self, db: sqlite3.Connection, query: Callable[[sqlite3.Connection], T]) -> T:
        same_file(self._path, self._opened)
        return query(db)

    async def aclose(self) -> None:
        """End the connections' threads, after the queries that are under way."""
        self._closed = True
        await asyncio.gather(*(db.close() for db in self._all))
        self._all.clear()


def checked(at: int, key: str | None, value: bytes, time: float, crc: int) -> Stored:
    """Return a record. Raises Damaged where it is not what was appended."""
    try:
        if crc_of(at, key, value) == crc:
            return Stored(at & MASK, key, value, float(time))
    except (TypeError, AttributeError, ValueError):  # the damage changed a type
        pass
    raise Damaged(f"the record at {at & MASK} of partition {at >> SHIFT} is not what was appended")


def page(db: sqlite3.Connection, partition: int, start: int, end: int | None, limit: int) -> Page:
    """Return records with start <= position < end."""
    top = (partition + 1) << SHIFT if end is None or end > MASK else place(partition, end)
    out: list[Stored] = []
    size = 0
    with contextlib.closing(db.execute(RANGE, (place(partition, max(start, 1)), top, limit + 1))) as rows:
        for expected, (at, key, value, time, crc) in enumerate(rows, place(partition, max(start, 1))):
            if at != expected:
                raise Damaged(f"partition {partition} lacks the record at {expected & MASK}")
            if len(out) == limit or size > PAGE_BYTES:
                return Page(out, at & MASK)
            out.append(checked(at, key, value, time, crc))
            size += len(value)
    return Page(out, None)


def page_from_time(db: sqlite3.Connection, partition: int, start: At, end: int | None, limit: int) -> Page:
    """Return records from the first one that was taken at or after a time. Times never go back in a partition."""
    low, high = 1, ends(db, range(partition, partition + 1))[partition]
    while low < high:
        middle = (low + high) // 2
        (time,) = db.execute("SELECT time FROM records WHERE at = ?", (partition << SHIFT | middle,)).fetchone()
        low, high = (middle + 1, high) if time < start.time else (low, middle)
    return page(db, partition, low, end, limit)


def page_of_workflow(db: sqlite3.Connection, partition: int, key: str, after: int, limit: int) -> Page:
    """Return records of a workflow and its partition's own, with position > after."""
    args = (key_hash(partition, key), key_hash(partition, None), place(partition, after), (partition + 1) << SHIFT)
    out: list[Stored] = []
    last, size = after, 0
    with contextlib.closing(db.execute(OF_WORKFLOW, (*args, limit + 1))) as rows:
        for n, (at, found, value, time, crc) in enumerate(rows):
            if n == limit or size > PAGE_BYTES:
                return Page(out, last)
            last = at & MASK
            if found is None or found == key:
                out.append(checked(at, found, value, time, crc))
                size += len(value)
    return Page(out, None)


def records_at(db: sqlite3.Connection, path: str, partition: int, positions: Sequence[int]) -> list[Stored]:
    """Return the records at these positions, ascending. Raises LogTruncated."""
    out: list[Stored] = []
    for position in sorted(set(positions)):
        at = place(partition, position)
        row = db.execute("SELECT at, key, value, time, crc FROM records WHERE at = ?", (at,)).fetchone()
        if row is None or not 0 < position <= MASK:
            raise LogTruncated(f"partition {partition} of {path} holds no record at {position}")
        out.append(checked(*row))
    return out


def ends(db: sqlite3.Connection, partitions: range) -> dict[int, int]:
    """Return per partition the position above its last record."""
    sql = "SELECT max(at) FROM records WHERE at >= ? AND at < ?"
    found = {p: db.execute(sql, (p << SHIFT, (p + 1) << SHIFT)).fetchone()[0] for p in partitions}
    return {p: 1 if at is None else (at & MASK) + 1 for p, at in found.items()}


def batches(
    db: sqlite3.Connection, wanted: Sequence[tuple[int, int]], limit: int
) -> tuple[dict[int, list[Stored]], bool]:
    """Return up to `limit` records of several partitions, each from its position on; and whether there were more."""
    out: dict[int, list[Stored]] = {}
    more = False
    for partition, start in wanted:
        found = page(db, partition, start, None, limit)
        more = more or found.next is not None
        if found.records:
            out[partition] = found.records
            limit -= len(found.records)
            if limit <= 0:
                return out, True
    return out, more
