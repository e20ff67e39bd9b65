"""Stopping a process as a suspended laptop or a debugger would, in a moment that leaves the log to others."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable

import psutil

from refold.brokers.sqlite.connection import lock_holder


async def stop(pid: int, path: str | os.PathLike[str], until: Callable[..., Awaitable[None]]) -> None:
    """Stop it outside of its commits: within one it holds the lock of the file, and nobody could take over."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        if lock_holder(os.fspath(path)) != pid:
            return
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(0.005)
