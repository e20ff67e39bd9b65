"""What `doctor` wants to know of a file. Changes nothing."""

from __future__ import annotations

import os
import shutil
import sqlite3

from ...bus.broker import Health
from .connection import connect

FIXED = (3, 51, 3)
LITTLE = 512 * 1024 * 1024

Check = tuple[str, bool, str, str]


def look(path: str, synchronous: str) -> Health:
    """Return the health of a log."""
    durability = "D1" if synchronous == "NORMAL" else "D2"
    checks = [_version(), _space(path), _wal_size(path)]
    try:
        db = connect(path, query_only=True)
    except sqlite3.Error as error:
        checks.append(("file", False, str(error), "restore it from its backup"))
    else:
        try:
            (mode,) = db.execute("PRAGMA journal_mode").fetchone()
            checks.append(("journal", mode == "wal", f"journal_mode is {mode}", "open it once with `refold run`"))
            (found,) = db.execute("PRAGMA quick_check(1)").fetchone()
            checks.append(("integrity", found == "ok", found, "restore it from its backup"))
        finally:
            db.close()
    fatal = any(not ok for name, ok, _, _ in checks if name in ("file", "integrity"))
    return Health(
        ok=not fatal, durability=durability, why=f"synchronous={synchronous}", version=sqlite3.sqlite_version,
        checks=checks,
    )  # fmt: skip


def _version() -> Check:
    version = tuple(map(int, sqlite3.sqlite_version.split(".")))
    return (
        "sqlite", version >= FIXED, f"version {sqlite3.sqlite_version}",
        "before 3.51.3 two connections that checkpoint at once can lose commits: refold takes a lock around each, so "
        "let no other program write to the file",
    )  # fmt: skip


def _space(path: str) -> Check:
    free = shutil.disk_usage(os.path.dirname(os.path.abspath(path))).free
    return ("space", free > LITTLE, f"{free // 2**20} MiB free", "free some space: appends fail when there is none")


def _wal_size(path: str) -> Check:
    try:
        size = os.stat(f"{path}-wal").st_size
    except OSError:
        size = 0
    text = "a long reader holds it: look for a stopped process"
    return ("write-ahead log", size < 256 * 2**20, f"{size // 2**20} MiB", text)
