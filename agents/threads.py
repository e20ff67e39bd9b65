"""A bounded pool of threads for plain functions. A thread that outlives its time limit is abandoned and replaced."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any

from ..bus.errors import HandlerTimeout

ABANDONED_LIMIT = 8
"""At this many abandoned threads the worker drains what it can and ends (semantics, section 5)."""

Job = tuple[Callable[[], Any], asyncio.Future[Any], asyncio.AbstractEventLoop]


class Threads:
    """Daemon threads, so that one that hangs cannot keep the process from ending."""

    def __init__(self, size: int = 16, on_exhausted: Callable[[], None] = lambda: None) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._size = size
        self._alive = 0
        self._busy = 0
        self._on_exhausted = on_exhausted
        self.abandoned = 0

    async def run(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], timeout: float | None = None
    ) -> Any:
        """Call the function in a thread; HandlerTimeout after `timeout` seconds, its thread is left to itself."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        context = contextvars.copy_context()
        self._busy += 1
        self._grow()
        self._jobs.put((lambda: context.run(function, *args, **kwargs), future, loop))
        try:
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            if not future.cancelled():
                raise  # the function's own
            self._abandon()
            raise HandlerTimeout(
                f"{getattr(function, '__qualname__', function)!r} did not return within {timeout} s; "
                "its thread is abandoned and its work may still happen"
            ) from None
        except asyncio.CancelledError:
            self._abandon()
            raise
        finally:
            self._busy -= 1

    def _grow(self) -> None:
        if self._alive - self.abandoned < min(self._size, self._busy):
            self._alive += 1
            threading.Thread(target=self._work, name=f"refold-{self._alive}", daemon=True).start()

    def _abandon(self) -> None:
        self.abandoned += 1
        if self.abandoned >= ABANDONED_LIMIT:
            self._on_exhausted()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            call, future, loop = job
            try:
                result, error = call(), None
            except BaseException as e:  # noqa: BLE001 - whatever it raises belongs to its caller
                result, error = None, e
            try:
                loop.call_soon_threadsafe(self._settle, future, result, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return

    def _settle(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        if future.cancelled():
            self.abandoned -= 1  # it came back after all: the thread is of use again
        elif error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def close(self) -> None:
        """Let idle threads end; those that are busy end with the process."""
        for _ in range(self._alive):
            self._jobs.put(None)
