"""Moving the write-ahead log into the file, by one connection at a time.

SQLite up to 3.51.2 can lose commits when two connections checkpoint at once (fixed in 3.51.3), so refold switches the
automatic checkpoint off and takes a lock of its own around each: who holds it is the checkpointer. (Closing the last
connection empties the write-ahead log too; SQLite locks everybody out then.)
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import sqlite3
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

from .connection import connect

log = logging.getLogger("refold.sqlite")

PASSIVE = 4 * 1024 * 1024
TRUNCATE = 64 * 1024 * 1024
"""Bytes of the write-ahead log from which it is moved (without stopping anybody), and from which it is emptied too."""
PATIENCE = 1.0
AGAIN = 10.0
"""Emptying is tried for so long, until a moment comes without readers and writers; then again after 10 s."""


class Tidy:
    """Looks at the size after commits; works in a thread of its own."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="refold-sqlite-tidy")
        self._busy: Future[None] | None = None
        self._moved = 0
        self._emptied = -AGAIN
        self._closing = threading.Event()

    def look(self) -> None:
        """Start a checkpoint where one is due and none is under way. Cheap; called in the writer's thread."""
        if self._closing.is_set() or (self._busy is not None and not self._busy.done()):
            return
        try:
            size = os.stat(f"{self._path}-wal").st_size
        except OSError:
            return
        if size < self._moved:  # the write-ahead log was emptied
            self._moved = 0
        now = time.monotonic()
        empty = size > TRUNCATE and now - self._emptied > AGAIN
        if empty or size - self._moved > PASSIVE:
            self._moved, self._emptied = size, now if empty else self._emptied
            self._busy = self._thread.submit(self._move, empty)

    def _move(self, empty: bool) -> None:
        try:
            lock = os.open(f"{self._path}-tidy", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            log.warning("%s-tidy cannot be opened, the write-ahead log grows: %s", self._path, error)
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            checkpoint(self._path, empty)
        except BlockingIOError:
            pass  # another process does it
        except sqlite3.Error as error:
            log.warning("the write-ahead log of %s could not be moved: %s", self._path, error)
        finally:
            os.close(lock)

    def close(self) -> None:
        """Let a checkpoint that is under way end. Blocks meanwhile."""
        self._closing.set()
        self._thread.shutdown(wait=True)


def checkpoint(path: str, empty: bool) -> None:
    """Move what can be moved without stopping anybody; with `empty`, all of it in a moment without readers and writers.

    Tried again and again, since SQLite's own waiting for readers would keep the writers out meanwhile.
    """
    with contextlib.closing(connect(path)) as db:
        db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        until = time.monotonic() + PATIENCE
        while empty and time.monotonic() < until:
            ((busy, _, _),) = db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            if not busy:
                return
            time.sleep(0.0005 + 0.001 * random.random())
