"""The composition root: one process that hosts agents, for a script (`run`) or as a worker of its own (`serve`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

from ..brokers import open_broker
from ..bus.broker import ANY_LOG, Broker, LogSpec
from ..bus.collector import rarely
from ..bus.stall import exit_stalled
from .agent import Agent
from .client import DEFAULT_BROKER, MessageBus
from .worker import Handling, Worker


@asynccontextmanager
async def run(
    *agents: Agent, broker: str | Broker = "memory://", group: str = "app", spec: LogSpec = ANY_LOG, **settings: Any
) -> AsyncIterator[MessageBus]:
    """Host agents in this process for as long as the context is open, and yield a client of the same log.

    `settings` go to `Worker`. Leaving lets running handlers end.

    >>> async def main():
    ...     async with run(writer, researcher) as bus:
    ...         return await bus.request(writer, {"topic": "tides"})
    """
    async with contextlib.AsyncExitStack() as stack:
        if isinstance(broker, str):
            broker = await stack.enter_async_context(open_broker(broker))
            await broker.ensure_log(spec)
        worker = Worker(broker, agents, group=group, **settings)
        with unwrapped():
            async with asyncio.TaskGroup() as tasks:
                work = tasks.create_task(worker.run())
                try:
                    async with MessageBus(
                        broker, clock=worker.clock, source=worker.source, records=worker.records
                    ) as bus:
                        yield bus
                finally:
                    worker.stop()
                    if work.done() and not work.cancelled():
                        work.result()


async def serve(
    agents: Sequence[Agent], url: str = DEFAULT_BROKER, *, group: str, spec: LogSpec = ANY_LOG,
    on_handled: Callable[[Handling], None] | None = None, on_ready: Callable[[Worker], None] | None = None,
    **settings: Any,
) -> int:  # fmt: skip
    """Host agents until SIGTERM or SIGINT; return the exit code. A second signal ends at once.

    Raises GroupConflict, and what opening the log raises.
    """
    with unwrapped(), rarely():
        async with open_broker(url) as broker:
            await broker.ensure_log(spec)
            worker = Worker(broker, agents, group=group, on_handled=on_handled, **settings)
            worker.on_stuck = _end_process
            task = asyncio.current_task()
            assert task is not None
            with _signals(worker, task):
                if on_ready is not None:
                    on_ready(worker)
                return await worker.run()


def _end_process() -> None:
    """A handler that swallows its cancellation keeps its process; its partitions were given up in good order."""
    logging.shutdown()
    sys.stdout.flush()
    exit_stalled()


@contextlib.contextmanager
def _signals(worker: Worker, task: asyncio.Task[Any]) -> Any:
    loop = asyncio.get_running_loop()
    asked = 0

    def stop() -> None:
        nonlocal asked
        asked += 1
        worker.stop() if asked == 1 else task.cancel()

    kinds = (signal.SIGTERM, signal.SIGINT)
    for kind in kinds:
        loop.add_signal_handler(kind, stop)
    try:
        yield
    finally:
        for kind in kinds:
            loop.remove_signal_handler(kind)


@contextlib.contextmanager
def unwrapped() -> Any:
    """Raise what a task group wraps, where it is one error."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        raise error from error.__cause__
