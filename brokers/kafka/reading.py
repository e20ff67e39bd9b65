"""Reading the log: by position, by time, by workflow. A position is an offset + 1."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from ...bus.broker import At, Page, Stored
from ...bus.errors import LogTruncated
from . import wire
from .index import Index, stored
from .link import PAUSE, Link, together
from .rounds import Rounds

SMALL = 64 * 1024
"""Bytes that are asked for where few records are wanted; a whole batch comes at least."""
LARGE = 1 << 20
NEAR = 200
"""Records that lie so close are read in one go."""
AT_ONCE = 16


def milliseconds(time: float) -> int:
    """Return the first millisecond whose `Stored.time` is this time or later."""
    ms = max(0, int(time * 1000) - 1)
    while ms / 1000 < time:
        ms += 1
    return ms


class Log:
    """Reads the topic of the records."""

    def __init__(self, link: Link, topic: str) -> None:
        self.link, self.topic = link, topic
        self.ends: Rounds[int, None, int] = Rounds(self._ends)
        self.news: Rounds[int, int, wire.Part] = Rounds(self._news)
        self._indexes: dict[int, Index] = {}

    async def aclose(self) -> None:
        """End what is asked for."""
        await self.ends.aclose()
        await self.news.aclose()

    async def _ends(self, asked: Mapping[int, None]) -> Mapping[int, int]:
        return await self.link.offsets(self.topic, asked)

    async def _news(self, asked: Mapping[int, int]) -> Mapping[int, wire.Part]:
        found = await self.link.fetch_parts(self.topic, asked, part_bytes=4 * LARGE)
        return {partition: of_one_record_each(part) for partition, part in found.items()}

    async def bounds(self, partition: int) -> tuple[int, int]:
        """Return the first offset that is there, and the one above all that was acknowledged."""
        begin = await self.link.offsets(self.topic, [partition], wire.EARLIEST)
        return begin[partition], await self.ends.ask(partition, None)

    async def page(self, partition: int, start: int | At, end: int | None, limit: int) -> Page:
        """Return up to `limit` records with start <= position < end."""
        first, last = await self._span(partition, start)
        last = last if end is None else min(last, end - 1)
        out = list[Stored]()
        while first < last and len(out) < limit:
            part = await self._part(partition, first, SMALL if limit - len(out) < NEAR else LARGE)
            if part is None:
                first = await self.after_loss(partition, first)
                continue
            for raw in part.records:
                if raw.offset >= last or len(out) == limit:
                    break
                out.append(stored(raw))
            first = out[-1].position if len(out) == limit else part.next
        return Page(out, first + 1 if first < last else None)

    async def _span(self, partition: int, start: int | At) -> tuple[int, int]:
        if not isinstance(start, At):
            begin, end = await self.bounds(partition)
            return max(begin, start - 1), end
        (end,) = (await self.link.offsets(self.topic, [partition])).values()
        (first,) = (await self.link.offsets(self.topic, [partition], milliseconds(start.time))).values()
        return (end if first < 0 else first), end

    async def after_loss(self, partition: int, offset: int) -> int:
        """Return where to go on when there is nothing at an offset that was there. Raises LogTruncated."""
        begin, end = await self.bounds(partition)
        if offset > end:
            raise LogTruncated(f"partition {partition} of {self.topic} ends before position {offset + 1}")
        await asyncio.sleep(PAUSE)
        return max(begin, offset)

    async def _part(self, partition: int, offset: int, size: int) -> wire.Part | None:
        part = await self.link.fetch_one(self.topic, partition, offset, part_bytes=size)
        return None if part.error else of_one_record_each(part)

    async def at(self, partition: int, positions: Sequence[int]) -> list[Stored]:
        """Return the records at these positions, ascending. Raises LogTruncated."""
        wanted = sorted(set(positions))
        if not wanted:
            return []
        begin, end = await self.bounds(partition)
        if wanted[0] - 1 < begin or wanted[-1] - 1 >= end:
            gone = next(p for p in wanted if not begin < p <= end)
            raise LogTruncated(f"partition {partition} of {self.topic} holds no record at {gone}")
        return await self._at(partition, wanted)

    async def _at(self, partition: int, wanted: list[int]) -> list[Stored]:
        """Return the records at ascending positions that were there a moment ago."""
        several = asyncio.Semaphore(AT_ONCE)

        async def some(run: list[int]) -> list[Stored]:
            async with several:
                return await self._run(partition, run)

        found = await together(some(run) for run in runs(wanted))
        return [record for records in found for record in records]

    async def _run(self, partition: int, wanted: list[int]) -> list[Stored]:
        """Return records that lie close to each other."""
        out, left = list[Stored](), set(wanted)
        size = SMALL if wanted[-1] - wanted[0] < NEAR // 4 else LARGE
        offset = wanted[0] - 1
        while left and offset < wanted[-1]:
            part = await self._part(partition, offset, size)
            if part is None:
                break
            for raw in part.records:
                if raw.offset + 1 in left:
                    left.discard(raw.offset + 1)
                    out.append(stored(raw))
            offset = min(left) - 1 if left and min(left) > part.next else part.next
        if left:
            raise LogTruncated(f"partition {partition} of {self.topic} holds no record at {min(left)}")
        return out

    async def workflow(self, partition: int, correlation_id: str, after: int, limit: int) -> Page:
        """Return records of a workflow and of the partition itself, above a position."""
        index = self._indexes.get(partition)
        if index is None:  # who waits for what was just appended wants nothing older
            index = self._indexes[partition] = Index(self, partition, after, asyncio.Lock())
        elif after < index.start:
            index = self._indexes[partition] = Index(self, partition, 0, index.turn)
        await index.catch_up()
        positions = index.positions(correlation_id, after)
        page = positions[:limit]
        recent = index.recent(page)
        older = [p for p in page if p not in recent]
        found = {r.position: r for r in await self._at(partition, older)} if older else {}
        records = [recent.get(p) or found[p] for p in page]
        records = [r for r in records if r.key in (None, correlation_id)]  # two keys may have one hash
        return Page(records, positions[limit - 1] if len(positions) > limit else None)


def of_one_record_each(part: wire.Part) -> wire.Part:
    """Return the part with one record at each offset. The owner of the partition appends the others again."""
    return part._replace(records=wire.apart(part.records)[0], twice=False) if part.twice else part


def runs(wanted: list[int]) -> list[list[int]]:
    """Cut ascending positions where there is a wide gap."""
    out = [[wanted[0]]]
    for position in wanted[1:]:
        if position - out[-1][-1] > NEAR:
            out.append([])
        out[-1].append(position)
    return out
