"""The thread that keeps a member's place in its group: beats, takes over, notices losses. A blocked event loop does not
stop it, until `stall_limit`."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import NamedTuple

from ...bus.broker import Event
from ...bus.errors import BrokerUnavailable, ConfigError, LogMismatch, RefoldError
from ..keeping import PartitionKeeper
from ..shares import Lease, Wanted, is_mine, plan
from . import wire
from .address import Address
from .checkpoints import Pen
from .control import Beat, Claim, Control, Group, Left, Release, State
from .link import PAUSE, WATCH, Link, together
from .outbox import Outbox
from .topics import Names

log = logging.getLogger("refold.kafka")

LOOK_AT_TOPIC, LOOK_AGAIN = 5.0, 1.0
"""Seconds after which the log's topic is asked for its id: one that was deleted and made again has another."""


class Membership(NamedTuple):
    """Who joins what: `topic_id` is that of the log (of "" nothing is known)."""

    address: Address
    names: Names
    topic_id: str
    group: str
    member: str
    partitions: int
    wanted: Wanted
    lease: float
    stall_limit: float


class Keeper(PartitionKeeper):
    """Keeps the partitions of one member: words in the control topic. `tell` is told of a log that is gone, too."""

    log = log

    def __init__(
        self, who: Membership, tell: Callable[[Event | RefoldError], None], on_stall: Callable[[], None]
    ) -> None:
        super().__init__(who.member, lease=who.lease, stall_limit=who.stall_limit, tell=tell, on_stall=on_stall)
        self.who = who
        self.pens: dict[int, Pen] = {}
        self.silent = False
        """For tests: do nothing, as a process that was stopped."""
        self._complain = tell
        self._counter = 0
        self._joined = threading.Event()
        self._problem: Exception | None = None
        self._leaving = self._stop = False
        self._gone = False
        """The log's topic is another one by now, or none: there is no group to leave."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._bell: asyncio.Event
        self._thread = threading.Thread(target=self._run, name="refold-kafka", daemon=True)

    # ---- called by the subscription ----------------------------------------------------------------------------------
    def join(self) -> None:
        """Enter the group. Blocks for a moment. Raises what came of it."""
        self._thread.start()
        self._joined.wait()
        if self._problem is not None:
            raise self._problem

    def stop(self, *, leave: bool) -> None:
        """End the thread; with `leave` everything is released. Blocks for a moment."""
        self._leaving, self._stop = leave, True
        self.wake()
        if self._thread.is_alive():
            self._thread.join()

    def wake(self) -> None:
        """Look at the group at once."""
        if self._loop is not None:
            try:
                self._loop.call_soon_threadsafe(self._bell.set)
            except RuntimeError:  # it is closed
                pass

    # ---- the thread --------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except Exception as error:
            self._problem = error
            if self._joined.is_set():
                log.exception("the membership of %s ended", self.member)
        finally:
            self._joined.set()

    async def _main(self) -> None:
        self._loop, self._bell = asyncio.get_running_loop(), asyncio.Event()
        link = Link(self.who.address, patience=max(self.lease, 10.0))
        outbox = Outbox(link)
        try:
            await link.open([self.who.names.control, self.who.names.checkpoints])
            self.link, self.control = link, Control(link, outbox, self.who.names.control)
            await self.control.read()
            await self._beat()
            await self._look()
            self._joined.set()
            await self._keep()
            if self._leaving and not self._gone:
                await self._leave()
        finally:
            await outbox.aclose()
            await link.aclose()

    async def _keep(self) -> None:
        pause = min(self.lease / 8, 0.5)
        watching: asyncio.Task[None] | None = None
        topic_seen = time.monotonic()
        while not self._stop:
            if watching is None or watching.done():
                watching = asyncio.create_task(self._watch(pause))
            ringing = asyncio.create_task(self._bell.wait())
            await asyncio.wait([watching, ringing], timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            ringing.cancel()
            self._bell.clear()
            if self.silent or self._stop:
                continue
            try:
                if time.monotonic() - topic_seen > LOOK_AT_TOPIC:  # also where no turn succeeds: that may be why
                    topic_seen = time.monotonic()
                    await self._look_at_topic()
                await self._turn()
                self._outage.over()
            except Exception as error:  # noqa: BLE001 - it is told, and tried again
                self._failed(error)
                if isinstance(error, RefoldError) and not isinstance(error, BrokerUnavailable):
                    self._complain(error)
                await asyncio.sleep(pause)
        if watching is not None:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _watch(self, wait: float) -> None:
        """Wait for words of others, and take them."""
        if self.silent:
            await asyncio.sleep(PAUSE)
            return
        place = (self.control.topic, 0)
        try:
            node = self.link.leader(*place)
            part = (await self.link.fetch(node, {place: self.control.next}, wait=wait, lane=WATCH))[place]
        except BrokerUnavailable:
            await self.link.rest()
            return
        if part.error:
            await self.link.rest()
        elif not self.silent:
            for raw in part.records:
                self.control.take(raw)

    async def _turn(self) -> None:
        now = self._begin_turn()
        if self._is_stalled(now):
            self._stop = True
            self._on_stall()
            return
        if now - self.renewed >= self.lease / 4:
            await self._beat()
        await self._look()

    # ---- the group ---------------------------------------------------------------------------------------------------
    def _group(self, state: State) -> Group:
        return state.groups.get(self.who.group) or Group()

    async def _beat(self) -> None:
        """Show oneself. What others took before it counts is noticed first, so that no deadline covers what is lost."""
        self._counter += 1
        sent = time.monotonic()
        wanted = None if self.who.wanted is None else sorted(self.who.wanted)
        beat = Beat(self.who.group, self.member, self.token, self._counter, wanted)
        state = await self.control.write(beat)
        if time.monotonic() - sent > self.lease / 2:
            self._seen.clear()
        self._lose(self._group(state))
        self.renewed = sent

    def _lose(self, group: Group) -> None:
        for partition, epoch in self.held.items():
            if not is_mine(group.leases.get(partition), self.token, epoch):
                self._forfeit(partition, epoch)

    async def _look(self) -> None:
        """Compare the fold with what this member believes, and act."""
        group = self._group(self.control.state)
        self._lose(group)
        live = {token: peer.takes() for token, peer in group.peers.items() if self._alive(token, peer.counter)}
        held, leases = self.held, dict(group.leases)
        owners = {lease.owner for lease in leases.values()}
        dead = [(t, peer.counter) for t, peer in group.peers.items() if t not in live and t not in owners]
        todo = plan(self.token, self.who.partitions, self.who.wanted, leases, held, self._revoking.copy(), live)
        for partition in todo.revoke:
            self._revoke(partition, held[partition])
        if todo.claim and not self._stop:
            await self._claim(group, todo.claim)
        for lease in todo.forgotten:  # a release, or what came of a claim, was lost on its way
            if self.held.get(lease.partition) != lease.epoch:
                await self.control.write(Release(self.who.group, self.token, lease.partition, lease.epoch))
        for token, counter in dead:  # as it was seen: it may have shown itself, or be buried, since
            await self.control.write(Left(self.who.group, token, counter))
            self._seen.pop(token, None)

    def _alive(self, token: str, counter: int) -> bool:
        """Its counter moved within the lease, by this process's own clock."""
        if token == self.token:
            return True
        return self._unchanged(token, counter, time.monotonic()) <= self.lease

    async def _claim(self, group: Group, wanted: list[int]) -> None:
        wishes, before = list[tuple[int, int, str, int]](), dict(group.leases)
        for partition in wanted:
            lease = group.leases.get(partition) or Lease(partition, 0, "", True)
            peer = group.peers.get(lease.owner)
            wishes.append((partition, lease.epoch + 1, lease.owner, peer.counter if peer else 0))
        state = await self.control.write(Claim(self.who.group, self.token, wishes))
        got = [(p, e) for p, e, _, _ in wishes if is_mine(self._group(state).leases.get(p), self.token, e)]
        await self._take_pens([partition for partition, _ in got])
        now = self._group(await self.control.read())
        for partition, epoch in got:
            if is_mine(now.leases.get(partition), self.token, epoch) and not self._stop:
                self._take(partition, epoch, after_death=partition in before and not before[partition].released)

    async def _take_pens(self, partitions: list[int]) -> None:
        """Fence whoever wrote the checkpoints of these partitions, before anybody is told that they are owned."""
        names, group = self.who.names, self.who.group
        pens = [Pen(names.checkpoints, group, p, f"{names.log}.{group}.{p}") for p in partitions]

        async def take(pen: Pen) -> None:
            try:
                await pen.take(self.link)
            except ConfigError as error:
                log.warning("partition %d has no checkpoints: %s", pen.partition, error)

        await together(take(pen) for pen in pens)
        self.pens = {**self.pens, **{pen.partition: pen for pen in pens}}

    async def _leave(self) -> None:
        self.held = {}
        try:
            await self.control.write(Left(self.who.group, self.token))
        except RefoldError as error:
            log.warning("%s could not leave, others wait for its lease: %s", self.member, error)

    # ---- what must not be --------------------------------------------------------------------------------------------
    async def _look_at_topic(self) -> None:
        """Raises LogMismatch where the log's topic is another one, or gone: a node that has just restarted may not know
        it yet, so it is asked again."""
        for pause in (LOOK_AGAIN, 0.0):
            found = (await self.link.topics([self.who.names.log]))[self.who.names.log]
            gone = found.error == wire.UNKNOWN_TOPIC
            if not gone:
                break
            await asyncio.sleep(pause)
        if gone or (not found.error and self.who.topic_id and found.id != self.who.topic_id):
            self._gone = True
            raise LogMismatch(f"topic {self.who.names.log} was deleted{'' if gone else ' and made again'} meanwhile")
