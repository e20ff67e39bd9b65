"""The broker itself: opening the file, and what each method of the port is made of."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from functools import partial
from typing import Literal
from urllib.parse import parse_qs, quote, unquote, urlsplit

from ...bus.broker import (
    ANY_LOG,
    MAX_HINT,
    At,
    Broker,
    Capabilities,
    Checkpoint,
    Fence,
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
from ...bus.errors import ConfigError, LogMissing, RefoldError
from ...bus.partition import partition_of
from ...bus.stall import exit_stalled
from ..sizes import check
from . import appending, checkpoints, health, presence as presences, reading, schema
from .connection import connect, identity, patiently, refuse_network, refuse_remains, same_file, transact, translated
from .doorbell import COMMIT, MEMBERS, Doorbell, Ear, commit_in
from .keeper import Keeper
from .subscription import SqliteSubscription
from .tidy import Tidy
from .writer import Writer

log = logging.getLogger("refold.sqlite")

LOCK_PATIENCE = 10.0
SYNCHRONOUS = ("FULL", "NORMAL", "EXTRA")


def from_url(url: str) -> SqliteBroker:
    """`sqlite:///relative.db` or `sqlite:////absolute.db`, with `?synchronous=normal` where losing the last moments to
    a power cut is worth the speed. Raises ConfigError."""
    parts = urlsplit(url)
    path = unquote(parts.path[1:])
    settings = {k: v[-1] for k, v in parse_qs(parts.query).items()}
    synchronous = settings.pop("synchronous", "full").upper()
    if parts.netloc or not path:
        raise ConfigError(f"{url!r}: write sqlite:///refold.db (three slashes) or sqlite:////absolute/path.db (four)")
    if settings or synchronous not in SYNCHRONOUS:
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
        given = os.fspath(path)
        setting = "" if synchronous == "FULL" else f"?synchronous={synchronous.lower()}"
        self.url = f"sqlite:///{quote(given)}{setting}"
        self.path = os.path.realpath(given)
        """Without symbolic links: what lies beside the file is found by all under the same name."""
        self.synchronous = synchronous
        self.clock = clock or Clock()
        self.readers = reading.Readers(self.path)
        self.writer = Writer(self.path, synchronous, patience, self._begun, self._committed)
        self._patience = patience
        self._on_stall = on_stall
        self._meta: LogMeta | None = None
        self._opened = (0, 0)
        self._tails = appending.Tails()
        self._tidy = Tidy(self.path)
        self._bell: Doorbell | None = None
        self._ear: Ear | None = None
        self._subscriptions: dict[SqliteSubscription, bool] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closed = False
        self._pid = os.getpid()

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
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        async with contextlib.AsyncExitStack() as last:  # each is closed, whatever happens to the others
            if self._bell is not None:
                last.callback(self._bell.close)
            last.push_async_callback(self.readers.aclose)
            last.push_async_callback(asyncio.to_thread, self._tidy.close)
            last.push_async_callback(self.writer.aclose)
            for sub in self._subscriptions:
                last.push_async_callback(self._part, sub)

    async def ensure_log(self, spec: LogSpec = ANY_LOG, *, create: bool = True) -> LogMeta:
        self._loop = asyncio.get_running_loop()
        meta = await asyncio.to_thread(self._open, spec, create)
        schema.verify(meta, spec, self.path)
        self._meta = meta
        return meta

    def _open(self, spec: LogSpec, create: bool) -> LogMeta:
        if self._meta is not None:  # what is open writes to the file that it has opened
            same_file(self.path, self._opened)
        self._check_path(create)
        with translated(self.path), contextlib.closing(connect(self.path, mode="rwc" if create else "rw")) as db:
            meta = patiently(self.path, self._patience, lambda: schema.read_meta(db, self.path))
            if meta is None and create:
                patiently(self.path, self._patience, lambda: db.execute("PRAGMA journal_mode=WAL").fetchall())
                transact(db, self.path, self._patience, lambda: schema.create(db, spec, self.clock.now()))
                meta = schema.read_meta(db, self.path)
            if meta is None:
                raise schema.missing(self.path)
            self._opened = opened = identity(self.path)
        self.writer.watch(opened)
        self.readers.watch(opened)
        if self._bell is None:
            self._bell = Doorbell(meta.log_id)
        return meta

    def _check_path(self, create: bool) -> None:
        if os.path.isdir(self.path):
            raise ConfigError(f"{self.path} is a folder: name a file in it")
        if not os.path.exists(self.path):
            if not create:
                raise schema.missing(self.path)
            if not os.path.isdir(os.path.dirname(self.path)):
                raise ConfigError(f"the folder of {self.path} does not exist: make it first")
        refuse_network(self.path)
        refuse_remains(self.path)

    # ---- what happens around a commit, in the writer's thread --------------------------------------------------------
    def _begun(self, db: sqlite3.Connection) -> None:
        self._tails.begin(db)

    def _committed(self, words: set[bytes]) -> Callable[[], None]:
        fresh = self._tails.committed()
        for word in words:
            self._tell(word if word != COMMIT else commit_in(fresh))
        self._tidy.look()
        return partial(self._deliver, fresh)

    def _tell(self, word: bytes) -> None:
        """Tell the other processes; of this one's own commits its subscriptions get the records themselves."""
        if self._bell is not None:
            self._bell.ring(word)
        if word == MEMBERS:
            if self._subscriptions and self._loop is not None:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(self._heard, word)

    def _deliver(self, fresh: dict[int, list[Stored]]) -> None:
        for sub in self._subscriptions:
            sub.offer(fresh)

    def _heard(self, word: bytes) -> None:
        for sub in self._subscriptions:
            sub.hear(word)

    # ---- appending ---------------------------------------------------------------------------------------------------
    async def append(self, items: Sequence[Item], fence: Fence | None = None) -> list[Result]:
        meta, size = self.meta, 0
        for item in items:
            size += check(meta, item.partition, [r.value for r in item.records])
        job = appending.Append(self._tails, items, fence, self.clock.now())
        return await self.writer.do(job, size, COMMIT)

    async def append_raw(self, partition: int, records: Sequence[tuple[str | None, bytes]]) -> tuple[int, ...]:
        size = check(self.meta, partition, [value for _, value in records])
        now = self.clock.now()
        return await self.writer.do(
            lambda db: appending.append_raw(db, self._tails, partition, records, now), size, COMMIT
        )

    # ---- reading -----------------------------------------------------------------------------------------------------
    async def read(self, partition: int, start: int | At = 0, *, end: int | None = None, limit: int = 1000) -> Page:
        if isinstance(start, At):
            return await self.readers.run(lambda db: reading.page_from_time(db, partition, start, end, limit))
        return await self.readers.run(lambda db: reading.page(db, partition, start, end, limit))

    async def read_workflow(self, correlation_id: str, *, after: int = 0, limit: int = 1000) -> Page:
        partition = partition_of(correlation_id, self.meta.partitions)
        return await self.readers.run(lambda db: reading.page_of_workflow(db, partition, correlation_id, after, limit))

    async def read_at(self, partition: int, positions: Sequence[int]) -> list[Stored]:
        return await self.readers.run(lambda db: reading.records_at(db, self.path, partition, positions))

    async def positions(self, kind: Literal["begin", "end", "committed"], group: str | None = None) -> dict[int, int]:
        partitions = range(self.meta.partitions)
        if kind == "begin":
            return dict.fromkeys(partitions, 1)
        if kind == "end":
            return await self.readers.run(lambda db: reading.ends(db, partitions))
        return dict.fromkeys(partitions, 0) | await self.readers.run(lambda db: checkpoints.committed(db, group or ""))

    # ---- groups ------------------------------------------------------------------------------------------------------
    @contextlib.asynccontextmanager
    async def subscribe(
        self, group: str, member: str, *, partitions: Collection[int] | None = None, lease: float = 8.0,
        stall_limit: float = 30.0,
    ) -> AsyncIterator[SqliteSubscription]:  # fmt: skip
        partitions_of_log = self.meta.partitions
        sub = SqliteSubscription(self, group)
        sub.keeper = keeper = Keeper(
            self.path, group, member, partitions_of_log, None if partitions is None else frozenset(partitions),
            lease=lease, stall_limit=max(stall_limit, 3 * lease), patience=self._patience, tell=sub.tell,
            on_stall=self._on_stall, ring=lambda: self._tell(MEMBERS),
        )  # fmt: skip
        if self._ear is None and self._bell is not None:
            self._ear = self._bell.open("d", self._heard)
        sub.joining = asyncio.create_task(asyncio.to_thread(keeper.join))
        self._subscriptions[sub] = True
        try:
            await asyncio.shield(sub.joining)  # its thread goes on when this is cancelled, so it must be waited for
            yield sub
        finally:
            await self._part(sub)

    async def _part(self, sub: SqliteSubscription) -> None:
        """Leave the group, unless it has been left."""
        sub.keeper.halt()
        await asyncio.wait([sub.joining])
        await asyncio.to_thread(sub.keeper.stop)
        if self._subscriptions.pop(sub, False):
            await self._leave(sub.keeper)

    async def _leave(self, keeper: Keeper) -> None:
        try:
            await self.writer.do(keeper.leave, word=MEMBERS)
        except RefoldError as error:
            log.warning("%s could not leave, others wait for its lease: %s", keeper.member, error)

    def die(self) -> None:
        """Let this process's members die, as far as others can tell: nothing is released or renewed. For tests."""
        for sub in self._subscriptions:
            self._subscriptions[sub] = False
            sub.keeper.stop()

    async def checkpoint(self, group: str, partition: int) -> Checkpoint | None:
        return await self.readers.run(lambda db: checkpoints.load(db, group, partition))

    async def checkpoint_groups(self, partition: int) -> list[str]:
        return await self.readers.run(lambda db: checkpoints.groups(db, partition))

    # ---- who is alive, and hints -------------------------------------------------------------------------------------
    async def announce(self, presence: Presence, *, ttl: float = 8.0) -> None:
        now = self.clock.now()
        await self.writer.do(lambda db: presences.tell(db, presence, now, ttl))

    async def withdraw(self, member: str) -> None:
        await self.writer.do(lambda db: presences.withdraw(db, member))

    async def members(self, group: str | None = None, *, gone: bool = False) -> list[Member]:
        now = self.clock.now()
        return await self.readers.run(lambda db: presences.read(db, group, gone, now))

    async def notify(self, address: str, hint: bytes) -> None:
        if len(hint) > MAX_HINT:
            raise ValueError(f"a hint of {len(hint)} bytes, at most {MAX_HINT}")
        if self._bell is not None:
            self._bell.notify(address, hint)

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[SqliteListener]:
        if self._bell is None:
            raise LogMissing(f"{self.path} is not open: call ensure_log")
        listener = SqliteListener(self._bell)
        try:
            yield listener
        finally:
            self._bell.shut(listener.ear)

    async def health(self) -> Health:
        return await asyncio.to_thread(health.look, self.path, self.synchronous)


class SqliteListener:
    """A socket of its own; hints that nobody reads are dropped by the system."""

    def __init__(self, bell: Doorbell) -> None:
        self.hints: asyncio.Queue[bytes] = asyncio.Queue()
        self.ear = bell.open("h", self.hints.put_nowait)
        self.address = self.ear.name

    async def get(self) -> bytes:
        return await self.hints.get()
