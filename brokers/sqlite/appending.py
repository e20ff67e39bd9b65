"""Putting records into the log, inside a transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import TypeVar

from ...bus.broker import Appended, Conflict, Duplicate, Fence, Fenced, Item, Result, Stored
from ...bus.errors import LogCorrupt
from .leases import current_epochs
from .schema import MASK, SHIFT, crc_of, id_hash, key_hash, place

T = TypeVar("T")
COLUMNS = "(?, ?, ?, ?, ?, ?, ?)"
INSERT = f"INSERT INTO records VALUES {COLUMNS}"
KNOWN = (
    "SELECT r.hash, r.id, min(r.at) FROM (VALUES {}) AS v CROSS JOIN records AS r INDEXED BY by_key"
    " ON r.hash = v.column1 AND r.id = v.column2 GROUP BY r.hash, r.id"
)
MANY = 128
"""Rows that one statement takes: each statement gives the interpreter's lock away, and must wait to have it back."""


class Tails:
    """The last position and time of each partition, and what the current transaction appends."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[int, float]] = {}
        self._db: sqlite3.Connection | None = None
        self._version = -1
        self._open = False
        self.fresh: dict[int, list[Stored]] = {}

    def begin(self, db: sqlite3.Connection) -> None:
        """A transaction has begun: forget what others may have changed, or what was rolled back."""
        (version,) = db.execute("PRAGMA data_version").fetchone()  # moves when another connection commits
        if self._open or db is not self._db or version != self._version:
            self._known.clear()
        self._db, self._version, self._open, self.fresh = db, version, True, {}

    def committed(self) -> dict[int, list[Stored]]:
        """It is durable: return what it appended, by partition."""
        self._open = False
        return self.fresh

    def take(self, db: sqlite3.Connection, partition: int, count: int, now: float) -> tuple[int, float]:
        """Return the rowid before the next `count` records and their time, which never goes back in a partition."""
        known = self._known.get(partition)
        if known is None:
            row = db.execute(
                "SELECT at, time FROM records WHERE at >= ? AND at < ? ORDER BY at DESC LIMIT 1",
                (partition << SHIFT, (partition + 1) << SHIFT),
            ).fetchone()
            if row is not None and type(row[1]) is not float:
                raise LogCorrupt(
                    f"{db.execute('PRAGMA database_list').fetchone()[2]} is damaged, the newest record of partition "
                    f"{partition} has no time: restore it from its backup"
                )
            known = row or (partition << SHIFT, now)
        at, time = known[0], max(known[1], now)
        self._known[partition] = (at + count, time)
        return at, time


class Append:
    """An append whose hashes are made before the transaction; called in it."""

    def __init__(self, tails: Tails, items: Sequence[Item], fence: Fence | None, now: float) -> None:
        self.tails, self.items, self.fence, self.now = tails, items, fence, now
        self.hashes = [
            (key_hash(item.partition, item.key), [id_hash(item.partition, item.key, r.id) for r in item.records])
            for item in items
        ]

    def __call__(self, db: sqlite3.Connection) -> list[Result]:
        return self.together(db, [self])[0]

    @staticmethod
    def together(db: sqlite3.Connection, appends: Sequence[Append]) -> list[list[Result]]:
        """Carry out several, in order, with few statements: as if one after the other."""
        return Commit(db, appends).run()


class Commit:
    """Appends that share a transaction. Their rows are inserted at the end; what one must see of another is kept."""

    def __init__(self, db: sqlite3.Connection, appends: Sequence[Append]) -> None:
        self._db, self._appends = db, appends
        self._known = known(db, [(hash, id) for a in appends for hash, ids in a.hashes for id in ids])
        self._epochs: dict[str, dict[int, int]] = {}
        self._last: dict[tuple[int, str | None], int] = {}
        self._rows: list[Row] = []

    def run(self) -> list[list[Result]]:
        """Return the results of each append."""
        out = [self._one(a) for a in self._appends]
        insert(self._db, self._rows)
        return out

    def _one(self, a: Append) -> list[Result]:
        if a.fence is not None:
            epoch = self._epochs_of(a.fence.group).get(a.fence.partition)
            if epoch != a.fence.epoch:
                return [Fenced(epoch)] * len(a.items)
        return [self._append(a, item, *hashes) for item, hashes in zip(a.items, a.hashes, strict=True)]

    def _epochs_of(self, group: str) -> dict[int, int]:
        epochs = self._epochs.get(group)
        if epochs is None:
            epochs = self._epochs[group] = current_epochs(self._db, group)
        return epochs

    def _append(self, a: Append, item: Item, hash: int, ids: list[bytes]) -> Result:
        for id in ids:
            at = self._known.get((hash, id))
            if at is not None:
                return Duplicate(at & MASK)
        key = (item.partition, item.key)
        if item.after is not None:
            last = self._last.get(key) or _last_after(self._db, item, hash)
            if last is not None and last > item.after:
                return Conflict(last)
        if not ids:
            return Appended(())
        at, time = a.tails.take(self._db, item.partition, len(ids), a.now)
        fresh = a.tails.fresh.get(item.partition)
        if fresh is None:
            fresh = a.tails.fresh[item.partition] = []
        for i, record in enumerate(item.records):
            at, id, value = at + 1, ids[i], record.value
            self._known.setdefault((hash, id), at)
            self._rows.append((at, hash, id, time, item.key, value, crc_of(at, item.key, value)))
            fresh.append(Stored(at & MASK, item.key, value, time))
        last = self._last[key] = at & MASK
        return Appended((last,) if len(ids) == 1 else tuple(range(last - len(ids) + 1, last + 1)))


Row = tuple[int, int, bytes, float, str | None, bytes, int]


def known(db: sqlite3.Connection, ids: list[tuple[int, bytes]]) -> dict[tuple[int, bytes], int]:
    """Return where the log has records of these (hash, id) first."""
    out: dict[tuple[int, bytes], int] = {}
    for some in _chunks(ids):
        sql = KNOWN.format(", ".join(["(?, ?)"] * len(some)))
        rows = db.execute(sql, list(chain.from_iterable(some))).fetchall()
        out.update(((hash, id), at) for hash, id, at in rows)
    return out


def insert(db: sqlite3.Connection, rows: list[Row]) -> None:
    """Insert rows with few statements."""
    for some in _chunks(rows):
        db.execute(INSERT + f", {COLUMNS}" * (len(some) - 1), list(chain.from_iterable(some)))


def _chunks(rows: list[T]) -> Iterator[list[T]]:
    """Cut a list into pieces of 128, 64, ... 1: few statements, and few different ones, which stay compiled."""
    start, size = 0, MANY
    while start < len(rows):
        while size > len(rows) - start:
            size //= 2
        yield rows[start : start + size]
        start += size


def _last_after(db: sqlite3.Connection, item: Item, hash: int) -> int | None:
    """Return the position of the key's last record, if it is later than the writer saw."""
    (at,) = db.execute(
        "SELECT max(at) FROM records INDEXED BY by_key WHERE hash = ? AND at > ? AND at < ? AND key IS ?",
        (hash, place(item.partition, item.after or 0), (item.partition + 1) << SHIFT, item.key),
    ).fetchone()
    return None if at is None else at & MASK


def append_raw(
    db: sqlite3.Connection, tails: Tails, partition: int, records: Sequence[tuple[str | None, bytes]], now: float
) -> tuple[int, ...]:
    """Append verbatim. These have no id that could be refused."""
    at, time = tails.take(db, partition, len(records), now)
    rows = [
        (at + i, key_hash(partition, key), b"", time, key, value, crc_of(at + i, key, value))
        for i, (key, value) in enumerate(records, 1)
    ]
    insert(db, rows)
    fresh = tails.fresh.setdefault(partition, [])
    fresh += [Stored(row[0] & MASK, row[4], row[5], time) for row in rows]
    return tuple(row[0] & MASK for row in rows)
