"""Putting items into the log: a message each, many on their way at once; sent again until it is known what came of
it."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Coroutine, Sequence
from itertools import groupby
from typing import Any
from urllib.parse import quote

from nats.aio.msg import Msg

from ...bus.broker import Appended, Conflict, Item, LogMeta, Result
from ...bus.errors import BrokerUnavailable, LogMissing, LogTruncated, Overloaded, TooLarge
from .. import sizes
from ..cloudevents import attributes
from .connection import (
    DUPLICATE_IN_BATCH,
    LAST_UNAVAILABLE,
    NO_STREAM,
    WRONG_LAST,
    WRONG_LAST_BUSY,
    Ack,
    Link,
    Refused,
    accepted,
)  # fmt: skip
from .frames import EXPECTED, MSG_ID, OVERHEAD, packed, size_of
from .names import SPAN, Names, last_position, token_of
from .reading import Reader, get

PATIENCE = 10.0
"""Seconds in which an append is tried again when its acknowledgement was lost. The servers know it for two minutes."""
MAX_BYTES = 64 * 1024 * 1024
MAX_CALLS = 100_000
"""What may be on its way; beyond it the caller is told to try again."""
SETTLES = 3.0
"""Seconds after which a stream that ends too early is believed to be truncated."""
AGAIN = (WRONG_LAST_BUSY, LAST_UNAVAILABLE)
Work = Coroutine[Any, Any, None]
PLAIN = "".join(map(chr, range(0x21, 0x7F))).replace("%", "").replace('"', "")
"""What a header may hold as it is (CloudEvents, HTTP protocol binding 1.0.2, 3.1.3.2)."""
LAST = re.compile(r"wrong last sequence: (\d+)")


def check(meta: LogMeta, partition: int, values: Sequence[bytes]) -> int:
    """Return the size of an append. Raises TooLarge; ValueError where the log has no such partition."""
    if len(values) > SPAN:
        raise TooLarge(f"an append of {len(values)} records, a log on NATS takes {SPAN}", remedy="send less")
    return sizes.check(meta, partition, values)


class Message:
    """An item on its way. It keeps its id when it is sent again, so it is stored once."""

    def __init__(self, partition: int, subject: str, values: Sequence[bytes], id: str, after: int | None) -> None:
        self.partition, self.subject, self.id, self.after = partition, subject, id, after
        self.count = len(values)
        self.payload, self.headers = packed(values)
        self.headers[MSG_ID] = id
        self.expected = after // SPAN if after is not None else None  # who saw a part of a message has not seen it
        if self.expected is not None:
            self.headers[EXPECTED] = str(self.expected)
        self.floor = 0
        self.sent = 0
        self.answer: asyncio.Future[Msg]

    def describe(self, limit: int) -> None:
        """Say in the headers what it is, if it is one record and stays within the limit."""
        if self.count == 1:
            named = attributes(self.payload, "ce-", "ce-datacontenttype")
            more = self.headers | {name: quote(text, safe=PLAIN) for name, text in named.items()}
            if size_of(self.payload, more) <= limit:
                self.headers = more

    def expect(self, sequence: int) -> None:
        """Be stored only if the subject's last message is this one."""
        self.expected = sequence
        self.headers[EXPECTED] = str(sequence)

    def stored(self, sequence: int) -> Appended:
        """Return where its records are."""
        last = last_position(sequence)
        return Appended((last,) if self.count == 1 else tuple(range(last - self.count + 1, last + 1)))


class Appender:
    """Appends to the streams of a log. `tops` is the highest sequence of each partition that is known to be stored;
    `described` messages have headers that say what they are."""

    def __init__(self, link: Link, names: Names, meta: LogMeta, reader: Reader, *, described: bool = False) -> None:
        self.tops: dict[int, int] = {}
        self._described = described
        self._link, self._names, self._meta, self._reader = link, names, meta, reader
        self._root = names.root
        self._prefix, self._made = os.urandom(8).hex(), 0
        self._calls = self._bytes = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def settled(self) -> None:
        """Wait until nothing is on its way."""
        await self._idle.wait()

    async def append(self, items: Sequence[Item]) -> list[Result]:
        """Append items: those of one partition in order."""
        if len(items) == 1:
            return [await self._alone(items[0])]
        size, lanes = 0, dict[int, list[tuple[int, Message]]]()
        out: list[Result] = [Appended(())] * len(items)
        for n, item in enumerate(items):
            values = [record.value for record in item.records]
            size += check(self._meta, item.partition, values)
            if values:
                message = self._message(item.partition, item.key, values, item.after)
                lanes.setdefault(item.partition, []).append((n, message))
        lane_of = [self._lane(lane, out) for lane in lanes.values()]
        await self._counted(size, lane_of)
        return out

    async def _alone(self, item: Item) -> Result:
        """Append one item: what nearly every call is."""
        values = [record.value for record in item.records]
        size = check(self._meta, item.partition, values)
        if not values:
            return Appended(())
        message = self._message(item.partition, item.key, values, item.after)
        self._enter(size)
        try:
            until = time.monotonic() + PATIENCE
            await self._try_send(message)
            try:
                return await self._result(message, until)
            except BrokerUnavailable as error:
                if type(error) is not BrokerUnavailable:
                    raise
            out: list[Result] = [Appended(())]
            await self._settle([(0, message)], out, until)
            return out[0]
        finally:
            self._leave(size)

    def _enter(self, size: int) -> None:
        if self._bytes > MAX_BYTES or self._calls >= MAX_CALLS:
            raise Overloaded(f"{self._calls} appends are on their way to NATS: send more slowly")
        self._calls += 1
        self._bytes += size
        self._idle.clear()

    def _leave(self, size: int) -> None:
        self._calls -= 1
        self._bytes -= size
        if not self._calls:
            self._idle.set()

    async def _counted(self, size: int, work: Sequence[Work]) -> None:
        try:
            self._enter(size)
        except Overloaded:
            for one in work:
                one.close()
            raise
        try:
            if len(work) == 1:
                await work[0]
            elif work:
                await _all(work)
        finally:
            self._leave(size)

    def _message(self, partition: int, key: str | None, values: Sequence[bytes], after: int | None) -> Message:
        self._made += 1
        subject = f"{self._root}.{partition}.{token_of(key)}"
        message = Message(partition, subject, values, f"{self._prefix}-{self._made:x}", after)
        limit = self._link.client.max_payload
        if len(message.payload) + OVERHEAD > limit and size_of(message.payload, message.headers) > limit:
            raise TooLarge(
                f"an append of {size_of(message.payload, message.headers)} bytes with its headers, the server's "
                f"max_payload is {limit}", remedy="send less"
            )  # fmt: skip
        if self._described:
            message.describe(limit)
        return message

    # ---- items of one partition --------------------------------------------------------------------------------------
    async def _lane(self, lane: list[tuple[int, Message]], out: list[Result]) -> None:
        until = time.monotonic() + PATIENCE
        flying: list[tuple[int, Message]] = []
        for n, message in lane:
            if message.after is not None and flying:  # it may have to be sent twice: nothing overtakes it
                await self._settle(flying, out, until)
                flying = []
            await self._try_send(message)
            flying.append((n, message))
            if message.after is not None:
                await self._settle(flying, out, until)
                flying = []
        await self._settle(flying, out, until)

    async def _try_send(self, message: Message) -> None:
        """Send a message, or note that it could not be sent: its answer is the error."""
        message.floor = self.tops.get(message.partition, 0)
        message.sent += 1
        try:
            message.answer = await self._link.ask(message.subject, message.payload, message.headers)
        except BrokerUnavailable as error:
            message.answer = asyncio.get_running_loop().create_future()
            message.answer.set_exception(error)

    async def _settle(self, flying: list[tuple[int, Message]], out: list[Result], until: float) -> None:
        """Wait for the answers; what has none is sent again in order, unless something behind it is stored already."""
        while flying:
            lost: list[tuple[int, Message]] = []
            problem: Exception | None = None
            overtaken = False
            for n, message in flying:
                try:
                    result = await self._result(message, until)
                except BrokerUnavailable as error:
                    if type(error) is not BrokerUnavailable:
                        raise
                    lost.append((n, message))
                    problem = error
                else:
                    out[n] = result
                    overtaken = overtaken or bool(lost and isinstance(result, Appended))
            if problem is None:
                return
            if overtaken or time.monotonic() > until:
                raise problem
            await self._link.connected(max(0.01, until - time.monotonic()))
            await asyncio.sleep(0.05)
            await self.still_there(lost[0][1].partition)
            flying = lost
            for _, message in flying:
                await self._try_send(message)

    async def still_there(self, partition: int) -> None:
        """Raise LogMissing or LogTruncated where the stream is gone, or has lost what was there."""
        until, stream = time.monotonic() + SETTLES, self._names.stream(partition)
        top = self.tops.get(partition, 0)
        while True:
            try:
                last = int((await self._reader.state(stream))["state"]["last_seq"])
            except BrokerUnavailable:
                return  # no leader yet
            if last >= top:
                return
            if time.monotonic() > until:
                break
            await asyncio.sleep(0.1)  # a leader that was just elected has not caught up with its own log yet
        raise LogTruncated(
            f"the stream {stream} ends at {last}, it has held {top}: it was restored or made again; compare it "
            "with its backup"
        )

    def seen(self, partition: int, sequence: int) -> None:
        """A message has been seen at a sequence."""
        if sequence > self.tops.get(partition, 0):
            self.tops[partition] = sequence

    async def _result(self, message: Message, until: float) -> Result:
        """Return what came of a message. Raises BrokerUnavailable where that is unknown."""
        while True:
            try:
                ack = accepted(await self._link.answer(message.answer, message.subject))
            except Refused as error:
                known = await self._refused(message, error, until)
                if known is not None:
                    return known
                await self._try_send(message)
                continue
            return self._acknowledged(message, ack)

    def _acknowledged(self, message: Message, ack: Ack) -> Appended:
        if ack.seq <= message.floor and not ack.duplicate:
            raise LogTruncated(
                f"the stream {self._names.stream(message.partition)} has stored a record at {ack.seq}, but has held "
                f"{message.floor} already: it was restored or made again; compare it with its backup"
            )
        self.tops[message.partition] = max(self.tops.get(message.partition, 0), ack.seq)
        return message.stored(ack.seq)

    async def _refused(self, message: Message, error: Refused, until: float) -> Result | None:
        """Return what a refusal means; None: send it again, with another expectation or later."""
        if error.code == NO_STREAM:
            raise LogMissing(f"{self._names.stream(message.partition)}: {error}") from error
        if error.code not in (WRONG_LAST, *AGAIN) or message.after is None:
            raise BrokerUnavailable(f"{self._names.stream(message.partition)} refuses a record: {error}") from error
        if error.code in AGAIN:  # another append of this key is being replicated
            if time.monotonic() > until:
                raise BrokerUnavailable(f"{self._names.stream(message.partition)}: {error}") from error
            await asyncio.sleep(0.002)
        mine = await self._find(message) if message.sent > 1 else 0
        if mine:
            return message.stored(mine)
        said = LAST.search(error.text)
        stream = self._names.stream(message.partition)
        last = int(said[1]) if said else await self._reader.last_of(stream, message.subject)
        if last_position(last) > message.after:
            return Conflict(last_position(last))
        message.expect(last)
        return None

    async def _find(self, message: Message) -> int:
        """Return where a message is that was sent before; 0 where it is not."""
        stream, at = self._names.stream(message.partition), message.floor
        while True:
            found = await self._reader.leaders(stream, {"seq": at + 1, "next_by_subj": message.subject})
            if found is None:
                return 0
            at = int(found["seq"])
            got = await get(self._link, stream, {"seq": at})
            if any((msg.headers or {}).get(MSG_ID) == message.id for msg in got.messages):
                return at

    # ---- raw records -------------------------------------------------------------------------------------------------
    async def append_raw(self, partition: int, records: Sequence[tuple[str | None, bytes]]) -> tuple[int, ...]:
        """Append records of any keys, all or none: neighbours of one key are a message, several messages a batch."""
        size = check(self._meta, partition, [value for _, value in records])
        runs = [(key, [value for _, value in run]) for key, run in groupby(records, key=lambda record: record[0])]
        messages = [self._message(partition, key, values, None) for key, values in runs]
        out: list[Result] = [Appended(())] * len(messages)
        if len(messages) > 1000:
            raise TooLarge(f"{len(messages)} changes of the key in an append, NATS takes 1000", remedy="send less")
        if messages:
            work = self._lane([(0, messages[0])], out) if len(messages) == 1 else self._batch(messages, out)
            await self._counted(size, [work])
        return tuple(p for result in out if isinstance(result, Appended) for p in result.positions)

    async def _batch(self, messages: list[Message], out: list[Result]) -> None:
        """Append messages as an atomic batch of the server; sent again under the same ids when its answer was lost."""
        until = time.monotonic() + PATIENCE
        while True:
            try:
                last = await self._send_batch(messages)
                break
            except Refused as error:
                if error.code != DUPLICATE_IN_BATCH:
                    raise BrokerUnavailable(f"{self._names.stream(messages[0].partition)}: {error}") from error
                last = await self._find(messages[-1])
                break
            except BrokerUnavailable as error:
                if type(error) is not BrokerUnavailable or time.monotonic() > until:
                    raise
                await self._link.connected(max(0.01, until - time.monotonic()))
                await self.still_there(messages[0].partition)
        self.tops[messages[0].partition] = max(self.tops.get(messages[0].partition, 0), last)
        out[:] = [m.stored(last - len(messages) + n) for n, m in enumerate(messages, 1)]

    async def _send_batch(self, messages: list[Message]) -> int:
        floor = self.tops.get(messages[0].partition, 0)
        batch = os.urandom(12).hex()
        for n, message in enumerate(messages, 1):
            message.floor = floor if message.sent == 0 else message.floor
            message.sent += 1
            headers = message.headers | {"Nats-Batch-Id": batch, "Nats-Batch-Sequence": str(n)}
            if n < len(messages):
                await self._link.publish(message.subject, message.payload, headers)
                continue
            answer = await self._link.request(message.subject, message.payload, headers | {"Nats-Batch-Commit": "1"})
            return accepted(answer).seq
        return 0


async def _all(work: Sequence[Work]) -> None:
    """Do all of it at once; raise the first error that there was, as if it had been alone."""
    try:
        async with asyncio.TaskGroup() as tasks:
            for one in work:
                tasks.create_task(one)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
