"""DBOS on SQLite: a workflow of five steps, each recorded before the next one begins.

It leaves SQLite's rollback journal on; WAL, which is set here before it opens the file, makes it faster.
`synchronous` is SQLite's default, FULL. A process that starts again resumes the workflows that it had.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSConfig

STAGES = 5


async def pipeline(folder: Path, measure: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]]) -> Any:
    """Measure `request`, which runs one workflow."""
    path = folder / "dbos.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA journal_mode=WAL").fetchall()
    config: DBOSConfig = {
        "name": "bench", "system_database_url": f"sqlite:///{path}", "run_admin_server": False, "log_level": "ERROR",
    }  # fmt: skip
    DBOS(config=config)

    @DBOS.step()
    async def step(payload: dict[str, str]) -> dict[str, str]:
        return payload

    @DBOS.workflow()
    async def workflow(payload: dict[str, str]) -> dict[str, str]:
        for _ in range(STAGES):
            payload = await step(payload)
        return payload

    DBOS.launch()
    try:

        async def request() -> Any:
            handle = await DBOS.start_workflow_async(workflow, {"text": "x" * 289})
            return await handle.get_result()

        return await measure(request)
    finally:
        DBOS.destroy()
