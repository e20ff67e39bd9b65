"""The broker: the log (step 3), appending (4), reading (5), checkpoints (6), who is alive, and hints (7)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from pathlib import Path
from typing import Literal, TypeVar

from refold.bus.broker import (
    ANY_LOG,
    MAX_HINT,
    Appended,
    At,
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
from refold.bus.errors import BrokerUnavailable, LogMismatch, LogTruncated, TooLarge
from refold.bus.partition import partition_of

from .journal import Hinted, Journal, Made, Put, State, Told, Withdrawn, Write
from .subscription import LOOK, JournalSubscription

T = TypeVar("T")


# ---- steps 3 to 5: the log, appending, reading -----------------------------------------------------------------------
class JournalBroker:
    """See `refold.bus.broker.Broker` for what each method promises."""

    capabilities = Capabilities(
        compare_and_append=True, refuse_duplicates=True, fence_appends=True, shared_between_processes=True,
        survives_restart=True,
    )  # fmt: skip

    def __init__(self, folder: str | Path) -> None:
        self.url = f"journal://{Path(folder).absolute()}"
        self.journal = Journal(Path(folder) / "journal")
        self.subscriptions: list[JournalSubscription] = []
        self.listeners: dict[str, JournalListener] = {}
        self.closed = False

    async def do(self, decide: Callable[[State, Write], T], *, make: bool = False) -> T:
        if self.closed:
            raise BrokerUnavailable("the broker is closed")
        found = await asyncio.to_thread(self.journal.do, decide, make=make)
        self._ring()
        return found

    async def look(self) -> None:
        """Take in what other processes have written."""
        if self.journal.is_old():
            await self.do(lambda state, write: None)

    def _ring(self) -> None:
        hints, self.journal.state.hints = self.journal.state.hints, []
        for said in hints:
            if said.address in self.listeners:
                self.listeners[said.address].hints.put_nowait(said.hint)
        for sub in self.subscriptions:
            sub.news.set()

    @property
    def meta(self) -> LogMeta:
        return self.journal.state.log

    async def __aenter__(self) -> JournalBroker:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        for sub in list(self.subscriptions):
            await sub.leave()
        self.closed = True

    async def ensure_log(self, spec: LogSpec = ANY_LOG, *, create: bool = True) -> LogMeta:
        def decide(state: State, write: Write) -> LogMeta:
            if state.meta is None and create:
                sizes = {k: v for k in ("max_record", "max_append") if (v := getattr(spec, k)) is not None}
                log_id, partitions = os.urandom(16).hex(), spec.partitions or 4
                write(Made(LogMeta(log_id=log_id, partitions=partitions, created=time.time(), **sizes)))
            asked = {k: v for k in spec.__struct_fields__ if (v := getattr(spec, k)) is not None}
            wrong = [f"{k} is {getattr(state.log, k)}, not {v}" for k, v in asked.items() if getattr(state.log, k) != v]
            if wrong:
                raise LogMismatch("the log is not what was asked for: " + "; ".join(wrong))
            return state.log

        if create:
            self.journal.path.parent.mkdir(parents=True, exist_ok=True)
        return await self.do(decide, make=create)

    async def append(self, items: Sequence[Item], fence: Fence | None = None) -> list[Result]:
        def decide(state: State, write: Write) -> list[Result]:
            for item in items:
                _check(state.log, item.partition, [r.value for r in item.records])
            stale = _stale(state, fence)
            return [stale or _append(state, write, item) for item in items]

        return await self.do(decide)

    async def append_raw(self, partition: int, records: Sequence[tuple[str | None, bytes]]) -> tuple[int, ...]:
        taken = [(key, bytes(memoryview(value))) for key, value in records]

        def decide(state: State, write: Write) -> tuple[int, ...]:
            _check(state.log, partition, [value for _, value in taken])
            first = len(state.records[partition]) + 1
            if taken:
                keys, values = [key for key, _ in taken], [value for _, value in taken]
                write(Put(partition, keys, values, [None] * len(taken), time.time()))
            return tuple(range(first, first + len(taken)))

        return await self.do(decide)

    async def read(self, partition: int, start: int | At = 0, *, end: int | None = None, limit: int = 1000) -> Page:
        def decide(state: State, write: Write) -> Page:
            _ = state.log
            records = state.records[partition]
            if isinstance(start, At):
                first = next((s.position for s in records if s.time >= start.time), len(records) + 1)
            else:
                first = max(start, 1)
            last = len(records) if end is None else min(end - 1, len(records))
            page = records[first - 1 : max(min(first - 1 + limit, last), 0)]
            return Page(page, page[-1].position + 1 if page and page[-1].position < last else None)

        return await self.do(decide)

    async def read_workflow(self, correlation_id: str, *, after: int = 0, limit: int = 1000) -> Page:
        def decide(state: State, write: Write) -> Page:
            records = state.records[partition_of(correlation_id, state.log.partitions)][after:]
            found = [s for s in records if s.key is None or s.key == correlation_id]
            return Page(found[:limit], found[limit - 1].position if len(found) > limit else None)

        return await self.do(decide)

    async def read_at(self, partition: int, positions: Sequence[int]) -> list[Stored]:
        def decide(state: State, write: Write) -> list[Stored]:
            _ = state.log
            records = state.records[partition]
            for p in positions:
                if not 1 <= p <= len(records):
                    raise LogTruncated(f"partition {partition} holds no record at {p}")
            return [records[p - 1] for p in sorted(set(positions))]

        return await self.do(decide)

    async def positions(self, kind: Literal["begin", "end", "committed"], group: str | None = None) -> dict[int, int]:
        def decide(state: State, write: Write) -> dict[int, int]:
            if kind == "begin":
                return dict.fromkeys(range(state.log.partitions), 1)
            if kind == "end":
                return {p: len(state.records[p]) + 1 for p in range(state.log.partitions)}
            saved = {p: state.checkpoints.get((group or "", p)) for p in range(state.log.partitions)}
            return {p: c.position + 1 if c else 0 for p, c in saved.items()}

        return await self.do(decide)

    async def health(self) -> Health:
        await self.do(lambda state, write: None)
        there = self.journal.state.meta is not None
        found = str(self.journal.path) if there else "there is no log here"
        return Health(
            ok=there, durability="D2", why="fsync before every return", version="1",
            checks=[("journal", there, found, "start a worker: it makes the log")],
        )  # fmt: skip

    # ---- step 6: checkpoints -----------------------------------------------------------------------------------------
    async def checkpoint(self, group: str, partition: int) -> Checkpoint | None:
        def decide(state: State, write: Write) -> Checkpoint | None:
            known = state.checkpoints.get((group, partition))
            return known and known._replace(entries=dict(known.entries))

        return await self.do(decide)

    async def checkpoint_groups(self, partition: int) -> list[str]:
        def decide(state: State, write: Write) -> list[str]:
            found = [(-c.position, g) for (g, p), c in state.checkpoints.items() if p == partition]
            return [g for _, g in sorted(found)]

        return await self.do(decide)

    # ---- step 7: who is alive, and hints -----------------------------------------------------------------------------
    async def announce(self, presence: Presence, *, ttl: float = 8.0) -> None:
        await self.do(lambda state, write: write(Told(presence, ttl, time.time())))

    async def withdraw(self, member: str) -> None:
        await self.do(lambda state, write: write(Withdrawn(member)))

    async def members(self, group: str | None = None, *, gone: bool = False) -> list[Member]:
        def decide(state: State, write: Write) -> list[Member]:
            found = [(t, max(time.time() - t.time, 0.0)) for t in state.told.values()]
            all_ = [Member(t.presence, age, age <= t.ttl) for t, age in found]
            return [m for m in all_ if (m.alive or gone) and group in (None, m.presence.group)]

        return await self.do(decide)

    async def notify(self, address: str, hint: bytes) -> None:
        if len(hint) > MAX_HINT:
            raise ValueError(f"a hint of {len(hint)} bytes, at most {MAX_HINT}")
        if address.isascii():  # else it is none of ours
            await self.do(lambda state, write: write(Hinted(address, hint)))

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[JournalListener]:
        listener = JournalListener(self)
        self.listeners[listener.address] = listener
        try:
            yield listener
        finally:
            del self.listeners[listener.address]

    @contextlib.asynccontextmanager
    async def subscribe(
        self, group: str, member: str, *, partitions: Collection[int] | None = None, lease: float = 8.0,
        stall_limit: float = 30.0,
    ) -> AsyncIterator[JournalSubscription]:  # fmt: skip
        await self.do(lambda state, write: state.log)
        wanted = None if partitions is None else frozenset(partitions)
        sub = JournalSubscription(self, group, member, wanted, lease, stall_limit)
        self.subscriptions.append(sub)
        try:
            await sub.join()
            yield sub
        finally:
            await asyncio.shield(sub.leave())

    def die(self) -> None:
        """Fall silent for ever, releasing nothing. For tests."""
        for sub in self.subscriptions:
            sub.ended.set()
        self.subscriptions.clear()


class JournalListener:
    """A queue of hints."""

    def __init__(self, broker: JournalBroker) -> None:
        self.address = os.urandom(8).hex()
        self.hints: asyncio.Queue[bytes] = asyncio.Queue()
        self._broker = broker

    async def get(self) -> bytes:
        while True:
            await self._broker.look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK):
                    return await self.hints.get()


def _check(meta: LogMeta, partition: int, values: Sequence[bytes]) -> None:
    if not 0 <= partition < meta.partitions:
        raise ValueError(f"partition {partition}: the log has {meta.partitions}, counted from 0")
    sizes = [len(memoryview(value)) for value in values]
    if max(sizes, default=0) > meta.max_record or sum(sizes) > meta.max_append:
        raise TooLarge(f"records of {sizes} bytes; the log takes {meta.max_record}, {meta.max_append} at once")


def _stale(state: State, fence: Fence | None) -> Fenced | None:
    if fence is None:
        return None
    held = state.leases[fence.group].get(fence.partition)
    if held is None or held.released:
        return Fenced(None)
    return None if held.epoch == fence.epoch else Fenced(held.epoch)


def _append(state: State, write: Write, item: Item) -> Result:
    for record in item.records:
        known = state.ids.get((item.partition, item.key, record.id))
        if known is not None:
            return Duplicate(known)
    last = state.last.get((item.partition, item.key), 0)
    if item.after is not None and last > item.after:
        return Conflict(last)
    first, count = len(state.records[item.partition]) + 1, len(item.records)
    if count:
        values = [bytes(r.value) for r in item.records]
        write(Put(item.partition, [item.key] * count, values, [r.id for r in item.records], time.time()))
    return Appended(tuple(range(first, first + count)))
