"""The broker itself: appending, reading, groups, presence."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

import aiosqlite
import msgspec

from ...bus.broker import (
    ANY_LOG,
    Appended,
    At,
    Broker,
    Capabilities,
    Checkpoint,
    Conflict,
    Duplicate,
    Fence,
    Fenced,
    Health,
    Item,
    LogMeta,
    LogSpec,
    Member,
    Page,
    Presence,
    Result,
    Stored,
)  # fmt: skip
from ...bus.clock import Clock
from ...bus.errors import ConfigError, LogMissing, LogTruncated, TooLarge
from ...bus.partition import partition_of
from . import leases, schema
from .connection import connect, refuse_network, transact, translated
from .doorbell import COMMIT, MEMBERS, Doorbell, Ear
from .keeper import Keeper, exit_stalled
from .schema import MASK, SHIFT, id_hash, key_hash
from .subscription import SqliteSubscription
from .tidy import Tidy
from .writer import Writer

T = TypeVar("T")
READERS = 2
LOCK_PATIENCE = 10.0


def from_url(url: str) -> SqliteBroker:
    """`sqlite:///relative.db` or `sqlite:////absolute.db`, with `?synchronous=normal` where losing the last moments to
    a power cut is worth the speed."""
    parts = urlsplit(url)
    path = unquote(parts.path[1:])
    settings = {k: v[-1] for k, v in parse_qs(parts.query).items()}
    synchronous = settings.pop("synchronous", "full").upper()
    if parts.netloc or not path:
        raise ConfigError(f"{url!r}: write sqlite:///refold.db (three slashes) or sqlite:////absolute/path.db (four)")
    if settings or synchronous not in ("FULL", "NORMAL", "EXTRA"):
        raise ConfigError(f"{url!r}: the only setting is synchronous=full|normal|extra")
    return SqliteBroker(path, synchronous=synchronous)


class SqliteBroker:
    """See `refold.bus.broker.Broker` for what each method promises.

    `patience` is how long (seconds) an append waits for another process's lock; `on_stall` is called (in a thread)
    when the event loop has not turned for a subscription's `stall_limit`: it ends the process with code 70.
    """

    capabilities = Capabilities(
        compare_and_append=True, refuse_duplicates=True, fence_appends=True, shared_between_processes=True,
        survives_restart=True,
    )  # fmt: skip

    def __init__(
        self, path: str | os.PathLike[str], *, synchronous: str = "FULL", patience: float = LOCK_PATIENCE,
        on_stall: Callable[[], None] = exit_stalled, clock: Clock | None = None,
    ) -> None:  # fmt: skip
        self.path = os.fspath(path)
        self.url = f"sqlite:///{self.path}"
        self.synchronous = synchronous
        self.clock = clock or Clock()
        self._patience = patience
        self._on_stall = on_stall
        self._meta: LogMeta | None = None
        self._writer = Writer(self.path, synchronous, patience, self._committed)
        self._readers: asyncio.Queue[aiosqlite.Connection] = asyncio.Queue()
        self._reader_count = 0
        self._bell: Doorbell | None = None
        self._ear: Ear | None = None
        self._tidy: Tidy | None = None
        self._subscriptions: list[SqliteSubscription] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False

    @property
    def meta(self) -> LogMeta:
        if self._meta is None:
            raise LogMissing(f"{self.path} is not open: call ensure_log")
        return self._meta

    # ---- life --------------------------------------------------------------------------------------------------------
    async def __aenter__(self) -> Broker:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        await self._writer.aclose()
        if self._tidy is not None:
            await self._tidy.aclose()
        for _ in range(self._reader_count):
            await (await self._readers.get()).close()
        self._reader_count = 0
        if self._ear is not None:
            self._ear.close()
        if self._bell is not None:
            self._bell.close()

    async def ensure_log(self, spec: LogSpec = ANY_LOG, *, create: bool = True) -> LogMeta:
        self._loop = asyncio.get_running_loop()
        meta = await asyncio.to_thread(self._open, spec, create)
        schema.verify(meta, spec, self.path)
        self._meta = meta
        if self._bell is None:
            self._bell = Doorbell(meta.log_id)
        return meta

    def _open(self, spec: LogSpec, create: bool) -> LogMeta:
        if not Path(self.path).exists():
            if not create:
                raise schema.missing(self.path)
            if not Path(self.path).absolute().parent.is_dir():
                raise ConfigError(f"the folder of {self.path} does not exist: make it first")
        elif Path(self.path).is_dir():
            raise ConfigError(f"{self.path} is a folder: name a file in it")
        refuse_network(self.path)
        with translated(self.path):
            db = connect(self.path, mode="rwc" if create else "rw")
            try:
                found = schema.read_meta(db, self.path)
                if found is None and create:
                    self._create(db, spec)
                    found = schema.read_meta(db, self.path)
                if found is None:
                    raise schema.missing(self.path)
                return found
            finally:
                db.close()

    def _create(self, db: sqlite3.Connection, spec: LogSpec) -> None:
        transact(db, self.path, self._patience, lambda: schema.create(db, spec, self.clock.now()))
        until = self.clock.monotonic() + self._patience
        while True:
            try:
                db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError:  # another process opens it at this moment
                if self.clock.monotonic() > until:
                    raise

    # ---- plumbing ----------------------------------------------------------------------------------------------------
    async def write(self, job: Callable[[sqlite3.Connection], T], size: int = 0) -> T:
        """Run a job in the writer's next transaction."""
        if self._tidy is None:
            self._tidy = Tidy(self.path)
        result = await self._writer.do(job, size)
        self._tidy.look()
        return result

    def _committed(self) -> None:
        """In the writer's thread, after each commit."""
        if self._bell is not None:
            self._bell.ring(COMMIT)
        if self._subscriptions and self._loop is not None:
            self._loop.call_soon_threadsafe(self._news)

    def _news(self) -> None:
        for sub in self._subscriptions:
            sub.news.set()

    def ring_members(self) -> None:
        """The group has changed: others look at it at once."""
        if self._bell is not None:
            self._bell.ring(MEMBERS)
        for sub in self._subscriptions:
            sub.keeper.wake()

    def _heard(self, word: bytes) -> None:
        for sub in self._subscriptions:
            if word == MEMBERS:
                sub.keeper.wake()
            else:
                sub.news.set()

    @contextlib.asynccontextmanager
    async def _reader(self) -> AsyncIterator[aiosqlite.Connection]:
        if self._readers.empty() and self._reader_count < READERS:
            self._reader_count += 1
            try:
                db = await aiosqlite.Connection(lambda: connect(self.path, query_only=True), 64)
            except BaseException:
                self._reader_count -= 1
                raise
        else:
            db = await self._readers.get()
        try:
            yield db
        finally:
            self._readers.put_nowait(db)

    async def select(self, sql: str, args: Sequence[Any] = ()) -> list[Any]:
        """Run one query: one statement sees one moment of the log."""
        with translated(self.path):
            async with self._reader() as db:
                return list(await db.execute_fetchall(sql, args))

    # ---- appending ---------------------------------------------------------------------------------------------------
    async def append(self, items: Sequence[Item], fence: Fence | None = None) -> list[Result]:
        size = 0
        for item in items:
            size += self._check_size([r.value for r in item.records])
        rows = [self._rows(item) for item in items]

        def job(db: sqlite3.Connection) -> list[Result]:
            if fence is not None:
                epoch = leases.current_epoch(db, fence.group, fence.partition)
                if epoch != fence.epoch:
                    return [Fenced(epoch)] * len(items)
            now = self.clock.now()
            return [_append(db, item, hash, ids, now) for item, (hash, ids) in zip(items, rows, strict=True)]

        return await self.write(job, size)

    def _rows(self, item: Item) -> tuple[int, list[bytes]]:
        return key_hash(item.partition, item.key), [id_hash(r.id) for r in item.records]

    def _check_size(self, values: Sequence[bytes]) -> int:
        whole = 0
        for value in values:
            whole += len(value)
            if len(value) > self.meta.max_record:
                limit = self.meta.max_record
                raise TooLarge(f"a record of {len(value)} bytes, the log takes {limit}", remedy="send less")
        if whole > self.meta.max_append:
            raise TooLarge(f"an append of {whole} bytes, the log takes {self.meta.max_append}", remedy="send less")
        return whole

    async def append_raw(self, partition: int, records: Sequence[tuple[str | None, bytes]]) -> tuple[int, ...]:
        size = self._check_size([value for _, value in records])

        def job(db: sqlite3.Connection) -> tuple[int, ...]:
            position, now, out = _last(db, partition), self.clock.now(), []
            for key, value in records:
                position += 1
                row = (partition << SHIFT | position, key_hash(partition, key), b"", now, key, value)
                db.execute(INSERT, row)
                out.append(position)
            return tuple(out)

        return await self.write(job, size)

    # ---- reading -----------------------------------------------------------------------------------------------------
    async def read(self, partition: int, start: int | At = 0, *, end: int | None = None, limit: int = 1000) -> Page:
        first = await self._at_time(partition, start.time) if isinstance(start, At) else max(start, 1)
        top = (partition << SHIFT | end) if end is not None else (partition + 1) << SHIFT
        rows = await self.select(
            "SELECT at, key, value, time FROM records WHERE at >= ? AND at < ? ORDER BY at LIMIT ?",
            (partition << SHIFT | first, top, limit + 1),
        )
        records = [Stored(at & MASK, key, value, time) for at, key, value, time in rows]
        return Page(records[:limit], records[limit].position if len(records) > limit else None)

    async def _at_time(self, partition: int, time: float) -> int:
        """Return the first position that was taken at or after a time (binary search: times grow with positions)."""
        low, high = 1, (await self.positions("end"))[partition]
        while low < high:
            middle = (low + high) // 2
            ((taken,),) = await self.select("SELECT time FROM records WHERE at = ?", (partition << SHIFT | middle,))
            low, high = (middle + 1, high) if taken < time else (low, middle)
        return low

    async def read_workflow(self, correlation_id: str, *, after: int = 0, limit: int = 1000) -> Page:
        partition = partition_of(correlation_id, self.meta.partitions)
        rows = await self.select(
            "SELECT r.at, r.key, r.value, r.time FROM"
            " (SELECT at FROM records INDEXED BY by_key WHERE hash IN (?, ?) AND at > ? AND at < ?"
            " ORDER BY at LIMIT ?) AS found CROSS JOIN records AS r ON r.at = found.at"
            " WHERE r.key IS NULL OR r.key = ? ORDER BY r.at",
            (key_hash(partition, correlation_id), key_hash(partition, None), partition << SHIFT | after,
             (partition + 1) << SHIFT, limit + 1, correlation_id),
        )  # fmt: skip
        records = [Stored(at & MASK, key, value, time) for at, key, value, time in rows]
        return Page(records[:limit], records[limit - 1].position if len(records) > limit else None)

    async def read_at(self, partition: int, positions: Sequence[int]) -> list[Stored]:
        wanted = sorted(set(positions))
        out: list[Stored] = []
        for i in range(0, len(wanted), 500):
            ats = ",".join(str(partition << SHIFT | p) for p in wanted[i : i + 500])
            rows = await self.select(f"SELECT at, key, value, time FROM records WHERE at IN ({ats}) ORDER BY at")
            out += [Stored(at & MASK, key, value, time) for at, key, value, time in rows]
        if len(out) != len(wanted):
            there = {s.position for s in out}
            gone = next(p for p in wanted if p not in there)
            raise LogTruncated(f"partition {partition} of {self.path} holds no record at {gone}")
        return out

    async def positions(self, kind: Literal["begin", "end", "committed"], group: str | None = None) -> dict[int, int]:
        n = self.meta.partitions
        if kind == "begin":
            return dict.fromkeys(range(n), 1)
        if kind == "committed":
            rows = await self.select("SELECT partition, position + 1 FROM checkpoints WHERE grp = ?", (group or "",))
            return dict.fromkeys(range(n), 0) | dict(rows)
        rows = await self.select(
            " UNION ALL ".join(
                f"SELECT {p}, (SELECT max(at) FROM records WHERE at >= {p << SHIFT} AND at < {(p + 1) << SHIFT})"
                for p in range(n)
            )
        )
        return {p: (at & MASK) + 1 if at is not None else 1 for p, at in rows}

    # ---- groups ------------------------------------------------------------------------------------------------------
    @contextlib.asynccontextmanager
    async def subscribe(
        self, group: str, member: str, *, partitions: Collection[int] | None = None, lease: float = 8.0,
        stall_limit: float = 30.0,
    ) -> AsyncIterator[SqliteSubscription]:  # fmt: skip
        sub = SqliteSubscription(self, group, member)
        wanted = None if partitions is None else frozenset(partitions)
        sub.keeper = keeper = Keeper(
            self.path, group, member, self.meta.partitions, wanted, lease=lease,
            stall_limit=max(stall_limit, 3 * lease), patience=self._patience, tell=sub.tell, on_stall=self._on_stall,
            ring=self.ring_members,
        )  # fmt: skip
        if self._ear is None and self._bell is not None:
            self._ear = self._bell.open("d", self._heard)
        self._subscriptions.append(sub)
        try:
            await asyncio.to_thread(keeper.join)
            yield sub
        finally:
            self._subscriptions.remove(sub)
            await asyncio.to_thread(keeper.die)
            if not keeper.dead:
                await self.write(keeper.leave)
            self.ring_members()

    def die(self) -> None:
        """Let this process's members die, as far as others can tell: nothing is released or renewed. For tests."""
        for sub in self._subscriptions:
            sub.keeper.dead = True
            sub.keeper.die()

    async def checkpoint(self, group: str, partition: int) -> Checkpoint | None:
        rows = await self.select(
            "SELECT c.position, c.anchor, e.k, e.v FROM checkpoints AS c LEFT JOIN entries AS e"
            " ON e.grp = c.grp AND e.partition = c.partition WHERE c.grp = ? AND c.partition = ?",
            (group, partition),
        )
        if not rows:
            return None
        return Checkpoint(rows[0][0], rows[0][1], {k: v for _, _, k, v in rows if k is not None})

    async def checkpoint_groups(self, partition: int) -> list[str]:
        rows = await self.select(
            "SELECT grp FROM checkpoints WHERE partition = ? ORDER BY position DESC, grp", (partition,)
        )
        return [row[0] for row in rows]

    # ---- who is alive, and hints -------------------------------------------------------------------------------------
    async def announce(self, presence: Presence, *, ttl: float = 8.0) -> None:
        row = (presence.member, presence.group, msgspec.json.encode(presence), self.clock.now(), ttl)
        await self.write(lambda db: db.execute("INSERT OR REPLACE INTO presences VALUES (?, ?, ?, ?, ?)", row) and None)

    async def withdraw(self, member: str) -> None:
        await self.write(lambda db: db.execute("UPDATE presences SET ttl = -1 WHERE member = ?", (member,)) and None)

    async def members(self, group: str | None = None, *, gone: bool = False) -> list[Member]:
        now, host = self.clock.now(), socket.gethostname()
        rows = await self.select("SELECT value, told, ttl FROM presences")
        out = []
        for value, told, ttl in rows:
            presence = msgspec.json.decode(value, type=Presence)
            alive = ttl >= 0 and now - told <= ttl
            if alive and presence.host == host and presence.pid:
                alive = _is_there(presence.pid)
            if (group is None or presence.group == group) and (alive or gone):
                out.append(Member(presence, max(0.0, now - told), alive))
        return out

    async def notify(self, address: str, hint: bytes) -> None:
        if self._bell is not None:
            self._bell.notify(address, hint)

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[SqliteListener]:
        assert self._bell is not None, "call ensure_log first"
        listener = SqliteListener(self._bell)
        try:
            yield listener
        finally:
            listener.ear.close()

    async def health(self) -> Health:
        from .health import look

        return await asyncio.to_thread(look, self.path, self.synchronous)


class SqliteListener:
    """A socket of its own; hints that nobody reads are dropped by the system."""

    def __init__(self, bell: Doorbell) -> None:
        self.hints: asyncio.Queue[bytes] = asyncio.Queue()
        self.ear = bell.open("h", self.hints.put_nowait)
        self.address = self.ear.name

    async def get(self) -> bytes:
        return await self.hints.get()


INSERT = "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?)"


def _last(db: sqlite3.Connection, partition: int) -> int:
    """Return the last position of a partition (0: none)."""
    (at,) = db.execute("SELECT max(at) FROM records WHERE at < ?", ((partition + 1) << SHIFT,)).fetchone()
    return at & MASK if at is not None and at >> SHIFT == partition else 0


def _append(db: sqlite3.Connection, item: Item, hash: int, ids: list[bytes], now: float) -> Result:
    for id in ids:
        row = db.execute("SELECT min(at) FROM records WHERE hash = ? AND id = ?", (hash, id)).fetchone()
        if row[0] is not None:
            return Duplicate(row[0] & MASK)
    if item.after is not None:
        (last,) = db.execute("SELECT max(at) FROM records INDEXED BY by_key WHERE hash = ?", (hash,)).fetchone()
        if last is not None and last & MASK > item.after:
            return Conflict(last & MASK)
    position = _last(db, item.partition)
    rows = [
        (item.partition << SHIFT | position + i + 1, hash, id, now, item.key, record.value)
        for i, (id, record) in enumerate(zip(ids, item.records, strict=True))
    ]
    db.executemany(INSERT, rows)
    return Appended(tuple(range(position + 1, position + 1 + len(rows))))


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

