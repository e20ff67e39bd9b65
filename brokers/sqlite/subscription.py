"""One member's place in a group: its partitions and their records."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ...bus.broker import Assigned, Batch, Event, Lost
from . import leases
from .checkpoints import Save
from .doorbell import MEMBERS
from .keeper import Keeper
from .reading import batches

if TYPE_CHECKING:
    from .broker import SqliteBroker

LOOK_AGAIN = 0.5
"""Seconds after which the log is looked at although nobody rang: datagrams may be lost."""


class SqliteSubscription:
    """See `refold.bus.broker.Subscription` for what each method promises."""

    def __init__(self, broker: SqliteBroker, group: str) -> None:
        self.broker, self.group = broker, group
        self.keeper: Keeper
        self._news = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._events: list[Event] = []
        self._next: dict[int, int] = {}
        self._paused: set[int] = set()
        self._epochs: dict[int, int] = {}
        self._turn = 0

    def hear(self, word: bytes) -> None:
        """Another process, or this one, has committed something."""
        if word == MEMBERS:
            self.keeper.wake()
        else:
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
            out += await self._records(max_records)
            left = until - self._loop.time()
            if out or left <= 0:
                return out
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, LOOK_AGAIN)):
                    await self._news.wait()

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
        found = await self.broker.readers.run(lambda db: batches(db, wanted, limit))
        out: list[Event] = []
        for partition, start in wanted:
            records = found.get(partition)
            epoch = self._epochs.get(partition)
            moved = self._next.get(partition) != start or partition in self._paused  # meanwhile
            if records and epoch is not None and not moved:
                out.append(Batch(partition, epoch, records))
                self._next[partition] = records[-1].position + 1
        return out

    def seek(self, partition: int, position: int) -> None:
        self._next[partition] = max(position, 1)
        self._news.set()

    def pause(self, partitions: Collection[int]) -> None:
        self._paused |= set(partitions)

    def resume(self, partitions: Collection[int]) -> None:
        self._paused -= set(partitions)
        self._news.set()

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
        return self.keeper.renewed + self.keeper.lease if partition in self.keeper.held else -math.inf

    def turned(self) -> None:
        self.keeper.turned = self._loop.time()

    def owned(self) -> Mapping[int, int]:
        return self.keeper.held.copy()
