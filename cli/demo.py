"""`refold demo`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .settings import JsonOption


def demo(
    path: Annotated[Path | None, typer.Argument(help="A folder of Python code. Default: refold itself.")] = None,
    sabotage: Annotated[bool, typer.Option("--sabotage", help="Plant a wrong number; it must be caught.")] = False,
    analyzers: Annotated[int, typer.Option(min=2, max=16, help="How many analyzer processes.")] = 3,
    json: JsonOption = False,
) -> None:
    """A team of agents, each its own process, reviews Python code; one is killed at work, and nothing is lost."""
    import asyncio

    from ..demo.stage import perform

    raise typer.Exit(asyncio.run(perform(path, sabotage=sabotage, analyzers=analyzers, json=json)))
