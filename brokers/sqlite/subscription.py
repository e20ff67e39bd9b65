"""One member's place in a group: its partitions and their records."""

from __future__ import annotations

import asyncio
import contextlib
import math
import sqlite3
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ...bus.broker import Assigned, Batch, Event, Lost, Stored
from . import leases
from .keeper import Keeper
from .schema import MASK, SHIFT

if TYPE_CHECKING:
    from .broker import SqliteBroker


class SqliteSubscription:
    """See `refold.bus.broker.Subscription` for what each method promises."""

    def __init__(self, broker: SqliteBroker, group: str, member: str) -> None:
        self.broker, self.group, self.member = broker, group, member
        self.keeper: Keeper
        self.news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._events: list[Event] = []
        self._next: dict[int, int] = {}
        self._paused: set[int] = set()
        self._epochs: dict[int, int] = {}
        self._turn = 0

    def tell(self, event: Event) -> None:
        """An event from the keeper's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._hear, event)

    def _hear(self, event: Event) -> None:
        self._events.append(event)
        self.news.set()

    # ---- records -----------------------------------------------------------------------------------------------------
    async def fetch(self, max_records: int = 1000, max_wait: float = 1.0) -> list[Event]:
        until = self._loop.time() + max_wait
        while True:
            self.news.clear()
            out = self._take_events()
            out += await self._records(max_records)
            left = until - self._loop.time()
            if out or left <= 0:
                return out
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self.news.wait()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        for event in events:
            if isinstance(event, Assigned):
                self._epochs[event.partition] = event.epoch
                self._next.pop(event.partition, None)
            elif isinstance(event, Lost):
                self._forget(event.partition)
        return events

    def _forget(self, partition: int) -> None:
        self._epochs.pop(partition, None)
        self._next.pop(partition, None)
        self._paused.discard(partition)

    async def _records(self, limit: int) -> list[Event]:
        wanted = [(p, n) for p, n in self._next.items() if p in self._epochs and p not in self._paused]
        if not wanted:
            return []
        self._turn = (self._turn + 1) % len(wanted)
        wanted = wanted[self._turn :] + wanted[: self._turn]
        sql = " UNION ALL ".join(
            f"SELECT * FROM (SELECT at, key, value, time FROM records WHERE at >= {p << SHIFT | n}"
            f" AND at < {(p + 1) << SHIFT} ORDER BY at LIMIT {limit})"
            for p, n in wanted
        )
        by_partition: dict[int, list[Stored]] = {}
        for at, key, value, time in await self.broker.select(f"{sql} LIMIT {limit}"):
            by_partition.setdefault(at >> SHIFT, []).append(Stored(at & MASK, key, value, time))
        out: list[Event] = []
        for p, records in by_partition.items():
            epoch = self._epochs.get(p)
            if epoch is not None and p in self._next:
                out.append(Batch(p, epoch, records))
                self._next[p] = records[-1].position + 1
        return out

    def seek(self, partition: int, position: int) -> None:
        self._next[partition] = max(position, 1)
        self.news.set()

    def pause(self, partitions: Collection[int]) -> None:
        self._paused |= set(partitions)

    def resume(self, partitions: Collection[int]) -> None:
        self._paused -= set(partitions)
        self.news.set()

    # ---- ownership ---------------------------------------------------------------------------------------------------
    async def release(self, partition: int, epoch: int) -> None:
        if self._epochs.get(partition) == epoch:
            self._forget(partition)
        if self.keeper.held.get(partition) == epoch:
            self.keeper.dropped(partition)
        await self.broker.write(lambda db: leases.release(db, self.group, self.member, partition, epoch))
        self.broker.ring_members()

    async def save_checkpoint(
        self, partition: int, epoch: int, position: int, anchor: bytes, changed: Mapping[bytes, bytes],
        gone: Collection[bytes],
    ) -> bool:  # fmt: skip
        key = (self.group, partition)
        rows = [(*key, k, v) for k, v in changed.items()]
        dropped = [(*key, k) for k in gone]

        def save(db: sqlite3.Connection) -> bool:
            if leases.current_epoch(db, *key) != epoch:
                return False
            db.executemany("DELETE FROM entries WHERE grp=? AND partition=? AND k=?", dropped)
            db.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?)", rows)
            db.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?)", (*key, position, anchor))
            return True

        return await self.broker.write(save, sum(len(v) for v in changed.values()))

    def deadline(self, partition: int) -> float:
        held = self.keeper.held.get(partition)
        return self.keeper.renewed + self.keeper.lease if held is not None else -math.inf

    def turned(self) -> None:
        self.keeper.turned = self._loop.time()

    def owned(self) -> Mapping[int, int]:
        return dict(self.keeper.held)
