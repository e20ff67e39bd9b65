"""A member of group g in a process of its own: says what happens to it, as lines of JSON, until its input ends."""

from __future__ import annotations

import asyncio
import json
import sys

from refold.brokers import open_broker
from refold.bus.broker import Assigned, Batch, Revoked


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def own(url: str, member: str, lease: float) -> None:
    async with open_broker(url) as broker:
        await broker.ensure_log()
        async with broker.subscribe("g", member, lease=lease) as sub:
            say(joined=member)
            ended = asyncio.create_task(asyncio.to_thread(sys.stdin.read))
            while not ended.done():
                sub.turned()
                for event in await sub.fetch(100, 0.05):
                    if isinstance(event, Batch):
                        continue
                    say(event=type(event).__name__, partition=event.partition, epoch=event.epoch)
                    if isinstance(event, Assigned):
                        sub.seek(event.partition, 0)
                    elif isinstance(event, Revoked):
                        await sub.release(event.partition, event.epoch)
                    else:
                        saved = await sub.save_checkpoint(event.partition, event.epoch, 1, b"", {}, [])
                        say(saved_late=saved, partition=event.partition)
            await ended


if __name__ == "__main__":
    asyncio.run(own(sys.argv[1], sys.argv[2], float(sys.argv[3])))
