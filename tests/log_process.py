"""One process at a SQLite log, told what to do by its arguments and its standard input. Answers are lines of JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import sys

from refold.brokers.sqlite import SqliteBroker
from refold.bus.broker import Assigned, Batch, Fence, Item, LogSpec, Outgoing


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def heard() -> list[str]:
    return (await asyncio.to_thread(sys.stdin.readline)).split()


async def append(path: str, who: str, count: int) -> None:
    """Append from four tasks at once; say where each record went."""
    async with SqliteBroker(path, synchronous="NORMAL") as broker:
        await broker.ensure_log(LogSpec(partitions=2))
        say(ready=True)
        await heard()

        async def some(part: int) -> None:
            for n in range(part, count, 4):
                id = f"{who}-{n}"
                (result,) = await broker.append([Item(n % 2, f"w{n % 7}", (Outgoing(id, id.encode()),))])
                say(partition=n % 2, position=result.positions[0], id=id)

        async with asyncio.TaskGroup() as group:
            for part in range(4):
                group.create_task(some(part))


async def own(path: str, member: str, lease: float, stall_limit: float) -> None:
    """Join group g, say what happens; for a line `append P EPOCH` say what came of it; leave at the end of input."""
    async with SqliteBroker(path) as broker:
        await broker.ensure_log()
        async with broker.subscribe("g", member, lease=lease, stall_limit=stall_limit) as sub:
            say(joined=os.getpid())
            answering = asyncio.create_task(answer(broker))
            while not answering.done():
                sub.turned()
                for event in await sub.fetch(100, 0.05):
                    told = {"partition": event.partition, "epoch": event.epoch}
                    if isinstance(event, Batch):
                        say(**told, records=[r.value.decode() for r in event.records])
                    else:
                        say(**told, event=type(event).__name__, after_death=getattr(event, "after_death", False))
                    if isinstance(event, Assigned):
                        sub.seek(event.partition, 0)
                    if type(event).__name__ == "Revoked":
                        await sub.release(event.partition, event.epoch)
            await answering


async def answer(broker: SqliteBroker) -> None:
    while words := await heard():
        partition, epoch = map(int, words[1:])
        item = Item(partition, "zombie", (Outgoing(os.urandom(8).hex(), b"late"),))
        (result,) = await broker.append([item], Fence("g", partition, epoch))
        say(result=type(result).__name__, said=list(result))


def lock(path: str) -> None:
    """Hold the write lock until the end of input."""
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("BEGIN IMMEDIATE")
    say(locked=os.getpid())
    sys.stdin.readline()


if __name__ == "__main__":
    mode, path, *rest = sys.argv[1:]
    if mode == "append":
        asyncio.run(append(path, rest[0], int(rest[1])))
    elif mode == "own":
        asyncio.run(own(path, rest[0], float(rest[1]), float(rest[2])))
    else:
        lock(path)
