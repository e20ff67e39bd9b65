"""Stopping a process as a suspended laptop or a debugger would, in a moment that leaves the log to others."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import psutil


async def stop(pid: int, path: str | os.PathLike[str], until: Callable[..., Awaitable[None]]) -> None:
    """Stop it, but not while it locks others out of the SQLite file (in a commit, say): nobody could take over."""
    while True:
        os.kill(pid, signal.SIGSTOP)
        await until(lambda: psutil.Process(pid).status() == psutil.STATUS_STOPPED)
        if not locks_others_out(pid, path):
            return
        os.kill(pid, signal.SIGCONT)
        await asyncio.sleep(0.005)


def locks_others_out(pid: int, path: str | os.PathLike[str]) -> bool:
    """It has an exclusive lock on the file or its index, where the system tells (Linux)."""
    files = [Path(f"{path}{end}") for end in ("", "-shm")]  # the second comes and goes with the first and last user
    inodes = {str(file.stat().st_ino) for file in files if file.exists()}
    locks = Path("/proc/locks").read_text().splitlines() if Path("/proc/locks").exists() else []
    found = [line.split() for line in locks]
    return any(f[3] == "WRITE" and f[4] == str(pid) and f[5].rpartition(":")[2] in inodes for f in found if len(f) == 8)
