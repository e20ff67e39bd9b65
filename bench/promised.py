"""The limit: a small engine by hand, which promises of five stages what refold promises, each as lean as it can be.

Judged by refold's admission, found again, stored once, fenced, ids that every owner derives alike, one handling of an
agent at a time in a workflow, a limit of slots. It has no steps, timers, retries, deadlines, children, checkpoints,
takeovers, no client in another process, and no handler that raises. What it costs beside the loop of `raw.py` is the
price of the promises; what refold costs beside it is the price of all the rest.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any

import raw as hand
from rows.promises import PARTITIONS, Partitioned

SLOTS = 64
EPOCH = 7


class News:
    """What has been appended, for who reads it."""

    def __init__(self) -> None:
        self._news = asyncio.Event()
        self._fresh: list[tuple[str, bytes]] = []

    def offer(self, rows: Iterable[tuple[str, bytes]]) -> None:
        """These are durable."""
        self._fresh += rows
        self._news.set()

    async def take(self) -> list[tuple[str, bytes]]:
        """Return what has been offered since the last time."""
        while not self._fresh:
            self._news.clear()
            await self._news.wait()
        fresh, self._fresh = self._fresh, []
        return fresh


class PromisedLog(Partitioned):
    """A workflow's records can be found, the same is not taken twice, 16 partitions; and whoever does not own the
    partition appends nothing. What has been committed is handed on as it is: nothing is read back."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        with contextlib.closing(hand.connect(path)) as db:
            db.execute("CREATE TABLE owners(partition INTEGER PRIMARY KEY, epoch INTEGER)")
            db.executemany("INSERT INTO owners VALUES (?, ?)", [(p, EPOCH) for p in range(PARTITIONS)])
        self.news = News()
        self.take = self.news.take
        self._loop = asyncio.get_running_loop()

    def check(self, hashed: list[tuple[int, bytes]]) -> None:
        super().check(hashed)
        epochs = dict(self._write_db.execute("SELECT partition, epoch FROM owners").fetchall())
        if any(epochs[p] != EPOCH for p in range(PARTITIONS)):
            raise PermissionError("another worker owns it")

    def place(self, key: str) -> int:
        from refold.bus.partition import partition_of

        p = partition_of(key, PARTITIONS)
        self._last[p] += 1
        return self._last[p]

    def _commit(self, rows: list[tuple[str, bytes]]) -> int:
        count = super()._commit(rows)
        self._loop.call_soon_threadsafe(self.news.offer, rows)
        return count


class Promised:
    """A small engine: what admission says is open is handled, each in a task, and how it ended is appended."""

    def __init__(self, log: Any, handler: Callable[[Any], Awaitable[Any]]) -> None:
        from refold.projections.partition import PartitionFold

        self.log, self.handler = log, handler
        self.folds = [PartitionFold(p, PARTITIONS) for p in range(PARTITIONS)]
        self._positions = [0] * PARTITIONS
        self._running: set[tuple[str, str, str]] = set()
        self._queue: deque[tuple[tuple[str, str, str], Any, Any]] = deque()
        self._slots = SLOTS
        self._clients: dict[str, asyncio.Future[Any]] = {}
        self._raw: dict[str, bytes] = {}

    async def request(self) -> Any:
        """Start a workflow and return its answer."""
        from refold.bus import rules
        from refold.bus.message import AgentMessage

        r = AgentMessage.request("stage1", hand.PAYLOAD)
        answer = self._clients[r.id] = asyncio.get_running_loop().create_future()
        await self.log.append(r.correlation_id, rules.check(r))
        return await answer

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Callable[[], Awaitable[Any]]]:
        """Yield what runs a workflow."""
        task = asyncio.create_task(self._run())
        try:
            yield self.request
        finally:
            task.cancel()

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            while True:
                self._take(await self.log.take(), tasks)

    def _take(self, rows: list[tuple[str, bytes]], tasks: asyncio.TaskGroup) -> None:
        from refold.bus.broker import Stored
        from refold.bus.partition import partition_of

        touched = {}
        for key, value in rows:
            p = partition_of(key, PARTITIONS)
            fold = self.folds[p]
            self._positions[p] += 1
            stored = Stored(self._positions[p], key, value, 0.0)
            r = fold.open_envelope(stored)
            assert r is not None
            assert not fold.missing(r)
            folded = fold.fold(stored, r)
            assert folded.verdict == "admitted"
            self._raw[r.id] = value
            if r.work is not None:
                self._running.discard((key, r.sender_id, r.work.message))
            if r.in_reply_to is not None:
                self._answer(r.in_reply_to, value)
            touched[key] = fold, folded.workflow
        for fold, w in touched.values():
            if not fold.settle(w):
                self._start(w, tasks)

    def _start(self, w: Any, tasks: asyncio.TaskGroup) -> None:
        for name in w.view.agenda:
            for h in w.agenda(name):
                key = (w.correlation, name, h.message)
                if key not in self._running:
                    self._running.add(key)
                    self._queue.append((key, w, h))
                break  # one at a time, in order
        self._grant(tasks)

    def _grant(self, tasks: asyncio.TaskGroup) -> None:
        while self._slots and self._queue:
            self._slots -= 1
            tasks.create_task(self._handle(*self._queue.popleft(), tasks))

    async def _handle(self, key: tuple[str, str, str], w: Any, h: Any, tasks: asyncio.TaskGroup) -> None:
        from refold.agents.writing import work_record
        from refold.bus import codec, kinds

        correlation, agent, message = key
        ask = codec.decode(self._raw.pop(message))
        result = await self.handler(ask.payload)
        duty, stage = w.view.duty(agent, message), int(agent[5:])
        last = stage == hand.STAGES
        r = work_record(
            w, agent=agent, message=message, round=h.round, generation=w.generation, writer=hand.WRITER,
            kind=kinds.TASK_RESPONSE if last else kinds.TASK_REQUEST, now=time.time(), payload=result, done=True,
            receiver=duty.sender if last else f"stage{stage + 1}", in_reply_to=duty.id if last else None,
            answers=None if last else duty.id,
        )  # fmt: skip
        await self.log.append(correlation, codec.encode(r))
        self._slots += 1
        self._grant(tasks)

    def _answer(self, request: str, value: bytes) -> None:
        from refold.bus import codec

        client = self._clients.pop(request, None)
        if client is not None:
            client.set_result(codec.payload(value))
