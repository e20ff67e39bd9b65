"""Who owns which partition: rows of the log, and what a member does about them. No wall clock enters it."""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Mapping
from typing import NamedTuple

import psutil


class Lease(NamedTuple):
    """A group's hold of a partition. `member` is "" where it was released."""

    partition: int
    epoch: int
    member: str
    released: bool


class Peer(NamedTuple):
    """A member of a group, as its row says. `wanted` is None where it takes any partition."""

    member: str
    token: str
    counter: int
    pid: int
    started: float
    host: str
    wanted: frozenset[int] | None


class Plan(NamedTuple):
    """What a member should do now: claim these, give up those; `lost` are held by somebody else already."""

    claim: list[int]
    revoke: list[int]
    lost: list[int]


def read_peers(db: sqlite3.Connection, group: str) -> list[Peer]:
    """Return the members of a group, dead ones included."""
    rows = db.execute("SELECT member, token, counter, pid, started, host, wanted FROM members WHERE grp=?", (group,))
    return [
        Peer(name, token, counter, pid, started, host, frozenset(map(int, wanted.split(","))) if wanted else None)
        for name, token, counter, pid, started, host, wanted in rows
    ]


def read_leases(db: sqlite3.Connection, group: str) -> dict[int, Lease]:
    """Return the group's leases by partition."""
    rows = db.execute("SELECT partition, epoch, member, released FROM leases WHERE grp=?", (group,))
    return {row[0]: Lease(row[0], row[1], row[2], bool(row[3])) for row in rows}


def plan(
    me: str, partitions: int, wanted: frozenset[int] | None, leases: Mapping[int, Lease], held: Mapping[int, int],
    revoking: set[int], live: Mapping[str, frozenset[int] | None],
) -> Plan:  # fmt: skip
    """Decide from the rows. `held` is what `me` believes to own (partition -> epoch), `live` the members that are alive
    and what they want. Pure: the same rows give the same plan."""
    lost = [p for p, epoch in held.items() if not _is(leases.get(p), me, epoch)]
    kept = [p for p in held if p not in lost]
    share = math.ceil(partitions / max(len(live), 1))
    order = [(p + sorted(live).index(me) * share) % partitions for p in range(partitions)] if me in live else []
    free = [p for p in order if (wanted is None or p in wanted) and p not in held and _free(leases.get(p), live)]
    claim = free[: max(0, share - len(kept))]
    surplus = sorted(set(kept) - revoking)[share:]
    return Plan(claim, [p for p in surplus if _wanted(p, me, share, leases, live)], lost)


def _is(lease: Lease | None, me: str, epoch: int) -> bool:
    return lease is not None and lease.member == me and lease.epoch == epoch and not lease.released


def _free(lease: Lease | None, live: Mapping[str, frozenset[int] | None]) -> bool:
    return lease is None or lease.released or lease.member not in live


def _wanted(
    partition: int, me: str, share: int, leases: Mapping[int, Lease], live: Mapping[str, frozenset[int] | None]
) -> bool:
    """Somebody else would take it."""
    for member, wanted in live.items():
        if member != me and (wanted is None or partition in wanted):
            if sum(1 for x in leases.values() if x.member == member and not x.released) < share:
                return True
    return False


def claim(db: sqlite3.Connection, group: str, me: str, seen: Mapping[int, Lease], wanted: list[int]) -> list[Lease]:
    """Take partitions whose rows are as they were seen; return the new leases with what they followed on.

    The result's `released` says how the epoch before ended. Inside a transaction.
    """
    now, out = read_leases(db, group), []
    for p in wanted:
        before = now.get(p)
        if before != seen.get(p):
            continue
        epoch = before.epoch + 1 if before is not None else 1
        db.execute(
            "INSERT INTO leases VALUES (?, ?, ?, ?, 0) ON CONFLICT(grp, partition)"
            " DO UPDATE SET epoch=excluded.epoch, member=excluded.member, released=0",
            (group, p, epoch, me),
        )
        out.append(Lease(p, epoch, me, before is None or before.released))
    return out


def release(db: sqlite3.Connection, group: str, me: str, partition: int, epoch: int) -> None:
    """Give a partition up. Inside a transaction; nothing happens where it is gone already."""
    db.execute(
        "UPDATE leases SET released=1, member='' WHERE grp=? AND partition=? AND epoch=? AND member=?",
        (group, partition, epoch, me),
    )


def current_epoch(db: sqlite3.Connection, group: str, partition: int) -> int | None:
    """Return the epoch under which the group's partition is owned; None where it has no owner."""
    row = db.execute("SELECT epoch, released FROM leases WHERE grp=? AND partition=?", (group, partition)).fetchone()
    return None if row is None or row[1] else row[0]


def is_running(pid: int, started: float) -> bool:
    """The process is there, and is the one that it was (pids are used again)."""
    try:
        process = psutil.Process(pid)
        same = bool(abs(process.create_time() - started) < 1.0)
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
