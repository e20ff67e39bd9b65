"""`refold demo`: the main job."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from .output import Screen
from .settings import JsonOption, broker_url

PIPED_WIDTH = 100
"""Columns where no terminal says how many."""


def demo(
    path: Annotated[
        Path | None,
        typer.Argument(metavar="PATH", show_default=False, help="A folder of Python code. Default: refold itself."),
    ] = None,
    sabotage: Annotated[bool, typer.Option("--sabotage", help="Plant a wrong number; it must be caught.")] = False,
    analyzers: Annotated[int, typer.Option(min=2, max=16, help="How many analyzer processes.")] = 3,
    latency: Annotated[
        float | None,
        typer.Option(
            min=0.0, max=10.0, show_default=False,
            help="Seconds that a call of the pretend model takes in the mean. Default: 0.05 to 1, by the number of "
            "modules, so that a run can be watched.",
        ),
    ] = None,
    svg: Annotated[
        Path | None,
        typer.Option("--svg", metavar="FILE", dir_okay=False, help="Save a picture of the run: the screen, the end."),
    ] = None,
    broker: Annotated[
        str | None,
        typer.Option(
            "--broker", "-b", metavar="URL", show_default=False,
            help="A log that is not there yet, as nats://HOST/NEW, kafka://HOST/NEW. Default: a file in ./refold-demo.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:  # fmt: skip
    """A team of agents, each its own process, reviews Python code; one is killed at work, and nothing is lost.

    Works offline, with a pretend model. Writes only to ./refold-demo (and FILE): the report, the log, the invoice.
    Exit code 1 where the proof at the end does not hold.
    """
    from ..demo.stage import NoModules, perform

    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Screen(highlight=False, width=None if known else PIPED_WIDTH)
    try:
        code = perform(
            path, sabotage=sabotage, analyzers=analyzers, latency=latency, json=json, svg=svg, console=console,
            broker=None if broker is None else broker_url(broker),
        )
    except NoModules as error:
        raise typer.BadParameter(str(error), param_hint="PATH") from None
    raise typer.Exit(code)
