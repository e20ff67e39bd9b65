"""Running projections: catch up, follow live, or rebuild beside the live states and let the new ones take over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from ..bus import facts
from ..bus.broker import Broker, Stored
from ..bus.errors import LogTruncated
from .checkpoint import changes, fold_stored, restore
from .partition import Folded, PartitionFold
from .projection import Projection, Record
from .store import ProjectionStore
from .verdict import Verdict
from .workflow import Workflow

FLUSH = 20_000
"""Records after which states and position are written, while there is more to read."""
LOOK = 0.2
"""Seconds between two looks at the log's end while following it."""

Progress = Callable[[int, int], None]


def _quiet(done: int, of: int) -> None:
    pass


async def catch_up(
    broker: Broker, store: ProjectionStore, projection: Projection, on_progress: Progress = _quiet
) -> int:
    """Fold what is new into the live states; build them where there are none of this version. Returns the records."""
    slot = await store.live_slot(projection.name, projection.version)
    if slot is None:
        records, _ = await rebuild(broker, store, projection, on_progress)
        return records
    return await _fold_all(broker, store, projection, slot, on_progress)


async def rebuild(
    broker: Broker, store: ProjectionStore, projection: Projection, on_progress: Progress = _quiet
) -> tuple[int, int]:
    """Fold the whole log into new states; those that are live are read until the new ones take over.

    Returns how many records were folded, and how many states there are.
    """
    slot = await store.new_slot(projection.name, projection.version)
    records = await _fold_all(broker, store, projection, slot, on_progress)
    await store.go_live(projection.name, slot)
    return records, await store.count(slot)


async def follow(broker: Broker, store: ProjectionStore, projections: Sequence[Projection]) -> None:
    """Keep projections up to date until cancelled."""
    while True:
        for projection in projections:
            await catch_up(broker, store, projection)
        await asyncio.sleep(LOOK)


async def _fold_all(
    broker: Broker, store: ProjectionStore, projection: Projection, slot: int, on_progress: Progress
) -> int:
    ends = await broker.positions("end")
    total, done = 0, 0
    folders = []
    for partition, end in ends.items():
        folder = Folder(broker, store, projection, slot, partition)
        await folder.load()
        total += max(0, end - 1 - folder.fold.position)
        folders.append((folder, end))
    for folder, end in folders:
        async for n in folder.run(end):
            done += n
            on_progress(done, total)
    return done


class Folder:
    """One projection over one partition: the admission fold, and the states that its verdicts change."""

    def __init__(
        self, broker: Broker, store: ProjectionStore, projection: Projection, slot: int, partition: int
    ) -> None:
        self.broker, self.store, self.projection = broker, store, projection
        self.slot, self.partition = slot, partition
        self.fold = PartitionFold(partition, broker.meta.partitions)
        self._states: dict[str, Any] = {}
        self._unsaved = 0

    async def load(self) -> None:
        """Go on where the store stopped. Raises LogTruncated where the log no longer holds that record."""
        saved = await self.store.checkpoint(self.slot, self.partition)
        if saved is None or saved.position == 0:
            return
        (stored,) = await self.broker.read_at(self.partition, [saved.position])
        r = self.fold.open_envelope(stored)
        if r is None or r.id.encode() != saved.anchor or not restore(self.fold, saved):
            raise LogTruncated(
                f"partition {self.partition} is not the one that {self.projection.name!r} was folded from: rebuild it"
            )

    async def run(self, end: int) -> Any:
        """Fold up to `end`; yields how many records each page had."""
        start: int | None = self.fold.position + 1
        while start is not None and start < end:
            page = await self.broker.read(self.partition, start, end=end)
            for stored in page.records:
                await self._take(stored)
            self._unsaved += len(page.records)
            if page.next is None or self._unsaved >= FLUSH:
                await self._save()
            yield len(page.records)
            start = page.next

    async def _take(self, stored: Stored) -> None:
        folded = await fold_stored(self.broker, self.fold, stored)
        if folded is None or folded.workflow is None:
            return
        rolled_back = isinstance(folded.envelope.fact, facts.RolledBack)
        if self.projection.scope == "ledger":
            await self._apply(folded)
        elif folded.verdict is Verdict.ADMITTED:
            await (self._refold(folded.workflow) if rolled_back else self._apply(folded))

    async def _apply(self, f: Folded) -> None:
        record = Record(self.partition, f.position, f.verdict, f.envelope, f.value)
        key = self.projection.key(record)
        if key is not None:
            state = await self._state(key)
            self._states[key] = self.projection.apply(self.projection.start() if state is None else state, record)

    async def _state(self, key: str) -> Any:
        if key not in self._states:
            self._states[key] = await self.store.state(self.slot, key)
        return self._states[key]

    async def _refold(self, w: Workflow) -> None:
        """After a rollback: the workflow's state is the fold of its new path."""
        from .history import read_workflow

        history = await read_workflow(self.broker, w.correlation)
        states: dict[str, Any] = {w.correlation: self.projection.start()}
        for entry in w.view.path:
            assert entry.envelope is not None
            record = Record(self.partition, entry.ref[0], Verdict.ADMITTED, entry.envelope, history.raw(entry))
            key = self.projection.key(record)
            if key is not None:
                states[key] = self.projection.apply(states.get(key, self.projection.start()), record)
        self._states.update(states)

    async def _save(self) -> None:
        if not self.fold.last_id:
            return
        changed, gone = changes(self.fold, lambda w: False)
        await self.store.save(
            self.slot, self.partition, self.fold.position, self.fold.last_id.encode(), self._states, changed, gone
        )
        self._states.clear()
        self._unsaved = 0
