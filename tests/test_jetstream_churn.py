"""Members on NATS that join, leave, die and stand still all the time: what is promised of owning and reading holds."""

from __future__ import annotations

import asyncio
import os
import random
import time

from jetstream_logs import item, new_url, stalled_on_nats

from refold.brokers.conformance import Subject
from refold.brokers.conformance.stage import Stage
from refold.brokers.jetstream import from_url
from refold.bus.broker import LogSpec

SECONDS = 40.0 if os.environ.get("REFOLD_SERVERS") == "thorough" else 4.0
PARTITIONS = 6
LEASE = 0.6


def test_members_come_and_go_and_each_partition_has_one_owner_who_gets_every_record(nats_address):
    asyncio.run(churn(new_url(nats_address), random.Random(11)))


async def churn(url: str, chance: random.Random) -> None:
    """The members judge what they are told (`conformance.Member`): no epoch has two owners, no record is left out."""
    subject = Subject("nats", lambda: lambda: from_url(url), lease=LEASE, patience=30.0)
    async with asyncio.TaskGroup() as tasks:
        stage = Stage(subject, tasks)
        writer = await stage.open(LogSpec(partitions=PARTITIONS))
        until, count, born = time.monotonic() + SECONDS, 0, 0

        async def live() -> None:
            nonlocal born
            while time.monotonic() < until:
                born += 1
                name = f"m{born}"
                broker = await stage.open(LogSpec())
                member = await stage.join(broker, name, lease=LEASE)
                ends = time.monotonic() + 0.2 + 1.3 * chance.random()
                how = chance.choice(["leaves", "dies", "stands still"])
                await take_part(member, ends)
                if how == "stands still":
                    with stalled_on_nats(broker):
                        await asyncio.sleep(1.5 * LEASE)
                    await take_part(member, time.monotonic() + 0.3)
                if how == "dies":
                    await asyncio.to_thread(broker.die)
                else:
                    await member.leave()

        async def take_part(member, ends: float) -> None:
            while time.monotonic() < ends:
                before = dict(member.epochs)
                await member.turn(max_wait=0.05)
                for partition in member.epochs.keys() - before.keys():
                    member.seek(partition)

        lives = [stage.do(live()) for _ in range(3)]
        while time.monotonic() < until:
            await writer.append([item(count % PARTITIONS, "k", f"{count}a", f"{count}b")])
            count += 1
            await asyncio.sleep(0.002)
        await asyncio.gather(*lives)
        assert born > 5
        last = await stage.join(writer, "last", lease=LEASE)
        async with asyncio.timeout(30):
            await stage.until(lambda: len(last.epochs) == PARTITIONS, last)
        for partition in range(PARTITIONS):
            last.seek(partition)
        async with asyncio.timeout(30):
            await stage.until(lambda: sum(len(last.waiting(p)) for p in range(PARTITIONS)) >= 2 * count, last)
        for partition in range(PARTITIONS):
            wanted = [f"{n}{x}".encode() for n in range(partition, count, PARTITIONS) for x in "ab"]
            assert [r.value for r in last.waiting(partition)] == wanted
        await stage.clear()
