"""Who is alive, by their own word: rows with the time at which they were told."""

from __future__ import annotations

import socket
import sqlite3

import msgspec
import psutil

from ...bus.broker import Member, Presence
from .connection import Damaged

REMEMBERED = 7 * 86400.0
"""Seconds after which a member that is gone is forgotten."""


def tell(db: sqlite3.Connection, presence: Presence, now: float, ttl: float) -> None:
    """Replace what the member told before. Inside a transaction."""
    row = (presence.member, presence.group, msgspec.json.encode(presence), now, ttl)
    db.execute("DELETE FROM presences WHERE told < ?", (now - REMEMBERED,))
    db.execute("INSERT OR REPLACE INTO presences VALUES (?, ?, ?, ?, ?)", row)


def withdraw(db: sqlite3.Connection, member: str) -> None:
    """The member is gone. Inside a transaction."""
    db.execute("UPDATE presences SET ttl = -1 WHERE member = ?", (member,))


def read(db: sqlite3.Connection, group: str | None, gone: bool, now: float) -> list[Member]:
    """Return who is alive: told within its ttl, and not a process of this host that has ended."""
    out, host = [], socket.gethostname()
    rows = db.execute("SELECT value, told, ttl FROM presences WHERE ? IS NULL OR grp = ?", (group, group)).fetchall()
    for value, told, ttl in rows:
        try:
            presence = msgspec.json.decode(value, type=Presence)
            age = max(0.0, now - float(told))
            ttl = float(ttl)
        except (msgspec.DecodeError, TypeError, ValueError) as error:
            raise Damaged(f"what a member told of itself: {error}") from error
        alive = age <= ttl and not (presence.host == host and presence.pid and not psutil.pid_exists(presence.pid))
        if alive or gone:
            out.append(Member(presence, age, alive))
    return out
