"""One member's place in a group: its partitions and their records."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import defaultdict, deque
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from ...bus.broker import Assigned, Batch, Event, Lost, Stored
from ...bus.errors import BrokerUnavailable, LogTruncated, RefoldError
from . import wire
from .checkpoints import Fenced, Save
from .control import Release
from .index import stored
from .keeper import Keeper
from .link import POLL, Again
from .wire import Part

if TYPE_CHECKING:
    from .broker import KafkaBroker

log = logging.getLogger("refold.kafka")

WAIT = 0.25
"""Seconds that a node holds a request for records that are not there yet. What is asked for meanwhile has another."""
LOOK = 0.5
"""Seconds that a look at most takes."""
MAX_BYTES, PART_BYTES = 8 << 20, 1 << 20

Poll = asyncio.Task[dict[tuple[str, int], Part]]


class KafkaSubscription:
    """See `refold.bus.broker.Subscription` for what each method promises."""

    def __init__(self, broker: KafkaBroker, group: str) -> None:
        self.broker, self.group = broker, group
        self.keeper: Keeper
        self.joining: asyncio.Task[None]
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._events: list[Event] = []
        self._problem: RefoldError | None = None
        self._epochs: dict[int, int] = {}
        self._next: dict[int, int] = {}
        """Partition -> offset of what is to be delivered next, once `seek` has said it."""
        self._ahead: dict[int, deque[Stored]] = {}
        self._fetched: dict[int, int] = {}
        """Partition -> offset behind what was fetched ahead."""
        self._paused: set[int] = set()
        self._polls: dict[Poll, tuple[int, int, dict[int, int]]] = {}
        """Requests on their way: node, lane, and offsets by partition."""
        self._turn = 0

    def tell(self, event: Event | RefoldError) -> None:
        """An event from the keeper's thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._add, event)

    def _add(self, event: Event | RefoldError) -> None:
        if isinstance(event, RefoldError):
            self._problem = event
        else:
            self._events.append(event)
        self._news.set()

    # ---- records -----------------------------------------------------------------------------------------------------
    async def fetch(self, max_records: int = 1000, max_wait: float = 1.0) -> list[Event]:
        until = self._loop.time() + max_wait
        await asyncio.sleep(0)
        while True:
            self._news.clear()
            self._collect()
            out = self._take_events() + self._take_records(max_records)
            left = until - self._loop.time()
            if out:
                return out
            self._raise()
            looked = self._ask(WAIT if left > 0 else 0.0)
            if left <= 0 and not looked:
                return out
            await self._wait(left if left > 0 else LOOK)
            if left <= 0:
                self._collect()
                return self._take_events() + self._take_records(max_records)

    async def _wait(self, limit: float) -> None:
        """Wait for an answer, an event, or the limit. Nothing that was asked is cancelled."""
        news = asyncio.ensure_future(self._news.wait())
        try:
            await asyncio.wait([news, *self._polls], timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()

    def _raise(self) -> None:
        problem, self._problem = self._problem, None
        if problem is not None:
            raise problem

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        for event in events:
            if isinstance(event, Assigned | Lost):
                self._forget(event.partition)
            if isinstance(event, Assigned):
                self._epochs[event.partition] = event.epoch
        return events

    def _forget(self, partition: int) -> None:
        self._epochs.pop(partition, None)
        self._next.pop(partition, None)
        self._drop_ahead(partition)
        self._paused.discard(partition)

    def _drop_ahead(self, partition: int) -> None:
        self._ahead.pop(partition, None)
        self._fetched.pop(partition, None)
        for _, _, offsets in self._polls.values():  # what they bring of it is not wanted
            offsets.pop(partition, None)

    def _take_records(self, limit: int) -> list[Event]:
        out: list[Event] = []
        ready = [p for p, ahead in self._ahead.items() if ahead and p not in self._paused]
        self._turn += 1
        for i in range(len(ready)):
            partition = ready[(i + self._turn) % len(ready)]
            ahead = self._ahead[partition]
            if limit <= 0:
                break
            if len(ahead) <= limit:
                records = list(ahead)
                ahead.clear()
            else:
                records = [ahead.popleft() for _ in range(limit)]
            limit -= len(records)
            self._next[partition] = records[-1].position
            out.append(Batch(partition, self._epochs[partition], records))
        return out

    def _ask(self, wait: float) -> bool:
        """Ask for what is wanted and not asked for yet; return whether something is on its way that will not wait."""
        asked = {p for _, _, offsets in self._polls.values() for p in offsets}
        by_node: dict[int, dict[int, int]] = defaultdict(dict)
        for partition in self._next.keys() - asked - self._paused:
            if not self._ahead.get(partition):
                offset = self._fetched.setdefault(partition, self._next[partition])
                with contextlib.suppress(BrokerUnavailable):
                    by_node[self.broker.link.leader(self.broker.names.log, partition)][partition] = offset
        looked = False
        for node, offsets in by_node.items():
            busy = {lane for n, lane, _ in self._polls.values() if n == node}
            lane = next((lane for lane in POLL if lane not in busy), None)
            if lane is not None:
                poll = self._loop.create_task(self._poll(node, lane, offsets, wait))
                self._polls[poll] = (node, lane, offsets)
                looked = True
        return looked

    async def _poll(self, node: int, lane: int, offsets: dict[int, int], wait: float) -> dict[tuple[str, int], Part]:
        link, topic = self.broker.link, self.broker.names.log
        wanted = {(topic, p): offset for p, offset in offsets.items()}
        try:
            return await link.fetch(node, wanted, wait=wait, lane=lane, max_bytes=MAX_BYTES, part_bytes=PART_BYTES)
        except Again:
            await link.rest()
            return {}

    def _collect(self) -> None:
        """Take the answers that have come."""
        for poll in [p for p in self._polls if p.done()]:
            _, _, offsets = self._polls.pop(poll)
            try:
                parts = poll.result()
            except RefoldError as error:
                self._problem = error
                continue
            for (_, partition), part in parts.items():
                wanted = partition in self._next and partition in offsets
                if wanted and self._fetched.get(partition) == offsets[partition]:
                    self._answered(partition, part)

    def _answered(self, partition: int, part: Part) -> None:
        if part.error == wire.OUT_OF_RANGE:
            self._polls[self._loop.create_task(self._lost_place(partition))] = (-1, -1, {partition: -1})
        elif part.error:
            code = part.error
            try:
                self.broker.link.judge(code, f"partition {partition} of {self.broker.names.log}")
            except Again:
                self._polls[self._loop.create_task(self._look())] = (-1, -1, {partition: -1})
            except RefoldError as error:
                self._problem = error
        elif part.twice:
            offsets = {partition: self._fetched[partition]}
            self._polls[self._loop.create_task(self._save_others(partition, part))] = (-1, -1, offsets)
        elif partition not in self._paused:  # else it is asked for again
            self._ahead.setdefault(partition, deque()).extend(stored(raw) for raw in part.records)
            self._fetched[partition] = part.next
            if not part.records:
                self._next[partition] = part.next

    async def _look(self) -> dict[tuple[str, int], Part]:
        await self.broker.link.rest()
        return {}

    async def _save_others(self, partition: int, part: Part) -> dict[tuple[str, int], Part]:
        """Several records have one offset, and may all be acknowledged: append those again that nobody would find
        there, before what follows is delivered. Where that is done twice, admission ignores the second."""
        topic, (records, others) = self.broker.names.log, wire.apart(part.records)
        if others:
            log.error(
                "partition %d of %s holds %d records at offsets that others have, as a broker with a full disk leaves "
                "them: they are appended again", partition, topic, len(others),
            )  # fmt: skip
            for again in [self.broker.outbox.put(topic, partition, [(raw.key, raw.value)]) for raw in others]:
                await again  # each an append of its own: together they may be larger than the topic takes
        return {(topic, partition): part._replace(records=records, twice=False)}

    async def _lost_place(self, partition: int) -> dict[tuple[str, int], Part]:
        """The log holds no such offset: it begins later, or it has been cut off."""
        begin, end = await self.broker.log.bounds(partition)
        offset = self._next.get(partition, begin)
        if offset > end:
            raise LogTruncated(f"partition {partition} of {self.broker.names.log} ends before position {offset + 1}")
        if partition in self._next and offset < begin:
            self._next[partition] = begin
        self._drop_ahead(partition)
        return {}

    def seek(self, partition: int, position: int) -> None:
        if partition not in self._epochs:
            return
        self._next[partition] = max(position - 1, 0)
        self._drop_ahead(partition)
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
            word = Release(self.group, self.keeper.token, partition, epoch)
            await self.broker.control.write(word)

    async def save_checkpoint(
        self, partition: int, epoch: int, position: int, anchor: bytes, changed: Mapping[bytes, bytes],
        gone: Collection[bytes],
    ) -> bool:  # fmt: skip
        save = Save(self.group, epoch, position, anchor, dict(changed), set(gone))
        pen = self.keeper.pens.get(partition)
        if pen is None:
            return False
        async with pen.lock:
            for _ in range(3):
                if self.keeper.held.get(partition) != epoch or self.keeper.pens.get(partition) is not pen:
                    return False
                saved = await self._saved(partition, epoch, save)
                if saved and self.broker.offsets is not None:
                    await self.broker.offsets.commit(self.group, partition, position)
                if saved is not None:
                    return saved
        raise BrokerUnavailable(f"the checkpoint of partition {partition} could not be saved: others write it, too")

    async def _saved(self, partition: int, epoch: int, save: Save) -> bool | None:
        """Save, once; None where an earlier owner has fenced the one that owns the partition now."""
        pen, link = self.keeper.pens[partition], self.broker.link
        try:
            if pen.producer[0] < 0:
                await pen.take(link)
                if not await self.broker.owns(self.group, self.keeper.token, partition, epoch):
                    return False
            log = self.broker.names.log
            await link.patiently(lambda: link.still_the_same(log))  # a transaction goes to the topic of that name
            producer, pen.producer = pen.producer, (-1, -1)  # until it has succeeded
            await pen.write(link, save, producer)
            pen.producer = producer
        except Fenced:
            if not await self.broker.owns(self.group, self.keeper.token, partition, epoch):
                self.keeper.wake()
                return False
            return None
        return True

    def deadline(self, partition: int) -> float:
        return self.keeper.deadline(partition)

    def turned(self) -> None:
        self.keeper.turned = self._loop.time()

    def owned(self) -> Mapping[int, int]:
        return self.keeper.held.copy()

    async def aclose(self) -> None:
        """Wait for nothing more."""
        for poll in self._polls:
            poll.cancel()
        await asyncio.gather(*self._polls, return_exceptions=True)
        self._polls.clear()
