"""One worker and very many workflows, in a process of its own. Run in tests/ as: python -m long_run WORKFLOWS URL

Prints the resident memory (bytes) after each tenth of them, as a JSON list.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from pathlib import Path

from refold import Agent, AgentMessage, Context
from refold.agents.runtime import run
from refold.brokers import open_broker
from refold.bus import codec
from refold.bus.broker import Broker, Item, Outgoing
from refold.bus.partition import partition_of

AHEAD = 2000
TOGETHER = 250
adder = Agent("adder")


@adder.on_task
async def add(ctx: Context, n: int) -> int:
    return n + 1


def resident() -> int:
    """Return the resident memory of this process, in bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def send(broker: Broker, first: int) -> None:
    """Start workflows, many in one append."""
    items = []
    for n in range(first, first + TOGETHER):
        m = AgentMessage.request("adder", n, sender="client")
        place = partition_of(m.correlation_id, broker.meta.partitions)
        items.append(Item(place, m.correlation_id, (Outgoing(m.id, codec.encode(m)),)))
    await broker.append(items)


async def main(workflows: int, url: str) -> list[int]:
    done, bell, sizes = 0, asyncio.Event(), list[int]()

    def count(_: object) -> None:
        nonlocal done
        done += 1
        if done * 10 // workflows > len(sizes):
            sizes.append(resident())
        bell.set()

    async with open_broker(url) as broker:
        await broker.ensure_log()
        async with run(adder, broker=broker, on_handled=count):
            for first in range(0, workflows, TOGETHER):
                while first - done > AHEAD:
                    bell.clear()
                    await bell.wait()
                await send(broker, first)
            while done < workflows:
                bell.clear()
                await bell.wait()
    return sizes


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(main(int(sys.argv[1]), sys.argv[2]))) + "\n")
