"""Ownership (step 8): one member's place in a group, its partitions and their records."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
import time
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

from refold.brokers.shares import Wanted, is_mine, plan
from refold.bus.broker import Assigned, Batch, Event, Lost, Revoked
from refold.bus.errors import ConfigError

from .journal import Beat, Claimed, Joined, Left, Peer, Released, Saved, State, Write

if TYPE_CHECKING:
    from .broker import JournalBroker

LOOK = 0.01
"""Seconds between two looks at what other processes have written."""


class JournalSubscription:
    """One member's place in a group. A thread renews and claims, so that a busy event loop does not lose the lease."""

    def __init__(
        self, broker: JournalBroker, group: str, member: str, wanted: Wanted, lease: float, stall_limit: float
    ) -> None:
        self.broker, self.group, self.member, self.wanted = broker, group, member, wanted
        self.lease, self.stall_limit = lease, stall_limit
        self.token = os.urandom(8).hex()
        self.held: dict[int, int] = {}
        self.revoking: set[int] = set()
        self.silent = False
        self.news = asyncio.Event()
        self.ended = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._events: list[Event] = []
        self._told: dict[int, int] = {}
        self._next: dict[int, int] = {}
        self._paused: set[int] = set()
        self._seen: dict[str, tuple[int, float]] = {}
        self._turns = 0
        self._turned = self._renewed = time.monotonic()
        self._thread = threading.Thread(target=self._keep, name="journal-lease", daemon=True)

    # ---- the thread --------------------------------------------------------------------------------------------------
    async def join(self) -> None:
        await self.broker.do(self._enter)
        self._thread.start()

    def _enter(self, state: State, write: Write) -> None:
        if any(p.member == self.member for p in state.peers[self.group].values()):
            raise ConfigError(f"member {self.member!r} is in group {self.group!r} already: choose another --member")
        write(self._joined())

    def _joined(self) -> Joined:
        return Joined(self.group, self.member, self.token, None if self.wanted is None else sorted(self.wanted))

    def _keep(self) -> None:
        while not self.ended.is_set():
            if not self.silent and time.monotonic() - self._turned < self.stall_limit:
                events = self.broker.journal.do(self._turn)
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    self._loop.call_soon_threadsafe(self._tell, events)
            self.ended.wait(min(self.lease / 8, 0.05))

    def _tell(self, events: list[Event]) -> None:
        self._events += events
        self.broker._ring()

    def _turn(self, state: State, write: Write) -> list[Event]:
        """Renew, and compare what the journal says with what this member believes. Under the journal's lock."""
        if self.ended.is_set():
            return []
        peers, leases = state.peers[self.group], state.leases[self.group]
        self._renew(write, self.token in peers)
        live = {token: peer.wanted for token, peer in peers.items() if self._lives(token, peer)}
        todo = plan(self.token, state.log.partitions, self.wanted, leases, self.held, self.revoking, live)
        events: list[Event] = [Lost(p, self.held.pop(p)) for p in todo.lost]
        self.revoking &= set(self.held)
        for partition in todo.revoke:
            self.revoking.add(partition)
            events.append(Revoked(partition, self.held[partition]))
        for partition in todo.claim:
            before = leases.get(partition)
            write(Claimed(self.group, partition, self.token))
            epoch = self.held[partition] = leases[partition].epoch
            events.append(Assigned(partition, epoch, after_death=before is not None and not before.released))
        owners = {x.owner for x in leases.values()}
        for token in [t for t in peers if t not in live and t not in owners]:
            write(Left(self.group, token))
        return events

    def _renew(self, write: Write, known: bool) -> None:
        now = time.monotonic()
        if not known or now - self._renewed >= self.lease / 4:
            write(Beat(self.group, self.token) if known else self._joined())
            self._renewed = now

    def _lives(self, token: str, peer: Peer) -> bool:
        """Its counter has moved within the lease, by the clock of this process."""
        now = time.monotonic()
        counter, since = self._seen.get(token, (-1, now))
        self._seen[token] = (peer.counter, since if counter == peer.counter else now)
        return token == self.token or now - self._seen[token][1] <= self.lease

    async def leave(self) -> None:
        """Release everything; a second call does nothing."""
        if self not in self.broker.subscriptions:
            return
        self.broker.subscriptions.remove(self)
        self.ended.set()

        def decide(state: State, write: Write) -> None:
            for partition, epoch in self.held.items():
                if is_mine(state.leases[self.group].get(partition), self.token, epoch):
                    write(Released(self.group, partition))
            if self.token in state.peers[self.group]:
                write(Left(self.group, self.token))
            self.held = {}

        await self.broker.do(decide)

    # ---- what the engine calls ---------------------------------------------------------------------------------------
    async def fetch(self, max_records: int = 1000, max_wait: float = 1.0) -> list[Event]:
        until = time.monotonic() + max_wait
        while True:
            self.news.clear()
            await self.broker.look()
            out = self._take_events()
            if any(p in self._told and p not in self._paused for p in self._next):
                out += await self.broker.do(lambda state, write: self._take_records(state, max_records))
                self.news.clear()
            left = until - time.monotonic()
            if out or left <= 0:
                return out
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, LOOK)):
                    await self.news.wait()

    def _take_events(self) -> list[Event]:
        events, self._events = self._events, []
        for event in events:
            if isinstance(event, Assigned | Lost):
                self._forget(event.partition)
            if isinstance(event, Assigned):
                self._told[event.partition] = event.epoch
        return events

    def _forget(self, partition: int) -> None:
        self._told.pop(partition, None)
        self._next.pop(partition, None)
        self._paused.discard(partition)

    def _take_records(self, state: State, limit: int) -> list[Event]:
        """Take what follows, from another partition first each time. Nothing of an epoch that has ended."""
        out: list[Event] = []
        self._turns += 1
        open_ = [p for p in self._next if p in self._told and p not in self._paused]
        for i in range(len(open_)):
            p = open_[(i + self._turns) % len(open_)]
            if not is_mine(state.leases[self.group].get(p), self.token, self._told[p]):
                continue
            records = state.records[p][self._next[p] - 1 :][:limit]
            if records:
                out.append(Batch(p, self._told[p], records))
                self._next[p] = records[-1].position + 1
                limit -= len(records)
        return out

    def seek(self, partition: int, position: int) -> None:
        if partition in self._told:
            self._next[partition] = max(position, 1)
            self.news.set()

    def pause(self, partitions: Collection[int]) -> None:
        self._paused |= set(partitions)

    def resume(self, partitions: Collection[int]) -> None:
        self._paused -= set(partitions)
        self.news.set()

    async def release(self, partition: int, epoch: int) -> None:
        if self._told.get(partition) == epoch:
            self._forget(partition)

        def decide(state: State, write: Write) -> None:
            if self.held.get(partition) == epoch:
                del self.held[partition]
                self.revoking.discard(partition)
            if is_mine(state.leases[self.group].get(partition), self.token, epoch):
                write(Released(self.group, partition))

        await self.broker.do(decide)

    async def save_checkpoint(
        self, partition: int, epoch: int, position: int, anchor: bytes, changed: Mapping[bytes, bytes],
        gone: Collection[bytes],
    ) -> bool:  # fmt: skip
        def decide(state: State, write: Write) -> bool:
            if not is_mine(state.leases[self.group].get(partition), self.token, epoch):
                return False
            write(Saved(self.group, partition, position, anchor, list(changed.items()), list(gone)))
            return True

        return await self.broker.do(decide)

    def deadline(self, partition: int) -> float:
        return self._renewed + self.lease if partition in self.held else -math.inf

    def turned(self) -> None:
        self._turned = time.monotonic()

    def owned(self) -> Mapping[int, int]:
        return dict(self.held)
