"""FastStream on NATS JetStream and on Kafka: five subscribers of 100 workers each, each publishes to the next one.

As its documentation says for speed: `max_workers`, no casting of types. A message is acknowledged to JetStream when its
handler has ended; on Kafka `max_workers` commits before that.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import beside

STAGES, WORKERS = 5, 100


@contextlib.asynccontextmanager
async def pipeline(kind: str, space: str) -> AsyncIterator[Callable[[], Any]]:
    """Yield what runs a workflow."""
    broker, subscriber, publish = await (_nats if kind == "nats" else _kafka)(space)
    answers: dict[str, asyncio.Future[Any]] = {}

    def stage(i: int) -> None:
        target = f"stage{i + 1}" if i < STAGES else "client"

        @subscriber(f"stage{i}")  # type: ignore[untyped-decorator]
        async def handle(body: Any) -> None:
            await publish(body, target)

    for i in range(1, STAGES + 1):
        stage(i)

    @subscriber("client")  # type: ignore[untyped-decorator]
    async def answered(body: Any) -> None:
        answers.pop(body["id"]).set_result(body["payload"])

    async def request() -> Any:
        id = str(uuid.uuid4())
        answer = answers[id] = asyncio.get_running_loop().create_future()
        await publish({"id": id, "payload": {"text": "x" * 289}}, "stage1")
        return await answer

    async with broker:
        await broker.start()
        yield request


async def _nats(space: str) -> tuple[Any, Any, Any]:
    from faststream.nats import JStream, NatsBroker

    broker = NatsBroker(f"nats://{beside.bootstrap()}", apply_types=False, logger=None)
    stream = JStream(name=space, subjects=[f"{space}.>"])

    def subscriber(stage: str) -> Any:
        return broker.subscriber(
            f"{space}.{stage}", stream=stream, durable=f"{space}-{stage}", max_workers=WORKERS, no_reply=True
        )

    async def publish(body: Any, stage: str) -> None:
        await broker.publish(body, f"{space}.{stage}", stream=space)

    return broker, subscriber, publish


async def _kafka(space: str) -> tuple[Any, Any, Any]:
    from by_hand.kafka_loop import topics
    from faststream.kafka import KafkaBroker

    await topics(*(f"{space}.stage{i}" for i in range(1, STAGES + 1)), f"{space}.client")
    broker = KafkaBroker(beside.bootstrap(), acks="all", enable_idempotence=True, apply_types=False, logger=None)

    def subscriber(stage: str) -> Any:
        return broker.subscriber(
            f"{space}.{stage}", group_id=f"{space}.{stage}", auto_offset_reset="earliest", fetch_max_wait_ms=10,
            max_workers=WORKERS, no_reply=True,
        )  # fmt: skip

    async def publish(body: Any, stage: str) -> None:
        await broker.publish(body, f"{space}.{stage}")

    return broker, subscriber, publish
