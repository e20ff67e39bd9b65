"""The thread that keeps a member's leases: renews, takes over, notices losses. A blocked event loop does not stop it,
until `stall_limit`."""

from __future__ import annotations

import logging
import os
import socket
import sqlite3
import sys
import threading
import time
import traceback
from collections.abc import Callable

import psutil

from ...bus.broker import Assigned, Event, Lost, Revoked
from ...bus.errors import ConfigError, RefoldError
from . import leases
from .connection import connect, transact, translated
from .leases import Lease, Peer

log = logging.getLogger("refold.sqlite")

EXIT_STALLED = 70


def exit_stalled() -> None:
    """End the process: a death like any other; others take over."""
    os._exit(EXIT_STALLED)


class Keeper:
    """Owns the leases of one member. `tell` is called, in the thread, with events for the subscription."""

    def __init__(
        self, path: str, group: str, member: str, partitions: int, wanted: frozenset[int] | None, *, lease: float,
        stall_limit: float, patience: float, tell: Callable[[Event], None], on_stall: Callable[[], None],
        ring: Callable[[], None],
    ) -> None:  # fmt: skip
        self.path, self.group, self.member = path, group, member
        self.partitions, self.wanted = partitions, wanted
        self.lease, self.stall_limit, self.patience = lease, stall_limit, patience
        self.held: dict[int, int] = {}
        self.revoking: set[int] = set()
        self.renewed = time.monotonic()
        self.turned = time.monotonic()
        self.dead = False
        self.token = os.urandom(8).hex()
        self._tell, self._on_stall, self._ring = tell, on_stall, ring
        self._watched = threading.get_ident()
        self._seen: dict[str, tuple[tuple[str, int], float]] = {}
        self._wake = threading.Event()
        self._stop = threading.Event()
        self._me = psutil.Process()
        self._started = self._me.create_time()
        self._host = socket.gethostname()
        self._thread = threading.Thread(target=self._keep, name="refold-lease", daemon=True)

    # ---- called by the subscription ----------------------------------------------------------------------------------
    def join(self) -> None:
        """Enter the group and start the thread. Blocks for a moment. Raises ConfigError where the name is taken."""
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

    def die(self) -> None:
        """Stop, releasing nothing."""
        self._stop.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()

    def leave(self, db: sqlite3.Connection) -> None:
        """Release everything. Inside a transaction, after `die`."""
        for partition, epoch in self.held.items():
            leases.release(db, self.group, self.member, partition, epoch)
        db.execute("DELETE FROM members WHERE grp=? AND member=? AND token=?", (self.group, self.member, self.token))

    def dropped(self, partition: int) -> None:
        """The subscription has released a partition."""
        self.held.pop(partition, None)
        self.revoking.discard(partition)

    # ---- the thread --------------------------------------------------------------------------------------------------
    def _enter(self, db: sqlite3.Connection) -> None:
        for peer in leases.read_peers(db, self.group):
            if peer.member == self.member and peer.host == self._host and leases.is_running(peer.pid, peer.started):
                raise ConfigError(
                    f"member {self.member!r} of group {self.group!r} is running already (pid {peer.pid}): choose "
                    "another --member"
                )
        wanted = "" if self.wanted is None else ",".join(map(str, sorted(self.wanted)))
        db.execute(
            "INSERT OR REPLACE INTO members VALUES (?, ?, ?, 1, ?, ?, ?, ?)",
            (self.group, self.member, self.token, os.getpid(), self._started, self._host, wanted),
        )

    def _keep(self) -> None:
        db: sqlite3.Connection | None = None
        pause = min(self.lease / 8, 0.5)
        while not self._stop.is_set():
            try:
                if db is None:
                    with translated(self.path):
                        db = connect(self.path, synchronous="NORMAL")
                self._turn(db)
            except RefoldError as error:
                log.warning("the leases of %s could not be kept: %s", self.member, error)
            except sqlite3.Error as error:
                log.warning("the leases of %s could not be kept: %s", self.member, error)
            self._wake.wait(pause)
            self._wake.clear()
        if db is not None:
            db.close()

    def _turn(self, db: sqlite3.Connection) -> None:
        now = time.monotonic()
        if now - self.turned > self.stall_limit:
            self._stalled(now)
            return
        if now - self.renewed >= self.lease / 4:
            transact(db, self.path, self.lease / 2, lambda: self._renew(db))
            self.renewed = now
        self._look(db)

    def _renew(self, db: sqlite3.Connection) -> None:
        changed = db.execute(
            "UPDATE members SET counter = counter + 1 WHERE grp=? AND member=? AND token=?",
            (self.group, self.member, self.token),
        ).rowcount
        if not changed:  # others took this member for dead and have removed it
            self._enter(db)

    def _look(self, db: sqlite3.Connection) -> None:
        """Compare the rows with what this member believes, and act."""
        with translated(self.path):
            seen = leases.read_leases(db, self.group)
            peers = leases.read_peers(db, self.group)
        live = {p.member: p.wanted for p in peers if self._alive(p)}
        todo = leases.plan(self.member, self.partitions, self.wanted, seen, self.held, self.revoking, live)
        for partition in todo.lost:
            epoch = self.held.pop(partition)
            self.revoking.discard(partition)
            self._tell(Lost(partition, epoch))
        for partition in todo.revoke:
            self.revoking.add(partition)
            self._tell(Revoked(partition, self.held[partition]))
        if todo.claim:
            self._claim(db, seen, todo.claim)
        dead = [p for p in peers if p.member not in live]
        if dead and not any(x.member == p.member for p in dead for x in leases.read_leases(db, self.group).values()):
            transact(db, self.path, self.patience, lambda: self._bury(db, dead))

    def _claim(self, db: sqlite3.Connection, seen: dict[int, Lease], wanted: list[int]) -> None:
        got = transact(
            db, self.path, self.patience, lambda: leases.claim(db, self.group, self.member, seen, wanted)
        )
        for lease in got:
            self.held[lease.partition] = lease.epoch
            self._tell(Assigned(lease.partition, lease.epoch, after_death=not lease.released))

    def _bury(self, db: sqlite3.Connection, dead: list[Peer]) -> None:
        for p in dead:
            db.execute("DELETE FROM members WHERE grp=? AND member=? AND token=?", (self.group, p.member, p.token))

    def _alive(self, peer: Peer) -> bool:
        """Its counter moved within the lease, by this process's own clock; a dead process of this host is dead."""
        if peer.member == self.member and peer.token == self.token:
            return True
        now, sign = time.monotonic(), (peer.token, peer.counter)
        known = self._seen.get(peer.member)
        if known is None or known[0] != sign:
            self._seen[peer.member] = known = (sign, now)
        if now - known[1] > self.lease:
            return False
        return peer.host != self._host or leases.is_running(peer.pid, peer.started)

    def _stalled(self, now: float) -> None:
        frame = sys._current_frames().get(self._watched)
        stack = "".join(traceback.format_stack(frame)) if frame is not None else "(no stack)"
        log.critical(
            "the event loop has not turned for %.0f s: %s ends, others take over\n%s",
            now - self.turned, self.member, stack,
        )  # fmt: skip
        self._stop.set()
        self._on_stall()
