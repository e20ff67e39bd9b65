"""What the tests share: running a coroutine with a deadline, and waiting for a condition."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest

T = TypeVar("T")


@pytest.fixture
def go() -> Callable[[Coroutine[Any, Any, T]], T]:
    """Run a coroutine to its end, within 30 s."""

    def run(work: Coroutine[Any, Any, T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(30):
                return await work

        return asyncio.run(bounded())

    return run


@pytest.fixture
def until() -> Callable[..., Awaitable[None]]:
    """Wait until a condition holds (a plain or an async function), within `within` seconds."""

    async def wait(condition: Callable[[], Any], within: float = 10.0) -> None:
        async with asyncio.timeout(within):
            while True:
                found = condition()
                if asyncio.iscoroutine(found):
                    found = await found
                if found:
                    return
                await asyncio.sleep(0.005)

    return wait
