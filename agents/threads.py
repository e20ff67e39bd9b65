"""A bounded pool of threads for plain functions. A thread that outlives its time limit is abandoned and replaced."""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any

from ..bus.errors import Overloaded
from .causes import describe_error

ABANDONED_LIMIT = 8
"""At this many abandoned threads the worker drains what it can and ends (semantics, section 5)."""
GRACE = 60.0
"""Seconds after which a thread whose caller was ended, and that still runs, counts as abandoned."""


class Late(TimeoutError):
    """The function did not return within its time limit; its thread is left to itself."""


class NoThread(Overloaded):
    """The process cannot start a thread now: the function was not called."""


class Job:
    """One call: `begun` when a thread has it, `left` when nobody waits for it any more."""

    def __init__(self, call: Callable[[], Any], timeout: float | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()
        self.call = call
        self.timeout = timeout
        self.scope = asyncio.timeout(None)
        self.begun = self.left = self.abandoned = False

    def start_clock(self) -> None:
        """A thread has begun: from now on its time counts."""
        if self.timeout is not None and not self.future.done():
            self.scope.reschedule(self.loop.time() + self.timeout)


class Threads:
    """Daemon threads, so that one that hangs cannot keep the process from ending."""

    def __init__(self, size: int = 16, on_exhausted: Callable[[], None] = lambda: None) -> None:
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._size = size
        self._alive = self._busy = self._away = 0
        self._on_exhausted = on_exhausted
        self.abandoned = 0

    async def run(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
        timeout: float | None = None, late: Callable[[], bool] = lambda: False,
    ) -> Any:  # fmt: skip
        """Call the function in a thread. Raises Late when it has run for `timeout` seconds, NoThread.

        Cancelled, it leaves the thread to itself; `late` says then whether the caller was ended for taking too long.
        A call that no thread has begun is not made.
        """
        context = contextvars.copy_context()
        job = Job(lambda: context.run(function, *args, **kwargs), timeout)
        self._busy += 1
        try:
            self._grow()
            self._jobs.put(job)
            async with job.scope:
                return await job.future
        except TimeoutError:
            if not job.scope.expired():
                raise  # the function's own
            self._leave(job, late=True)
            raise Late(
                f"{getattr(function, '__qualname__', function)!r} did not return within {timeout:.3g} s; "
                "its thread is abandoned and its work may still happen"
            ) from None
        except asyncio.CancelledError:
            self._leave(job, late=late())
            raise
        finally:
            self._busy -= 1

    def _grow(self) -> None:
        at_hand = self._alive - self._away
        if at_hand >= min(self._size, self._busy):
            return
        try:
            threading.Thread(target=self._work, name=f"refold-{self._alive + 1}", daemon=True).start()
            self._alive += 1
        except RuntimeError as error:  # out of memory or threads: those that are there take the call in their turn
            if at_hand <= 0:
                raise NoThread(f"this process can start no thread for a plain function: {error}") from error

    def _leave(self, job: Job, *, late: bool) -> None:
        """Nobody waits for the call any more: another thread takes the place of the one that has it."""
        if not job.begun or not job.future.cancelled():
            return
        job.left = True
        self._away += 1
        if late:
            self._abandon(job)
        else:
            job.loop.call_later(GRACE, self._abandon, job)

    def _abandon(self, job: Job) -> None:
        if not job.left or job.abandoned:
            return
        job.abandoned = True
        self.abandoned += 1
        if self.abandoned >= ABANDONED_LIMIT:
            self._on_exhausted()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.begun = True
            result, error = None, None
            try:
                if job.timeout is not None:
                    job.loop.call_soon_threadsafe(job.start_clock)
                if not job.future.cancelled():
                    result = job.call()
            except BaseException as e:  # noqa: BLE001 - whatever it raises belongs to its caller
                error = e
            try:
                job.loop.call_soon_threadsafe(self._settle, job, result, error)
            except RuntimeError:  # the loop is closed: nobody waits any more
                return
            del job, result, error

    def _settle(self, job: Job, result: Any, error: BaseException | None) -> None:
        if job.left:  # it came back after all: the thread is of use again
            job.left = False
            self._away -= 1
            self.abandoned -= job.abandoned
        elif job.future.cancelled():
            pass
        elif error is not None:
            job.future.set_exception(_portable(error))
        else:
            job.future.set_result(result)

    def close(self) -> None:
        """Let idle threads end; those that are busy end with the process."""
        for _ in range(self._alive):
            self._jobs.put(None)


def _portable(error: BaseException) -> BaseException:
    """Return an error that a future can carry, and that means to its caller's loop what it meant in the thread."""
    if isinstance(error, Exception | SystemExit) and not isinstance(error, StopIteration):
        return error
    wrapped = RuntimeError(f"raised {describe_error(error)}")
    wrapped.__cause__ = error
    return wrapped
