"""The thread that keeps a member's leases: renews, takes over, notices losses. A blocked event loop does not stop it,
until `stall_limit`."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable

from ...bus.broker import Assigned, Event, Lost, Revoked
from ...bus.errors import ConfigError, RefoldError
from .. import pids, shares
from ..shares import Lease, Peer, View, Wanted
from . import leases
from .connection import connect, transact, translated

log = logging.getLogger("refold.sqlite")

EXIT_STALLED = 70


def exit_stalled() -> None:
    """End the process: a death like any other; others take over."""
    os._exit(EXIT_STALLED)


class Keeper:
    """Owns the leases of one member. `tell` is called, in the thread, with events for the subscription.

    `held` is replaced, never changed, so any thread may read it; `renewed` is the start of the last renewal.
    """

    def __init__(
        self, path: str, group: str, member: str, partitions: int, wanted: Wanted, *, lease: float,
        stall_limit: float, patience: float, tell: Callable[[Event], None], on_stall: Callable[[], None],
        ring: Callable[[], None],
    ) -> None:  # fmt: skip
        self.path, self.group, self.member = path, group, member
        self.partitions, self.wanted = partitions, wanted
        self.lease, self.stall_limit, self.patience = lease, stall_limit, patience
        self.held: dict[int, int] = {}
        self.turned = self.renewed = time.monotonic()
        self.token = os.urandom(8).hex()
        self._tell, self._on_stall, self._ring = tell, on_stall, ring
        self._watched = threading.get_ident()
        self._lock = threading.Lock()
        self._revoking: set[int] = set()
        self._seen: dict[str, tuple[int, float]] = {}
        self._began = time.monotonic()
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

    def drop(self, partition: int, epoch: int) -> bool:
        """Hold the partition no longer; False where it was not held under this epoch."""
        with self._lock:
            if self.held.get(partition) != epoch:
                return False
            self.held = {p: e for p, e in self.held.items() if p != partition}
            self._revoking.discard(partition)
            return True

    # ---- the thread --------------------------------------------------------------------------------------------------
    def _keep(self) -> None:
        db: sqlite3.Connection | None = None
        pause = min(self.lease / 8, 0.5)
        while not self._stop.is_set():
            try:
                with translated(self.path):
                    db = db or connect(self.path, synchronous="NORMAL")
                    self._turn(db)
            except RefoldError as error:
                log.warning("the leases of %s could not be kept: %s", self.member, error)
            except Exception:
                log.exception("the leases of %s could not be kept", self.member)
            self._wake.wait(pause)
            self._wake.clear()
        if db is not None:
            db.close()

    def _turn(self, db: sqlite3.Connection) -> None:
        before, self._began = self._began, time.monotonic()
        now = self._began
        if now - before > self.lease / 2:  # this process was stopped, maybe within its last turn
            self.turned = now  # so its loop did not block, nor are others dead
            self._seen.clear()
        if now - self.turned > self.stall_limit:
            self._stalled(now)
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
            if not shares.is_mine(seen.get(partition), self.token, epoch) and self.drop(partition, epoch):
                self._tell(Lost(partition, epoch))

    def _look(self, db: sqlite3.Connection) -> None:
        """Compare the rows with what this member believes, and act."""
        seen = leases.read(db, self.group)
        self._lose(seen.leases)
        live = {p.token: p.wanted for p in seen.peers if self._alive(p)}
        held = self.held
        todo = shares.plan(self.token, self.partitions, self.wanted, seen.leases, held, self._revoking.copy(), live)
        for partition in todo.revoke:
            with self._lock:
                known = self.held.get(partition) == held[partition]
                if known:
                    self._revoking.add(partition)
            if known:
                self._tell(Revoked(partition, held[partition]))
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
            with self._lock:
                self.held = {**self.held, lease.partition: lease.epoch}
            self._tell(Assigned(lease.partition, lease.epoch, after_death=not lease.released))

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
        now = self._began  # the rows were read later
        counter, since = self._seen.get(peer.token, (-1, now))
        if counter != peer.counter:
            since = now
        self._seen[peer.token] = (peer.counter, since)
        return now - since <= self.lease and self._runs(peer, elsewhere=True)

    def _runs(self, peer: Peer, elsewhere: bool = False) -> bool:
        """Its process is there; `elsewhere` where that cannot be seen from here."""
        return pids.is_running(peer.pid, peer.started) if peer.place == self._me.place else elsewhere

    def _stalled(self, now: float) -> None:
        frame = sys._current_frames().get(self._watched)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "(no stack)"
        log.critical(
            "the event loop has not turned for %.0f s: %s ends, others take over\n%s",
            now - self.turned, self.member, stack,
        )  # fmt: skip
        self._stop.set()
        self._on_stall()
