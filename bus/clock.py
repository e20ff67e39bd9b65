"""Time, ids and randomness enter here, and only here, so that a test or a simulation can replace them."""

from __future__ import annotations

import asyncio
import random
import time

from .message import new_id


class Clock:
    """The real clock. `now` is unix seconds (may jump), `monotonic` seconds that only grow."""

    def now(self) -> float:
        """Return wall time in unix seconds."""
        return time.time()

    def monotonic(self) -> float:
        """Return seconds since some fixed moment; for measuring how long something lasted."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Wait at least this long."""
        await asyncio.sleep(seconds)


class Source:
    """Where ids of messages from outside and the jitter of backoffs come from."""

    def __init__(self, seed: int | None = None) -> None:
        self._random = random.Random(seed)

    def new_id(self) -> str:
        """Return a fresh id (UUIDv7)."""
        return new_id()

    def jitter(self) -> float:
        """Return a number in [0, 1)."""
        return self._random.random()
