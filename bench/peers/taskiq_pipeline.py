"""taskiq, in memory: five tasks, each sends the next one. Nothing is stored: a crash loses what was under way."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from taskiq import InMemoryBroker

STAGES = 5


async def pipeline(folder: Path, measure: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]) -> Any:
    """Measure `request`, which runs one workflow. Tasks are not cast or validated: their fastest setting."""
    broker = InMemoryBroker(cast_types=False, max_async_tasks=1000)
    answers: dict[str, asyncio.Future[Any]] = {}
    tasks: list[Any] = []

    def stage(i: int) -> Any:
        @broker.task(task_name=f"stage{i}")
        async def handle(id: str, payload: Any) -> None:
            if i < STAGES:
                await tasks[i].kiq(id, payload)
            else:
                answers.pop(id).set_result(payload)

        return handle

    tasks += [stage(i) for i in range(1, STAGES + 1)]

    async def request() -> Any:
        id = str(uuid.uuid4())
        answers[id] = asyncio.get_running_loop().create_future()
        answer = answers[id]
        await tasks[0].kiq(id, {"text": "x" * 289})
        return await answer

    await broker.startup()
    try:
        return await measure(request)
    finally:
        await broker.shutdown()
