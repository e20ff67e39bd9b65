"""Notices a handler that blocks the event loop, from a thread of its own, and says which one and where."""

from __future__ import annotations

import contextlib
import logging
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

from .execution import call_handler
from .run import Run

log = logging.getLogger("refold.worker")

STALL = 1.0
"""Seconds without a turn of the loop after which it is said who holds it."""


class Watchdog:
    """`beat` is called by the loop; a thread looks whether it still is."""

    def __init__(self, stall: float = STALL) -> None:
        self._stall = stall
        self._last = time.monotonic()
        self._told = 0.0
        self.stalls = 0

    def beat(self) -> None:
        """The loop has turned."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Watch the calling thread's loop."""
        done, watched = threading.Event(), threading.get_ident()
        self.beat()
        thread = threading.Thread(target=self._look, args=(watched, done), name="refold-watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()

    def _look(self, watched: int, done: threading.Event) -> None:
        while not done.wait(self._stall / 2):
            last = self._last
            if time.monotonic() - last > self._stall and self._told != last:
                self._told = last
                self.stalls += 1
                frame = sys._current_frames().get(watched)
                log.warning("the event loop is blocked: %s; use a `def` handler, or asyncio.to_thread", who(frame))


def who(frame: FrameType | None) -> str:
    """Say whose handler a stack is in, and on which line."""
    where = f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame is not None else "nobody knows where"
    while frame is not None:
        if frame.f_code is call_handler.__code__:
            run = frame.f_locals.get("run")
            if isinstance(run, Run):
                return f"agent {run.agent}, workflow {run.correlation}, {where}"
        frame = frame.f_back
    return where
