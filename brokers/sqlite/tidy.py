"""Moving the write-ahead log into the file, by one process at a time.

SQLite up to 3.51.2 can lose commits when two connections checkpoint at once (fixed in 3.51.3), so refold switches the
automatic checkpoint off and takes a lock of its own around each.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor

from .connection import connect

PASSIVE = 4 * 1024 * 1024
TRUNCATE = 64 * 1024 * 1024
"""Bytes of the write-ahead log from which it is moved (without stopping anybody), and from which it is emptied too."""


class Tidy:
    """Looks at the size after commits; works in a thread of its own."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="refold-sqlite-tidy")
        self._busy: asyncio.Future[None] | None = None
        self._next = 0

    def look(self) -> None:
        """Start a checkpoint where one is due and none is under way. Cheap."""
        self._next -= 1
        if self._next > 0 or (self._busy is not None and not self._busy.done()):
            return
        self._next = 64
        with contextlib.suppress(OSError):
            size = os.stat(f"{self._path}-wal").st_size
            if size > PASSIVE:
                self._busy = asyncio.get_running_loop().run_in_executor(self._thread, self._checkpoint, size)

    def _checkpoint(self, size: int) -> None:
        lock = os.open(f"{self._path}-tidy", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            db = connect(self._path)
            try:
                db.execute(f"PRAGMA wal_checkpoint({'TRUNCATE' if size > TRUNCATE else 'PASSIVE'})").fetchall()
            finally:
                db.close()
        except (BlockingIOError, sqlite3.OperationalError):
            pass  # another process does it, or is writing: next time
        finally:
            os.close(lock)

    async def aclose(self) -> None:
        """Let a checkpoint that is under way end."""
        if self._busy is not None:
            await asyncio.wait([self._busy])
        self._thread.shutdown(wait=False)
