"""Copying workflows from one log to another: byte for byte, in order, and again from where it stopped.

What is copied are workflows: the records under their keys. What belongs to a partition (who owned it) stays; whom a
message obliges follows from who listened when it came, so where that matters the copy says it, by `owner` and `retired`
records of its own, and takes it back. A record in a wrong partition is left to a worker of the source, which moves it.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from hashlib import blake2b

import psutil
from msgspec import Struct

from ..bus import codec, facts, kinds
from ..bus.broker import Broker, LogMeta, LogSpec, Presence, Stored
from ..bus.errors import ConfigError, LogMissing, NoSuchWorkflow, TooLarge, UndecodableRecord
from ..bus.message import AgentMessage, Envelope, new_id
from ..bus.partition import partition_of
from ..bus.values import check_text
from ..projections.partition import Heard, is_own, listen
from ..projections.view import Listeners

COPIER = "refold-copy"
"""Group and sender of what the copy itself says of who listens."""
PAGE = 500
HOLDS = 8.0
"""Seconds for which the copy announces itself."""

Progress = Callable[[int, int], None]
StillHere = Callable[[], Awaitable[None]]


class Copied(Struct, frozen=True):
    """What a copy did. `there`: records that the target had already. `misplaced`: records in a wrong partition or under
    a wrong key, and bytes without a key: left out. `refused`: workflows of which the target holds something else."""

    workflows: int
    records: int
    there: int
    misplaced: int
    refused: tuple[str, ...]


class Known:
    """What the target holds of a workflow: how many records, and a digest over them; how far the source agrees."""

    __slots__ = ("count", "digest", "met", "run")

    def __init__(self) -> None:
        self.count, self.digest = 0, b""
        self.met, self.run = 0, b""


class Lane:
    """A partition of the target: what is to be appended, and who listens there, by all and without the copy's word."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.listeners: Listeners = {}
        self.theirs: Listeners = {}
        self.heard: Heard = {}
        self.their_heard: Heard = {}
        self.epoch = 0
        self.unclaimed: dict[str, set[str]] = {}
        self.waiting: list[tuple[str | None, bytes]] = []

    def take(self, r: Envelope) -> None:
        """Fold a record of the partition's own."""
        self._claimed(_listen(self.listeners, self.heard, r))
        if r.sender_id != COPIER:
            _listen(self.theirs, self.their_heard, r)
        elif isinstance(r.fact, facts.Owner):
            self.epoch = max(self.epoch, r.fact.epoch)

    def oblige(self, r: Envelope) -> None:
        """Take in a record that obliges who listens."""
        if r.receiver_id not in self.listeners:
            self.unclaimed.setdefault(r.receiver_id, set()).add(r.id)

    def _claimed(self, agents: Iterable[str]) -> None:
        for agent in agents:
            self.unclaimed.pop(agent, None)

    def match(self, wanted: Listeners) -> None:
        """Say who listens from here on, in that order (it is the order in which a message to all is handled)."""
        if list(self.listeners.items()) == list(wanted.items()):
            return
        said: list[tuple[str, facts.Fact]] = [
            (kinds.RETIRED, facts.Retired(agent=agent, actor=COPIER)) for agent in self.listeners
        ]
        if wanted:
            self.epoch += 1
            said += [
                (kinds.OWNER, facts.Owner(group=COPIER, epoch=self.epoch, agents=dict(wanted), member=COPIER)),
                (kinds.OWNER_RELEASED, facts.OwnerReleased(group=COPIER, epoch=self.epoch, member=COPIER)),
            ]
        self.waiting += [(None, codec.encode(_own(kind, fact))) for kind, fact in said]
        self.listeners = dict(wanted)
        self._claimed(wanted)


def _listen(listeners: Listeners, heard: Heard, r: Envelope) -> list[str]:
    """Let a partition's own record change who listens; return the agents that are new."""
    return [agent for agent, _ in listen(listeners, heard, r)]


def _own(kind: str, fact: facts.Fact) -> AgentMessage:
    return AgentMessage(
        id=new_id(), sender_id=COPIER, receiver_id="*", message_type=kind, correlation_id="", fact=fact
    )  # fmt: skip


async def ensure_target(source: Broker, target: Broker) -> LogMeta:
    """Make the target's log like the source's where there is none. Raises ConfigError where it cannot take the copy."""
    meta = source.meta
    try:
        found = await target.ensure_log(create=False)
    except LogMissing:
        return await target.ensure_log(
            LogSpec(partitions=meta.partitions, max_record=meta.max_record, max_append=meta.max_append)
        )
    if found.log_id == meta.log_id:
        raise ConfigError("source and target are the same log")
    if found.rules != meta.rules:
        raise ConfigError(
            f"the source was written under rules {meta.rules}, the target under {found.rules}: the same records would "
            "mean something else there; copy into a new log"
        )
    return found


async def copy(
    source: Broker, target: Broker, ids: Sequence[str] = (), *, on_progress: Progress = lambda done, of: None
) -> Copied:
    """Copy workflows (all, or those of `ids`) as they are now; of what the target has of them, only what is new.

    Both logs are open; `ensure_target` has been called. May be called again after any error, or when the source has
    grown. A workflow of which the target holds anything but its beginning (or more than it) is not touched, and named
    in `refused`. Cancelled: what was copied stays; the next call goes on. Raises ConfigError where workers, or another
    copy, are at the target; NoSuchWorkflow; TooLarge; what the brokers raise.
    """
    async with _alone(target) as still_here:
        return await Copy(source, target, still_here, on_progress).run(ids)


class Copy:
    """One run of `copy`."""

    def __init__(self, source: Broker, target: Broker, still_here: StillHere, progress: Progress) -> None:
        self.source, self.target, self.still_here, self.progress = source, target, still_here, progress
        self.lanes = [Lane(p) for p in range(target.meta.partitions)]
        self.known: dict[str, Known] = {}
        self.refused: dict[str, None] = {}
        self.met: set[bytes] = set()
        self.called: dict[str, set[tuple[int, str]]] = {}
        self.records = self.there = self.misplaced = 0
        self.done = self.of = 0

    async def run(self, ids: Sequence[str]) -> Copied:
        """Copy, then let the target's partitions be listened to as before."""
        if ids:
            await self._some(list(dict.fromkeys(ids)))
        else:
            await self._all()
        for lane in self.lanes:
            lane.match(lane.theirs)
        await self._flush()
        return Copied(len(self.met), self.records, self.there, self.misplaced, tuple(self.refused))

    async def _all(self) -> None:
        ends, targets = await self.source.positions("end"), await self.target.positions("end")
        self.of = await _records(self.source, ends) + await _records(self.target, targets)
        for lane in self.lanes:
            async for page in self._pages(self.target, lane.partition, targets[lane.partition]):
                for stored in page:
                    self._scan(lane, stored)
        for partition, end in ends.items():
            listeners, heard = dict[str, tuple[str, ...]](), Heard()
            self.called = {}
            async for page in self._pages(self.source, partition, end):
                await self._take(page, partition, listeners, heard)
        for id, known in list(self.known.items()):
            if 0 < known.met < known.count:
                await self._compare(id)

    async def _pages(self, broker: Broker, partition: int, end: int) -> AsyncIterator[list[Stored]]:
        start: int | None = 0
        while start is not None and start < end:
            page = await broker.read(partition, start, end=end, limit=PAGE)
            yield page.records
            start = page.next
            self.done += len(page.records)
            self.progress(min(self.done, self.of), self.of)
            await self.still_here()

    async def _some(self, ids: list[str]) -> None:
        for i, id in enumerate(ids):
            check_text(id, "$.correlation_id")
            partition = partition_of(id, len(self.lanes))
            lane = self.lanes[partition] = Lane(partition)
            async for page in _workflow(self.target, id):
                for stored in page:
                    self._scan(lane, stored)
            listeners, heard = dict[str, tuple[str, ...]](), Heard()
            self.called, found = {}, False
            async for page in _workflow(self.source, id):
                found = found or any(s.key == id for s in page)
                await self._take(page, partition_of(id, self.source.meta.partitions), listeners, heard)
            if not found:
                raise NoSuchWorkflow(f"the log at {self.source.url} holds no workflow {id!r}")
            known = self.known.get(id)
            if known is not None and 0 < known.met < known.count:
                await self._compare(id)
            self.progress(i + 1, len(ids))
            await self.still_here()

    # ---- records -----------------------------------------------------------------------------------------------------
    def _scan(self, lane: Lane, stored: Stored) -> None:
        """Take in a record of the target."""
        r = _envelope(stored)
        if stored.key is None:
            if r is not None and is_own(r):
                lane.take(r)
        elif _belongs(stored, r, lane.partition, len(self.lanes)):
            known = self.known.setdefault(stored.key, Known())
            known.count, known.digest = known.count + 1, _chained(known.digest, stored.value)
            if r is not None and _obliges(r):
                lane.oblige(r)

    async def _take(self, page: list[Stored], partition: int, listeners: Listeners, heard: Heard) -> None:
        """Take in records of the source, and append what the target has not."""
        for stored in page:
            r = _envelope(stored)
            if stored.key is None and r is not None and is_own(r):
                self._claim(_listen(listeners, heard, r), listeners)
            elif stored.key is None or not _belongs(stored, r, partition, self.source.meta.partitions):
                self.misplaced += 1
            else:
                self._take_one(stored.key, stored.value, r, listeners)
        await self._flush()

    def _claim(self, new: list[str], listeners: Listeners) -> None:
        """Agents listen now at the source: what was addressed to them and copied obliges them in the target too."""
        for agent in new:
            for partition, id in self.called.pop(agent, ()):
                if id in self.lanes[partition].unclaimed.get(agent, ()):
                    self.lanes[partition].match(listeners)

    def _take_one(self, key: str, value: bytes, r: Envelope | None, listeners: Listeners) -> None:
        lane = self.lanes[partition_of(key, len(self.lanes))]
        obliges = r is not None and _obliges(r)
        if self._is_new(key, value):
            self._check_size(key, value)
            if r is not None and obliges:
                lane.match(listeners)
                lane.oblige(r)
            lane.waiting.append((key, value))
            self.records += 1
        if r is not None and obliges:
            self.called.setdefault(r.receiver_id, set()).add((lane.partition, r.id))

    def _is_new(self, key: str, value: bytes) -> bool:
        self.met.add(blake2b(key.encode(), digest_size=12).digest())
        known = self.known.get(key)
        if key in self.refused:
            return False
        if known is None or known.met >= known.count:
            return True
        known.met, known.run = known.met + 1, _chained(known.run, value)
        if known.met == known.count and known.run != known.digest:
            self.there -= known.met - 1
            self.refused[key] = None
        else:
            self.there += 1
        return False

    def _check_size(self, key: str, value: bytes) -> None:
        if len(value) > self.target.meta.max_record:
            raise TooLarge(
                f"a record of workflow {key!r} has {len(value)} bytes, the target takes {self.target.meta.max_record}",
                remedy="copy into a log with a larger max_record",
            )

    async def _compare(self, id: str) -> None:
        """The target has more of a workflow than the source: well if it went on there, else it is refused."""
        here, there = await _values(self.source, id), await _values(self.target, id)
        if there[: len(here)] != here:
            self.there -= self.known[id].met
            self.refused[id] = None

    # ---- writing -----------------------------------------------------------------------------------------------------
    async def _flush(self) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for lane in self.lanes:
                    if lane.waiting:
                        group.create_task(self._append(lane))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from errors

    async def _append(self, lane: Lane) -> None:
        waiting, lane.waiting = lane.waiting, []
        for piece in _pieces(waiting, self.target.meta.max_append):
            await self.target.append_raw(lane.partition, piece)


def _pieces(records: list[tuple[str | None, bytes]], most: int) -> list[list[tuple[str | None, bytes]]]:
    """Cut into appends of at most `most` bytes."""
    pieces: list[list[tuple[str | None, bytes]]] = []
    size = most
    for record in records:
        size += len(record[1])
        if size > most:
            pieces.append([])
            size = len(record[1])
        pieces[-1].append(record)
    return pieces


def _chained(digest: bytes, value: bytes) -> bytes:
    return blake2b(value, digest_size=16, key=digest).digest()


def _envelope(stored: Stored) -> Envelope | None:
    try:
        return codec.envelope(stored.value)
    except UndecodableRecord:
        return None


def _belongs(stored: Stored, r: Envelope | None, partition: int, partitions: int) -> bool:
    """The record is one of the workflow of its key, or bytes that somebody put under it."""
    assert stored.key is not None
    return (r is None or r.correlation_id == stored.key) and partition_of(stored.key, partitions) == partition


def _obliges(r: Envelope) -> bool:
    """Whom the record obliges depends on who listens."""
    if r.message_type == kinds.ROLLED_BACK:
        return True
    return r.message_type not in kinds.ENGINE and r.message_type != kinds.TASK_REQUEST and r.in_reply_to is None


async def _records(broker: Broker, ends: dict[int, int]) -> int:
    """Return about how many records the log holds."""
    begins = await broker.positions("begin")
    return sum(ends[p] - begins[p] for p in ends) // broker.meta.stride


async def _workflow(broker: Broker, id: str) -> AsyncIterator[list[Stored]]:
    after: int | None = 0
    while after is not None:
        page = await broker.read_workflow(id, after=after, limit=PAGE)
        yield page.records
        after = page.next


async def _values(broker: Broker, id: str) -> list[bytes]:
    partition, partitions = partition_of(id, broker.meta.partitions), broker.meta.partitions
    found: list[bytes] = []
    async for page in _workflow(broker, id):
        found += [s.value for s in page if s.key == id and _belongs(s, _envelope(s), partition, partitions)]
    return found


# ---- who else is there -----------------------------------------------------------------------------------------------
@asynccontextmanager
async def _alone(target: Broker) -> AsyncIterator[StillHere]:
    """Announce the copy at the target, and keep doing so by the call that is yielded. Raises ConfigError."""
    there = [m.presence for m in await target.members() if m.alive and not _is_dead(m.presence)]
    if there:
        names = ", ".join(f"{p.member} (group {p.group}, pid {p.pid} on {p.host})" for p in there[:3])
        raise ConfigError(
            f"at the target {'are workers' if there[0].group != COPIER else 'is another copy'}: {names}; with a copy "
            f"they would go on with what is only half there: stop them first (who died is forgotten after {HOLDS:g} s)"
        )
    me = Presence(member=f"{COPIER}-{new_id()}", group=COPIER, pid=os.getpid(), host=socket.gethostname())
    told = 0.0

    async def still_here() -> None:
        nonlocal told
        if time.monotonic() - told > HOLDS / 4:
            await target.announce(me, ttl=HOLDS)
            told = time.monotonic()

    await still_here()
    try:
        yield still_here
    finally:
        await target.withdraw(me.member)


def _is_dead(p: Presence) -> bool:
    return p.host == socket.gethostname() and p.pid > 0 and not psutil.pid_exists(p.pid)
