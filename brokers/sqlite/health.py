"""What `doctor` wants to know of a file. Changes nothing."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3

from ...bus.broker import Health
from .connection import Damaged, connect, network_mount
from .reading import checked

FIXED = (3, 51, 3)
LITTLE = 512 * 1024 * 1024
LONG_WAL = 256 * 1024 * 1024
SMALL = 256 * 1024 * 1024
"""Bytes up to which the whole file is read to check it."""

Check = tuple[str, bool, str, str]


def look(path: str, synchronous: str) -> Health:
    """Return the health of a log. Blocks: for up to some seconds where the file is small."""
    checks = [_version(), _file_system(path), _space(path), _wal_size(path)]
    try:
        with contextlib.closing(connect(path, query_only=True)) as db:
            checks += [_journal(db), _integrity(db, path)]
    except sqlite3.Error as error:
        checks.append(("file", False, str(error), "restore it from its backup"))
    fatal = any(not ok for name, ok, _, _ in checks if name in ("file", "integrity"))
    return Health(
        ok=not fatal, durability="D1" if synchronous == "NORMAL" else "D2", why=f"synchronous={synchronous}",
        version=sqlite3.sqlite_version, checks=checks,
    )  # fmt: skip


def _version() -> Check:
    version = tuple(map(int, sqlite3.sqlite_version.split(".")))
    return (
        "sqlite", version >= FIXED, f"version {sqlite3.sqlite_version}",
        "before 3.51.3 two connections that checkpoint at once can lose commits: refold takes a lock around each, so "
        "let no other program write to the file",
    )  # fmt: skip


def _file_system(path: str) -> Check:
    kind = network_mount(path)
    return ("file system", kind is None, kind or "local", "locks do not hold on network file systems: use a local disk")


def _space(path: str) -> Check:
    try:
        free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
    except OSError as error:
        return ("space", False, str(error), "the folder of the log is gone")
    return ("space", free > LITTLE, f"{free // 2**20} MiB free", "free some space: appends fail when there is none")


def _wal_size(path: str) -> Check:
    try:
        size = os.stat(f"{path}-wal").st_size
    except OSError:
        size = 0
    text = "a long reader holds it: look for a stopped process"
    return ("write-ahead log", size < LONG_WAL, f"{size // 2**20} MiB", text)


def _journal(db: sqlite3.Connection) -> Check:
    (mode,) = db.execute("PRAGMA journal_mode").fetchone()
    return ("journal", mode == "wal", f"journal_mode is {mode}", "set it back: PRAGMA journal_mode=WAL")


def _integrity(db: sqlite3.Connection, path: str) -> Check:
    size = os.stat(path).st_size
    if size > SMALL:
        return ("integrity", True, f"not checked, {size // 2**20} MiB: that takes long", "")
    (found,) = db.execute("PRAGMA integrity_check(1)").fetchone()  # the index by key too
    try:
        for row in db.execute("SELECT at, key, value, time, crc FROM records"):
            checked(*row)
    except Damaged as error:
        found = str(error)
    return ("integrity", found == "ok", found, "restore it from its backup")
