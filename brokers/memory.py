"""The log in memory: the readable specification of the port, and what tests run on. Gone with the process."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Literal
from urllib.parse import urlsplit
from weakref import WeakValueDictionary

from ..bus.broker import (
    ANY_LOG,
    MAX_HINT,
    RULES,
    Appended,
    Assigned,
    At,
    Batch,
    Broker,
    Capabilities,
    Checkpoint,
    Conflict,
    Duplicate,
    Event,
    Fence,
    Fenced,
    Health,
    Item,
    LogMeta,
    LogSpec,
    Lost,
    Member,
    Page,
    Presence,
    Result,
    Revoked,
    Stored,
)  # fmt: skip
from ..bus.clock import Clock, Source
from ..bus.errors import ConfigError, LogMismatch, LogMissing, LogTruncated, TooLarge
from ..bus.partition import partition_of

DEFAULT_PARTITIONS = 4


class Owned:
    """A group's hold of one partition."""

    def __init__(self) -> None:
        self.epoch = 0
        self.owner: MemorySubscription | None = None
        self.released = True


class Log:
    """What is shared by the brokers that are open on one log."""

    def __init__(self) -> None:
        self.meta: LogMeta | None = None
        self.partitions: list[list[Stored]] = []
        self.by_key: list[dict[str | None, list[int]]] = []
        self.ids: dict[tuple[int, str | None, str], int] = {}
        self.owned: dict[str, list[Owned]] = {}
        self.subscriptions: dict[str, list[MemorySubscription]] = defaultdict(list)
        self.checkpoints: dict[tuple[str, int], Checkpoint] = {}
        self.presences: dict[str, tuple[Presence, float, float]] = {}
        self.listeners: dict[str, MemoryListener] = {}

    def create(self, spec: LogSpec, log_id: str, now: float) -> LogMeta:
        n = spec.partitions or DEFAULT_PARTITIONS
        sizes = {k: v for k in ("max_record", "max_append") if (v := getattr(spec, k)) is not None}
        self.partitions = [[] for _ in range(n)]
        self.by_key = [defaultdict(list) for _ in range(n)]
        self.meta = LogMeta(log_id=log_id, partitions=n, created=now, rules=RULES, **sizes)
        return self.meta


_named: WeakValueDictionary[str, Log] = WeakValueDictionary()


def from_url(url: str) -> MemoryBroker:
    """`memory://` is a log of its own; `memory://NAME` is shared by all that open it in this process."""
    name = urlsplit(url).netloc
    if not name:
        return MemoryBroker()
    log = _named.get(name)
    if log is None:
        log = _named[name] = Log()
    return MemoryBroker(log, name=name)


class MemoryBroker:
    """See `refold.bus.broker.Broker` for what each method promises."""

    capabilities = Capabilities(compare_and_append=True, refuse_duplicates=True, fence_appends=True)

    def __init__(
        self, log: Log | None = None, *, name: str = "", clock: Clock | None = None, source: Source | None = None
    ) -> None:
        self.log = log or Log()
        self.url = f"memory://{name}"
        self.clock = clock or Clock()
        self.source = source or Source()

    @property
    def meta(self) -> LogMeta:
        if self.log.meta is None:
            raise LogMissing("there is no log yet: call ensure_log")
        return self.log.meta

    async def __aenter__(self) -> Broker:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        for group in list(self.log.subscriptions.values()):
            for sub in [s for s in group if s.broker is self]:
                sub.leave()

    async def ensure_log(self, spec: LogSpec = ANY_LOG, *, create: bool = True) -> LogMeta:
        meta = self.log.meta
        if meta is None:
            if not create:
                raise LogMissing("there is no log in memory yet; it lives in the process that made it")
            return self.log.create(spec, self.source.new_id(), self.clock.now())
        wrong = [
            f"{k} is {getattr(meta, k)}, asked for {v}"
            for k in spec.__struct_fields__
            if (v := getattr(spec, k)) is not None and v != getattr(meta, k)
        ]
        if wrong:
            raise LogMismatch("the log is not what was asked for: " + "; ".join(wrong))
        return meta

    # ---- appending ---------------------------------------------------------------------------------------------------
    async def append(self, items: Sequence[Item], fence: Fence | None = None) -> list[Result]:
        for item in items:
            self._check(item.partition, [r.value for r in item.records])
        stale = self._stale(fence)
        results = [stale if stale is not None else self._append(item) for item in items]
        self._ring()
        await asyncio.sleep(0)
        return results

    def _check(self, partition: int, values: Sequence[bytes]) -> None:
        if not 0 <= partition < self.meta.partitions:
            raise ValueError(f"partition {partition}: the log has {self.meta.partitions}, counted from 0")
        largest, whole = max(map(len, values), default=0), sum(map(len, values))
        if largest > self.meta.max_record:
            raise TooLarge(f"a record of {largest} bytes, the log takes {self.meta.max_record}", remedy="send less")
        if whole > self.meta.max_append:
            raise TooLarge(f"an append of {whole} bytes, the log takes {self.meta.max_append}", remedy="send less")

    def _stale(self, fence: Fence | None) -> Fenced | None:
        if fence is None:
            return None
        owned = self.log.owned.get(fence.group)
        held = owned[fence.partition] if owned else None
        if held is None or held.released:
            return Fenced(None)
        return None if held.epoch == fence.epoch else Fenced(held.epoch)

    def _append(self, item: Item) -> Result:
        log = self.log
        for record in item.records:
            known = log.ids.get((item.partition, item.key, record.id))
            if known is not None:
                return Duplicate(known)
        positions = log.by_key[item.partition].get(item.key, ())
        last = positions[-1] if positions else 0
        if item.after is not None and last > item.after:
            return Conflict(last)
        out = []
        for record in item.records:
            out.append(self._store(item.partition, item.key, record.value))
            log.ids[item.partition, item.key, record.id] = out[-1]
        return Appended(tuple(out))

    def _store(self, partition: int, key: str | None, value: bytes) -> int:
        records = self.log.partitions[partition]
        position = len(records) + 1
        records.append(Stored(position, key, bytes(value), self.clock.now()))
        self.log.by_key[partition][key].append(position)
        return position

    async def append_raw(self, partition: int, records: Sequence[tuple[str | None, bytes]]) -> tuple[int, ...]:
        taken = [(key, bytes(memoryview(value))) for key, value in records]
        self._check(partition, [value for _, value in taken])
        positions = tuple(self._store(partition, key, value) for key, value in taken)
        self._ring()
        await asyncio.sleep(0)
        return positions

    def _ring(self) -> None:
        for group in self.log.subscriptions.values():
            for sub in group:
                sub.news.set()

    # ---- reading -----------------------------------------------------------------------------------------------------
    def _records(self, partition: int) -> list[Stored]:
        return self.log.partitions[partition] if self.meta else []

    async def read(self, partition: int, start: int | At = 0, *, end: int | None = None, limit: int = 1000) -> Page:
        records = self._records(partition)
        if isinstance(start, At):
            first = next((s.position for s in records if s.time >= start.time), len(records) + 1)
        else:
            first = max(start, 1)
        last = len(records) if end is None else min(end - 1, len(records))
        page = records[first - 1 : min(first - 1 + limit, max(last, 0))]
        more = bool(page) and page[-1].position < last
        await asyncio.sleep(0)
        return Page(page, page[-1].position + 1 if more else None)

    async def read_workflow(self, correlation_id: str, *, after: int = 0, limit: int = 1000) -> Page:
        partition = partition_of(correlation_id, self.meta.partitions)
        records, by_key = self.log.partitions[partition], self.log.by_key[partition]
        positions = sorted(p for key in (correlation_id, None) for p in by_key.get(key, ()) if p > after)
        page = [records[p - 1] for p in positions[:limit]]
        await asyncio.sleep(0)
        return Page(page, page[-1].position if len(positions) > limit else None)

    async def read_at(self, partition: int, positions: Sequence[int]) -> list[Stored]:
        records = self._records(partition)
        missing = [p for p in positions if not 1 <= p <= len(records)]
        if missing:
            raise LogTruncated(f"partition {partition} holds no record at {missing[0]}")
        await asyncio.sleep(0)
        return [records[p - 1] for p in sorted(set(positions))]

    # ---- groups ------------------------------------------------------------------------------------------------------
    @contextlib.asynccontextmanager
    async def subscribe(
        self, group: str, member: str, *, partitions: Collection[int] | None = None, lease: float = 8.0,
        stall_limit: float = 30.0,
    ) -> AsyncIterator[MemorySubscription]:  # fmt: skip
        log, _ = self.log, self.meta
        if any(s.member == member for s in log.subscriptions[group]):
            raise ConfigError(f"member {member!r} is in group {group!r} already: choose another --member")
        sub = self._member(group, member, partitions)
        log.owned.setdefault(group, [Owned() for _ in log.partitions])
        log.subscriptions[group].append(sub)
        sub.rebalance()
        try:
            yield sub
        finally:
            sub.leave()

    def _member(self, group: str, member: str, partitions: Collection[int] | None) -> MemorySubscription:
        return MemorySubscription(self, group, member, partitions)

    def kill(self, member: str) -> None:
        """Let a member's process die, as far as the log can tell: nothing is released. For tests."""
        for group in self.log.subscriptions.values():
            for sub in [s for s in group if s.member == member]:
                sub.die()

    def steal(self, group: str, partition: int) -> None:
        """Take a partition away from its owner, who is told that it is lost. For tests."""
        held = self.log.owned[group][partition]
        if held.owner is not None:
            held.owner.lose(partition)

    async def checkpoint(self, group: str, partition: int) -> Checkpoint | None:
        known = self.log.checkpoints.get((group, partition))
        return known and known._replace(entries=dict(known.entries))

    async def checkpoint_groups(self, partition: int) -> list[str]:
        found = [(c.position, g) for (g, p), c in self.log.checkpoints.items() if p == partition]
        return [g for _, g in sorted(found, key=lambda f: (-f[0], f[1]))]

    async def positions(self, kind: Literal["begin", "end", "committed"], group: str | None = None) -> dict[int, int]:
        if kind == "begin":
            return dict.fromkeys(range(self.meta.partitions), 1)
        if kind == "end":
            return {p: len(records) + 1 for p, records in enumerate(self.log.partitions)}
        saved = {p: self.log.checkpoints.get((group or "", p)) for p in range(self.meta.partitions)}
        return {p: c.position + 1 if c else 0 for p, c in saved.items()}

    # ---- who is alive, and hints -------------------------------------------------------------------------------------
    async def announce(self, presence: Presence, *, ttl: float = 8.0) -> None:
        self.log.presences[presence.member] = (presence, self.clock.monotonic(), ttl)

    async def withdraw(self, member: str) -> None:
        known = self.log.presences.get(member)
        if known is not None:
            self.log.presences[member] = (known[0], known[1], -1.0)

    async def members(self, group: str | None = None, *, gone: bool = False) -> list[Member]:
        now, out = self.clock.monotonic(), []
        for presence, told, ttl in self.log.presences.values():
            member = Member(presence, now - told, now - told <= ttl)
            if (group is None or presence.group == group) and (member.alive or gone):
                out.append(member)
        return out

    async def notify(self, address: str, hint: bytes) -> None:
        if len(hint) > MAX_HINT:
            raise ValueError(f"a hint of {len(hint)} bytes, at most {MAX_HINT}")
        listener = self.log.listeners.get(address)
        if listener is not None:
            listener.hints.put_nowait(bytes(hint))

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[MemoryListener]:
        listener = MemoryListener(self.source.new_id())
        self.log.listeners[listener.address] = listener
        try:
            yield listener
        finally:
            del self.log.listeners[listener.address]

    async def health(self) -> Health:
        return Health(ok=True, durability="D0", why="the log is in the memory of one process")


class MemoryListener:
    """A queue of hints."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.hints: asyncio.Queue[bytes] = asyncio.Queue()

    async def get(self) -> bytes:
        return await self.hints.get()


class MemorySubscription:
    """See `refold.bus.broker.Subscription` for what each method promises."""

    def __init__(self, broker: MemoryBroker, group: str, member: str, partitions: Collection[int] | None) -> None:
        self.broker, self.log = broker, broker.log
        self.group, self.member = group, member
        self.wanted = set(range(broker.meta.partitions) if partitions is None else partitions)
        self.news = asyncio.Event()
        self.events: list[Event] = []
        self.holds: dict[int, int] = {}
        self.told: dict[int, int] = {}
        self.next: dict[int, int] = {}
        self.paused: set[int] = set()
        self.revoking: set[int] = set()
        self._turn = 0

    async def fetch(self, max_records: int = 1000, max_wait: float = 1.0) -> list[Event]:
        out = self._take(max_records)
        if not out and max_wait > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max_wait):
                    while not out:
                        await self.news.wait()
                        out = self._take(max_records)
        await asyncio.sleep(0)
        return out

    def _take(self, max_records: int) -> list[Event]:
        self.news.clear()
        events, self.events = self.events, []
        self._tell_apart(events)
        left = max_records
        open_ = [p for p in self.next if p in self.told and p not in self.paused]
        self._turn += 1
        for i in range(len(open_)):
            p = open_[(i + self._turn) % len(open_)]
            records = self.log.partitions[p][self.next[p] - 1 : self.next[p] - 1 + left]
            if records:
                events.append(Batch(p, self.told[p], records))
                self.next[p] = records[-1].position + 1
                left -= len(records)
        if not left:
            self.news.set()
        return events

    def _tell_apart(self, events: Sequence[Event]) -> None:
        """A seek or a pause holds within the epoch of which the member knew when it asked for it."""
        for event in events:
            if isinstance(event, Assigned | Lost):
                self._forget(event.partition)
            if isinstance(event, Assigned):
                self.told[event.partition] = event.epoch

    def _forget(self, partition: int) -> None:
        self.told.pop(partition, None)
        self.next.pop(partition, None)
        self.paused.discard(partition)

    def seek(self, partition: int, position: int) -> None:
        self.next[partition] = max(position, 1)
        self.news.set()

    def pause(self, partitions: Collection[int]) -> None:
        self.paused |= set(partitions)

    def resume(self, partitions: Collection[int]) -> None:
        self.paused -= set(partitions)
        self.news.set()

    async def release(self, partition: int, epoch: int) -> None:
        if self.told.get(partition) == epoch:
            self._forget(partition)
        if self.holds.get(partition) == epoch:
            self._drop(partition)
            held = self.log.owned[self.group][partition]
            held.owner, held.released = None, True
            self.rebalance()

    async def save_checkpoint(
        self, partition: int, epoch: int, position: int, anchor: bytes, changed: Mapping[bytes, bytes],
        gone: Collection[bytes],
    ) -> bool:  # fmt: skip
        await asyncio.sleep(0)
        held = self.log.owned[self.group][partition]
        if held.epoch != epoch or held.owner is not self:
            return False
        known = self.log.checkpoints.get((self.group, partition))
        entries = {k: v for k, v in (known.entries if known else {}).items() if k not in set(gone)}
        self.log.checkpoints[self.group, partition] = Checkpoint(position, anchor, {**entries, **changed})
        return True

    def deadline(self, partition: int) -> float:
        return math.inf if partition in self.holds else -math.inf

    def turned(self) -> None:
        pass

    def owned(self) -> Mapping[int, int]:
        return dict(self.holds)

    # ---- sharing the partitions --------------------------------------------------------------------------------------
    def rebalance(self) -> None:
        """Let members claim what is free up to their share, and give up what is beyond it."""
        members = self.log.subscriptions[self.group]
        for partition, held in enumerate(self.log.owned[self.group]):
            able = [s for s in members if partition in s.wanted]
            if held.owner is None and able:
                min(able, key=lambda s: len(s.holds)).claim(partition, held)
        counts = {s: len(s.holds) for s in members}
        for sub in members:
            for partition in sorted(sub.holds):
                heir = min((s for s in members if partition in s.wanted), key=lambda s: counts[s], default=sub)
                if partition in sub.revoking or counts[heir] + 1 < counts[sub]:
                    counts[sub] -= 1
                    counts[heir] += 1
                    sub.revoke(partition)

    def revoke(self, partition: int) -> None:
        """Ask the owner to give the partition up, once."""
        if partition not in self.revoking:
            self.revoking.add(partition)
            self.tell(Revoked(partition, self.holds[partition]))

    def claim(self, partition: int, held: Owned) -> None:
        """Become the owner, in a new epoch."""
        died = not held.released
        held.epoch, held.owner, held.released = held.epoch + 1, self, False
        self.holds[partition] = held.epoch
        self.tell(Assigned(partition, held.epoch, after_death=died))

    def tell(self, event: Event) -> None:
        self.events.append(event)
        self.news.set()

    def _drop(self, partition: int) -> None:
        self.holds.pop(partition, None)
        self.revoking.discard(partition)

    def lose(self, partition: int) -> None:
        """Another member takes the partition."""
        epoch = self.holds[partition]
        self._drop(partition)
        self.tell(Lost(partition, epoch))
        self.log.owned[self.group][partition].owner = None
        self.rebalance()

    def die(self) -> None:
        """Fall silent for the lease: others take over; it is told if it ever asks."""
        self.told.clear()
        members = self.log.subscriptions[self.group]
        if self in members:
            members.remove(self)
            for partition, epoch in list(self.holds.items()):
                self.log.owned[self.group][partition].owner = None
                self._drop(partition)
                self.tell(Lost(partition, epoch))
            self.rebalance()

    def come_back(self) -> None:
        """Speak again after having fallen silent: a member like any other, which owns nothing yet. For tests."""
        self.log.subscriptions[self.group].append(self)
        self.rebalance()

    def leave(self) -> None:
        """Release everything; nothing happens where it has died."""
        for partition in self.holds:
            self.log.owned[self.group][partition].released = True
        self.die()
