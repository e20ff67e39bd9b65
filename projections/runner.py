"""Running projections: catch up, follow live, or rebuild beside the live states and let the new ones take over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from ..bus import codec, facts
from ..bus.broker import Broker, Stored
from ..bus.errors import ConfigError, InvalidMessage, LogTruncated, TryAgain
from ..bus.values import is_plain
from .checkpoint import changes, fold_records, restore, verify_anchor
from .history import raw_of
from .partition import Folded, PartitionFold
from .projection import SCOPES, Projection, Record
from .store import ProjectionStore, Slot
from .verdict import Verdict
from .workflow import Workflow

FLUSH = 20_000
"""Records after which states and position are written, while there is more to read."""
LOOK = 0.2
"""Seconds between two looks at the log's end while following it."""
MANY = 500
"""Records that are read by position in one go."""
PATIENCE = 5.0
"""Longest wait (seconds) before a log or store that could not be reached is tried again."""

log = logging.getLogger("refold.projections")

Progress = Callable[[int, int], None]


def _quiet(done: int, of: int) -> None:
    pass


async def catch_up(
    broker: Broker, store: ProjectionStore, projection: Projection, on_progress: Progress = _quiet
) -> int:
    """Fold what is new into the live states; build them where there are none of this version. Returns the records.

    Raises ConfigError where the store holds a newer version, LogTruncated where the log lost what was folded.
    """
    return await Lane(broker, store, projection).advance(on_progress)


async def rebuild(
    broker: Broker, store: ProjectionStore, projection: Projection, on_progress: Progress = _quiet
) -> tuple[int, int]:
    """Fold the whole log into new states; those that are live are read until the new ones take over.

    Returns how many records were folded, and how many states there are. Raises TryAgain when another rebuild of the
    same projection began meanwhile.
    """
    build = await _build(broker, store, projection, on_progress)
    return build.folded, await store.count(build.slot)


async def follow(broker: Broker, store: ProjectionStore, projections: Sequence[Projection]) -> None:
    """Keep projections up to date until cancelled. What cannot be reached is tried again."""
    lanes = [Lane(broker, store, projection) for projection in projections]
    wait = LOOK
    while True:
        try:
            for lane in lanes:
                await lane.advance()
            wait = LOOK
        except TryAgain as error:
            wait = min(wait * 2, PATIENCE)
            log.warning("projections: %s; trying again in %.1f s", error, wait)
        await asyncio.sleep(wait)


class Lane:
    """One projection's way along the log. It keeps its folds between two looks, and begins again at what the store
    has where somebody else has saved meanwhile."""

    def __init__(self, broker: Broker, store: ProjectionStore, projection: Projection) -> None:
        self.broker, self.store, self.projection = broker, store, projection
        self._build: Build | None = None

    async def advance(self, on_progress: Progress = _quiet) -> int:
        """Fold up to what is the log's end now; return how many records that were."""
        build, self._build = self._build, None  # an error or a cancel in between leaves a fold that nobody may use
        folded = 0
        while True:
            if build is None:
                build = await self._open(on_progress)
            before = build.folded
            going_on = await build.advance(on_progress)
            folded += build.folded - before
            if going_on:
                break
            build = None
        self._build = build
        return folded

    async def _open(self, on_progress: Progress) -> Build:
        name, version = self.projection.name, self.projection.version
        slot = await self.store.live_slot(name)
        if slot is not None and slot.version > version:
            raise ConfigError(
                f"{self.store.path} holds version {slot.version} of {name!r}, this program has version {version}: "
                "run the newer program, rebuild it with this one, or name another file"
            )
        if slot is not None and slot.version == version:
            build = Build(self.broker, self.store, self.projection, slot)
            if await build.load():
                return build
        return await _build(self.broker, self.store, self.projection, on_progress)


async def _build(broker: Broker, store: ProjectionStore, projection: Projection, on_progress: Progress) -> Build:
    build = Build(broker, store, projection, await store.new_slot(projection.name, projection.version))
    while await build.advance(on_progress):
        if await store.go_live(build.slot):
            build.slot = build.slot._replace(live=True, turn=build.slot.turn + 1)
            return build
    raise TryAgain(f"another rebuild of {projection.name!r} has begun in {store.path}: this one was given up")


class Build:
    """One slot of a projection: its folds and what is not saved yet."""

    def __init__(self, broker: Broker, store: ProjectionStore, projection: Projection, slot: Slot) -> None:
        if projection.scope not in SCOPES:
            raise ConfigError(f"{projection.name!r} has scope {projection.scope!r}: it must be {' or '.join(SCOPES)}")
        self.broker, self.store, self.projection, self.slot = broker, store, projection, slot
        self.folds = {p: PartitionFold(p, broker.meta.partitions) for p in range(broker.meta.partitions)}
        self.folded = 0
        self._states: dict[str, Any] = {}
        self._unsaved = 0

    async def load(self) -> bool:
        """Go on where the store stopped; False where what it keeps is of other rules: it must be built anew.

        Raises LogTruncated where the log no longer holds what was folded.
        """
        for partition, fold in self.folds.items():
            saved = await self.store.checkpoint(self.slot, partition)
            if saved is None:
                continue
            try:
                await verify_anchor(self.broker, partition, saved)
            except LogTruncated as error:
                raise LogTruncated(f"{self.projection.name!r} must be rebuilt: {error}") from error
            if not restore(fold, saved):
                return False
        return True

    async def advance(self, on_progress: Progress = _quiet) -> bool:
        """Fold up to what is the log's end now. False when the slot is not this build's any more."""
        ends = {p: end for p, end in (await self.broker.positions("end")).items() if self.folds[p].position < end - 1}
        total = sum(end - 1 - self.folds[p].position for p, end in ends.items()) // self.broker.meta.stride
        before = self.folded
        for partition, end in ends.items():
            start: int | None = self.folds[partition].position + 1
            while start is not None and start < end:
                page = await self.broker.read(partition, start, end=end)
                await self._take(partition, page.records)
                self.folded += len(page.records)
                self._unsaved += len(page.records)
                start = page.next
                if (start is None or self._unsaved >= FLUSH) and not await self._save(partition):
                    return False
                on_progress(min(self.folded - before, total), total)
        return True

    async def _take(self, partition: int, page: list[Stored]) -> None:
        """Fold a page, then let what the verdicts say change the states, which are read in one go."""
        told: list[Record] = []
        ledger = self.projection.scope == "ledger"
        async for f in fold_records(self.broker, self.folds[partition], page):
            if ledger:
                told.append(Record(partition, f.position, f.verdict, f.envelope, f.value))
            elif f.verdict is Verdict.ADMITTED and f.workflow is not None:
                if isinstance(f.envelope.fact, facts.RolledBack):
                    told = [r for r in told if r.envelope.correlation_id != f.workflow.correlation]
                    self._states[f.workflow.correlation] = self.projection.start()
                    told += await self._path(partition, f, f.workflow)
                else:
                    told.append(Record(partition, f.position, f.verdict, f.envelope, f.value))
        await self._apply([(key, r) for r in told if (key := self.projection.key(r)) is not None])

    async def _apply(self, told: list[tuple[str, Record]]) -> None:
        self._states |= await self.store.states(self.slot, {key for key, _ in told} - set(self._states))
        for key, record in told:
            state = self._states.get(key)
            self._states[key] = self.projection.apply(self.projection.start() if state is None else state, record)

    async def _path(self, partition: int, f: Folded, w: Workflow) -> list[Record]:
        """Return the workflow's path after a rollback: its state is folded from it anew."""
        positions = sorted({entry.ref[0] for entry in w.view.path} - {f.position})
        raws = {f.position: f.value}
        for i in range(0, len(positions), MANY):
            raws |= {s.position: s.value for s in await self.broker.read_at(partition, positions[i : i + MANY])}
        path = []
        for entry in w.view.path:
            raw = raw_of(raws[entry.ref[0]], entry.ref[1])
            path.append(Record(partition, entry.ref[0], Verdict.ADMITTED, codec.envelope(raw), raw))
        return path

    async def _save(self, partition: int) -> bool:
        fold = self.folds[partition]
        states = {key: self._encoded(key, state) for key, state in self._states.items()}
        changed, gone = changes(fold, lambda w: False)
        slot = await self.store.save(
            self.slot, partition, fold.position, fold.last_id.encode(), states, changed, gone
        )
        if slot is None:
            return False
        self.slot, self._unsaved = slot, 0
        self._states.clear()
        return True

    def _encoded(self, key: str, state: Any) -> bytes:
        """A state must come back from the store as it went in, or a restart would change what it means."""
        if is_plain(state):
            return msgspec.json.encode(state)
        path = f"$.{self.projection.name}[{key!r}]"
        raw = msgspec.json.encode(codec.to_json(state, path))
        back = msgspec.json.decode(raw)
        if back != state:
            raise InvalidMessage(
                f"the state is {state!r}, which JSON gives back as {back!r}", path=path,
                remedy="let `apply` return dicts with str keys, lists, strings, numbers, booleans or None",
            )  # fmt: skip
        return raw


__all__ = ["Lane", "catch_up", "follow", "rebuild"]
