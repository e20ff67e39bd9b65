"""One member's place in a group: its partitions and their records."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ...bus.broker import Assigned, Batch, Event, Lost
from . import leases
from .keeper import Keeper
from .tail import Tail

if TYPE_CHECKING:
    from .broker import JetStreamBroker


class JetStreamSubscription:
    """See `refold.bus.broker.Subscription` for what each method promises."""

    def __init__(self, broker: JetStreamBroker, group: str, tasks: asyncio.TaskGroup) -> None:
        self.broker, self.group = broker, group
        self.keeper: Keeper
        self._tasks = tasks
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._events: list[Event] = []
        self._epochs: dict[int, int] = {}
        self._paused: set[int] = set()
        self._tails: dict[int, tuple[Tail, asyncio.Task[None]]] = {}
        self._told: dict[int, None] = {}
        """Partitions that may have records, or a problem."""
        self._turn = 0

    def tell(self, event: Event) -> None:
        """An event from the keeper's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._add, event)

    def _add(self, event: Event) -> None:
        self._events.append(event)
        self._news.set()

    def end(self) -> None:
        """Follow nothing any more."""
        for partition in list(self._tails):
            self._drop_tail(partition)

    # ---- records -----------------------------------------------------------------------------------------------------
    async def fetch(self, max_records: int = 1000, max_wait: float = 1.0) -> list[Event]:
        until, waited = self._loop.time() + max_wait, False
        while True:
            self._news.clear()
            out = self._take_events() or self._take_records(max_records)
            if out or self._loop.time() >= until:
                if not waited:  # others get their turn, however much there is
                    await asyncio.sleep(0)
                return out
            timer, waited = self._loop.call_at(until, self._news.set), True
            try:
                await self._news.wait()
            finally:
                timer.cancel()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        for event in events:
            if isinstance(event, Assigned | Lost):
                self._forget(event.partition)
            if isinstance(event, Assigned):
                self._epochs[event.partition] = event.epoch
        if events:
            self._news.set()  # there may be records too
        return events

    def _take_records(self, limit: int) -> list[Event]:
        told = [p for p in self._told if p not in self._paused]
        out: list[Event] = []
        self._turn += 1
        for i in range(len(told)):
            partition = told[(i + self._turn) % len(told)]
            tail, _ = self._tails[partition]
            records = tail.take(limit) if limit > 0 else []
            if records:
                out.append(Batch(partition, self._epochs[partition], records))
                limit -= len(records)
            elif tail.problem is not None and not tail.buffer and not out:
                self._drop_tail(partition)
                raise tail.problem
            if tail.buffer:
                self._news.set()
            elif tail.problem is None:
                del self._told[partition]
        return out

    def _hears(self, tail: Tail) -> None:
        """A partition has records, or a problem; unless that is another one's, which was dropped."""
        known = self._tails.get(tail.partition)
        if known is not None and known[0] is tail:
            self._told[tail.partition] = None
            self._news.set()

    def _forget(self, partition: int) -> None:
        self._epochs.pop(partition, None)
        self._paused.discard(partition)
        self._drop_tail(partition)

    def _drop_tail(self, partition: int) -> None:
        self._told.pop(partition, None)
        known = self._tails.pop(partition, None)
        if known is not None:
            known[1].cancel()

    def seek(self, partition: int, position: int) -> None:
        if partition not in self._epochs:
            return
        known = self._tails.get(partition)
        if known is not None and known[0].next == max(position, 1) and known[0].problem is None:
            return
        self._drop_tail(partition)
        broker = self.broker
        tail = Tail(broker.link, broker.names, broker.appender, partition, position)
        self._tails[partition] = (tail, self._tasks.create_task(tail.run(lambda: self._hears(tail))))
        self._news.set()

    def pause(self, partitions: Collection[int]) -> None:
        self._paused |= self._epochs.keys() & set(partitions)

    def resume(self, partitions: Collection[int]) -> None:
        self._paused -= set(partitions)
        self._news.set()

    # ---- ownership ---------------------------------------------------------------------------------------------------
    async def release(self, partition: int, epoch: int) -> None:
        if self._epochs.get(partition) == epoch:
            self._forget(partition)
        token = self.keeper.token
        if self.keeper.drop(partition, epoch):
            broker = self.broker
            await leases.release(broker.link, broker.reader, broker.names, self.group, token, partition, epoch)
            self.keeper.wake()

    async def save_checkpoint(
        self, partition: int, epoch: int, position: int, anchor: bytes, changed: Mapping[bytes, bytes],
        gone: Collection[bytes],
    ) -> bool:  # fmt: skip
        token = self.keeper.token
        save = self.broker.checkpoints.save
        return await save(self.group, partition, token, epoch, position, anchor, dict(changed), gone)

    def deadline(self, partition: int) -> float:
        return self.keeper.deadline(partition)

    def turned(self) -> None:
        self.keeper.turned = self._loop.time()

    def owned(self) -> Mapping[int, int]:
        return self.keeper.held.copy()
