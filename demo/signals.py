"""Ctrl-C, SIGTERM and a closed terminal end a run in good order: what runs is cancelled once, and the code says why."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Coroutine
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(Exception):
    """A signal came. `code` is what a shell expects: 128 + its number."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = 128 + number


async def interruptible(work: Coroutine[Any, Any, int]) -> int:
    """Return what `work` returns; a signal cancels it. A second one cancels what it does about the first.

    Raises Interrupted once `work` has ended because of a signal.
    """
    loop, task = asyncio.get_running_loop(), asyncio.create_task(work)
    got: list[int] = []

    def stop(number: int) -> None:
        got.append(number)
        task.cancel()

    for number in ENDING:
        loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not got:
            raise
        raise Interrupted(got[0]) from None
    finally:
        for number in ENDING:
            loop.remove_signal_handler(number)
