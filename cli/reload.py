"""`refold run --reload`: the worker in a process of its own, started again when a Python file changes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from ..bus.errors import ConfigError


def again_and_again(target: str) -> int:
    """Run this command without --reload, again after each change, until Ctrl-C or SIGTERM; return its exit code."""
    try:
        from watchfiles import PythonFilter, watch
    except ImportError:
        raise ConfigError("--reload needs watchfiles: pip install 'refold[reload]'") from None
    command = [sys.executable, "-m", "refold.cli", *(a for a in sys.argv[1:] if a != "--reload")]
    stop = threading.Event()
    for kind in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(kind, lambda *_: stop.set())
    child = _start(command)
    for changes in watch(*_folders(target), watch_filter=PythonFilter(), stop_event=stop, raise_interrupt=False):
        names = ", ".join(sorted({os.path.relpath(path) for _, path in changes})[:3])
        print(f"{names} changed: starting again", file=sys.stderr, flush=True)
        _end(child)
        child = _start(command)
    return _end(child)


def _folders(target: str) -> set[Path]:
    file = Path(target.partition(":")[0])
    return {Path.cwd(), file.resolve().parent} if file.suffix == ".py" and file.exists() else {Path.cwd()}


def _start(command: list[str]) -> subprocess.Popen[bytes]:
    """Start it in a process group of its own: a Ctrl-C must reach it once, as the SIGTERM of `_end`."""
    return subprocess.Popen(command, process_group=0)


def _end(child: subprocess.Popen[bytes]) -> int:
    """Let it drain."""
    if child.poll() is None:
        child.terminate()
    return child.wait()
