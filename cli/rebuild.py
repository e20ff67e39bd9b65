"""`refold rebuild`: fold a projection anew, beside the live one, and let it take over."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated, Any

import typer

from .opening import opened
from .output import as_json, progress, say
from .settings import BrokerOption, JsonOption


def rebuild(
    target: Annotated[str, typer.Argument(metavar="MODULE:ATTR | FILE.py:ATTR", help="The projection.")],
    store: Annotated[Path, typer.Option(help="The file that keeps its states.")] = Path("projections.db"),
    broker: BrokerOption = None, json: JsonOption = False,
) -> None:  # fmt: skip
    """Rebuild a projection from the log. The states that are there stay readable until the new ones are complete."""
    from ..projections.projection import Projection
    from .load import LoadError, find, load_module

    module, attr, _ = load_module(target)
    if attr is None:
        raise LoadError(f"{target}: name the projection, as in {target}:totals")
    found = find(module, attr, target)
    projection = found() if isinstance(found, type) else found
    if not isinstance(projection, Projection):
        raise LoadError(f"{target}: {attr} is no Projection: it needs name, version, scope, start, key and apply")

    async def main() -> Any:
        from ..bus.collector import rarely
        from ..projections.runner import rebuild as fold_again
        from ..projections.store import ProjectionStore

        async with opened(broker) as log, ProjectionStore.open(store, log.meta.log_id) as states:
            with progress(f"folding {projection.name}", quiet=json) as update, rarely():
                return await fold_again(log, states, projection, update)

    records, keys = asyncio.run(main())
    if json:
        as_json({"projection": projection.name, "records": records, "states": keys})
    else:
        say(f"{projection.name}: {keys} states from {records} records, in {store}")
