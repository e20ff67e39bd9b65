"""By hand on nats-py: a stream, publishing with a window of acknowledgements, a consumer that acknowledges nothing."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import beside
import nats
import promised as limit
import raw as hand
from nats.js import JetStreamContext
from nats.js.api import AckPolicy, ConsumerConfig, StorageType, StreamConfig

WINDOW = 4000
UNLIMITED = {"pending_msgs_limit": -1, "pending_bytes_limit": -1}


@contextlib.asynccontextmanager
async def stream(space: str, window: int = WINDOW) -> AsyncIterator[JetStreamContext]:
    """A stream on disk, and a client of it."""
    client = await nats.connect(f"nats://{beside.bootstrap()}")
    try:
        js = client.jetstream(publish_async_max_pending=window)
        await js.add_stream(StreamConfig(name=space, subjects=[f"{space}.>"], storage=StorageType.FILE, num_replicas=1))
        yield js
    finally:
        await client.close()


async def append(space: str, window: int, count: int) -> float:
    """Encode and publish, so many on their way at once; records per second."""
    async with stream(space, window) as js:

        async def some(records: int) -> None:
            flying = []
            for _ in range(records):
                correlation = str(uuid.uuid4())
                value = hand.encode(hand.new_start(correlation))
                flying.append(await js.publish_async(f"{space}.{correlation}", value))
            await asyncio.gather(*flying)

        await some(count // 10)
        started = time.perf_counter()
        await some(count)
        return count / (time.perf_counter() - started)


class Pipeline:
    """Five stages on one stream. `tasks`: a task for each message, which ends when what came of it is acknowledged, as
    agents that wait need it; else one message after another, and acknowledgements are looked at by nobody."""

    def __init__(self, js: JetStreamContext, space: str, handler: Any, tasks: asyncio.TaskGroup | None) -> None:
        self._js, self._space, self._handler, self._tasks = js, space, handler, tasks
        self._clients: dict[str, asyncio.Future[Any]] = {}

    async def request(self) -> Any:
        """Start a workflow and return its answer."""
        correlation = str(uuid.uuid4())
        answer = self._clients[correlation] = asyncio.get_running_loop().create_future()
        await self._publish(hand.new_start(correlation))
        return await answer

    async def _publish(self, r: hand.Record) -> None:
        subject = f"{self._space}.{r.receiver_id}.{r.correlation_id}"
        stored = await self._js.publish_async(subject, hand.encode(r))
        if self._tasks is not None:
            await stored

    async def heard(self, msg: Any) -> None:
        """Give a message to its stage, or an answer to its client."""
        r = hand.decode(msg.data)
        if r.receiver_id == "client":
            client = self._clients.pop(r.correlation_id, None)
            if client is not None:
                client.set_result(r.payload)
        elif self._tasks is None:
            await self._handle(r)
        else:
            self._tasks.create_task(self._handle(r))

    async def _handle(self, r: hand.Record) -> None:
        await self._publish(hand.next_record(r, await self._handler(r.payload)))


@contextlib.asynccontextmanager
async def pipeline(space: str, handler: Any, *, lockstep: bool = False) -> AsyncIterator[Callable[[], Any]]:
    """Yield what runs a workflow."""
    async with stream(space) as js, asyncio.TaskGroup() as tasks:
        loop = Pipeline(js, space, handler, None if lockstep else tasks)
        config = ConsumerConfig(ack_policy=AckPolicy.NONE)
        await js.subscribe(f"{space}.>", stream=space, cb=loop.heard, config=config, manual_ack=True, **UNLIMITED)
        yield loop.request


class PromisedLog(limit.News):
    """One stream, a subject for each workflow; the server takes nothing twice."""

    def __init__(self, js: JetStreamContext, space: str) -> None:
        super().__init__()
        self._js, self._space = js, space
        self._numbers = itertools.count()

    async def append(self, key: str, value: bytes) -> None:
        """Return when it is stored."""
        headers = {"Nats-Msg-Id": str(next(self._numbers))}
        await (await self._js.publish_async(f"{self._space}.{key}", value, headers=headers))

    async def heard(self, msg: Any) -> None:
        """A record has been stored."""
        self.offer([(msg.subject.rpartition(".")[2], msg.data)])


@contextlib.asynccontextmanager
async def promised(space: str, handler: Any) -> AsyncIterator[Callable[[], Any]]:
    """Yield what runs a workflow through the small engine by hand (`bench/promised.py`)."""
    async with stream(space) as js:
        log, config = PromisedLog(js, space), ConsumerConfig(ack_policy=AckPolicy.NONE)
        await js.subscribe(f"{space}.>", stream=space, cb=log.heard, config=config, manual_ack=True, **UNLIMITED)
        async with limit.Promised(log, handler).running() as request:
            yield request


async def filled(space: str, records: Sequence[tuple[str, bytes]]) -> None:
    """Put records into a stream."""
    async with stream(space) as js:
        await asyncio.gather(*[await js.publish_async(f"{space}.{key}", value) for key, value in records])


async def consume(space: str, count: int, take: Callable[[str, bytes], None]) -> float:
    """Consume the stream from its beginning; records per second."""
    client = await nats.connect(f"nats://{beside.bootstrap()}")
    try:
        js, seen, done = client.jetstream(), 0, asyncio.Event()

        async def heard(msg: Any) -> None:
            nonlocal seen
            take(msg.subject.rpartition(".")[2], msg.data)
            seen += 1
            if seen == count:
                done.set()

        config = ConsumerConfig(ack_policy=AckPolicy.NONE)
        started = time.perf_counter()
        await js.subscribe(f"{space}.>", stream=space, cb=heard, config=config, manual_ack=True, **UNLIMITED)
        async with asyncio.timeout(100):
            await done.wait()
        return count / (time.perf_counter() - started)
    finally:
        await client.close()
