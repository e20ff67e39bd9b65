"""One member's place in a group: its partitions and their records."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ...bus.broker import Assigned, Batch, Event, Lost, Stored
from . import leases
from .checkpoints import Save
from .doorbell import MEMBERS, partitions_of
from .keeper import Keeper
from .reading import batches

if TYPE_CHECKING:
    from .broker import SqliteBroker

MAX_FRESH = 20_000
"""Records of this process's own commits that are kept until they are fetched; beyond it they are read from the file."""
LOOK_AGAIN = 0.5
"""Seconds after which the log is looked at although nobody rang: datagrams may be lost."""


class SqliteSubscription:
    """See `refold.bus.broker.Subscription` for what each method promises."""

    def __init__(self, broker: SqliteBroker, group: str) -> None:
        self.broker, self.group = broker, group
        self.keeper: Keeper
        self.joining: asyncio.Task[None]
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._events: list[Event] = []
        self._next: dict[int, int] = {}
        self._paused: set[int] = set()
        self._epochs: dict[int, int] = {}
        self._turn = 0
        self._fresh: dict[int, list[Stored]] = {}
        self._kept = 0
        self._look = False
        self._named: set[int] = set()

    def hear(self, word: bytes) -> None:
        """Another process has committed something, or this one something else than records."""
        named = partitions_of(word)
        if word == MEMBERS:
            self.keeper.wake()
        elif not named:
            self._look_again()
        elif not self._next.keys().isdisjoint(named):
            self._named.update(named)
            self._news.set()

    def offer(self, fresh: dict[int, list[Stored]]) -> None:
        """This process has committed records: they need not be read where they follow on what was delivered."""
        for partition, records in fresh.items():
            if partition in self._next and partition not in self._paused:
                self._fresh.setdefault(partition, []).extend(records)
                self._kept += len(records)
                self._news.set()
        if self._kept > MAX_FRESH:
            self._fresh.clear()
            self._kept = 0
            self._look_again()

    def _look_again(self) -> None:
        """The log itself must be read: it may hold more than this process has appended."""
        self._look = True
        self._news.set()

    def tell(self, event: Event) -> None:
        """An event from the keeper's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._add, event)

    def _add(self, event: Event) -> None:
        self._events.append(event)
        self._news.set()

    # ---- records -----------------------------------------------------------------------------------------------------
    async def fetch(self, max_records: int = 1000, max_wait: float = 1.0) -> list[Event]:
        until = self._loop.time() + max_wait
        while True:
            self._news.clear()
            out = self._take_events()
            try:
                self._look = self._look or max_wait <= 0
                if self._look or self._named:
                    out += await self._records(max_records)
                else:
                    out += self._take_fresh(max_records)
            except BaseException:
                self._events[:0] = out
                raise
            left = until - self._loop.time()
            if out or left <= 0:
                return out
            timer = self._loop.call_later(min(left, LOOK_AGAIN), self._look_again)
            try:
                await self._news.wait()
            finally:
                timer.cancel()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        for event in events:
            if isinstance(event, Assigned):
                self._epochs[event.partition] = event.epoch
                self._next.pop(event.partition, None)
                self._paused.discard(event.partition)
                self._drop_fresh(event.partition)
            elif isinstance(event, Lost):
                self._forget(event.partition)
        return events

    def _forget(self, partition: int) -> None:
        self._epochs.pop(partition, None)
        self._next.pop(partition, None)
        self._paused.discard(partition)
        self._drop_fresh(partition)

    def _take_fresh(self, limit: int) -> list[Event]:
        """Return what this process has appended itself, as far as it follows on what was delivered."""
        out: list[Event] = []
        for partition in list(self._fresh):
            records, start = self._fresh.pop(partition), self._next[partition]
            self._kept -= len(records)
            if records[0].position < start:
                records = [r for r in records if r.position >= start]
                if not records:
                    continue
            if records[0].position > start or records[-1].position - records[0].position >= len(records):
                self._look_again()  # somebody else has appended in between
                continue
            if len(records) > limit:
                self._fresh[partition] = records[limit:]
                self._kept += len(records) - limit
                records = records[:limit]
                self._news.set()
            limit -= len(records)
            out.append(Batch(partition, self._epochs[partition], records))
            self._next[partition] = records[-1].position + 1
            if limit <= 0:
                self._news.set()
                break
        return out

    def _drop_fresh(self, partition: int) -> None:
        self._kept -= len(self._fresh.pop(partition, ()))

    async def _records(self, limit: int) -> list[Event]:
        """Read what follows on what was delivered: everywhere, or where somebody has told of a commit."""
        everywhere, named = self._look, self._named
        self._look, self._named = False, set()
        wanted = [
            (p, n)
            for p, n in self._next.items()
            if p in self._epochs and p not in self._paused and (everywhere or p in named or p in self._fresh)
        ]
        if not wanted:
            return []
        self._turn = (self._turn + 1) % len(wanted)
        wanted = wanted[self._turn :] + wanted[: self._turn]
        try:
            found, more = await self.broker.readers.run(lambda db: batches(db, wanted, limit))
        except BaseException:
            self._look_again()
            raise
        out: list[Event] = []
        for partition, start in wanted:
            records = found.get(partition)
            epoch = self._epochs.get(partition)
            moved = self._next.get(partition) != start or partition in self._paused  # meanwhile
            if records and epoch is not None and not moved:
                out.append(Batch(partition, epoch, records))
                self._next[partition] = records[-1].position + 1
        if more:
            self._look_again()
        return out

    def seek(self, partition: int, position: int) -> None:
        if partition not in self._epochs:
            return
        self._next[partition] = max(position, 1)
        self._drop_fresh(partition)
        self._look_again()

    def pause(self, partitions: Collection[int]) -> None:
        self._paused |= set(partitions)
        for partition in partitions:
            self._drop_fresh(partition)

    def resume(self, partitions: Collection[int]) -> None:
        self._paused -= set(partitions)
        self._look_again()

    # ---- ownership ---------------------------------------------------------------------------------------------------
    async def release(self, partition: int, epoch: int) -> None:
        if self._epochs.get(partition) == epoch:
            self._forget(partition)
        if self.keeper.drop(partition, epoch):
            who = (self.group, self.keeper.token)
            await self.broker.writer.do(lambda db: leases.release(db, *who, partition, epoch), word=MEMBERS)

    async def save_checkpoint(
        self, partition: int, epoch: int, position: int, anchor: bytes, changed: Mapping[bytes, bytes],
        gone: Collection[bytes],
    ) -> bool:  # fmt: skip
        save = Save(self.group, partition, epoch, position, anchor, changed, gone)
        return await self.broker.writer.do(save, save.size)

    def deadline(self, partition: int) -> float:
        return self.keeper.deadline(partition)

    def turned(self) -> None:
        self.keeper.turned = self._loop.time()

    def owned(self) -> Mapping[int, int]:
        return self.keeper.held.copy()
