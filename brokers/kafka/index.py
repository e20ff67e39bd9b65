"""Where the records of each key are: Kafka does not know it, so a reader of workflows keeps it, in memory."""

from __future__ import annotations

import asyncio
import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ...bus.broker import Stored
from .wire import Raw

if TYPE_CHECKING:
    from .reading import Log

RECENT_RECORDS, RECENT_BYTES = 500, 1 << 20
"""The newest records of a partition are kept as well: those that were just found are mostly those that are wanted."""


def stored(raw: Raw) -> Stored:
    """Return a record as the port has it. A key that is no text is somebody else's: it is shown as it can be."""
    key = None if raw.key is None else raw.key.decode("utf-8", "backslashreplace")
    return Stored(raw.offset + 1, key, raw.value or b"", raw.time / 1000)


class Index:
    """Which positions of a partition a key has, above `start` and up to where it was read; 8 bytes a record, some 200 a
    key. Indexes of one partition share `turn`: one of them scans at a time."""

    def __init__(self, log: Log, partition: int, start: int, turn: asyncio.Lock) -> None:
        self.log, self.partition, self.start, self.turn = log, partition, start, turn
        self.next = start
        self._own = array("q")
        self._keys: dict[int, array[int]] = {}
        self._recent: OrderedDict[int, Raw] = OrderedDict()
        self._bytes = 0

    async def catch_up(self) -> None:
        """Know all that was acknowledged before. One scan serves all that ask at once."""
        end = await self.log.ends.ask(self.partition, None)
        if self.next > end:
            await self.log.after_loss(self.partition, self.next)
        if self.next >= end:
            return
        async with self.turn:
            while self.next < end:
                part = await self.log.news.ask(self.partition, self.next)
                if part.error:
                    self.next = await self.log.after_loss(self.partition, self.next)
                    continue
                for raw in part.records:
                    self._add(raw)
                self.next = max(part.next, self.next)
                self._keep(part.records)
                await asyncio.sleep(0)

    def _add(self, raw: Raw) -> None:
        if raw.key is None:
            self._own.append(raw.offset + 1)
            return
        digest = _digest(raw.key)
        known = self._keys.get(digest)
        if known is None:
            self._keys[digest] = array("q", (raw.offset + 1,))
        else:
            known.append(raw.offset + 1)

    def _keep(self, records: list[Raw]) -> None:
        for raw in records[-RECENT_RECORDS:]:
            self._recent[raw.offset] = raw
            self._bytes += len(raw.value or b"")
        while len(self._recent) > RECENT_RECORDS or self._bytes > RECENT_BYTES:
            _, raw = self._recent.popitem(last=False)
            self._bytes -= len(raw.value or b"")

    def recent(self, positions: Iterable[int]) -> dict[int, Stored]:
        """Return those of the records at these positions that are at hand."""
        return {p: stored(self._recent[p - 1]) for p in positions if p - 1 in self._recent}

    def positions(self, key: str, after: int) -> list[int]:
        """Return the positions of a key, and of the partition's own records."""
        of_key = self._keys.get(_digest(key.encode("utf-8", "surrogatepass")), ())
        return sorted(p for known in (of_key, self._own) for p in known if p > after)


def _digest(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "big")
