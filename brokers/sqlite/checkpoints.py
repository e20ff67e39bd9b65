"""A group's checkpoints: rows that are replaced together with their position."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Mapping
from zlib import crc32

from ...bus.broker import Checkpoint
from .connection import Damaged
from .leases import current_epoch


class Save:
    """Replaces changed entries, removes gone ones, then moves the position; called in a transaction.

    Returns False, and does nothing, where `epoch` is no longer the group's.
    """

    def __init__(
        self, group: str, partition: int, epoch: int, position: int, anchor: bytes, changed: Mapping[bytes, bytes],
        gone: Collection[bytes],
    ) -> None:  # fmt: skip
        self._group, self._partition, self._epoch = group, partition, epoch
        self._position = (group, partition, position, anchor)
        self._changed = [(group, partition, k, v, crc32(v, crc32(k))) for k, v in changed.items()]
        self._gone = [(group, partition, k) for k in gone]
        self.size = sum(len(k) + len(v) for k, v in changed.items())

    def __call__(self, db: sqlite3.Connection) -> bool:
        if current_epoch(db, self._group, self._partition) != self._epoch:
            return False
        db.executemany("DELETE FROM entries WHERE grp=? AND partition=? AND k=?", self._gone)
        db.executemany("INSERT OR REPLACE INTO entries VALUES (?, ?, ?, ?, ?)", self._changed)
        db.execute("INSERT OR REPLACE INTO checkpoints VALUES (?, ?, ?, ?)", self._position)
        return True


def load(db: sqlite3.Connection, group: str, partition: int) -> Checkpoint | None:
    """Return the group's checkpoint; one statement, hence of one moment."""
    rows = db.execute(
        "SELECT c.position, c.anchor, e.k, e.v, e.crc FROM checkpoints AS c LEFT JOIN entries AS e"
        " ON e.grp = c.grp AND e.partition = c.partition WHERE c.grp = ? AND c.partition = ?",
        (group, partition),
    ).fetchall()
    if not rows:
        return None
    position, anchor, *_ = rows[0]
    if type(position) is not int or type(anchor) is not bytes:
        raise Damaged(f"the checkpoint of partition {partition} is not what was saved")
    entries = {}
    for _, _, k, v, crc in rows:
        if k is not None:
            if type(k) is not bytes or type(v) is not bytes or crc32(v, crc32(k)) != crc:  # damage can change a type
                raise Damaged(f"an entry of the checkpoint of partition {partition} is not what was saved")
            entries[k] = v
    return Checkpoint(position, anchor, entries)


def groups(db: sqlite3.Connection, partition: int) -> list[str]:
    """Return the groups that have a checkpoint of the partition, newest position first."""
    sql = "SELECT grp FROM checkpoints WHERE partition = ? ORDER BY position DESC, grp"
    return [group for (group,) in db.execute(sql, (partition,))]


def committed(db: sqlite3.Connection, group: str) -> dict[int, int]:
    """Return partition -> position above the group's checkpoint."""
    return dict(db.execute("SELECT partition, position + 1 FROM checkpoints WHERE grp = ?", (group,)).fetchall())
