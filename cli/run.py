"""`refold run`: a worker."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import exits
from .settings import BrokerOption, JsonOption, broker_url

if TYPE_CHECKING:
    from ..agents.worker import Handling

Target = Annotated[str, typer.Argument(metavar="MODULE:ATTR | FILE.py[:ATTR]", help="Where the agents are.")]


class Form(StrEnum):
    """How log lines look."""

    TEXT = "text"
    JSON = "json"


class Level(StrEnum):
    """What is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def run(
    target: Target,
    broker: BrokerOption = None,
    group: Annotated[str | None, typer.Option(help="The group that shares the work. Default: the app's name.")] = None,
    member: Annotated[str | None, typer.Option(help="This worker's name in the group. Default: made up.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Handlers that run at once.")] = 100,
    reload: Annotated[bool, typer.Option("--reload", help="Start again when a Python file changes.")] = False,
    log_format: Annotated[Form, typer.Option(help="How log lines look.")] = Form.TEXT,
    log_level: Annotated[Level, typer.Option(help="What is logged.")] = Level.INFO,
    json: JsonOption = False,
) -> None:
    """Host agents: a worker that runs until Ctrl-C or SIGTERM. Start as many as you like, on the same log."""
    if reload:
        from .reload import again_and_again

        raise typer.Exit(again_and_again(target))
    from . import logs
    from .load import load

    app = load(target)
    form = Form.JSON if json else log_format
    logs.configure(form, log_level)
    where = broker_url(broker)
    about = f"{', '.join(a.name for a in app.agents)} on {where}, group {group or app.name}, pid {os.getpid()}"
    settings = {"member": member, "concurrency": concurrency, "app": app.name}
    raise typer.Exit(asyncio.run(_serve(app.agents, where, group or app.name, about, form, settings)))


async def _serve(agents: Any, url: str, group: str, about: str, form: Form, settings: dict[str, Any]) -> int:
    from ..agents.runtime import serve

    def ready(worker: object) -> None:
        if form is Form.TEXT:
            print(f"{about}. Ctrl-C stops.", file=sys.stderr, flush=True)

    try:
        return await serve(agents, url, group=group, on_handled=_printer(form), on_ready=ready, **settings)
    except asyncio.CancelledError:  # a second Ctrl-C
        return exits.INTERRUPTED


def _printer(form: Form) -> Callable[[Handling], None]:
    """Return what prints a line per handling; when nobody reads them any more, the work goes on."""
    from .logs import handled_line

    def show(handling: Handling) -> None:
        try:
            print(handled_line(handling, form), flush=True)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return show
