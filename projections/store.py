"""Where projections keep their states: one SQLite file; states and position change in one transaction."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from os import PathLike, fspath
from typing import Any

import aiosqlite
import msgspec

from ..bus.broker import Checkpoint
from ..bus.errors import BrokerUnavailable, LogCorrupt, LogMismatch

APPLICATION_ID = 0x72656670
TABLES = """
CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS slots(slot INTEGER PRIMARY KEY, projection TEXT NOT NULL, version INTEGER NOT NULL,
    live INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS states(slot INTEGER, key TEXT, value BLOB NOT NULL, PRIMARY KEY(slot, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS positions(slot INTEGER, partition INTEGER, position INTEGER NOT NULL, anchor BLOB NOT NULL,
    PRIMARY KEY(slot, partition)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS folds(slot INTEGER, partition INTEGER, k BLOB, v BLOB NOT NULL,
    PRIMARY KEY(slot, partition, k)) WITHOUT ROWID;
"""


class ProjectionStore:
    """States by projection and key. A projection has one live slot; a rebuild fills another, which then takes over."""

    def __init__(self, db: aiosqlite.Connection, path: str) -> None:
        self._db = db
        self._path = path

    @classmethod
    @asynccontextmanager
    async def open(cls, path: str | PathLike[str], log_id: str) -> AsyncIterator[ProjectionStore]:
        """Open (or make) the file. Raises LogMismatch where it is another log's, LogCorrupt where it is damaged."""
        name = fspath(path)
        try:
            async with aiosqlite.connect(name, isolation_level=None) as db:
                store = cls(db, name)
                await store._prepare(log_id)
                yield store
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise BrokerUnavailable(f"{name}: {error}") from error
            raise LogCorrupt(f"{name} is damaged or no SQLite database ({error}): remove it and rebuild") from error

    async def _prepare(self, log_id: str) -> None:
        await self._db.execute("PRAGMA journal_mode=WAL")
        ((application,),) = await self._db.execute_fetchall("PRAGMA application_id")
        ((tables,),) = await self._db.execute_fetchall("SELECT count(*) FROM sqlite_master")
        if tables and application != APPLICATION_ID:
            raise LogCorrupt(f"{self._path} is no store of projections: choose another file")
        await self._db.executescript(TABLES)
        await self._db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        await self._db.execute("INSERT OR IGNORE INTO meta VALUES ('log_id', ?)", (log_id,))
        ((known,),) = await self._db.execute_fetchall("SELECT value FROM meta WHERE name = 'log_id'")
        if known != log_id:
            raise LogMismatch(f"{self._path} holds projections of another log: remove it, or name another file")

    # ---- reading -----------------------------------------------------------------------------------------------------
    async def get(self, projection: str, key: str) -> Any:
        """Return the live state of a key, None where there is none."""
        rows = await self._db.execute_fetchall(
            "SELECT value FROM states WHERE key = ? AND slot = (SELECT slot FROM slots WHERE projection = ? AND live)",
            (key, projection),
        )
        return next((msgspec.json.decode(row[0]) for row in rows), None)

    async def items(self, projection: str, *, after: str = "", limit: int = 1000) -> list[tuple[str, Any]]:
        """Return up to `limit` live (key, state), by key, with key > after."""
        rows = await self._db.execute_fetchall(
            "SELECT key, value FROM states WHERE slot = (SELECT slot FROM slots WHERE projection = ? AND live)"
            " AND key > ? ORDER BY key LIMIT ?",
            (projection, after, limit),
        )
        return [(key, msgspec.json.decode(value)) for key, value in rows]

    async def positions(self, projection: str) -> dict[int, int]:
        """Return partition -> position up to which the live states are folded."""
        rows = await self._db.execute_fetchall(
            "SELECT partition, position FROM positions"
            " WHERE slot = (SELECT slot FROM slots WHERE projection = ? AND live)",
            (projection,),
        )
        return {partition: position for partition, position in rows}  # noqa: C416 - a Row is no tuple to a type checker

    # ---- slots, for the runner ---------------------------------------------------------------------------------------
    async def live_slot(self, projection: str, version: int) -> int | None:
        """Return the live slot of that version, None where the projection must be built (anew)."""
        rows = await self._db.execute_fetchall(
            "SELECT slot FROM slots WHERE projection = ? AND version = ? AND live", (projection, version)
        )
        return next((row[0] for row in rows), None)

    async def new_slot(self, projection: str, version: int) -> int:
        """Make an empty slot that nobody reads yet; what an earlier rebuild left behind is removed."""
        old = "SELECT slot FROM slots WHERE projection = ? AND NOT live"
        rows = await self._db.execute_fetchall(old, (projection,))
        await self._write([statement for (slot,) in rows for statement in _drop(slot)])
        await self._write([("INSERT INTO slots(projection, version, live) VALUES (?, ?, 0)", (projection, version))])
        ((slot,),) = await self._db.execute_fetchall("SELECT max(slot) FROM slots WHERE projection = ?", (projection,))
        return int(slot)

    async def go_live(self, projection: str, slot: int) -> None:
        """Let a slot take over, and remove the one before it: readers see the one or the other."""
        rows = await self._db.execute_fetchall(
            "SELECT slot FROM slots WHERE projection = ? AND slot != ?", (projection, slot)
        )
        old = [statement for (other,) in rows for statement in _drop(other)]
        await self._write([("UPDATE slots SET live = 1 WHERE slot = ?", (slot,)), *old])

    async def state(self, slot: int, key: str) -> Any:
        """Return a slot's state of a key, None where there is none."""
        rows = await self._db.execute_fetchall("SELECT value FROM states WHERE slot = ? AND key = ?", (slot, key))
        return next((msgspec.json.decode(row[0]) for row in rows), None)

    async def count(self, slot: int) -> int:
        """Return how many states a slot has."""
        ((n,),) = await self._db.execute_fetchall("SELECT count(*) FROM states WHERE slot = ?", (slot,))
        return int(n)

    async def checkpoint(self, slot: int, partition: int) -> Checkpoint | None:
        """Return the fold that goes with a slot's states of a partition."""
        rows = list(
            await self._db.execute_fetchall(
                "SELECT position, anchor FROM positions WHERE slot = ? AND partition = ?", (slot, partition)
            )
        )
        entries = await self._db.execute_fetchall(
            "SELECT k, v FROM folds WHERE slot = ? AND partition = ?", (slot, partition)
        )
        return Checkpoint(rows[0][0], rows[0][1], {k: v for k, v in entries}) if rows else None  # noqa: C416

    async def save(
        self, slot: int, partition: int, position: int, anchor: bytes, states: Mapping[str, Any],
        changed: Mapping[bytes, bytes], gone: Collection[bytes],
    ) -> None:  # fmt: skip
        """Write states, fold and position: all or none."""
        statements: list[tuple[str, tuple[Any, ...]]] = [
            ("DELETE FROM folds WHERE slot = ? AND partition = ? AND k = ?", (slot, partition, k)) for k in gone
        ]
        statements += [
            ("INSERT OR REPLACE INTO folds VALUES (?, ?, ?, ?)", (slot, partition, *entry)) for entry in changed.items()
        ]
        statements += [
            ("INSERT OR REPLACE INTO states VALUES (?, ?, ?)", (slot, key, msgspec.json.encode(state)))
            for key, state in states.items()
        ]
        statements.append(("INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?)", (slot, partition, position, anchor)))
        await self._write(statements)

    async def _write(self, statements: list[tuple[str, tuple[Any, ...]]]) -> None:
        await self._db.execute("BEGIN IMMEDIATE")
        try:
            for (sql, many) in _grouped(statements):
                await self._db.executemany(sql, many)
            await self._db.execute("COMMIT")
        except BaseException:
            await self._db.execute("ROLLBACK")
            raise


def _drop(slot: int) -> list[tuple[str, tuple[Any, ...]]]:
    return [(f"DELETE FROM {table} WHERE slot = ?", (slot,)) for table in ("states", "positions", "folds", "slots")]


def _grouped(statements: list[tuple[str, tuple[Any, ...]]]) -> list[tuple[str, list[tuple[Any, ...]]]]:
    groups: list[tuple[str, list[tuple[Any, ...]]]] = []
    for sql, row in statements:
        if groups and groups[-1][0] == sql:
            groups[-1][1].append(row)
        else:
            groups.append((sql, [row]))
    return groups
