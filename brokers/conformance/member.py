"""A member of a group that judges whatever it is told: what is promised of every event holds in every case."""

from __future__ import annotations

import asyncio
from collections import defaultdict

from ...bus.broker import Assigned, Batch, Event, Lost, Revoked, Stored, Subscription
from .promise import check, equal


class Member:
    """`epochs` is what it owns as far as it was told, `events` all that it was told.

    `obliging`: it releases what is revoked, at once. `seen` is shared by all members: who owned what under which epoch.
    """

    def __init__(
        self, sub: Subscription, name: str, group: str, leaving: asyncio.Event, left: asyncio.Event,
        seen: dict[tuple[str, int, int], str],
    ) -> None:  # fmt: skip
        self.sub, self.name, self.group = sub, name, group
        self.events: list[Event] = []
        self.epochs: dict[int, int] = {}
        self.obliging = True
        self._leaving, self._left, self._seen = leaving, left, seen
        self._next: dict[int, int] = {}
        self._highest: dict[int, int] = defaultdict(int)
        self._records: dict[int, list[Stored]] = defaultdict(list)

    async def leave(self) -> None:
        """Leave the group; a second call does nothing."""
        self._leaving.set()
        await self._left.wait()

    # ---- what it does ------------------------------------------------------------------------------------------------
    async def turn(self, max_records: int = 1000, max_wait: float = 0.02) -> list[Event]:
        """Fetch once, and judge what came."""
        self.sub.turned()
        events = await self.sub.fetch(max_records, max_wait)
        count = sum(len(e.records) for e in events if isinstance(e, Batch))
        check(count <= max_records, f"fetch({max_records}) returned {count} records")
        for event in events:
            self._judge(event)
        self.events += events
        for event in events:
            if self.obliging and isinstance(event, Revoked) and self.epochs.get(event.partition) == event.epoch:
                await self.release(event.partition)
        return events

    async def take(self, partition: int, count: int) -> list[Stored]:
        """Fetch until so many records of a partition have come, and return them; they are taken only once."""
        while len(self._records[partition]) < count:
            await self.turn(max_wait=0.2)
        taken, self._records[partition] = self._records[partition][:count], self._records[partition][count:]
        return taken

    def waiting(self, partition: int) -> list[Stored]:
        """Return the records of a partition that have come and that `take` has not returned."""
        return self._records[partition]

    def seek(self, partition: int, position: int = 0) -> None:
        """Read a partition from a position on."""
        self._next[partition] = position
        self.sub.seek(partition, position)

    async def release(self, partition: int) -> None:
        """Give a partition up."""
        self._next.pop(partition, None)
        await self.sub.release(partition, self.epochs.pop(partition))

    def assigned(self) -> list[Assigned]:
        """Return what it was given."""
        return [e for e in self.events if isinstance(e, Assigned)]

    def told(self, kind: type[Event], partition: int | None = None) -> list[Event]:
        """Return what it was told of a kind, of one partition or of all."""
        return [e for e in self.events if isinstance(e, kind) and partition in (None, e.partition)]

    # ---- what is promised of every event -----------------------------------------------------------------------------
    def _judge(self, event: Event) -> None:
        if isinstance(event, Assigned):
            self._judge_assigned(event)
        elif isinstance(event, Batch):
            self._judge_batch(event)
        elif isinstance(event, Lost | Revoked):
            equal(event.epoch, self.epochs.get(event.partition), f"the epoch that ends by {event}")
            if isinstance(event, Lost):
                self._next.pop(event.partition, None)
                del self.epochs[event.partition]

    def _judge_assigned(self, event: Assigned) -> None:
        partition, epoch = event.partition, event.epoch
        check(partition not in self.epochs, f"{event} while epoch {self.epochs.get(partition)} has not ended")
        if event.resumed:
            equal(epoch, self._highest[partition], f"the epoch of {event}")
        else:
            check(epoch > self._highest[partition], f"{event} after epoch {self._highest[partition]}")
        owner = self._seen.setdefault((self.group, partition, epoch), self.name)
        equal(owner, self.name, f"who owns partition {partition} under epoch {epoch}")
        self.epochs[partition] = self._highest[partition] = epoch
        self._next.pop(partition, None)

    def _judge_batch(self, event: Batch) -> None:
        partition, positions = event.partition, [r.position for r in event.records]
        equal(event.epoch, self.epochs.get(partition), f"the epoch of records of partition {partition}")
        check(positions, "a batch without records")
        first = self._next.get(partition, -1)
        check(first >= 0, f"records of partition {partition} were delivered before `seek`")
        check(positions[0] >= first, f"records from {positions[0]} on were delivered, not from {first}")
        check(positions == sorted(set(positions)), f"records were delivered out of order: {positions}")
        self._next[partition] = positions[-1] + 1
        self._records[partition] += event.records
