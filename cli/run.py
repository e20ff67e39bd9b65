"""`refold run`: a worker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from typing import Annotated

import typer

from ..bus.errors import ConfigError
from .settings import BrokerOption, broker_url

Target = Annotated[str, typer.Argument(metavar="MODULE:ATTR | FILE.py[:ATTR]", help="Where the agents are.")]


def run(
    target: Target,
    broker: BrokerOption = None,
    group: Annotated[str | None, typer.Option(help="The group that shares the work. Default: the app's name.")] = None,
    member: Annotated[str | None, typer.Option(help="This worker's name in the group. Default: made up.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Handlers that run at once.")] = 100,
    reload: Annotated[bool, typer.Option("--reload", help="Start again when a file changes.")] = False,
    log_format: Annotated[str, typer.Option(help="text or json")] = "text",
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error")] = "info",
) -> None:
    """Host agents: a worker that runs until Ctrl-C or SIGTERM. Start as many as you like, on the same log."""
    if log_format not in ("text", "json"):
        raise ConfigError(f"--log-format {log_format!r}: use text or json")
    if log_level.lower() not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"--log-level {log_level!r}: use debug, info, warning or error")
    if reload:
        raise typer.Exit(_reload())
    from ..agents.runtime import serve
    from . import logs
    from .load import load

    app = load(target)
    url = broker_url(broker)
    logs.configure(log_format, log_level)

    def ready(worker: object) -> None:
        names = ", ".join(a.name for a in app.agents)
        if log_format == "text":
            print(f"{names} on {url}, group {group or app.name}, pid {os.getpid()}. Ctrl-C stops.", file=sys.stderr)

    code = asyncio.run(
        serve(
            app.agents,
            url,
            group=group or app.name,
            member=member,
            concurrency=concurrency,
            app=app.name,
            on_handled=lambda h: print(logs.handled_line(h, log_format), flush=True),
            on_ready=ready,
        )
    )
    raise typer.Exit(code)


def _reload() -> int:
    """Run the same command without --reload, and start it again whenever a Python file here changes."""
    try:
        from watchfiles import PythonFilter, watch
    except ImportError:
        raise ConfigError("--reload needs watchfiles: pip install 'refold[reload]'") from None
    command = [sys.executable, "-m", "refold.cli", *(a for a in sys.argv[1:] if a != "--reload")]
    child = subprocess.Popen(command)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(_end(child)))
    try:
        for changes in watch(".", watch_filter=PythonFilter(), raise_interrupt=True):
            names = ", ".join(sorted({os.path.relpath(path) for _, path in changes})[:3])
            print(f"{names} changed: starting again", file=sys.stderr)
            _end(child)
            child = subprocess.Popen(command)
    except KeyboardInterrupt:
        pass
    return _end(child)


def _end(child: subprocess.Popen[bytes]) -> int:
    if child.poll() is None:
        child.terminate()
    return child.wait()
