"""The thread that keeps a member's leases, with a connection of its own: a blocked event loop does not stop it, until
`stall_limit`.

A member lives while the message that says so is replaced now and then. Who has seen it unchanged for a lease (by its
own monotonic clock) takes the member's message away by compare-and-set: from then on the dead one can renew nothing,
and what it owned is free. So no lease is ever taken from one that has renewed, however late an observer reads.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable

import msgspec
from nats.aio.msg import Msg

from ...bus.broker import Event
from ...bus.errors import BrokerUnavailable, ConfigError, RefoldError
from .. import pids, shares
from ..keeping import PartitionKeeper, reason
from ..shares import Lease, Peer, View, Wanted
from . import leases
from .address import Address
from .connection import Link
from .leases import GONE, GONE_FOR, Held, Hold
from .names import Names
from .reading import Reader

log = logging.getLogger("refold.nats")

LEAVING = 5.0
"""Seconds in which a member that leaves tries to say so; others wait for its lease otherwise."""


class Keeper(PartitionKeeper):
    """Keeps the leases of one member: messages of the control stream."""

    log = log

    def __init__(
        self, address: Address, names: Names, replicated: bool, group: str, member: str, partitions: int,
        wanted: Wanted, *, lease: float, stall_limit: float, tell: Callable[[Event], None],
        on_stall: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(member, lease=lease, stall_limit=stall_limit, tell=tell, on_stall=on_stall)
        self.address, self.names, self.group = address, names, group
        self.partitions, self.wanted = partitions, wanted
        self.joined: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._replicated = replicated
        self._revision = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wake: asyncio.Event
        self._stopping = self._leaving = False
        self._thread = threading.Thread(target=self._run, name="refold-lease", daemon=True)

    # ---- called by the subscription ----------------------------------------------------------------------------------
    def start(self) -> None:
        """Start the thread; `joined` tells when it is in the group, or why it is not."""
        self._thread.start()

    def wake(self) -> None:
        """Look at the group at once."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the thread has ended
                self._loop.call_soon_threadsafe(self._wake.set)

    def stop(self, leave: bool) -> None:
        """End the thread, releasing everything or nothing. Blocks for a moment."""
        self._leaving, self._stopping = leave, True
        self.wake()
        if self._thread.is_alive():
            self._thread.join()

    # ---- the thread --------------------------------------------------------------------------------------------------
    def _run(self) -> None:
        try:
            asyncio.run(self._live())
        except BaseException as error:
            if not self.joined.done():
                self.joined.set_exception(error)
            else:
                log.exception("the leases of %s are kept no longer", self.member)

    async def _live(self) -> None:
        self._wake = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._link = Link(self.address, no_echo=True)
        await self._link.open()
        self._reader = Reader(self._link, self.names, self._replicated)
        try:
            await self._link.listen(f"{self.names.group(self.group)}.>", self._heard)
            self._began = time.monotonic()
            await self._enter()
            await self._look()
            self.joined.set_result(None)
            await self._keep()
            if self._leaving:
                await self._leave()
        finally:
            await self._link.close()

    def _heard(self, msg: Msg) -> None:
        if not msg.subject.endswith(f".{self.token}"):
            self._wake.set()

    async def _keep(self) -> None:
        pause = min(self.lease / 8, 0.5)
        while not self._stopping:
            try:
                await self._turn()
                self._outage.over()
            except Exception as error:  # noqa: BLE001 - it is told, and tried again
                self._failed(error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            self._wake.clear()

    async def _turn(self) -> None:
        now = self._begin_turn()
        if self._is_stalled(now):
            self._stopping = True
            self._on_stall()
            return
        if now - self.renewed >= self.lease / 4:
            await self._renew()
            self.renewed = now
        async with asyncio.timeout(max(0.5, self.lease / 4)):  # a stream that is silent must not keep it from renewing
            await self._look()

    async def _enter(self, again: bool = False) -> None:
        """Write the message. One of the same name that cannot be seen from here is let be: it may be dead."""
        view, _ = await leases.read(self._reader, self.names, self.group)
        for peer in view.peers:
            if peer.member == self.member and peer.token != self.token and self._runs(peer, elsewhere=again):
                raise ConfigError(
                    f"member {self.member!r} of group {self.group!r} is running already (pid {peer.pid}): choose "
                    "another --member"
                )
        self._revision = await leases.put(self._link, self._subject, self._row(), 0) or 0
        if not self._revision:
            raise BrokerUnavailable(f"the token of {self.member!r} is taken")

    @property
    def _subject(self) -> str:
        return self.names.peer(self.group, self.token)

    def _row(self) -> bytes:
        pid = os.getpid()
        wanted = None if self.wanted is None else sorted(self.wanted)
        row = leases.Row(self.member, self.token, pid, pids.started(pid) or 0.0, pids.place(), wanted)
        return msgspec.msgpack.encode(row)

    async def _renew(self) -> None:
        """Say that this member lives. Where others have taken it for dead, all is lost, and it joins anew."""
        soon = max(0.5, self.lease / 4)  # there must be time for a second try
        revision = await leases.put(self._link, self._subject, self._row(), self._revision, within=soon)
        if revision is None:
            revision = await self._own_revision()  # an answer that was lost, or somebody else's doing
        if revision:
            self._revision = revision
            return
        for partition, epoch in self.held.items():
            self._forfeit(partition, epoch)
        self.token = os.urandom(8).hex()
        await self._enter(again=True)

    async def _own_revision(self) -> int:
        found = await self._reader.leaders(self.names.control, {"last_by_subj": self._subject})
        return int(found["seq"]) if found is not None and found.get("data") else 0

    # ---- looking at the group ----------------------------------------------------------------------------------------
    def _lose(self, seen: dict[int, Lease]) -> None:
        """Notice what others have taken."""
        for partition, epoch in self.held.items():
            lease = seen.get(partition)
            newer = lease is not None and lease.epoch >= epoch  # an older one was read from a replica that lags
            if newer and not shares.is_mine(lease, self.token, epoch):
                self._forfeit(partition, epoch)

    async def _look(self) -> None:
        """Compare what is said with what this member believes, and act."""
        seen, holds = await leases.read(self._reader, self.names, self.group)
        self._lose(seen.leases)
        live = {p.token: p.wanted for p in seen.peers if p.token == self.token or not await self._is_buried(p, seen)}
        if self.token not in live:
            return  # a replica that lags
        held = self.held
        known = {p: x for p, x in seen.leases.items() if p not in held or x.epoch >= held[p]}
        todo = shares.plan(self.token, self.partitions, self.wanted, known, held, self._revoking.copy(), live)
        for partition in todo.revoke:
            self._revoke(partition, held[partition])
        for partition in todo.claim:
            if partition not in self.held and not self._stopping:
                await self._claim(partition, holds.get(partition, Held(Hold(), 0)), seen)
        for lease in todo.forgotten:  # a release, or what came of a claim, was lost with the connection
            if self.held.get(lease.partition) != lease.epoch:
                await self._give_back(lease.partition, lease.epoch)

    async def _claim(self, partition: int, before: Held, seen: View) -> None:
        hold = before.hold
        if hold.owner and not hold.released and not any(p.token == hold.owner for p in seen.peers):
            subject = self.names.peer(self.group, hold.owner)
            found = await self._reader.leaders(self.names.control, {"last_by_subj": subject})
            if found is not None and found.get("data"):
                return  # its owner is there: what was read is older
        mine = msgspec.structs.replace(hold, epoch=hold.epoch + 1, owner=self.token, released=False)
        subject = self.names.lease(self.group, partition)
        if await leases.put(self._link, subject, msgspec.msgpack.encode(mine), before.revision) is None:
            return
        self._take(partition, mine.epoch, after_death=before.revision > 0 and not hold.released)

    async def _is_buried(self, peer: Peer, seen: View) -> bool:
        """The member is dead, and can renew nothing any more. One that owns nothing is as dead, and is tidied away."""
        since = self._unchanged(peer.token, peer.counter, self._began)  # what is said was read later
        if since <= self.lease and self._runs(peer, elsewhere=True):
            return False
        subject = self.names.peer(self.group, peer.token)
        buried = await leases.put(self._link, subject, b"", peer.counter, GONE | GONE_FOR)
        if buried is not None:
            self._seen.pop(peer.token, None)
        return buried is not None

    def _runs(self, peer: Peer, elsewhere: bool = False) -> bool:
        """Its process is there; `elsewhere` where that cannot be seen from here."""
        return pids.is_running(peer.pid, peer.started) if peer.place == pids.place() else elsewhere

    async def _give_back(self, partition: int, epoch: int) -> None:
        await leases.release(self._link, self._reader, self.names, self.group, self.token, partition, epoch)

    async def _leave(self) -> None:
        """Release everything, then be gone."""
        try:
            async with asyncio.timeout(LEAVING), asyncio.TaskGroup() as tasks:
                for partition, epoch in self.held.items():
                    tasks.create_task(self._give_back(partition, epoch))
            await leases.put(self._link, self._subject, b"", self._revision, GONE | GONE_FOR)
        except (TimeoutError, ExceptionGroup, RefoldError) as error:
            log.warning("%s could not leave, others wait for its lease: %s", self.member, reason(error))
