"""Connections and their settings; the one place where SQLite's errors become refold's."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import psutil

from ...bus.errors import BrokerUnavailable, ConfigError, LogCorrupt, LogFull, LogLocked, LogMissing, RefoldError

T = TypeVar("T")

NETWORK = frozenset({"nfs", "nfs4", "cifs", "smbfs", "smb3", "afs", "9p", "fuse.sshfs", "afpfs", "webdav"})
OPENING = 10.0
WAL_WRITE_LOCK = 120
"""Byte of the -shm file that a writer locks (https://www.sqlite.org/walformat.html, section 2.3)."""


class Damaged(sqlite3.DatabaseError):
    """What was read is not what was written."""

    sqlite_errorcode = sqlite3.SQLITE_CORRUPT


def connect(path: str, *, mode: str = "rw", synchronous: str = "FULL", query_only: bool = False) -> sqlite3.Connection:
    """Open the file. `mode` rw never creates it, rwc may. Writers do not wait for locks in SQLite: retries are ours."""
    db = sqlite3.connect(  # while it is opened another process may be recovering or closing: that wait is SQLite's
        f"file:{quote(path)}?mode={mode}", uri=True, timeout=OPENING, isolation_level=None, check_same_thread=False,
        cached_statements=256,
    )  # fmt: skip
    try:
        db.execute("PRAGMA wal_autocheckpoint=0")
        db.execute(f"PRAGMA synchronous={synchronous}")
        db.execute(f"PRAGMA cache_size={-2000 if query_only else -8000}")  # KiB; the system's cache is behind it
        db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
        db.execute("PRAGMA query_only=ON" if query_only else "PRAGMA busy_timeout=0")
    except BaseException:
        db.close()
        raise
    return db


@contextlib.contextmanager
def translated(path: str) -> Iterator[None]:
    """Raise refold's errors for SQLite's."""
    try:
        yield
    except sqlite3.Error as error:
        if "binding parameter" in str(error):
            raise TypeError(f"a value that cannot be stored: {error}") from error
        raise translate(error, path) from error


def translate(error: sqlite3.Error, path: str) -> RefoldError:
    """Return the error of refold that an error of SQLite means to a caller."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LogLocked(f"{path} is locked by another process", lock_holder(path))
    if code == sqlite3.SQLITE_FULL:
        return LogFull(f"no space for {path}: {error}; nothing of the append was written, free some space")
    if code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT) or "decode to UTF-8" in str(error):
        return LogCorrupt(f"{path} is damaged or no SQLite database ({error}): restore it from its backup")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_AUTH):
        return ConfigError(f"{path} cannot be opened or written ({error}): look at its permissions and its folder's")
    if code == sqlite3.SQLITE_ERROR and "no such" in str(error):
        return LogCorrupt(f"{path} is damaged or no log of refold ({error}): restore it from its backup")
    return BrokerUnavailable(f"{path}: {error}")


def patiently(path: str, patience: float, action: Callable[[], T]) -> T:
    """Do what needs a lock; try for `patience` seconds. Raises LogLocked with the holder's pid.

    Polled with jitter: SQLite's own busy handler backs off so far that its 99.9th percentile was four times higher.
    """
    until, wait = time.monotonic() + patience, 0.0005
    while True:
        try:
            return action()
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_BUSY:
                raise
            if time.monotonic() > until:
                pid = lock_holder(path)
                who = f"process {pid}" if pid else "another process"
                raise LogLocked(
                    f"{who} has held the write lock of {path} for {patience:g} s: nothing was written, try again", pid
                ) from error
        time.sleep(wait * (0.5 + random.random()))
        wait = min(wait * 1.5, 0.01)


def transact(db: sqlite3.Connection, path: str, patience: float, work: Callable[[], T]) -> T:
    """Run `work` in a write transaction: all of it or nothing."""
    with translated(path):
        patiently(path, patience, lambda: db.execute("BEGIN IMMEDIATE"))
        try:
            result = work()
            db.execute("COMMIT")
        except BaseException:
            if db.in_transaction:
                with contextlib.suppress(sqlite3.Error):  # the first error says more
                    db.execute("ROLLBACK")
            raise
        return result


def lock_holder(path: str) -> int | None:
    """Return the pid that holds the write lock, where the system tells (Linux)."""
    try:
        inode = os.stat(f"{path}-shm").st_ino
        lines = Path("/proc/locks").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        parts = line.split()
        if len(parts) >= 8 and parts[3] == "WRITE" and parts[5].endswith(f":{inode}"):
            if int(parts[6]) <= WAL_WRITE_LOCK and (parts[7] == "EOF" or int(parts[7]) >= WAL_WRITE_LOCK):
                return int(parts[4]) if int(parts[4]) > 0 else None
    return None


def identity(path: str) -> tuple[int, int]:
    """Return what tells this file from another one under the same name. Raises LogMissing."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise LogMissing(f"{path} is gone ({error.strerror}): stop what uses it, restore it, start again") from error
    return found.st_dev, found.st_ino


def same_file(path: str, opened: tuple[int, int]) -> None:
    """What is written to a file that has been removed would be lost. Raises LogMissing."""
    if identity(path) != opened:
        raise LogMissing(f"{path} was replaced while it was open: stop what uses it, then start again")


def same_process(pid: int, path: str) -> None:
    """The threads that serve a broker are not there in a process that was forked from its own. Raises ConfigError."""
    if os.getpid() != pid:
        raise ConfigError(f"{path} was opened before this process was forked (by {pid}): open it again, here")


def network_mount(path: str) -> str | None:
    """Return the kind of network file system that holds the file, and where it is mounted; None for a local disk."""
    where = os.path.realpath(path)
    mounts = [(m.mountpoint, m.fstype) for m in psutil.disk_partitions(all=True)]
    inside = [m for m in mounts if where == m[0] or where.startswith(m[0].rstrip("/") + "/")]
    mount, kind = max(inside, key=lambda m: len(m[0]), default=("", ""))
    return f"{kind} at {mount}" if kind.lower() in NETWORK else None


def refuse_remains(path: str) -> None:
    """SQLite would remove the write-ahead log of a file that is gone or empty, and begin anew. Raises LogCorrupt."""
    with contextlib.suppress(OSError):
        if os.stat(f"{path}-wal").st_size and not (os.path.exists(path) and os.stat(path).st_size):
            raise LogCorrupt(
                f"{path} is gone or empty, while {path}-wal holds records of it: restore both from their backup, or "
                "remove both to begin anew"
            )


def refuse_network(path: str) -> None:
    """SQLite's locks do not hold on network file systems. Raises ConfigError."""
    kind = network_mount(path)
    if kind is not None:
        raise ConfigError(f"{path} is on a network file system ({kind}): use a local disk")
