"""By hand on aiokafka: batches that are built and sent whole, a topic a stage, a commit for each batch consumed."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import beside
import promised as limit
import raw as hand
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

BATCH = 900_000
Row = tuple[str, bytes]


async def topics(*names: str) -> None:
    """Make topics of one partition."""
    admin = AIOKafkaAdminClient(bootstrap_servers=beside.bootstrap())
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, 1, 1) for name in names])
    finally:
        await admin.close()


@contextlib.asynccontextmanager
async def producer() -> AsyncIterator[AIOKafkaProducer]:
    """A producer that sends nothing twice; each batch is acknowledged by all replicas."""
    made = AIOKafkaProducer(
        bootstrap_servers=beside.bootstrap(), acks="all", enable_idempotence=True, max_batch_size=BATCH
    )
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


async def send(made: AIOKafkaProducer, topic: str, rows: Sequence[Row]) -> None:
    """Append records as one batch, and return when it is acknowledged."""
    batch = made.create_batch()
    for key, value in rows:
        if batch.append(key=key.encode(), value=value, timestamp=None) is None:
            raise ValueError("more than a batch")
    await (await made.send_batch(batch, topic, partition=0))


async def append(space: str, window: int, count: int) -> float:
    """Two batches on their way at once, together as many records as `window`; records per second."""
    await topics(space)
    async with producer() as made:

        async def lane(records: int) -> None:
            for _ in range(records // (window // 2)):
                rows = []
                for _ in range(window // 2):
                    correlation = str(uuid.uuid4())
                    rows.append((correlation, hand.encode(hand.new_start(correlation))))
                await send(made, space, rows)

        await asyncio.gather(lane(count // 10), lane(count // 10))
        started = time.perf_counter()
        await asyncio.gather(lane(count), lane(count))
        return 2 * count / (time.perf_counter() - started)


class Pipeline:
    """Five stages, a topic and a consumer group each; handlers of a batch run at once, one batch follows another."""

    def __init__(self, made: AIOKafkaProducer, space: str, handler: Any) -> None:
        self._made, self._space, self._handler = made, space, handler
        self._clients: dict[str, asyncio.Future[Any]] = {}
        self._new: list[Row] = []
        self._task: asyncio.Task[None] | None = None

    async def request(self) -> Any:
        """Start a workflow and return its answer. Starts of one turn of the loop share a batch."""
        correlation = str(uuid.uuid4())
        answer = self._clients[correlation] = asyncio.get_running_loop().create_future()
        self._new.append((correlation, hand.encode(hand.new_start(correlation))))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._start())
        return await answer

    async def _start(self) -> None:
        await asyncio.sleep(0)
        while self._new:
            rows, self._new = self._new, []
            await send(self._made, f"{self._space}.stage1", rows)

    async def run(self, stage: str, consumer: AIOKafkaConsumer) -> None:
        """Work as one of the stages, or wake the clients."""
        while True:
            found = await consumer.getmany(timeout_ms=1000)
            records = [hand.decode(m.value) for messages in found.values() for m in messages]
            if records and stage == "client":
                for r in records:
                    self._clients.pop(r.correlation_id).set_result(r.payload)
            elif records:
                payloads = await asyncio.gather(*(self._handler(r.payload) for r in records))
                replies = [hand.next_record(r, payload) for r, payload in zip(records, payloads, strict=True)]
                rows = [(r.correlation_id, hand.encode(r)) for r in replies]
                await send(self._made, f"{self._space}.{replies[0].receiver_id}", rows)
            if records:
                await consumer.commit()


@contextlib.asynccontextmanager
async def pipeline(space: str, handler: Any) -> AsyncIterator[Callable[[], Any]]:
    """Yield what runs a workflow."""
    stages = [*(f"stage{i}" for i in range(1, hand.STAGES + 1)), "client"]
    await topics(*(f"{space}.{stage}" for stage in stages))
    async with contextlib.AsyncExitStack() as stack:
        made = await stack.enter_async_context(producer())
        loop = Pipeline(made, space, handler)
        tasks = []
        for stage in stages:
            consumer = AIOKafkaConsumer(
                f"{space}.{stage}", bootstrap_servers=beside.bootstrap(), group_id=f"{space}.{stage}",
                enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=10,
            )  # fmt: skip
            await consumer.start()
            stack.push_async_callback(consumer.stop)
            tasks.append(asyncio.create_task(loop.run(stage, consumer)))
        yield loop.request
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class PromisedLog(limit.News):
    """One topic; what is appended while a batch is on its way is the next one."""

    def __init__(self, made: AIOKafkaProducer, topic: str) -> None:
        super().__init__()
        self._made, self._topic = made, topic
        self._new: list[tuple[Row, asyncio.Future[None]]] = []
        self._task: asyncio.Task[None] | None = None

    async def append(self, key: str, value: bytes) -> None:
        """Return when it is stored."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._new.append(((key, value), done))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._send())
        await done

    async def _send(self) -> None:
        await asyncio.sleep(0)
        while self._new:
            new, self._new = self._new, []
            await send(self._made, self._topic, [row for row, _ in new])
            for _, done in new:
                done.set_result(None)

    async def read(self, consumer: AIOKafkaConsumer) -> None:
        """Hand on what has been stored, until cancelled."""
        while True:
            found = await consumer.getmany(timeout_ms=1000)
            self.offer([(m.key.decode(), m.value) for messages in found.values() for m in messages])


@contextlib.asynccontextmanager
async def promised(space: str, handler: Any) -> AsyncIterator[Callable[[], Any]]:
    """Yield what runs a workflow through the small engine by hand (`bench/promised.py`)."""
    await topics(space)
    async with contextlib.AsyncExitStack() as stack:
        log = PromisedLog(await stack.enter_async_context(producer()), space)
        consumer = AIOKafkaConsumer(
            bootstrap_servers=beside.bootstrap(), enable_auto_commit=False, fetch_max_wait_ms=10
        )
        await consumer.start()
        stack.push_async_callback(consumer.stop)
        consumer.assign([TopicPartition(space, 0)])
        await consumer.seek_to_beginning(TopicPartition(space, 0))
        reading = asyncio.create_task(log.read(consumer))
        async with limit.Promised(log, handler).running() as request:
            yield request
        reading.cancel()


async def filled(space: str, records: Sequence[Row]) -> None:
    """Put records into a topic."""
    await topics(space)
    async with producer() as made:
        for at in range(0, len(records), 1000):
            await send(made, space, records[at : at + 1000])


async def consume(space: str, count: int, take: Callable[[str, bytes], None]) -> float:
    """Consume the topic from its beginning; records per second."""
    consumer = AIOKafkaConsumer(bootstrap_servers=beside.bootstrap(), enable_auto_commit=False)
    await consumer.start()
    try:
        place = TopicPartition(space, 0)
        started, seen = time.perf_counter(), 0
        consumer.assign([place])
        await consumer.seek_to_beginning(place)
        while seen < count:
            for messages in (await consumer.getmany(timeout_ms=1000)).values():
                for message in messages:
                    take(message.key.decode(), message.value)
                seen += len(messages)
        return count / (time.perf_counter() - started)
    finally:
        await consumer.stop()
