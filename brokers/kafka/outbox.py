"""What is to be appended: concurrent appends of a partition share a batch, which the broker takes as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from ...bus.errors import BrokerUnavailable, ConfigError, LogMissing, Overloaded, RefoldError, TooLarge
from . import wire
from .link import LONGEST_PAUSE, PAUSE, PRODUCE, REQUEST, Link

log = logging.getLogger("refold.kafka")

Place = tuple[str, int]
Pair = tuple[bytes | None, bytes | None]

OVERHEAD = 70
"""Bytes that a record of a batch has at most beside its key and value."""
HEADER = 6
"""Bytes that a header has at most beside its name and value."""
BATCH = 1_000_000
"""Bytes that are put into a batch where more appends wait; the topic's `max.message.bytes` may allow less."""
GONE = 5.0
"""Seconds after which a topic that no node knows has been deleted: one that has just restarted learns it sooner."""
MAX_QUEUE = 64 << 20
NO_PRODUCER = (-1, -1)


class Parcel:
    """The records of one append; they enter one batch, never two."""

    __slots__ = ("done", "headers", "records", "size")

    def __init__(
        self, records: Sequence[Pair], size: int, done: asyncio.Future[int], headers: list[wire.Headers]
    ) -> None:
        self.records, self.size, self.done, self.headers = records, size, done, headers


class Batch:
    """Parcels on their way: the same bytes are sent until there is an answer."""

    def __init__(self, parcels: list[Parcel], since: float) -> None:
        self.parcels, self.since = parcels, since
        self.records = [record for parcel in parcels for record in parcel.records]
        self.headers: list[wire.Headers] = []
        if any(parcel.headers for parcel in parcels):
            self.headers = [headers for p in parcels for headers in p.headers or [[]] * len(p.records)]
        self.data = b""
        self.unsure = False
        """An answer was lost: it may be there already."""


class Channel:
    """What waits for one partition, and the sequence of what was sent to it."""

    def __init__(self) -> None:
        self.queue: deque[Parcel] = deque()
        self.batch: Batch | None = None
        self.flying = False
        self.not_before = 0.0
        self.pause = PAUSE
        self.hint = ""
        """What a broker has said of its disk since the last append that was acknowledged."""
        self.doubtful = False
        """It was not there for a while: it may have been deleted, and another topic have its name."""
        self.missing: float | None = None
        """Since when (monotonic) nodes that answer do not know it."""
        self.producer: tuple[int, int] = NO_PRODUCER
        self.sequence = 0
        self.low = 0
        """Below the next append: where to look for one whose answer was lost."""


class Outbox:
    """Appends batches over a link. Idempotent: what is sent again after a lost answer is there once. `describe` returns
    the headers of a value; an append that is too large with them goes without."""

    def __init__(
        self, link: Link, *, compression: int = 0, describe: Callable[[bytes], wire.Headers] | None = None
    ) -> None:
        self.link, self.compression, self.describe = link, compression, describe
        self.limits: dict[str, int] = {}
        """`max.message.bytes` of the topics, where it is known."""
        self._channels: dict[Place, Channel] = defaultdict(Channel)
        self._active: set[Place] = set()
        self._busy: set[tuple[int, int]] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._queued = 0
        self._called = self._closed = False
        self._producer: tuple[int, int] = NO_PRODUCER
        self._looking = asyncio.Lock()

    def put(
        self, topic: str, partition: int, records: Sequence[Pair], size: int | None = None
    ) -> asyncio.Future[int]:
        """Queue an append; the future has the offset of its first record (of none: any number). `size`: bytes of the
        values, where it is known. Raises TooLarge, Overloaded."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        if not records:
            done.set_result(0)
            return done
        if size is None:
            size = sum(len(value or b"") for _, value in records)
        size += sum([len(key or b"") + OVERHEAD for key, _ in records])
        headers = list[wire.Headers]()
        if self.describe is not None:
            headers = [self.describe(value or b"") for _, value in records]
            more = sum(len(name) + len(text or b"") + HEADER for each in headers for name, text in each)
            if size + more > self.limits.get(topic, BATCH):
                headers, more = [], 0
            size += more
        parcel = Parcel(records, size, done, headers)
        if self._closed:
            raise BrokerUnavailable("the connection to Kafka is closed")
        if parcel.size > self.limits.get(topic, BATCH):
            self._check(topic, parcel)
        if self._queued > MAX_QUEUE:
            raise Overloaded(f"{self._queued >> 20} MiB wait to be appended to Kafka: send more slowly")
        self._queued += parcel.size
        place = (topic, partition)
        self._channels[place].queue.append(parcel)
        self._active.add(place)
        if not self._called:
            self._later()
        return done

    async def append(self, topic: str, partition: int, records: Sequence[Pair]) -> int:
        """Append records; return the offset of the first. Cancelled: it may happen all the same."""
        return await self.put(topic, partition, records)

    def _check(self, topic: str, parcel: Parcel) -> None:
        size = len(wire.batch_bytes(parcel.records, NO_PRODUCER, 0))
        if size > self.limits.get(topic, BATCH):
            raise TooLarge(
                f"an append of {size} bytes with its envelope; topic {topic} takes {self.limits.get(topic, BATCH)}",
                remedy="send less, or raise max.message.bytes of the topic",
            )

    async def aclose(self) -> None:
        """Finish what was accepted."""
        self._closed = True
        while self._active:
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=PAUSE)
            else:
                await asyncio.sleep(PAUSE)
        for task in self._tasks:  # that only look who leads what
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- sending -----------------------------------------------------------------------------------------------------
    def _later(self, delay: float = 0.0) -> None:
        loop = asyncio.get_running_loop()
        if delay > 0:
            loop.call_later(delay, self._later)
        elif not self._called:
            self._called = True
            loop.call_soon(self._pump)  # with what else is appended in this turn of the loop

    def _pump(self) -> None:
        self._called = False
        ready: dict[tuple[int, bool], list[Place]] = defaultdict(list)
        now = time.monotonic()
        for place in list(self._active):
            channel = self._channels[place]
            if channel.flying or channel.not_before > now:
                continue
            if channel.batch is None and not channel.queue:  # it was refused
                self._active.discard(place)
                continue
            try:
                ready[self.link.leader(*place), place[0] in self.link.ids].append(place)  # all by id, or by name
            except BrokerUnavailable as error:
                channel.doubtful = True
                self._postpone(place, str(error))
        for (node, _), places in ready.items():
            lane = next((lane for lane in PRODUCE if (node, lane) not in self._busy), None)
            if lane is not None:
                self._busy.add((node, lane))
                for place in places:
                    self._channels[place].flying = True
                self._start(self._fly(node, lane, places))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _fly(self, node: int, lane: int, places: list[Place]) -> None:
        try:
            batches = await self._load(places)
            if batches:
                await self._send(node, lane, batches)
        except Exception as error:  # a bug of this file, or an answer that is none: nobody waits for ever
            log.exception("appending to %s", places)
            for place in places:
                self._forget(self._channels[place])
                self._refuse(self._channels[place], self._unknown(f"{type(error).__name__} {error}"))
        finally:
            self._busy.discard((node, lane))
            for place in places:
                channel = self._channels[place]
                channel.flying = False
                if channel.batch is None and not channel.queue:
                    self._active.discard(place)
            if self._active:
                self._later()

    async def _load(self, places: list[Place]) -> dict[Place, Batch]:
        """Return what goes to each partition now."""
        out: dict[Place, Batch] = {}
        for place in places:
            channel = self._channels[place]
            try:
                if channel.batch is None:
                    channel.batch = self._next(place, channel)
                if channel.batch is not None and channel.doubtful:
                    await self.link.still_the_same(place[0])
                    channel.doubtful = False
                if channel.batch is not None and not channel.batch.data:
                    await self._build(channel, channel.batch)
            except BrokerUnavailable as error:
                self._postpone(place, str(error))
                continue
            except Exception as error:  # noqa: BLE001 - a value that is no bytes, or a right that is missing
                self._refuse(channel, error)
            if channel.batch is not None and channel.batch.data:
                out[place] = channel.batch
        return out

    def _next(self, place: Place, channel: Channel) -> Batch | None:
        limit, size, parcels = min(BATCH, self.limits.get(place[0], BATCH)), 0, list[Parcel]()
        while channel.queue and (not parcels or size + channel.queue[0].size <= limit):
            parcel = channel.queue.popleft()
            self._queued -= parcel.size
            size += parcel.size
            parcels.append(parcel)
        return Batch(parcels, time.monotonic()) if parcels else None

    async def _build(self, channel: Channel, batch: Batch) -> None:
        if channel.producer == NO_PRODUCER:
            channel.producer, channel.sequence = await self._new_producer(), 0
        batch.data = wire.batch_bytes(
            batch.records, channel.producer, channel.sequence, compression=self.compression, headers=batch.headers
        )

    async def _new_producer(self) -> tuple[int, int]:
        async with self._looking:
            if self._producer == NO_PRODUCER:
                answer = await self.link.ask(None, wire.producer_id_request(None, 60_000))
                self.link.judge(answer.error_code, "a producer id")
                self._producer = (answer.producer_id, answer.producer_epoch)
            return self._producer

    async def _send(self, node: int, lane: int, batches: dict[Place, Batch]) -> None:
        ids = self.link.ids
        request = wire.produce_request({place: b.data for place, b in batches.items()}, int(REQUEST * 800), ids=ids)
        try:
            answer = wire.produced(await self.link.ask(node, request, lane), ids)
        except (BrokerUnavailable, ConfigError) as error:
            for place, batch in batches.items():
                batch.unsure = True
                self._postpone(place, str(error))
            return
        for place, batch in batches.items():
            code, offset = answer[place]
            await self._answered(place, batch, code, offset)

    # ---- what came of it ---------------------------------------------------------------------------------------------
    async def _answered(self, place: Place, batch: Batch, code: int, offset: int) -> None:
        channel = self._channels[place]
        if code == wire.DUPLICATE or (code == wire.OK and offset < 0):
            try:
                offset, code = await self._find(place, channel, batch), wire.OK
            except RefoldError as error:
                self._refuse(channel, BrokerUnavailable(f"it is not known whether it was appended: {error}"))
                return
        if code == wire.OK:
            channel.sequence += len(batch.records)
            self._arrived(channel, batch, offset)
        elif code in (wire.OUT_OF_ORDER, wire.BAD_EPOCH, wire.UNKNOWN_PRODUCER, wire.BAD_MAPPING, wire.FENCED):
            self._forget(channel)
            if batch.unsure:
                self._refuse(channel, self._unknown(wire.named(code)))
            else:  # the broker does not know this producer any more, and took nothing
                batch.data = b""
                self._postpone(place, wire.named(code))
        elif code in wire.AGAIN:
            channel.doubtful = channel.doubtful or code in (wire.UNKNOWN_TOPIC, wire.UNKNOWN_ID, wire.OTHER_ID)
            batch.unsure = batch.unsure or code not in wire.NOTHING_WRITTEN
            if code == wire.STORAGE:
                channel.hint = f"{place[0]} {place[1]}: {wire.DISK}"
            self._postpone(place, wire.named(code))
        else:
            self._refuse(channel, self._error(place, code))

    def _arrived(self, channel: Channel, batch: Batch, offset: int) -> None:
        channel.batch, channel.pause, channel.low, channel.hint = None, PAUSE, offset + len(batch.records), ""
        for parcel in batch.parcels:
            if not parcel.done.done():
                parcel.done.set_result(offset)
            offset += len(parcel.records)

    def _error(self, place: Place, code: int) -> Exception:
        if code in (wire.TOO_LARGE, wire.LIST_TOO_LARGE):
            return TooLarge(f"topic {place[0]} takes no such batch", remedy="raise max.message.bytes of the topic")
        if code in wire.NO_RIGHT:
            return ConfigError(f"Kafka gives no right to write to topic {place[0]}; see `refold broker plan`")
        return BrokerUnavailable(f"{place[0]} was not written: {wire.named(code)}")

    def _unknown(self, why: str) -> BrokerUnavailable:
        return BrokerUnavailable(f"it is not known whether it was appended: {why}")

    def _forget(self, channel: Channel) -> None:
        """Never use this producer again: which of its sequence numbers the broker has is not known."""
        if channel.producer == self._producer:
            self._producer = NO_PRODUCER
        channel.producer = NO_PRODUCER

    def _refuse(self, channel: Channel, error: Exception) -> None:
        batch, channel.batch = channel.batch, None
        channel.pause = PAUSE
        for parcel in batch.parcels if batch is not None else ():
            if not parcel.done.done():
                parcel.done.set_exception(error)
                parcel.done.exception()  # its caller may be gone

    def _postpone(self, place: Place, why: str) -> None:
        """Try again in a moment; give up when that has taken too long."""
        channel = self._channels[place]
        batch, now = channel.batch, time.monotonic()
        if batch is None and channel.queue:
            batch = channel.batch = self._next(place, channel)
        if batch is not None and now - batch.since > self.link.patience:
            why = f"{why} ({channel.hint})" if channel.hint else why
            if batch.unsure:
                self._forget(channel)
            self._refuse(channel, self._unknown(why) if batch.unsure else BrokerUnavailable(why))
            self._later()  # with what waits behind it
            return
        channel.not_before = now + channel.pause
        self._later(channel.pause)
        channel.pause = min(2 * channel.pause, LONGEST_PAUSE)
        self._start(self._look(place))

    async def _look(self, place: Place) -> None:
        """Ask again who leads what; refuse what waits for a topic that is gone."""
        channel = self._channels[place]
        with contextlib.suppress(BrokerUnavailable):
            await self.link.look()
            if not channel.doubtful:
                return
            try:
                await self.link.still_there(place[0])
            except LogMissing as error:
                channel.missing = channel.missing or time.monotonic()
                if time.monotonic() - channel.missing > GONE and not channel.flying:
                    self._refuse(channel, error)
                    if not channel.queue:
                        self._active.discard(place)
            else:
                channel.missing = None

    async def _find(self, place: Place, channel: Channel, batch: Batch) -> int:
        """Return where a batch is that the broker says it has: it kept no offset of it."""
        (end,) = (await self.link.offsets(place[0], [place[1]])).values()
        offset, seen = channel.low, list[tuple[int, Pair]]()
        while offset < end:
            part = await self.link.fetch_one(*place, offset)
            if part.error:
                (offset,) = (await self.link.offsets(place[0], [place[1]], wire.EARLIEST)).values()
                continue
            seen += [(r.offset, (r.key, r.value)) for r in part.records]
            offset = max(part.next, offset)
            if not part.records and part.next >= end:
                break
        n = len(batch.records)
        for i in range(len(seen) - n, -1, -1):
            if [pair for _, pair in seen[i : i + n]] == batch.records:
                return seen[i][0]
        raise BrokerUnavailable("Kafka holds no such batch")
