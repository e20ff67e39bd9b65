"""The one task that writes: it takes all that is queued into one transaction, so concurrent callers share an fsync."""

from __future__ import annotations

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from ...bus.errors import BrokerUnavailable, Overloaded
from .connection import connect, transact, translated

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], Any]

MAX_BATCH = 8 * 1024 * 1024
MAX_QUEUE = 256 * 1024 * 1024
"""Bytes that may wait to be written; beyond it the caller is told to try again."""


class Writer:
    """Runs jobs in transactions, in the order in which they were given. A lone job never waits for others."""

    def __init__(self, path: str, synchronous: str, patience: float, on_commit: Callable[[], None]) -> None:
        self._path = path
        self._synchronous = synchronous
        self._patience = patience
        self._on_commit = on_commit
        self._queue: deque[tuple[Job, int, asyncio.Future[Any]]] = deque()
        self._queued = 0
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="refold-sqlite-writer")
        self._db: sqlite3.Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    async def do(self, job: Callable[[sqlite3.Connection], T], size: int = 0) -> T:
        """Run a job in a transaction and return its result; durable then. A cancelled call may still be carried out."""
        if self._closed:
            raise BrokerUnavailable(f"{self._path} is closed")
        if self._queued > MAX_QUEUE:
            raise Overloaded(f"{self._queued} bytes wait to be written to {self._path}: send more slowly")
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        self._queue.append((job, size, future))
        self._queued += size
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._drain())
        return await asyncio.shield(future)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            batch: list[tuple[Job, int, asyncio.Future[Any]]] = []
            size = 0
            while self._queue and (not batch or size < MAX_BATCH):
                batch.append(self._queue.popleft())
                size += batch[-1][1]
            self._queued -= size
            try:
                results = await loop.run_in_executor(self._thread, self._commit, [job for job, _, _ in batch])
            except Exception as error:  # noqa: BLE001 - each caller of the batch gets it: nothing of theirs is written
                for _, _, future in batch:
                    future.set_exception(error)
                    future.exception()  # a caller that was cancelled looks at it no more
            else:
                for (_, _, future), result in zip(batch, results, strict=True):
                    future.set_result(result)

    def _commit(self, jobs: list[Job]) -> list[Any]:
        if self._db is None:
            with translated(self._path):
                self._db = connect(self._path, synchronous=self._synchronous)
        db = self._db
        results = transact(db, self._path, self._patience, lambda: [job(db) for job in jobs])
        self._on_commit()
        return results

    async def aclose(self) -> None:
        """Finish what was accepted, then close the connection."""
        self._closed = True
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])
        if self._db is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._db.close)
            self._db = None
        self._thread.shutdown(wait=False)
