"""An event loop whose time is virtual and whose turns are drawn from a seed; processes in it can freeze and die.

Each simulated process has a queue of its own: asyncio's order holds within it, and nothing is promised between two of
them. A process that is frozen (SIGSTOP) or dead (kill -9) has no turn: not one more line of its code runs.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import threading
from asyncio import events
from collections import deque
from collections.abc import Callable
from contextvars import Context, ContextVar
from itertools import count
from typing import Any


class Process:
    """A simulated process, as the loop sees it."""

    def __init__(self, name: str, number: int) -> None:
        self.name = name
        self.number = number
        self.frozen = False
        self.dead = False
        self.buried = False
        self.ready: deque[events.Handle] = deque()

    @property
    def still(self) -> bool:
        """It has no turn. What is buried may unwind, and reaches nothing any more."""
        return (self.frozen or self.dead) and not self.buried

    def __repr__(self) -> str:
        return self.name


WORLD = Process("world", 0)
"""What is no process: the network, the leases' clock, whoever plays tricks."""
current: ContextVar[Process] = ContextVar("current", default=WORLD)


class Task(asyncio.Task):
    """A task whose place in a set does not depend on its address."""

    def __init__(self, coro: Any, *, number: int, **settings: Any) -> None:
        self.number = number
        super().__init__(coro, **settings)

    def __hash__(self) -> int:
        return self.number

    def __eq__(self, other: object) -> bool:
        return self is other


class StuckError(Exception):
    """Nothing is ready and no timer is set, or far too much happened."""


class VirtualLoop(asyncio.BaseEventLoop):
    """Runs one handle at a time, of a process that is drawn; time jumps to the next timer when nobody is ready."""

    def __init__(self, seed: int, limit: int = 300_000) -> None:
        super().__init__()
        self._virtual = 0.0
        self._draw = random.Random(seed)
        self._numbers = count(1)
        self._timers: list[tuple[float, int, events.TimerHandle]] = []
        self._waiting: dict[Process, None] = {}
        self._limit = limit
        self.turns = 0
        self.errors: list[dict[str, Any]] = []
        self.set_task_factory(self._make_task)
        self.set_exception_handler(lambda _, context: self.errors.append(context))

    def _make_task(
        self, loop: asyncio.AbstractEventLoop, coro: Any, context: Context | None = None, **_: Any
    ) -> Task:
        number = next(self._numbers)
        return Task(coro, number=number, loop=loop, name=f"task-{number}", context=context)

    def time(self) -> float:
        return self._virtual

    def _call_soon(self, callback: Callable[..., Any], args: Any, context: Context | None) -> events.Handle:
        handle = events.Handle(callback, args, self, context)
        self._put(handle)
        return handle

    def _put(self, handle: events.Handle) -> None:
        process = handle._context.get(current, WORLD)
        process.ready.append(handle)
        self._waiting[process] = None

    def call_at(
        self, when: float, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> events.TimerHandle:
        timer = events.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def _run_once(self) -> None:
        runnable = [p for p in self._waiting if p.ready and not p.still]
        if not runnable and not self._stopping:
            self._jump()
            return
        self.turns += 1
        if self.turns > self._limit:
            raise StuckError(f"after {self.turns} turns and {self._virtual:.1f} s it still goes on")
        if runnable:
            self._turn(runnable[self._draw.randrange(len(runnable))])

    def _turn(self, process: Process) -> None:
        """Run some of what a process has ready."""
        for _ in range(self._draw.choice((1, 1, 2, 5))):
            if not process.ready or process.still:
                break
            handle = process.ready.popleft()
            if not handle._cancelled:
                handle._run()
        if not process.ready:
            self._waiting.pop(process, None)

    def _jump(self) -> None:
        while self._timers and self._timers[0][2]._cancelled:
            heapq.heappop(self._timers)
        if not self._timers:
            raise StuckError(f"nothing will ever happen again, at {self._virtual:.1f} s")
        self._virtual = max(self._virtual, self._timers[0][0])
        while self._timers and self._timers[0][0] <= self._virtual:
            _, _, timer = heapq.heappop(self._timers)
            if not timer._cancelled:
                self._put(timer)

    # ---- what a loop without files does not have
    def _write_to_self(self) -> None:
        pass

    def _process_events(self, event_list: Any) -> None:
        pass

    def _timer_handle_cancelled(self, handle: events.TimerHandle) -> None:
        pass

    def call_soon_threadsafe(
        self, callback: Callable[..., Any], *args: Any, context: Context | None = None
    ) -> events.Handle:
        assert self._thread_id == threading.get_ident(), "a thread entered the simulation"
        return self.call_soon(callback, *args, context=context)

    def run_in_executor(self, executor: Any, func: Any, *args: Any) -> Any:
        raise AssertionError("a thread was asked for in the simulation")
