"""Where projections keep their states: one SQLite file; states and position change in one transaction."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from os import PathLike, fspath
from typing import Any, NamedTuple
from urllib.parse import quote

import aiosqlite
import msgspec

from ..bus.broker import Checkpoint
from ..bus.errors import BrokerUnavailable, ConfigError, LogCorrupt, LogFull, LogLocked, LogMismatch, LogMissing

APPLICATION_ID = 0x72656670
FORMAT = 1
TABLES = (
    "CREATE TABLE IF NOT EXISTS meta(name TEXT PRIMARY KEY, value) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS slots(slot INTEGER PRIMARY KEY AUTOINCREMENT, projection TEXT NOT NULL,"
    " version INTEGER NOT NULL, live INTEGER NOT NULL, turn INTEGER NOT NULL)",
    "CREATE UNIQUE INDEX IF NOT EXISTS one_is_live ON slots(projection) WHERE live",
    "CREATE TABLE IF NOT EXISTS states(slot INTEGER, key TEXT, value BLOB NOT NULL, PRIMARY KEY(slot, key))"
    " WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS positions(slot INTEGER, partition INTEGER, position INTEGER NOT NULL,"
    " anchor BLOB NOT NULL, PRIMARY KEY(slot, partition)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS folds(slot INTEGER, partition INTEGER, k BLOB, v BLOB NOT NULL,"
    " PRIMARY KEY(slot, partition, k)) WITHOUT ROWID",
)
MANY = 500
"""Keys that are read in one go."""
LIVE = "(SELECT slot FROM slots WHERE projection = ? AND live)"

Statement = tuple[str, list[tuple[Any, ...]] | None]
"""SQL, and the rows that it is run with (None: it takes no values)."""


class Slot(NamedTuple):
    """One build of a projection's states. `turn` grows with every save: whoever saves says which one it saw."""

    number: int
    projection: str
    version: int
    live: bool
    turn: int


class ProjectionStore:
    """States by projection and key. A projection has one live slot; a rebuild fills another, which then takes over.

    Any number of processes may read; those that write the same projection cannot overwrite each other's work
    unseen (see `save`). Every method may raise BrokerUnavailable (LogLocked, LogFull): nothing was written.
    """

    def __init__(self, db: aiosqlite.Connection, path: str) -> None:
        self.path = path
        self._db = self._reader = db
        self._writing = asyncio.Lock()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, path: str | PathLike[str], log_id: str | None = None, *, create: bool = True
    ) -> AsyncIterator[ProjectionStore]:
        """Open the file, or make it where `create` allows. `log_id` None reads the store of whatever log it is.

        Raises LogMissing, LogMismatch where it belongs to another log, LogCorrupt where it is damaged or something
        else, ConfigError where a newer release wrote it.
        """
        name = fspath(path)
        exists = await asyncio.to_thread(os.path.exists, name)
        if not exists and (not create or log_id is None):
            raise LogMissing(f"there is no store of projections at {name}: run them once, or name another file")
        uri = f"file:{quote(name)}?mode="
        async with contextlib.AsyncExitStack() as stack:
            with _translated(name):
                connect = aiosqlite.connect(uri + ("rwc" if create else "rw"), uri=True, isolation_level=None)
                store = cls(await stack.enter_async_context(connect), name)
                await store._verify(log_id)
                reader = aiosqlite.connect(uri + "rw", uri=True, isolation_level=None)
                store._reader = await stack.enter_async_context(reader)
            yield store

    async def _verify(self, log_id: str | None) -> None:
        ((application,),) = await self._db.execute_fetchall("PRAGMA application_id")
        ((form,),) = await self._db.execute_fetchall("PRAGMA user_version")
        ((tables,),) = await self._db.execute_fetchall("SELECT count(*) FROM sqlite_master")
        if (tables or log_id is None) and application != APPLICATION_ID:
            raise LogCorrupt(f"{self.path} is no store of projections: name another file")
        if form > FORMAT:
            raise ConfigError(f"{self.path} was written by a newer release of refold: upgrade, or name another file")
        if not tables:
            await self._db.execute("PRAGMA journal_mode=WAL")
            await self._make(str(log_id))
        ((known,),) = await self._db.execute_fetchall("SELECT value FROM meta WHERE name = 'log_id'")
        if log_id is not None and known != log_id:
            raise LogMismatch(f"{self.path} holds projections of another log: remove it, or name another file")

    async def _make(self, log_id: str) -> None:
        ids: Statement = ("INSERT OR IGNORE INTO meta VALUES ('log_id', ?)", [(log_id,)])
        marks = (f"PRAGMA application_id={APPLICATION_ID}", f"PRAGMA user_version={FORMAT}")
        await self._write([*((sql, None) for sql in (*TABLES, *marks)), ids])

    # ---- reading -----------------------------------------------------------------------------------------------------
    async def get(self, projection: str, key: str) -> Any:
        """Return the live state of a key, None where there is none."""
        rows = await self._read(f"SELECT value FROM states WHERE slot = {LIVE} AND key = ?", projection, key)
        return msgspec.json.decode(rows[0][0]) if rows else None

    async def items(
        self, projection: str, *, prefix: str = "", after: str = "", limit: int = 1000
    ) -> list[tuple[str, Any]]:
        """Return up to `limit` live (key, state) whose key starts with `prefix`, by key, with key > after."""
        rows = await self._read(
            f"SELECT key, value FROM states WHERE slot = {LIVE} AND key > ? AND substr(key, 1, ?) = ? AND key >= ?"
            " ORDER BY key LIMIT ?",
            projection, after, len(prefix), prefix, prefix, limit,
        )  # fmt: skip
        return [(key, msgspec.json.decode(value)) for key, value in rows]

    async def positions(self, projection: str) -> dict[int, int]:
        """Return partition -> position up to which the live states are folded."""
        return dict(
            await self._read(f"SELECT partition, position FROM positions WHERE slot = {LIVE}", projection)
        )

    async def projections(self) -> list[Slot]:
        """Return the live slot of every projection, by name."""
        rows = await self._read("SELECT slot, projection, version, live, turn FROM slots WHERE live ORDER BY 2")
        return [_slot(row) for row in rows]

    # ---- slots, for the runner ---------------------------------------------------------------------------------------
    async def live_slot(self, projection: str) -> Slot | None:
        """Return the slot whose states are read now."""
        return next((s for s in await self.projections() if s.projection == projection), None)

    async def new_slot(self, projection: str, version: int) -> Slot:
        """Make an empty slot that nobody reads yet; what another rebuild has built so far is removed."""
        rows = await self._read("SELECT slot FROM slots WHERE projection = ? AND NOT live", projection)
        insert = "INSERT INTO slots(projection, version, live, turn) VALUES (?, ?, 0, 0)"
        await self._write([*_drop([row[0] for row in rows]), (insert, [(projection, version)])])
        ((number,),) = await self._read("SELECT max(slot) FROM slots WHERE projection = ?", projection)
        return Slot(number, projection, version, False, 0)

    async def go_live(self, slot: Slot) -> bool:
        """Let a slot take over, and remove the one before it: readers see the one or the other.

        False, and nothing changes, while the live one is folded further, or when the slot is gone.
        """
        live = await self.live_slot(slot.projection)
        old, new = live.number if live is not None else -1, slot.number
        ahead = (
            "SELECT count(*) FROM positions AS old LEFT JOIN positions AS new ON new.slot = ? AND"
            " new.partition = old.partition WHERE old.slot = ? AND old.position > ifnull(new.position, 0)"
        )
        return await self._write(
            [*_drop([old]), ("UPDATE slots SET live = 1, turn = turn + 1 WHERE slot = ?", [(new,)])],
            require=[
                ("SELECT count(*) FROM slots WHERE slot = ? AND NOT live", (new,), 1),
                (f"SELECT ifnull({LIVE}, -1)", (slot.projection,), old),
                (ahead, (new, old), 0),
            ],
        )

    async def states(self, slot: Slot, keys: Collection[str]) -> dict[str, Any]:
        """Return a slot's states of those keys that have one."""
        wanted, found = list(keys), dict[str, Any]()
        for i in range(0, len(wanted), MANY):
            some = wanted[i : i + MANY]
            sql = f"SELECT key, value FROM states WHERE slot = ? AND key IN ({', '.join('?' * len(some))})"
            rows = await self._read(sql, slot.number, *some)
            found |= {key: msgspec.json.decode(value) for key, value in rows}
        return found

    async def count(self, slot: Slot) -> int:
        """Return how many states a slot has."""
        ((n,),) = await self._read("SELECT count(*) FROM states WHERE slot = ?", slot.number)
        return int(n)

    async def checkpoint(self, slot: Slot, partition: int) -> Checkpoint | None:
        """Return the fold that goes with a slot's states of a partition."""
        at = (slot.number, partition)
        rows = await self._read("SELECT position, anchor FROM positions WHERE slot = ? AND partition = ?", *at)
        entries = await self._read("SELECT k, v FROM folds WHERE slot = ? AND partition = ?", *at)
        return Checkpoint(rows[0][0], rows[0][1], dict(entries)) if rows else None

    async def save(
        self, slot: Slot, partition: int, position: int, anchor: bytes, states: Mapping[str, bytes],
        changed: Mapping[bytes, bytes], gone: Collection[bytes],
    ) -> Slot | None:  # fmt: skip
        """Write states (JSON), fold and position: all or none. Returns the slot in its next turn.

        None, and nothing is written, when somebody else has saved into it since, or it is gone.
        """
        n = slot.number
        saved = await self._write(
            [
                ("UPDATE slots SET turn = turn + 1 WHERE slot = ?", [(n,)]),
                ("DELETE FROM folds WHERE slot = ? AND partition = ? AND k = ?", [(n, partition, k) for k in gone]),
                ("INSERT OR REPLACE INTO folds VALUES (?, ?, ?, ?)", [(n, partition, *e) for e in changed.items()]),
                ("INSERT OR REPLACE INTO states VALUES (?, ?, ?)", [(n, *s) for s in states.items()]),
                ("INSERT OR REPLACE INTO positions VALUES (?, ?, ?, ?)", [(n, partition, position, anchor)]),
            ],
            require=[("SELECT count(*) FROM slots WHERE slot = ? AND turn = ?", (n, slot.turn), 1)],
        )
        return slot._replace(turn=slot.turn + 1) if saved else None

    # ---- SQLite ------------------------------------------------------------------------------------------------------
    async def _read(self, sql: str, *values: object) -> list[Any]:
        """Read what is committed: the connection is not the one that writes."""
        with _translated(self.path):
            return list(await self._reader.execute_fetchall(sql, values))

    async def _write(
        self, statements: list[Statement], require: Collection[tuple[str, tuple[Any, ...], int]] = ()
    ) -> bool:
        """Run the statements in one transaction, if every number that is required is found (else False)."""
        with _translated(self.path):
            async with self._writing:
                try:
                    await self._db.execute("BEGIN IMMEDIATE")
                    for sql, values, wanted in require:
                        ((found,),) = await self._db.execute_fetchall(sql, values)
                        if found != wanted:
                            await self._db.execute("ROLLBACK")
                            return False
                    for sql, rows in statements:
                        await (self._db.execute(sql) if rows is None else self._db.executemany(sql, rows))
                    await self._db.execute("COMMIT")
                except BaseException:
                    with contextlib.suppress(sqlite3.OperationalError):  # it had not begun, or was over
                        await self._db.execute("ROLLBACK")
                    raise
        return True


def _slot(row: tuple[int, str, int, int, int]) -> Slot:
    return Slot(row[0], row[1], row[2], bool(row[3]), row[4])


def _drop(slots: list[int]) -> list[Statement]:
    tables = ("states", "positions", "folds", "slots")
    return [(f"DELETE FROM {table} WHERE slot = ?", [(slot,) for slot in slots]) for table in tables]


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    """Raise refold's errors for SQLite's."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            raise LogLocked(f"{path} is locked by another process: try again") from error
        if code == sqlite3.SQLITE_FULL:
            raise LogFull(f"no space for {path}: {error}") from error
        if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            raise LogCorrupt(f"{path} is damaged or no SQLite database ({error}): remove it and rebuild") from error
        if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH):
            raise ConfigError(f"{path} cannot be opened or written ({error}): look at its permissions") from error
        raise BrokerUnavailable(f"{path}: {error}") from error
