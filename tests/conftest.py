"""What the tests share: running a coroutine with a deadline, and waiting for a condition."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import settings

T = TypeVar("T")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts its background jobs so; children inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
pytest_plugins = ("simulation.mix", "real_servers")

settings.register_profile("quick", deadline=None, print_blob=True)
settings.register_profile("thorough", deadline=None, print_blob=True, max_examples=2000)
settings.load_profile(os.environ.get("REFOLD_TESTS", "quick"))


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
