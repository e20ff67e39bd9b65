"""Checkpoints: a compacted topic, one partition of it per partition of the log, written in transactions. Who takes a
partition over fences the transactional id of its checkpoint, so that a late writer changes nothing."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Collection, Mapping
from typing import NamedTuple

import msgspec

from ...bus.broker import Checkpoint
from ...bus.errors import BrokerUnavailable
from . import wire
from .link import COORDINATE, PAUSE, REQUEST, Link
from .outbox import OVERHEAD
from .wire import Raw

TIMEOUT_MS = 60_000
"""A transaction that nobody ends is ended by the cluster after this."""
STALE = 3600.0
"""Seconds after which what was read is read anew: compaction may have removed a removal."""
KEPT = 200_000
"""Entries that are kept in memory; what is read again is right."""
SEGMENT = 400_000
"""Bytes of an entry that go into one record."""
BATCH = 900_000
COMMITTED = 1


class Fenced(Exception):
    """Another member may have taken the partition over."""


class Head(msgspec.Struct, array_like=True):
    """The record of a checkpoint's position."""

    position: int
    epoch: int
    anchor: bytes


def _prefix(group: str) -> bytes:
    return group.encode() + b"\0"


# ---- writing ---------------------------------------------------------------------------------------------------------
class Save(NamedTuple):
    """What is to be saved."""

    group: str
    epoch: int
    position: int
    anchor: bytes
    changed: Mapping[bytes, bytes]
    gone: Collection[bytes]

    def records(self, segments: dict[bytes, int]) -> list[tuple[bytes, bytes | None]]:
        """Return the records; `segments` remembers entries of several."""
        prefix, out = _prefix(self.group), list[tuple[bytes, bytes | None]]()
        for key, value in self.changed.items():
            parts = [value[i : i + SEGMENT] for i in range(0, len(value), SEGMENT)] or [b""]
            count = len(parts).to_bytes(2, "big")
            out += [(_entry(prefix, n, key), count + part) for n, part in enumerate(parts)]
            out += [(_entry(prefix, n, key), None) for n in range(len(parts), segments.pop(key, 1))]
            if len(parts) > 1:
                segments[key] = len(parts)
        for key in self.gone:
            if key not in self.changed:
                out += [(_entry(prefix, n, key), None) for n in range(segments.pop(key, 1))]
        head = Head(self.position, self.epoch, self.anchor)
        return [*out, (prefix + b"p", msgspec.msgpack.encode(head))]


def _entry(prefix: bytes, segment: int, key: bytes) -> bytes:
    return prefix + b"e" + segment.to_bytes(2, "big") + key


class Pen:
    """Writes one group's checkpoint of one partition, after `take` has fenced whoever wrote it before."""

    def __init__(self, topic: str, group: str, partition: int, name: str) -> None:
        self.topic, self.group, self.partition, self.name = topic, group, partition, name
        self.producer: tuple[int, int] = (-1, -1)
        self.sequence = 0
        self.segments: dict[bytes, int] = {}
        self._node = -1
        self.lock = asyncio.Lock()

    async def take(self, link: Link) -> None:
        """Fence the writers before. Raises BrokerUnavailable; ConfigError without the right to the transactional id."""

        async def once() -> None:
            node = await self._coordinator(link)
            answer = await link.ask(node, wire.producer_id_request(self.name, TIMEOUT_MS), COORDINATE)
            self._judge(link, answer.error_code)
            self.producer, self.sequence = (answer.producer_id, answer.producer_epoch), 0

        await link.patiently(once)

    async def _coordinator(self, link: Link) -> int:
        if self._node < 0:
            answer = await link.ask(None, wire.coordinator_request(self.name))
            link.judge(answer.error_code, f"the coordinator of {self.name}")
            self._node = answer.coordinator_id
        return self._node

    def _judge(self, link: Link, code: int) -> None:
        if code in (wire.FENCED, wire.BAD_EPOCH, wire.BAD_MAPPING, wire.BAD_STATE, wire.OUT_OF_ORDER):
            raise Fenced(wire.named(code) if code != wire.FENCED else "ProducerFenced")
        if code in (14, 15, 16):
            self._node = -1
        link.judge(code, f"the transaction {self.name}")

    async def write(self, link: Link, save: Save, producer: tuple[int, int]) -> None:
        """Write in one transaction, and return when every reader sees it. Raises Fenced; BrokerUnavailable: unknown."""
        records = save.records(self.segments)

        async def begin() -> None:
            node = await self._coordinator(link)
            request = wire.add_partition_request(self.name, producer, self.topic, self.partition)
            answer = await link.ask(node, request, COORDINATE)
            self._judge(link, answer.errors[0][1][0][1])

        async def end() -> None:
            node = await self._coordinator(link)
            answer = await link.ask(node, wire.end_request(self.name, producer, True), COORDINATE)
            self._judge(link, answer.error_code)

        await link.patiently(begin)
        last = 0
        for batch in _batches(records):
            last = await self._send(link, batch, producer)
        await link.patiently(end)
        await self._seen(link, last)

    async def _send(self, link: Link, records: list[tuple[bytes, bytes | None]], producer: tuple[int, int]) -> int:
        data = wire.batch_bytes(records, producer, self.sequence, transactional=True)
        place = (self.topic, self.partition)

        async def once() -> int:
            request = wire.produce_request({place: data}, int(REQUEST * 800), transaction_id=self.name)
            code, offset = wire.produced(await link.ask(link.leader(*place), request, COORDINATE))[place]
            if code != wire.DUPLICATE:
                self._judge(link, code)
            return offset

        offset = await link.patiently(once)
        self.sequence += len(records)
        return offset + len(records)

    async def _seen(self, link: Link, end: int) -> None:
        """Wait until readers of what is committed see up to an offset: the cluster marks it a moment later."""
        until = time.monotonic() + link.patience
        while (await link.offsets(self.topic, [self.partition], isolation=COMMITTED))[self.partition] < end:
            if time.monotonic() > until:
                raise BrokerUnavailable(f"the transaction {self.name} is committed, and not to be seen yet")
            await asyncio.sleep(PAUSE / 10)


def _batches(records: list[tuple[bytes, bytes | None]]) -> list[list[tuple[bytes, bytes | None]]]:
    out, size = [list[tuple[bytes, bytes | None]]()], 0
    for key, value in records:
        more = len(key) + len(value or b"") + OVERHEAD
        if out[-1] and size + more > BATCH:
            out.append([])
            size = 0
        out[-1].append((key, value))
        size += more
    return out


# ---- reading ---------------------------------------------------------------------------------------------------------
class Kept(NamedTuple):
    """What is known of a partition's checkpoints: where the next record is, since when, and by group and key."""

    next: int
    since: float
    groups: dict[bytes, dict[bytes, bytes]]


class Checkpoints:
    """Reads what groups have saved; what was read is kept, so that the next look reads only what is new."""

    def __init__(self, link: Link, topic: str) -> None:
        self.link, self.topic = link, topic
        self._kept: dict[int, Kept] = {}
        self._locks: dict[int, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def _read(self, partition: int) -> Kept:
        async with self._locks[partition]:
            now = time.monotonic()
            kept = self._kept.get(partition)
            if kept is None or now - kept.since > STALE:
                begin = await self.link.offsets(self.topic, [partition], wire.EARLIEST)
                kept = Kept(begin[partition], now, {})
            ends = await self.link.offsets(self.topic, [partition], isolation=COMMITTED)
            kept = await self._follow(partition, kept, ends[partition])
            self._kept[partition] = kept._replace(since=now)
            self._forget()
            return kept

    async def _follow(self, partition: int, kept: Kept, end: int) -> Kept:
        offset = kept.next
        while offset < end:
            part = await self.link.fetch_one(self.topic, partition, offset, isolation=COMMITTED)
            if part.error:
                self._kept.pop(partition, None)
                raise BrokerUnavailable(f"the checkpoints of partition {partition} changed while they were read")
            for raw in part.records:
                _fold(kept.groups, raw)
            if part.next == offset:
                await asyncio.sleep(PAUSE / 10)
            offset = part.next
        return kept._replace(next=offset)

    def _forget(self) -> None:
        total = sum(len(entries) for kept in self._kept.values() for entries in kept.groups.values())
        if total > KEPT:
            self._kept.clear()

    async def load(self, group: str, partition: int) -> Checkpoint | None:
        """Return a group's checkpoint."""
        known = (await self._read(partition)).groups.get(group.encode())
        if known is None or b"p" not in known:
            return None
        head = msgspec.msgpack.decode(known[b"p"], type=Head)
        entries = {k[3:]: _whole(known, k) for k in known if k[:3] == b"e\0\0"}
        return Checkpoint(head.position, head.anchor, entries)

    async def groups(self, partition: int) -> list[str]:
        """Return the groups that have one, newest position first."""
        found = [(position, group) for group, position in (await self.committed(partition)).items()]
        return [group for _, group in sorted(found, key=lambda f: (-f[0], f[1]))]

    async def committed(self, partition: int) -> dict[str, int]:
        """Return the position of each group's checkpoint."""
        kept = await self._read(partition)
        return {
            group.decode(): msgspec.msgpack.decode(known[b"p"], type=Head).position
            for group, known in kept.groups.items() if b"p" in known
        }  # fmt: skip


def _fold(groups: dict[bytes, dict[bytes, bytes]], raw: Raw) -> None:
    group, found, rest = (raw.key or b"").partition(b"\0")
    if not found:
        return
    if raw.value is None:
        groups.get(group, {}).pop(rest, None)
    else:
        groups.setdefault(group, {})[rest] = raw.value


def _whole(known: dict[bytes, bytes], first: bytes) -> bytes:
    count = int.from_bytes(known[first][:2], "big")
    segments = [first, *(b"e" + n.to_bytes(2, "big") + first[3:] for n in range(1, count))]
    return b"".join(known[segment][2:] for segment in segments)
