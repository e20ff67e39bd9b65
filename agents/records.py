"""Records by position: a cache of what was folded last, and the log for the rest."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

from ..bus.broker import Broker, Stored
from ..projections.history import raw_of
from ..projections.view import Ref

CACHE_BYTES = 16 * 1024 * 1024


class Records:
    """Reads bytes by (partition, ref). What has just been folded is at hand; the rest is read again."""

    def __init__(self, broker: Broker, limit: int = CACHE_BYTES) -> None:
        self._broker = broker
        self._limit = limit
        self._size = 0
        self._hot: defaultdict[int, dict[int, bytes]] = defaultdict(dict)
        self._order: deque[tuple[int, int]] = deque()

    def put(self, partition: int, stored: Stored) -> None:
        """Keep a record that was folded, as long as there is room."""
        hot = self._hot[partition]
        if stored.position in hot:  # folded again, after the partition was lost and came back
            return
        hot[stored.position] = stored.value
        self._order.append((partition, stored.position))
        self._size += len(stored.value)
        while self._size > self._limit:
            oldest, position = self._order.popleft()
            self._size -= len(self._hot[oldest].pop(position))

    def at_hand(self, partition: int, ref: Ref) -> bytes | None:
        """Return a record's bytes where they need not be read."""
        return self._hot[partition].get(ref[0]) if ref[1] < 0 else None

    async def read(self, partition: int, ref: Ref) -> bytes:
        """Return a record's bytes. Raises LogTruncated."""
        raw = self.at_hand(partition, ref)
        if raw is not None:
            return raw
        return (await self.read_many(partition, [ref]))[ref]

    async def read_many(self, partition: int, refs: Iterable[Ref]) -> dict[Ref, bytes]:
        """Return several records' bytes, read in one go. Raises LogTruncated."""
        wanted = set(refs)
        hot = self._hot[partition]
        found = {p: hot[p] for p, _ in wanted if p in hot}
        missing = sorted({p for p, _ in wanted} - set(found))
        if missing:
            found |= {s.position: s.value for s in await self._broker.read_at(partition, missing)}
        return {ref: raw_of(found[ref[0]], ref[1]) for ref in wanted}
