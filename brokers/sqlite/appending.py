"""Putting records into the log, inside a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from ...bus.broker import Appended, Conflict, Duplicate, Fence, Fenced, Item, LogMeta, Result
from ...bus.errors import TooLarge
from .leases import current_epoch
from .schema import MASK, SHIFT, id_hash, key_hash

INSERT = "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)"


class Tails:
    """The last position and time of each partition, as far as this transaction has asked for them."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, float]] = {}

    def forget(self) -> None:
        """A transaction begins: other processes may have appended."""
        self._known.clear()

    def take(self, db: sqlite3.Connection, partition: int, count: int, now: float) -> tuple[int, float]:
        """Return the rowid before the next `count` records and their time, which never goes back in a partition."""
        known = self._known.get(partition)
        if known is None:
            row = db.execute(
                "SELECT at, time FROM records WHERE at >= ? AND at < ? ORDER BY at DESC LIMIT 1",
                (partition << SHIFT, (partition + 1) << SHIFT),
            ).fetchone()
            known = row or (partition << SHIFT, now)
        at, time = known[0], max(known[1], now)
        self._known[partition] = (at + count, time)
        return at, time


def check(meta: LogMeta, partition: int, values: Sequence[bytes]) -> int:
    """Return the size of an append. Raises TooLarge; ValueError where the log has no such partition."""
    if not 0 <= partition < meta.partitions:
        raise ValueError(f"partition {partition}: the log has {meta.partitions}, counted from 0")
    largest, whole = max(map(len, values), default=0), sum(map(len, values))
    if largest > meta.max_record:
        raise TooLarge(f"a record of {largest} bytes, the log takes {meta.max_record}", remedy="send less")
    if whole > meta.max_append:
        raise TooLarge(f"an append of {whole} bytes, the log takes {meta.max_append}", remedy="send less")
    return whole


class Append:
    """An append whose hashes are made before the transaction; called in it."""

    def __init__(self, tails: Tails, items: Sequence[Item], fence: Fence | None, now: float) -> None:
        self._tails, self._items, self._fence, self._now = tails, items, fence, now
        self._hashes = [
            (key_hash(item.partition, item.key), [id_hash(item.key, r.id) for r in item.records]) for item in items
        ]

    def __call__(self, db: sqlite3.Connection) -> list[Result]:
        if self._fence is not None:
            epoch = current_epoch(db, self._fence.group, self._fence.partition)
            if epoch != self._fence.epoch:
                return [Fenced(epoch)] * len(self._items)
        return [self._append(db, item, *hashes) for item, hashes in zip(self._items, self._hashes, strict=True)]

    def _append(self, db: sqlite3.Connection, item: Item, hash: int, ids: list[bytes]) -> Result:
        for id in ids:
            (at,) = db.execute("SELECT min(at) FROM records WHERE hash = ? AND id = ?", (hash, id)).fetchone()
            if at is not None:
                return Duplicate(at & MASK)
        if item.after is not None:
            last = _last_after(db, item, hash)
            if last is not None:
                return Conflict(last)
        at, time = self._tails.take(db, item.partition, len(ids), self._now)
        rows = [
            (at + i, hash, id, time, item.key, record.value)
            for i, (id, record) in enumerate(zip(ids, item.records, strict=True), 1)
        ]
        db.executemany(INSERT, rows)
        return Appended(tuple(row[0] & MASK for row in rows))


def _last_after(db: sqlite3.Connection, item: Item, hash: int) -> int | None:
    """Return the position of the key's last record, if it is later than the writer saw."""
    (at,) = db.execute(
        "SELECT max(at) FROM records INDEXED BY by_key WHERE hash = ? AND at > ? AND at < ? AND key IS ?",
        (hash, item.partition << SHIFT | (item.after or 0), (item.partition + 1) << SHIFT, item.key),
    ).fetchone()
    return None if at is None else at & MASK


def append_raw(
    db: sqlite3.Connection, tails: Tails, partition: int, records: Sequence[tuple[str | None, bytes]], now: float
) -> tuple[int, ...]:
    """Append verbatim. These have no id that could be refused."""
    at, time = tails.take(db, partition, len(records), now)
    rows = [
        (at + i, key_hash(partition, key), b"", time, key, value) for i, (key, value) in enumerate(records, 1)
    ]
    db.executemany(INSERT, rows)
    return tuple(row[0] & MASK for row in rows)
