"""The port of one simulated process: every call of it may be slow, fail, happen twice, happen later, or be the last."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from refold.brokers.memory import MemoryBroker, MemorySubscription
from refold.bus.broker import (
    Appended,
    Assigned,
    Batch,
    Capabilities,
    Checkpoint,
    Event,
    Fence,
    Fenced,
    Health,
    Item,
    LogMeta,
    Lost,
    Member,
    Page,
    Presence,
    Result,
    Stored,
)  # fmt: skip
from refold.bus.clock import Clock
from refold.bus.errors import BrokerUnavailable

from .loop import Process
from .world import LEASE, World

LATENCIES = (0.0, 0.0, 0.0, 0.001, 0.002, 0.01, 0.05)


def short(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()[:8]


class Port:
    """A `Broker` for one process. With `world.refuses` false it claims and refuses nothing: admission is alone."""

    def __init__(self, world: World, process: Process, clock: Clock) -> None:
        self.world, self.process, self.clock = world, process, clock
        self.inner: MemoryBroker = world.broker
        self.url = "memory://simulated"

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities if self.world.refuses else Capabilities()

    @property
    def meta(self) -> LogMeta:
        return self.inner.meta

    async def __aenter__(self) -> Port:
        return self

    async def __aexit__(self, *exc: object) -> None:
        pass

    async def aclose(self) -> None:
        pass

    # ---- what may happen to any call
    def reach(self) -> None:
        """Raise where the log cannot be reached from here."""
        if self.process.dead:
            raise BrokerUnavailable("this process has died")
        if self.world.cut.get(self.process, 0.0) > self.world.loop.time():
            raise BrokerUnavailable("the network is cut")

    async def before(self, name: str, *words: Any, refuse: bool = True) -> None:
        world = self.world
        world.note(name, *words)
        self.reach()
        if world.happens("crash before a call"):
            await world.die_here()
        await self.wait()
        self.reach()
        if refuse and world.happens("call refused"):
            raise BrokerUnavailable(f"{name} is refused")

    async def after(self) -> None:
        world = self.world
        if world.happens("crash after a call"):
            await world.die_here()
        await self.wait()
        self.reach()

    async def wait(self) -> None:
        seconds = self.world.random.choice(LATENCIES)
        if self.world.happens("call slow"):
            seconds = self.world.random.uniform(0.1, 2.0)
        if seconds:
            await asyncio.sleep(seconds)

    # ---- appending
    async def append(self, items: Sequence[Item], fence: Fence | None = None) -> list[Result]:
        world, items = self.world, list(items)
        said = [f"{i.partition}/{i.key}:{','.join(f'{r.id}={short(r.value)}' for r in i.records)}" for i in items]
        await self.before("append", *said, fence, refuse=False)
        if world.happens("append refused"):
            raise BrokerUnavailable("nothing was written")
        if world.happens("append late"):
            world.later(world.random.uniform(0.01, 8.0), lambda: self._late(items, fence))
            raise BrokerUnavailable("whether it was written is unknown")
        if world.roll_back is not None and world.happens("rolled back meanwhile"):
            await world.roll_back(items[0].key)
        results = await self._append(items, fence)
        world.note("appended", *results)
        if any(isinstance(r, Fenced) for r in results):
            world.meet("write fenced")
        elif world.happens("append twice"):
            world.later(world.random.uniform(0.0, 30.0), lambda: world.land(items))
        elif world.happens("copy elsewhere") and items[0].key is not None:
            item = replace(items[0], partition=(items[0].partition + 1) % world.partitions)
            world.later(world.random.uniform(0.0, 10.0), lambda: world.land([item]))
        if world.happens("append unknown"):
            raise BrokerUnavailable("whether it was written is unknown")
        await self.after()
        return results

    def _late(self, items: list[Item], fence: Fence | None) -> None:
        if not self.world.refuses:
            self.world.land(items)
            return
        stale = self.inner._stale(fence)
        results = [stale or self.inner._append(item) for item in items]
        self.inner._ring()
        self.world.note("late", *results)
        if stale:
            self.world.meet("write fenced")

    async def _append(self, items: list[Item], fence: Fence | None) -> list[Result]:
        if self.world.refuses:
            return await self.inner.append(items, fence)
        return [
            Appended(tuple(self.world.store(item.partition, item.key, r.value) for r in item.records))
            for item in items
        ]

    async def append_raw(self, partition: int, records: Sequence[tuple[str | None, bytes]]) -> tuple[int, ...]:
        await self.before("append_raw", partition, *(short(v) for _, v in records))
        return await self.inner.append_raw(partition, records)

    # ---- reading
    def _limit(self, limit: int) -> int:
        return self.world.random.randint(1, 4) if self.world.happens("page in pieces") else limit

    async def read(self, partition: int, start: Any = 0, *, end: int | None = None, limit: int = 1000) -> Page:
        await self.before("read", partition, start, end)
        return await self.inner.read(partition, start, end=end, limit=self._limit(limit))

    async def read_workflow(self, correlation_id: str, *, after: int = 0, limit: int = 1000) -> Page:
        await self.before("read_workflow", correlation_id, after)
        page = await self.inner.read_workflow(correlation_id, after=after, limit=self._limit(limit))
        await self.after()
        return page

    async def read_at(self, partition: int, positions: Sequence[int]) -> list[Stored]:
        await self.before("read_at", partition, positions)
        found = await self.inner.read_at(partition, positions)
        await self.after()
        return found

    async def checkpoint(self, group: str, partition: int) -> Checkpoint | None:
        await self.before("checkpoint", group, partition)
        mine = [s for s in self.world.subscriptions if s.process is self.process and s.group == group]
        if any(partition in s.owned() for s in mine):
            self._spoil(group, partition)
        found = await self.inner.checkpoint(group, partition)
        await self.after()
        return found

    def _spoil(self, group: str, partition: int) -> None:
        """Checkpoints are disposable: at a takeover the group's may be gone, or an older one may have been restored."""
        where, kept = (group, partition), self.inner.log.checkpoints
        if where not in kept:
            return
        if self.world.happens("checkpoint lost"):
            del kept[where]
        elif len(self.world.saved[where]) > 1 and self.world.happens("checkpoint old"):
            kept[where] = self.world.random.choice(self.world.saved[where][:-1])

    async def checkpoint_groups(self, partition: int) -> list[str]:
        await self.before("checkpoint_groups", partition)
        return await self.inner.checkpoint_groups(partition)

    async def positions(self, kind: Any, group: str | None = None) -> dict[int, int]:
        await self.before("positions", kind, group)
        return await self.inner.positions(kind, group)

    # ---- who is alive, and hints
    async def announce(self, presence: Presence, *, ttl: float = 8.0) -> None:
        await self.before("announce", presence.member, presence.partitions, presence.running, presence.queued)
        await self.inner.announce(presence, ttl=ttl)

    async def withdraw(self, member: str) -> None:
        await self.before("withdraw", member)
        await self.inner.withdraw(member)

    async def members(self, group: str | None = None, *, gone: bool = False) -> list[Member]:
        await self.before("members", group)
        return await self.inner.members(group, gone=gone)

    async def notify(self, address: str, hint: bytes) -> None:
        await self.before("notify", address, hint, refuse=False)
        if self.world.happens("hint lost"):
            return
        await self.inner.notify(address, hint)
        if self.world.happens("hint twice"):
            await self.inner.notify(address, hint)

    def listen(self) -> Any:
        return self.inner.listen()

    async def health(self) -> Health:
        return await self.inner.health()

    # ---- groups
    @contextlib.asynccontextmanager
    async def subscribe(
        self, group: str, member: str, *, partitions: Collection[int] | None = None, lease: float = 8.0,
        stall_limit: float = 30.0,
    ) -> AsyncIterator[SimSubscription]:  # fmt: skip
        await self.before("subscribe", group, member)
        context = self.inner.subscribe(group, member, partitions=partitions, lease=lease, stall_limit=stall_limit)
        inner = await context.__aenter__()
        sub = SimSubscription(self, group, inner)
        self.world.subscriptions.append(sub)
        try:
            yield sub
        finally:
            if not self.process.dead:
                self.world.subscriptions.remove(sub)
                self.world.note("leaves", member)
                await context.__aexit__(None, None, None)


class SimSubscription:
    """A place in a group whose lease runs out when its process is frozen, dead, cut off or hangs."""

    def __init__(self, port: Port, group: str, inner: MemorySubscription) -> None:
        self.port, self.world, self.process = port, port.world, port.process
        self.group, self.inner = group, inner
        self.renewed = self.turned_at = self.world.loop.time()
        self.expired = False
        self._told: list[Batch] = []

    # ---- the lease
    def renew_or_lose(self) -> None:
        """What the keeper of leases does now and then, in nobody's name."""
        now, world = self.world.loop.time(), self.world
        silent = self.process.dead or self.process.frozen or world.cut.get(self.process, 0.0) > now
        if not silent and now - self.turned_at < 8 * LEASE:
            if self.expired:
                self.expired = False
                world.note("back", self.inner.member)
                self.inner.come_back()
            self.renewed = now
        elif not self.expired and now - self.renewed >= LEASE:
            self.expired = True
            if self.inner.holds:
                world.meet("lease ran out")
            world.note("expired", self.inner.member, sorted(self.inner.holds))
            self.inner.die()

    def deadline(self, partition: int) -> float:
        if partition not in self.inner.holds:
            return -math.inf
        return self.renewed + LEASE + getattr(self.port.clock, "start", 0.0)

    def turned(self) -> None:
        self.turned_at = self.world.loop.time()

    def owned(self) -> Mapping[int, int]:
        return self.inner.owned()

    # ---- records
    async def fetch(self, max_records: int = 1000, max_wait: float = 1.0) -> list[Event]:
        world = self.world
        await self.port.before("fetch")
        if world.happens("batch in pieces"):
            max_records = world.random.randint(1, 3)
        events = await self.inner.fetch(max_records, max_wait)
        batches = [e for e in events if isinstance(e, Batch)]
        if self._told and batches and world.happens("batch again"):
            owned = self.inner.owned()
            events = [b for b in self._told if owned.get(b.partition) == b.epoch] + events
        self._told = [*self._told, *batches][-3:]
        for event in events:
            if isinstance(event, Batch):
                world.note("fetched", event.partition, event.epoch, [r.position for r in event.records])
            else:
                world.note("fetched", *event)
                if isinstance(event, Assigned) and event.after_death:
                    world.meet("takeover after a death")
                if isinstance(event, Lost):
                    world.meet("partition lost alive")
        if world.happens("crash after a call"):
            await world.die_here()
        return events

    def seek(self, partition: int, position: int) -> None:
        self.inner.seek(partition, position)

    def pause(self, partitions: Collection[int]) -> None:
        self.inner.pause(partitions)

    def resume(self, partitions: Collection[int]) -> None:
        self.inner.resume(partitions)

    async def release(self, partition: int, epoch: int) -> None:
        await self.port.before("release", partition, epoch)
        await self.inner.release(partition, epoch)
        await self.port.after()

    async def save_checkpoint(
        self, partition: int, epoch: int, position: int, anchor: bytes, changed: Mapping[bytes, bytes],
        gone: Collection[bytes],
    ) -> bool:  # fmt: skip
        world = self.world
        said = [f"{k.hex()[:8]}={short(v)}" for k, v in changed.items()] + [f"-{k.hex()[:8]}" for k in gone]
        await self.port.before("save_checkpoint", partition, epoch, position, anchor, *said)
        if world.happens("checkpoint not saved"):
            raise BrokerUnavailable("the checkpoint was not written")
        saved = await self.inner.save_checkpoint(partition, epoch, position, anchor, changed, gone)
        world.note("saved", saved)
        if saved:
            world.saved[self.group, partition].append(world.broker.log.checkpoints[self.group, partition])
        else:
            world.meet("checkpoint fenced")
        if world.happens("append unknown"):
            raise BrokerUnavailable("whether the checkpoint was written is unknown")
        await self.port.after()
        return saved
