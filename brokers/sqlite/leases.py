"""Who owns which partition: rows of the log, and what a member does about them. No wall clock enters it."""

from __future__ import annotations

import sqlite3

from msgspec import ValidationError, convert

from ..shares import Lease, Peer, View, Wanted
from .connection import Damaged

_BOOL = {0: False, 1: True}


def read(db: sqlite3.Connection, group: str) -> View:
    """Return the rows of a group. Raises Damaged where a value is of another type than what is written."""
    members = db.execute(
        "SELECT member, token, counter, pid, started, place, wanted FROM members WHERE grp=?", (group,)
    ).fetchall()
    leases = db.execute("SELECT partition, epoch, owner, released FROM leases WHERE grp=?", (group,)).fetchall()
    try:
        peers = [convert((*row[:6], _from_text(row[6])), Peer) for row in members]
        return View({row[0]: convert((*row[:3], _BOOL[row[3]]), Lease) for row in leases}, peers)
    except (ValidationError, ValueError, TypeError, KeyError) as error:
        raise Damaged(f"who is a member, or owns what, is not what was written: {error}") from error


def _from_text(wanted: str | None) -> Wanted:
    return None if wanted is None else frozenset(map(int, str.split(wanted)))


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


def current_epochs(db: sqlite3.Connection, group: str) -> dict[int, int]:
    """Return partition -> the epoch under which the group owns it, of those that have an owner.

    All in one row: each row that is fetched gives the interpreter's lock away.
    """
    sql = "SELECT group_concat(partition || ' ' || epoch) FROM leases WHERE grp=? AND NOT released"
    (text,) = db.execute(sql, (group,)).fetchone()
    try:
        return {int(p): int(epoch) for p, epoch in (pair.split() for pair in (text or "").split(",") if pair)}
    except ValueError as error:
        raise Damaged(f"who owns what is not what was written: {error}") from error


def current_epoch(db: sqlite3.Connection, group: str, partition: int) -> int | None:
    """Return the epoch under which the group's partition is owned; None where it has no owner."""
    return current_epochs(db, group).get(partition)
