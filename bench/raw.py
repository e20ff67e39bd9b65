"""The hand-written baseline: one SQLite file, records, group commit, reading back. It knows nothing of refold.

Its records have the fields, hence the size, of a record of refold, and are as durable (WAL, synchronous=FULL). It
checks nothing, fences nobody, knows no workflow, retries nothing: what refold costs beyond it is the price of all that.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

WAL_LIMIT = 4 * 1024 * 1024
READ_LIMIT = 1000

PAYLOAD = {"text": "x" * 289}
"""300 bytes of JSON."""


class Work(msgspec.Struct, omit_defaults=True):
    """Where a record came from."""

    message: str
    writer: str
    done: bool = False


class Record(msgspec.Struct, omit_defaults=True):
    """One record, with the envelope that refold's have."""

    id: str
    sender_id: str
    receiver_id: str
    message_type: str
    correlation_id: str
    timestamp: float
    payload: Any
    causation_id: str | None = None
    generation: int | None = None
    in_reply_to: str | None = None
    answers: str | None = None
    asked: bool = False
    work: Work | None = None


WRITER = "01890a5d-ac96-774b-bcce-b302099a8057#12345"
encode = msgspec.json.Encoder().encode
decode = msgspec.json.Decoder(Record).decode


def connect(path: str) -> sqlite3.Connection:
    """Open the file as refold does: WAL, each commit on the disk before it returns."""
    db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    db.execute("PRAGMA journal_mode=WAL").fetchall()
    db.execute("PRAGMA synchronous=FULL")
    db.execute("PRAGMA wal_autocheckpoint=0")
    db.execute("PRAGMA cache_size=-16000")
    return db


def create(path: str) -> None:
    """Make the table: a position and the bytes."""
    with contextlib.closing(connect(path)) as db:
        db.execute("CREATE TABLE IF NOT EXISTS records(at INTEGER PRIMARY KEY, key TEXT, value BLOB NOT NULL)")


class RawLog:
    """Appends share a commit; a read returns what follows on a position. One connection to write, one to read."""

    def __init__(self, path: str, on_commit: Callable[[], None] = lambda: None) -> None:
        create(path)
        self._path = path
        self._on_commit = on_commit
        self._writing, self._reading = ThreadPoolExecutor(1), ThreadPoolExecutor(1)
        self._write_db, self._read_db = connect(path), connect(path)
        self._queue: list[tuple[str, bytes, asyncio.Future[int]]] = []
        self._task: asyncio.Task[None] | None = None
        self._moved = 0

    async def append(self, key: str, value: bytes) -> int:
        """Return the record's position once it is durable."""
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._queue.append((key, value, done))
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._drain())
        return await done

    async def append_all(self, rows: list[tuple[str, bytes]]) -> int:
        """Append several in one commit; the last one's position."""
        return await asyncio.get_running_loop().run_in_executor(self._writing, self._commit, rows)

    async def _drain(self) -> None:
        while self._queue:
            batch, self._queue = self._queue, []
            last = await self.append_all([(key, value) for key, value, _ in batch])
            for at, (_, _, done) in enumerate(batch, last - len(batch) + 1):
                if not done.done():  # its caller has been cancelled
                    done.set_result(at)

    def _commit(self, rows: list[tuple[str, bytes]]) -> int:
        db = self._write_db
        db.execute("BEGIN IMMEDIATE")
        db.executemany("INSERT INTO records(key, value) VALUES (?, ?)", rows)
        last: int = db.execute("SELECT last_insert_rowid()").fetchone()[0]
        db.execute("COMMIT")
        self._on_commit()
        self._tidy()
        return last

    def _tidy(self) -> None:
        size = os.stat(f"{self._path}-wal").st_size
        if size - self._moved > WAL_LIMIT:
            self._moved = size
            self._write_db.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    async def read(self, after: int) -> list[tuple[int, bytes]]:
        """Return (position, bytes) of the records after a position."""
        return await asyncio.get_running_loop().run_in_executor(self._reading, self._read, after)

    def _read(self, after: int) -> list[tuple[int, bytes]]:
        sql = "SELECT at, value FROM records WHERE at > ? ORDER BY at LIMIT ?"
        return self._read_db.execute(sql, (after, READ_LIMIT)).fetchall()

    def close(self) -> None:
        """End the threads."""
        self._writing.shutdown()
        self._reading.shutdown()
        self._write_db.close()
        self._read_db.close()


@contextlib.asynccontextmanager
async def opened(path: str, on_commit: Callable[[], None] = lambda: None) -> AsyncIterator[RawLog]:
    """A log for as long as the context is open."""
    log = RawLog(path, on_commit)
    try:
        yield log
    finally:
        log.close()


# ---- a pipeline, by hand ---------------------------------------------------------------------------------------------
STAGES = 5


def new_start(correlation: str, payload: Any = PAYLOAD) -> Record:
    """The record that opens a workflow."""
    return Record(
        f"{correlation[:-1]}0", "client", "stage1", "task_request", correlation, time.time(), payload, asked=True
    )


def next_record(r: Record, payload: Any) -> Record:
    """What a stage appends: a request to the next one, or the answer."""
    stage = int(r.receiver_id[5:])
    last = stage == STAGES
    return Record(
        f"{r.correlation_id[:-1]}{stage}", r.receiver_id, "client" if last else f"stage{stage + 1}",
        "task_response" if last else "task_request", r.correlation_id, time.time(), payload, r.id, 0,
        in_reply_to=f"{r.correlation_id[:-1]}0" if last else None,
        answers=None if last else f"{r.correlation_id[:-1]}0", work=Work(r.id, WRITER, True),
    )  # fmt: skip


class Pipeline:
    """Reads what is new, gives each message to its stage in a task of its own, appends what came of it; answers wake
    their client."""

    def __init__(self, log: RawLog, handlers: dict[str, Callable[[Any], Awaitable[Any]]]) -> None:
        self.log, self.handlers = log, handlers
        self.news = asyncio.Event()
        self._clients: dict[str, asyncio.Future[Any]] = {}

    async def request(self, correlation: str) -> Any:
        """Start a workflow and return its answer."""
        answer = self._clients[correlation] = asyncio.get_running_loop().create_future()
        await self.log.append(correlation, encode(new_start(correlation)))
        self.news.set()
        return await answer

    async def run(self) -> None:
        """Work until cancelled."""
        after = 0
        async with asyncio.TaskGroup() as tasks:
            while True:
                self.news.clear()
                rows = await self.log.read(after)
                if not rows:
                    await self.news.wait()
                    continue
                after = rows[-1][0]
                self.look_at(rows)
                await self.take([decode(value) for _, value in rows], tasks)

    def look_at(self, rows: list[tuple[int, bytes]]) -> None:
        """Nothing is checked here."""

    async def take(self, records: list[Record], tasks: asyncio.TaskGroup) -> None:
        """Let the records be handled."""
        for r in records:
            handler = self.handlers.get(r.receiver_id)
            if handler is not None:
                tasks.create_task(self._handle(handler, r))
            else:
                self.answer(r)

    async def _handle(self, handler: Callable[[Any], Awaitable[Any]], r: Record) -> None:
        reply = next_record(r, await handler(r.payload))
        await self.log.append(r.correlation_id, encode(reply))
        self.news.set()

    def answer(self, r: Record) -> None:
        """Wake the client that waits for this answer."""
        client = self._clients.pop(r.correlation_id, None) if r.message_type == "task_response" else None
        if client is not None:
            client.set_result(r.payload)


class LockstepPipeline(Pipeline):
    """The same without tasks: handlers run one after another, and all that came of a round is one commit. Nothing that
    is written by hand is faster; and a handler that waits a second stops everybody for a second."""

    async def take(self, records: list[Record], tasks: asyncio.TaskGroup) -> None:
        """Handle the records, and append what came of them together."""
        out = []
        for r in records:
            handler = self.handlers.get(r.receiver_id)
            if handler is not None:
                reply = next_record(r, await handler(r.payload))
                out.append((r.correlation_id, encode(reply)))
            else:
                self.answer(r)
        if out:
            await self.log.append_all(out)
