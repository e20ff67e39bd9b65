"""What tests of handlers share: an open log in memory, a worker on it, and what a workflow's records are."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from refold import Agent, MessageBus, RetryPolicy, Worker
from refold.brokers.memory import MemoryBroker
from refold.bus import codec
from refold.bus.broker import Broker, LogSpec
from refold.bus.message import AgentMessage

QUICK = RetryPolicy(attempts=3, initial=0.01, jitter=0)


async def opened(partitions: int = 1, **spec: Any) -> MemoryBroker:
    """A new log in memory."""
    broker = MemoryBroker()
    await broker.ensure_log(LogSpec(partitions=partitions, **spec))
    return broker


@contextlib.asynccontextmanager
async def working(broker: Broker, *agents: Agent, group: str = "g", **settings: Any) -> AsyncIterator[Worker]:
    """A worker on a broker that is open; stopped at the end."""
    settings.setdefault("drain", 1.0)
    worker = Worker(broker, agents, group=group, **settings)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(worker.run())
        try:
            yield worker
        finally:
            worker.stop()


@contextlib.asynccontextmanager
async def hosted(*agents: Agent, partitions: int = 1, **settings: Any) -> AsyncIterator[tuple[MessageBus, Worker]]:
    """A new log with a worker of these agents, and a client of it."""
    broker = await opened(partitions)
    async with MessageBus.open(broker) as bus, working(broker, *agents, **settings) as worker:
        yield bus, worker


async def crash(broker: MemoryBroker, worker: Worker, task: asyncio.Task[Any]) -> None:
    """Let the worker's process die, as far as that can be done inside one: nothing is released, nothing is written."""
    broker.kill(worker.member)
    task.cancel()
    await asyncio.wait([task])


async def records(broker: Broker, correlation: str) -> list[AgentMessage]:
    """The workflow's own records, in log order."""
    page = await broker.read_workflow(correlation, limit=100_000)
    return [codec.decode(s.value) for s in page.records if s.key is not None]


async def kinds_of(broker: Broker, correlation: str) -> list[str]:
    """The kinds of a workflow's records, in log order."""
    return [r.message_type for r in await records(broker, correlation)]
