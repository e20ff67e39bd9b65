"""Who owns which partition: rows of the log, and what a member does about them. No wall clock enters it."""

from __future__ import annotations

import os
import socket
import sqlite3
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import psutil

Wanted = frozenset[int] | None
"""Partitions that a member takes; None: any."""


class Lease(NamedTuple):
    """A group's hold of a partition. `owner` is a member's token, "" where it was released."""

    partition: int
    epoch: int
    owner: str
    released: bool


class Peer(NamedTuple):
    """A member of a group, as its row says. `token` is another one each time it joins; `place` is that of its pid."""

    member: str
    token: str
    counter: int
    pid: int
    started: float
    place: str
    wanted: Wanted


class View(NamedTuple):
    """The rows of a group at one moment, the dead ones included."""

    leases: dict[int, Lease]
    peers: list[Peer]


class Plan(NamedTuple):
    """What a member should do now: claim these, give up those; `lost` are held by somebody else already, and of the
    `forgotten` only the rows say that they are its own."""

    claim: list[int]
    revoke: list[int]
    lost: list[int]
    forgotten: list[Lease] = []


def read(db: sqlite3.Connection, group: str) -> View:
    """Return the rows of a group."""
    rows = db.execute("SELECT member, token, counter, pid, started, place, wanted FROM members WHERE grp=?", (group,))
    peers = [Peer(*row)._replace(wanted=_from_text(row[6])) for row in rows]
    rows = db.execute("SELECT partition, epoch, owner, released FROM leases WHERE grp=?", (group,))
    return View({row[0]: Lease(row[0], row[1], row[2], bool(row[3])) for row in rows}, peers)


def _from_text(wanted: str | None) -> Wanted:
    return None if wanted is None else frozenset(map(int, wanted.split()))


def write_peer(db: sqlite3.Connection, group: str, peer: Peer) -> None:
    """Add or replace a member. Inside a transaction."""
    wanted = None if peer.wanted is None else " ".join(map(str, sorted(peer.wanted)))
    db.execute("INSERT OR REPLACE INTO members VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (group, *peer[:6], wanted))


def remove_peer(db: sqlite3.Connection, group: str, token: str, counter: int | None = None) -> None:
    """Remove a member, unless it has renewed since `counter`. Inside a transaction."""
    sql = "DELETE FROM members WHERE grp=? AND token=? AND (? IS NULL OR counter=?)"
    db.execute(sql, (group, token, counter, counter))


def renew(db: sqlite3.Connection, group: str, token: str) -> bool:
    """Bump the member's counter; False where it has been removed. Inside a transaction."""
    sql = "UPDATE members SET counter = counter + 1 WHERE grp=? AND token=?"
    return db.execute(sql, (group, token)).rowcount == 1


def plan(
    me: str, partitions: int, wanted: Wanted, leases: Mapping[int, Lease], held: Mapping[int, int],
    revoking: Collection[int], live: Mapping[str, Wanted],
) -> Plan:  # fmt: skip
    """Decide from the rows. `held` is what `me` believes to own (partition -> epoch), `live` the members that are alive
    and what they want; members are meant by their tokens. Pure: the same rows give the same plan."""
    lost = [p for p, epoch in held.items() if not is_mine(leases.get(p), me, epoch)]
    forgotten = [x for p, x in leases.items() if is_mine(x, me, x.epoch) and held.get(p) != x.epoch]
    if me not in live:
        return Plan([], [], lost, forgotten)
    kept = {p for p in held if p not in lost}
    quota = quotas(partitions, live)
    has = Counter(lease.owner for lease in leases.values() if not lease.released)
    needy = [m for m in live if m != me and has[m] < quota[m]]
    free = [p for p in _order(me, partitions, live) if _takes(wanted, p) and _free(leases.get(p), live)]
    claim = free[: max(0, quota[me] - len(kept))]
    claim += [p for p in free if p not in claim and not any(_takes(live[m], p) for m in needy)]
    surplus = sorted(p for p in kept.difference(revoking) if any(_takes(live[m], p) for m in needy))
    excess = len(kept.difference(revoking)) - quota[me]
    return Plan(claim, surplus[-excess:] if excess > 0 else [], lost, forgotten)


def quotas(partitions: int, live: Mapping[str, Wanted]) -> dict[str, int]:
    """Return how many partitions each member should have: evenly, as far as what they want allows."""
    out = dict.fromkeys(sorted(live), 0)
    for p in sorted(range(partitions), key=lambda p: _wanters(p, live)):
        able = [m for m in out if _takes(live[m], p)]
        if able:
            out[min(able, key=lambda m: out[m])] += 1
    return out


def _order(me: str, partitions: int, live: Mapping[str, Wanted]) -> list[int]:
    """Return in which order to claim: what few want first; each member starts at another place."""
    start = sorted(live).index(me) * partitions // len(live)
    turned = [(p + start) % partitions for p in range(partitions)]
    return sorted(turned, key=lambda p: _wanters(p, live))


def _takes(wanted: Wanted, partition: int) -> bool:
    return wanted is None or partition in wanted


def _wanters(partition: int, live: Mapping[str, Wanted]) -> int:
    return sum(_takes(wanted, partition) for wanted in live.values())


def is_mine(lease: Lease | None, me: str, epoch: int) -> bool:
    """The row still gives the partition to this member under this epoch."""
    return lease is not None and lease.owner == me and lease.epoch == epoch and not lease.released


def _free(lease: Lease | None, live: Mapping[str, Wanted]) -> bool:
    return lease is None or lease.released or lease.owner not in live


def claim(db: sqlite3.Connection, group: str, me: str, seen: View, wanted: list[int]) -> list[Lease]:
    """Take partitions whose rows, and whose owners' counters, are as they were seen; return the new leases.

    The `released` of these says how the epoch before ended. Inside a transaction.
    """
    now, out = read(db, group), []
    counters = {peer.token: peer.counter for peer in seen.peers}
    renewed = {peer.token for peer in now.peers if counters.get(peer.token) != peer.counter}
    for p in wanted:
        before = now.leases.get(p)
        if before != seen.leases.get(p) or (before is not None and before.owner in renewed):
            continue
        epoch = before.epoch + 1 if before is not None else 1
        db.execute(
            "INSERT INTO leases VALUES (?, ?, ?, ?, 0) ON CONFLICT(grp, partition)"
            " DO UPDATE SET epoch=excluded.epoch, owner=excluded.owner, released=0",
            (group, p, epoch, me),
        )
        out.append(Lease(p, epoch, me, before is None or before.released))
    return out


def release(db: sqlite3.Connection, group: str, me: str, partition: int, epoch: int) -> None:
    """Give a partition up. Inside a transaction; nothing happens where it is gone already."""
    db.execute(
        "UPDATE leases SET released=1, owner='' WHERE grp=? AND partition=? AND epoch=? AND owner=?",
        (group, partition, epoch, me),
    )


def current_epoch(db: sqlite3.Connection, group: str, partition: int) -> int | None:
    """Return the epoch under which the group's partition is owned; None where it has no owner."""
    row = db.execute("SELECT epoch, released FROM leases WHERE grp=? AND partition=?", (group, partition)).fetchone()
    return None if row is None or row[1] else row[0]


def place() -> str:
    """Return where pids mean the same: the host and its namespace of pids (containers may share a host's name)."""
    try:
        return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def started(pid: int) -> float | None:
    """Return a number that tells the process from others that had its pid; None where it runs no more.

    On Linux these are clock ticks since the host has booted: a time of day would change when the clock is set.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if after_name[0] in "ZX" else float(after_name[19])  # state and starttime, see proc(5)
    except FileNotFoundError:
        if sys.platform == "linux" and Path("/proc/self/stat").exists():
            return None
    except (OSError, IndexError):
        pass
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def is_running(pid: int, since: float) -> bool:
    """The process is there, and is the one that it was (pids are used again)."""
    try:
        return started(pid) == since
    except psutil.AccessDenied:
        return True
