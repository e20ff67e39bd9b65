"""Whether a process of this host is still there, and is the one that it was."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import psutil


def place() -> str:
    """Return where pids mean the same: the host and its namespace of pids (containers may share a host's name)."""
    try:
        return f"{socket.gethostname()}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return socket.gethostname()


def started(pid: int) -> float | None:
    """Return a number that tells the process from others that had its pid; None where it runs no more.

    On Linux these are clock ticks since the host has booted: a time of day would change when the clock is set.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return None if after_name[0] in "ZX" else float(after_name[19])  # state and starttime, see proc(5)
    except FileNotFoundError:
        if sys.platform == "linux" and Path("/proc/self/stat").exists():
            return None
    except (OSError, IndexError):
        pass
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.NoSuchProcess:
        return None


def is_running(pid: int, since: float) -> bool:
    """The process is there, and is the one that it was (pids are used again)."""
    try:
        return started(pid) == since
    except psutil.AccessDenied:
        return True
