"""A process of the demo ends when the one that started it is gone, however that ended."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

STDIN = 0


@contextmanager
def lifeline() -> Iterator[None]:
    """Send this process a SIGTERM once the pipe at its stdin is closed."""
    loop = asyncio.get_running_loop()

    def closed() -> None:
        if not os.read(STDIN, 1024):
            loop.remove_reader(STDIN)
            os.kill(os.getpid(), signal.SIGTERM)

    loop.add_reader(STDIN, closed)
    try:
        yield
    finally:
        loop.remove_reader(STDIN)
