"""The thread that keeps a member's leases: renews, takes over, notices losses. A blocked event loop does not stop it,
until `stall_limit`."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable

from ...bus.broker import Event
from ...bus.errors import ConfigError
from .. import pids, shares
from ..keeping import PartitionKeeper
from ..shares import Lease, Peer, View, Wanted
from . import leases
from .connection import connect, transact, translated

log = logging.getLogger("refold.sqlite")


class Keeper(PartitionKeeper):
    """Keeps the leases of one member: rows of the file."""

    log = log

    def __init__(
        self, path: str, group: str, member: str, partitions: int, wanted: Wanted, *, lease: float,
        stall_limit: float, patience: float, tell: Callable[[Event], None], on_stall: Callable[[], None],
        ring: Callable[[], None],
    ) -> None:  # fmt: skip
        super().__init__(member, lease=lease, stall_limit=stall_limit, tell=tell, on_stall=on_stall)
        self.path, self.group = path, group
        self.partitions, self.wanted = partitions, wanted
        self.patience, self._ring = patience, ring
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._me = Peer(member, self.token, 1, os.getpid(), pids.started(os.getpid()) or 0.0, pids.place(), wanted)
        self._thread = threading.Thread(target=self._keep, name="refold-lease", daemon=True)

    # ---- called by the subscription ----------------------------------------------------------------------------------
    def join(self) -> None:
        """Enter the group and start the thread. Blocks for a moment. Raises ConfigError where the name is taken."""
        self._began = time.monotonic()
        with translated(self.path):
            db = connect(self.path)
            try:
                transact(db, self.path, self.patience, lambda: self._enter(db))
                self._look(db)
            finally:
                db.close()
        self._thread.start()
        self._ring()

    def wake(self) -> None:
        """Look at the group at once."""
        self._wake.set()

    def halt(self) -> None:
        """Renew and claim nothing more."""
        self._stop.set()
        self._wake.set()

    def stop(self) -> None:
        """End the thread, releasing nothing. Blocks for a moment."""
        self.halt()
        if self._thread.is_alive():
            self._thread.join()

    def leave(self, db: sqlite3.Connection) -> None:
        """Release everything. Inside a transaction, after `stop`."""
        for partition, epoch in self.held.items():
            leases.release(db, self.group, self.token, partition, epoch)
        leases.remove_peer(db, self.group, self.token)

    # ---- the thread --------------------------------------------------------------------------------------------------
    def _keep(self) -> None:
        db: sqlite3.Connection | None = None
        pause = min(self.lease / 8, 0.5)
        while not self._stop.is_set():
            try:
                with translated(self.path):
                    db = db or connect(self.path, synchronous="NORMAL")
                    self._turn(db)
                self._outage.over()
            except Exception as error:  # noqa: BLE001 - it is told, and tried again
                self._failed(error)
                if db is not None and db.in_transaction:  # it could not be rolled back: nobody else could write
                    db.close()
                    db = None
            self._wake.wait(pause)
            self._wake.clear()
        if db is not None:
            db.close()

    def _turn(self, db: sqlite3.Connection) -> None:
        now = self._begin_turn()
        if self._is_stalled(now):
            self._stop.set()
            self._on_stall()
            return
        if now - self.renewed >= self.lease / 4:
            try:
                self._lose(transact(db, self.path, self.lease / 2, lambda: self._renew(db)))
            except ConfigError:  # another process has joined under this name, when this one was taken for dead
                self._lose(leases.read(db, self.group).leases)
                raise
            self.renewed = now
        self._look(db)

    def _enter(self, db: sqlite3.Connection, again: bool = False) -> None:
        """Write the row. One of the same name that cannot be seen from here is replaced, but does not replace back."""
        for peer in leases.read(db, self.group).peers:
            if peer.member == self.member and peer.token != self.token and self._runs(peer, elsewhere=again):
                raise ConfigError(
                    f"member {self.member!r} of group {self.group!r} is running already (pid {peer.pid}): choose "
                    "another --member"
                )
        leases.write_peer(db, self.group, self._me)

    def _renew(self, db: sqlite3.Connection) -> dict[int, Lease]:
        if not leases.renew(db, self.group, self.token):  # others took this member for dead and have removed it
            self._enter(db, again=True)
        return leases.read(db, self.group).leases

    def _lose(self, seen: dict[int, Lease]) -> None:
        """Notice what others have taken; before a renewal counts, so that no deadline covers what is lost."""
        for partition, epoch in self.held.items():
            if not shares.is_mine(seen.get(partition), self.token, epoch):
                self._forfeit(partition, epoch)

    def _look(self, db: sqlite3.Connection) -> None:
        """Compare the rows with what this member believes, and act."""
        seen = leases.read(db, self.group)
        self._lose(seen.leases)
        live = {p.token: p.wanted for p in seen.peers if self._alive(p)}
        held = self.held
        todo = shares.plan(self.token, self.partitions, self.wanted, seen.leases, held, self._revoking.copy(), live)
        for partition in todo.revoke:
            self._revoke(partition, held[partition])
        if todo.claim:
            self._claim(db, seen, todo.claim)
        if todo.forgotten:  # a release, or what came of a claim, was lost with the lock or the disk
            transact(db, self.path, self.patience, lambda: self._give_back(db, todo.forgotten))
            self._ring()
        owners = {lease.owner for lease in seen.leases.values()}
        dead = [p for p in seen.peers if p.token not in live and p.token not in owners]
        if dead:
            transact(db, self.path, self.patience, lambda: self._bury(db, dead))

    def _claim(self, db: sqlite3.Connection, seen: View, wanted: list[int]) -> None:
        got = transact(db, self.path, self.patience, lambda: leases.claim(db, self.group, self.token, seen, wanted))
        for lease in got:
            self._take(lease.partition, lease.epoch, after_death=not lease.released)

    def _give_back(self, db: sqlite3.Connection, forgotten: list[Lease]) -> None:
        for lease in forgotten:
            leases.release(db, self.group, self.token, lease.partition, lease.epoch)

    def _bury(self, db: sqlite3.Connection, dead: list[Peer]) -> None:
        for peer in dead:
            leases.remove_peer(db, self.group, peer.token, peer.counter)
            self._seen.pop(peer.token, None)

    def _alive(self, peer: Peer) -> bool:
        """Its counter moved within the lease, by this process's own clock; a dead process of this host is dead."""
        if peer.token == self.token:
            return True
        since = self._unchanged(peer.token, peer.counter, self._began)  # the rows were read later
        return since <= self.lease and self._runs(peer, elsewhere=True)

    def _runs(self, peer: Peer, elsewhere: bool = False) -> bool:
        """Its process is there; `elsewhere` where that cannot be seen from here."""
        return pids.is_running(peer.pid, peer.started) if peer.place == self._me.place else elsewhere
