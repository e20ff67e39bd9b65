"""A process that is a member of group g at a Kafka log, told by its arguments. Says what happens, in lines of JSON."""

from __future__ import annotations

import asyncio
import json
import os
import sys

from refold.brokers import open_broker
from refold.bus.broker import Assigned, Batch, Revoked


def say(**what: object) -> None:
    print(json.dumps(what), flush=True)


async def own(url: str, member: str, lease: float) -> None:
    async with open_broker(url) as broker:
        await broker.ensure_log()
        async with broker.subscribe("g", member, lease=lease) as sub:
            say(joined=os.getpid())
            while True:
                sub.turned()
                for event in await sub.fetch(100, 0.05):
                    told = {"partition": event.partition, "epoch": event.epoch}
                    if isinstance(event, Batch):
                        say(**told, records=[r.value.decode() for r in event.records])
                        continue
                    say(**told, event=type(event).__name__, after_death=getattr(event, "after_death", False))
                    if isinstance(event, Assigned):
                        sub.seek(event.partition, 0)
                    elif isinstance(event, Revoked):
                        await sub.release(event.partition, event.epoch)
                    elif not await sub.save_checkpoint(event.partition, event.epoch, 9, b"late", {b"late": b""}, []):
                        say(**told, checkpoint="fenced")


if __name__ == "__main__":
    asyncio.run(own(sys.argv[1], sys.argv[2], float(sys.argv[3])))
