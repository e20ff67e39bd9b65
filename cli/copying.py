"""`refold copy`: workflows from one log to another."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from .output import as_json, progress, say
from .settings import JsonOption, broker_url

if TYPE_CHECKING:
    from ..agents.copying import Copied


def copy(
    source: Annotated[str, typer.Argument(metavar="SRC", help="URL of the log to copy from.")],
    target: Annotated[str, typer.Argument(metavar="DST", help="URL of the log to copy to; made where there is none.")],
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", show_default=False, help="Workflows. Default: all.")
    ] = None,
    json: JsonOption = False,
) -> None:
    """Copy workflows to another log, byte for byte. Run it again to go on after an interruption, or to catch up.

    No worker may run on DST meanwhile. Stop the workers of SRC first, unless the copy is a backup that nobody runs.
    """
    found = asyncio.run(_copy(source, target, ids or [], json))
    if json:
        as_json(found)
    else:
        _tell(found)
    if found.refused:
        from ..bus.errors import WorkflowExists

        names = ", ".join(found.refused[:10])
        raise WorkflowExists(
            f"the target holds something else of {len(found.refused)} workflows, and keeps it: {names}"
            f"{', ...' if len(found.refused) > 10 else ''}"
        )


async def _copy(source: str, target: str, ids: list[str], quiet: bool) -> Copied:
    from ..agents import copying
    from ..brokers import open_broker

    async with open_broker(broker_url(source)) as origin, open_broker(broker_url(target)) as goal:
        await origin.ensure_log(create=False)
        await copying.ensure_target(origin, goal)
        with progress("copying", quiet=quiet) as update:
            return await copying.copy(origin, goal, ids, on_progress=update)


def _tell(found: Copied) -> None:
    there = f"; {found.there} were there already" if found.there else ""
    say(f"copied {found.records} records of {found.workflows} workflows{there}")
    if found.misplaced:
        say(f"left out: {found.misplaced} in a wrong place; a worker of the source moves what is a record of refold")
