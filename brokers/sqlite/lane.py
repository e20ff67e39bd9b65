"""A thread that carries out what it is given, one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue

Job = Callable[[], None]


class Lane:
    """A thread of its own, begun when it is needed. A job must not raise: nobody waits for it.

    `ThreadPoolExecutor` makes a future, and a lock in it, for each job: 30 us of each commit that is alone. As it is a
    daemon, a process that ends without `aclose` does not wait for it; what is in a transaction then is not committed.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    def put(self, job: Job) -> None:
        """Carry it out after what was given before."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._jobs.put(job)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    async def aclose(self, last: Job) -> None:
        """Do what was given, then `last`, and end the thread."""
        if self._thread is None:
            return
        loop = asyncio.get_running_loop()
        ended = loop.create_future()

        def end() -> None:
            try:
                last()
            finally:
                with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                    loop.call_soon_threadsafe(ended.set_result, None)

        self._jobs.put(end)
        self._jobs.put(None)
        await asyncio.shield(ended)
