"""A group's checkpoints: what changed is written beside, then one compare-and-set of the hold makes it count.

Who owns the partition and which checkpoint counts stand in one message, so a save under an epoch that has ended fails.
Entries are kept in segments, each a few messages under a subject of its own; when what was changed since outweighs the
oldest, all are written as one, and the others are purged.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection, Mapping

import msgspec

from ...bus.broker import Checkpoint
from ...bus.errors import BrokerUnavailable, LogCorrupt
from . import leases
from .connection import Link, Refused, accepted
from .frames import MSG_ID
from .leases import Head, Held, Segment
from .names import Names
from .reading import Reader, get

CHUNK = 256 * 1024
"""Bytes of a message: well below any `max_payload`."""
MANY = 32
"""Segments from which they are written as one, however small."""
SMALL = 64 * 1024
ENTRIES = msgspec.msgpack.Decoder(list[tuple[bytes, bytes | None]])


class Checkpoints:
    """Reads and writes checkpoints."""

    def __init__(self, link: Link, names: Names, reader: Reader) -> None:
        self._link, self._names, self._reader = link, names, reader
        self._tidied: set[tuple[str, int, int]] = set()

    # ---- reading -----------------------------------------------------------------------------------------------------
    async def load(self, group: str, partition: int) -> Checkpoint | None:
        """Return a group's checkpoint of a partition. It may be replaced while it is read: then it is read again."""
        tries = 0
        revision = -1
        while True:
            held = await leases.hold_of(self._reader, self._names, group, partition)
            head = held.hold.head
            if head is None:
                return None
            entries = await self._entries(group, partition, head)
            if entries is not None:
                return Checkpoint(head.position, head.anchor, entries)
            tries = tries + 1 if held.revision == revision else 0
            revision = held.revision
            if tries > 20:
                raise LogCorrupt(f"parts of the checkpoint of {group!r}, partition {partition}, are gone")
            await asyncio.sleep(0.01 * tries)

    async def _entries(self, group: str, partition: int, head: Head) -> dict[bytes, bytes] | None:
        """Return the entries; None where a part of them is not there (any more, or yet in the replica that answers)."""
        out: dict[bytes, bytes] = {}
        parts = await asyncio.gather(*(self._segment(group, partition, segment) for segment in head.segments))
        for part in parts:
            if part is None:
                return None
            for key, value in part:
                if value is None:
                    out.pop(key, None)
                else:
                    out[key] = value
        return out

    async def _segment(self, group: str, partition: int, segment: Segment) -> list[tuple[bytes, bytes | None]] | None:
        subject, start, found = self._names.segment(group, partition, segment.name), 1, list[bytes]()
        while len(found) < segment.chunks:
            got = await get(self._link, self._names.checkpoints, {"seq": start, "next_by_subj": subject, "batch": 64})
            if not got.messages:
                return None
            found += [msg.data for msg in got.messages]
            start = int((got.messages[-1].headers or {})["Nats-Sequence"]) + 1
        whole = b"".join(found)
        return ENTRIES.decode(whole) if len(whole) == segment.size else None

    # ---- writing -----------------------------------------------------------------------------------------------------
    async def save(
        self, group: str, partition: int, token: str, epoch: int, position: int, anchor: bytes,
        changed: Mapping[bytes, bytes], gone: Collection[bytes],
    ) -> bool:  # fmt: skip
        """Replace a checkpoint; False where the epoch is no longer the group's."""
        held = await leases.hold_of(self._reader, self._names, group, partition)
        if not _owns(held, token, epoch):
            return False
        wanted = dict.fromkeys(gone) | dict(changed)
        before = held.hold.head.segments if held.hold.head is not None else []
        segments = list(before)
        if wanted:
            segments = await self._changed(group, partition, epoch, held.hold.head, list(wanted.items()))
        head = Head(position, anchor, segments)
        flipped = await self._flip(group, partition, token, epoch, held, head)
        kept = segments if flipped else before
        for segment in {s.name for s in [*before, *segments]} - {s.name for s in kept}:
            await self._purge(self._names.segment(group, partition, segment))
        if flipped:
            await self._tidy(group, partition, epoch, segments)
        return flipped

    async def _changed(
        self, group: str, partition: int, epoch: int, head: Head | None, wanted: list[tuple[bytes, bytes | None]]
    ) -> list[Segment]:
        """Write what changed, or all where that is better; return the segments of the new checkpoint."""
        segments = head.segments if head is not None else []
        raw = msgspec.msgpack.encode(wanted)
        later = sum(s.size for s in segments[1:]) + len(raw)
        if head is None or (len(segments) < MANY and later < max(SMALL, segments[0].size if segments else 0)):
            return [*segments, await self._write(group, partition, epoch, raw)]
        entries = await self._entries(group, partition, head)
        if entries is None:
            return [*segments, await self._write(group, partition, epoch, raw)]
        for key, value in wanted:
            if value is None:
                entries.pop(key, None)
            else:
                entries[key] = value
        return [await self._write(group, partition, epoch, msgspec.msgpack.encode(list(entries.items())))]

    async def _write(self, group: str, partition: int, epoch: int, raw: bytes) -> Segment:
        name = f"{epoch}-{os.urandom(8).hex()}"
        subject = self._names.segment(group, partition, name)
        chunks = [raw[i : i + CHUNK] for i in range(0, len(raw), CHUNK)]
        answers = [await self._link.ask(subject, chunk, {MSG_ID: f"{name}-{n}"}) for n, chunk in enumerate(chunks)]
        for answer in answers:
            try:
                accepted(await self._link.answer(answer, subject))
            except Refused as error:
                raise BrokerUnavailable(f"{self._names.checkpoints} refuses a part of a checkpoint: {error}") from error
        return Segment(name, len(chunks), len(raw))

    async def _flip(self, group: str, partition: int, token: str, epoch: int, held: Held, head: Head) -> bool:
        subject = self._names.lease(group, partition)
        while _owns(held, token, epoch):
            hold = msgspec.structs.replace(held.hold, head=head)
            try:
                if await leases.put(self._link, subject, msgspec.msgpack.encode(hold), held.revision) is not None:
                    return True
            except BrokerUnavailable:
                await self._link.connected(5.0)
            held = await leases.hold_of(self._reader, self._names, group, partition)
            if held.hold.head == head:
                return True
        return False

    # ---- what no checkpoint names any more ---------------------------------------------------------------------------
    async def _purge(self, subject: str) -> None:
        try:
            await self._link.api(f"STREAM.PURGE.{self._names.checkpoints}", {"filter": subject})
        except (Refused, BrokerUnavailable):
            pass  # the next owner tidies up

    async def _tidy(self, group: str, partition: int, epoch: int, kept: list[Segment]) -> None:
        """Once an epoch: purge what owners have left that died in the middle of a save."""
        if (group, partition, epoch) in self._tidied:
            return
        self._tidied.add((group, partition, epoch))
        pattern = self._names.segment(group, partition, "*")
        try:
            found = await self._link.api(f"STREAM.INFO.{self._names.checkpoints}", {"subjects_filter": pattern})
        except (Refused, BrokerUnavailable):
            return
        named = {self._names.segment(group, partition, s.name) for s in kept}
        for subject in set(found["state"].get("subjects") or {}) - named:
            if int(subject.rpartition(".")[2].partition("-")[0]) < epoch:  # a later owner may be writing one now
                await self._purge(subject)


def _owns(held: Held, token: str, epoch: int) -> bool:
    return held.hold.epoch == epoch and held.hold.owner == token and not held.hold.released
