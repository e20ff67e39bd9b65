"""The one task that writes: it takes all that is queued into one transaction, so concurrent callers share an fsync."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections import deque
from collections.abc import Callable
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, TypeVar

from msgspec import Struct

from ...bus.errors import BrokerUnavailable, LogFull, LogLocked, Overloaded, RefoldError
from .connection import connect, same_file, same_process, transact, translated
from .lane import Lane

T = TypeVar("T")
Job = Callable[[sqlite3.Connection], Any]

MAX_BATCH_BYTES = 8 * 1024 * 1024
MAX_BATCH_JOBS = 2000
MAX_QUEUE_BYTES = 64 * 1024 * 1024
MAX_QUEUE_JOBS = 100_000
"""What may wait to be written; beyond it the caller is told to try again."""


class Request(Struct, frozen=True, gc=False):
    """A job that waits for its transaction; `word` is what others are told when it is committed."""

    job: Job
    size: int
    word: bytes
    done: asyncio.Future[Any]


class Failed(NamedTuple):
    """What came of a job that could not be carried out."""

    error: BaseException


def carry_out(db: sqlite3.Connection, jobs: list[Job]) -> list[Any]:
    """Run jobs in order; those that know how to be done together, and follow on each other, in one go."""
    results: list[Any] = []
    for kind, group in groupby(jobs, key=type):
        some, together = list(group), getattr(kind, "together", None)
        results += together(db, some) if together is not None else [job(db) for job in some]
    return results


class Writer:
    """Runs jobs in transactions, in the order in which they were given. A lone job never waits for others.

    `begun` is called in the writer's thread before each transaction, `committed` after it with the words of its jobs.
    What that returns is called in the loop, once the jobs' callers have their results: whoever has appended ends before
    what it has appended is worked on, and its slot is free for that.
    """

    def __init__(
        self, path: str, synchronous: str, patience: float, begun: Callable[[sqlite3.Connection], None],
        committed: Callable[[set[bytes]], Callable[[], None]],
    ) -> None:  # fmt: skip
        self._path, self._synchronous, self._patience = path, synchronous, patience
        self._begun, self._committed = begun, committed
        self._opened = (0, 0)
        self._pid = os.getpid()
        self._queue: deque[Request] = deque()
        self._queued = 0
        self._lane = Lane("refold-sqlite-writer")
        self._db: sqlite3.Connection | None = None
        self._loop: asyncio.AbstractEventLoop
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False

    def watch(self, opened: tuple[int, int]) -> None:
        """Refuse to write when the file is no longer this one."""
        self._opened = opened

    def do(self, job: Callable[[sqlite3.Connection], T], size: int = 0, word: bytes = b"") -> asyncio.Future[T]:
        """Run a job in a transaction; its result comes when it is durable. One that is cancelled is carried out all the
        same. Raises Overloaded."""
        if self._closed or os.getpid() != self._pid:
            same_process(self._pid, self._path)
            raise BrokerUnavailable(f"{self._path} is closed")
        queue = self._queue
        if self._queued > MAX_QUEUE_BYTES or len(queue) >= MAX_QUEUE_JOBS:
            raise Overloaded(f"{len(queue)} appends wait to be written to {self._path}: send more slowly")
        self._loop = loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        queue.append(Request(job, size, word, done))
        self._queued += size
        if self._idle.is_set():
            self._idle.clear()
            loop.call_soon(self._next)  # with what else is asked for in this turn of the loop
        return done

    def _next_batch(self) -> list[Request]:
        batch: list[Request] = []
        size = 0
        while self._queue and len(batch) < MAX_BATCH_JOBS and size < MAX_BATCH_BYTES:
            batch.append(self._queue.popleft())
            size += batch[-1].size
        self._queued -= size
        return batch

    def _next(self) -> None:
        if self._queue:
            self._lane.put(partial(self._work, self._next_batch()))
        else:
            self._idle.set()

    def _work(self, batch: list[Request]) -> None:
        """Carry out a batch, in the thread, and tell the loop."""
        results: list[Any]
        after: list[Callable[[], None]] = []
        try:
            results = self._commit(batch, after)
        except BaseException as error:  # noqa: BLE001 - each caller of the batch gets it: nothing of theirs is written
            results = [Failed(error)] * len(batch)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._finished, batch, results, after)

    def _finished(self, batch: list[Request], results: list[Any], after: list[Callable[[], None]]) -> None:
        self._next()
        for request, result in zip(batch, results, strict=True):
            if request.done.done():  # its caller has been cancelled
                continue
            if isinstance(result, Failed):
                request.done.set_exception(result.error)
            else:
                request.done.set_result(result)
        for tell in after:
            tell()

    def _commit(self, batch: list[Request], after: list[Callable[[], None]]) -> list[Any]:
        """Carry out a batch; where a job of it is wrong, each alone, so that it harms no other."""
        try:
            return self._transact(batch, after)
        except RefoldError:
            raise
        except Exception:
            if len(batch) == 1:
                raise
            return [self._alone(request, after) for request in batch]

    def _alone(self, request: Request, after: list[Callable[[], None]]) -> Any:
        try:
            return self._transact([request], after)[0]
        except Exception as error:  # noqa: BLE001 - its caller gets it
            return Failed(error)

    def _transact(self, batch: list[Request], after: list[Callable[[], None]]) -> list[Any]:
        with translated(self._path):
            if self._db is None:
                self._db = connect(self._path, synchronous=self._synchronous)
            same_file(self._path, self._opened)
        db = self._db

        def run() -> list[Any]:
            self._begun(db)
            return carry_out(db, [request.job for request in batch])

        try:
            results = transact(db, self._path, self._patience, run)
        except BaseException as error:
            of_the_disk = isinstance(error, BrokerUnavailable) and not isinstance(error, LogLocked | LogFull)
            if of_the_disk or db.in_transaction:  # what it believes of the file is forgotten, and the lock let go
                self._disconnect()
            raise
        after.append(self._committed({request.word for request in batch if request.word}))
        return results

    def _disconnect(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with contextlib.suppress(sqlite3.Error):
                db.close()

    async def aclose(self) -> None:
        """Finish what was accepted, then close the connection."""
        self._closed = True
        try:
            await self._idle.wait()
        finally:
            await self._lane.aclose(self._disconnect)
