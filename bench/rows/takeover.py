"""A long log whose oldest workflow still waits: how soon does a new owner work on it?"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path

import logs
from measure import Figure, Row
from rows.pipeline import agents
from rows.processes import started
from rows.waiting import answered, settled

from refold.projections.checkpoint import CHECKPOINT_FORMAT

RECORDS = int(os.environ.get("BENCH_TAKEOVER", "2000000"))
GROUP = "all"


def checkpointed(size: int) -> Path:
    """Return the folder of a log that a worker, which was then killed, has folded and kept a checkpoint of."""
    from refold import MessageBus

    source = logs.prepared("old", size)
    folder = source.with_name(f"{source.name}-checkpoint-{CHECKPOINT_FORMAT}")
    if (folder / "first").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    url = logs.copied("old", size, folder)
    (folder / "first").unlink()

    async def main() -> None:
        async with MessageBus.open(url) as bus:
            with started([__file__, url]) as (process,):
                seconds = await settled(bus.broker, GROUP)
                process.send_signal(signal.SIGKILL)
                process.wait()
        (folder / "seconds").write_text(str(seconds))

    asyncio.run(main())
    shutil.copy(source / "first", folder / "first")
    return folder


def taken_over(folder: Path, size: int) -> dict[str, float]:
    """Seconds from the start of a worker, after kill -9 of the one before, to the answer of the oldest workflow."""
    from refold import MessageBus

    made = checkpointed(size)
    for path in made.glob("log.db*"):
        shutil.copy(path, folder / path.name)
    url = f"sqlite:///{folder}/log.db"
    os.sync()

    async def main() -> dict[str, float]:
        async with MessageBus.open(url) as bus:
            with started([__file__, url]):
                return {"seconds": await answered(bus, (made / "first").read_text())}

    return asyncio.run(main()) | {"first": float((made / "seconds").read_text())}


def refold(folder: Path) -> dict[str, float]:
    """From the start of the process, interpreter included."""
    return taken_over(folder, RECORDS)


def worker(url: str) -> None:
    """Host all agents of the log."""
    from refold.agents.runtime import serve

    asyncio.run(serve([*agents(), logs.waiter()], url, group=GROUP))


ROW = Row(
    f"takeover with a log of {RECORDS / 1e6:g}M records whose oldest workflow still waits",
    [
        Figure("seconds", "from the new process's start to that workflow's answer", "s", "refold <= 5", better="less"),
        Figure("first", "(folding the log without any checkpoint)", "s", better="less"),
    ],
    {"refold": refold},
    turns=3, limit=1800,
)  # fmt: skip

if __name__ == "__main__":
    worker(*sys.argv[1:])
