"""Members that join, leave, die and stand still all the time: what is promised of owning and delivering holds."""

from __future__ import annotations

import asyncio
import os
import random
import time

import pytest
from kafka_logs import new_log

from refold.brokers.kafka.broker import KafkaBroker
from refold.bus.broker import Assigned, Batch, Item, LogSpec, Lost, Outgoing, Revoked

SECONDS = 40.0 if os.environ.get("REFOLD_SERVERS") == "thorough" else 5.0
PARTITIONS = 6
LEASE = 1.0


class Judge:
    """One member's life, and what all of them were told: who owned what under which epoch."""

    def __init__(self, broker: KafkaBroker, name: str, chance: random.Random, seen: dict[tuple[int, int], str]) -> None:
        self.broker, self.name, self.chance, self.seen = broker, name, chance, seen
        self.mine: dict[int, int] = {}
        self.next: dict[int, int] = {}
        self.revoked: set[int] = set()

    async def live(self, seconds: float, end: str) -> None:
        async with self.broker.subscribe("g", self.name, lease=LEASE) as sub:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                sub.turned()
                left = until - time.monotonic()
                sub.keeper.silent = end == "stands still" and 0.3 < left < 0.3 + 1.5 * LEASE
                for event in await sub.fetch(500, 0.05):
                    self.judge(sub, event)
                await self.let_go(sub)
                await self.save(sub)
            if end == "dies":
                self.broker.die()

    def judge(self, sub, event) -> None:
        if isinstance(event, Assigned):
            assert self.seen.setdefault((event.partition, event.epoch), self.name) == self.name
            assert event.partition not in self.mine
            self.mine[event.partition], self.next[event.partition] = event.epoch, 1
            sub.seek(event.partition, 0)
            return
        assert self.mine.get(event.partition) == event.epoch
        if isinstance(event, Batch):
            first = self.next[event.partition]
            assert [r.position for r in event.records] == list(range(first, first + len(event.records)))
            self.next[event.partition] += len(event.records)
        elif isinstance(event, Lost):
            del self.mine[event.partition]
        else:
            assert isinstance(event, Revoked)
            self.revoked.add(event.partition)

    async def let_go(self, sub) -> None:
        for partition in self.revoked & self.mine.keys():
            await sub.release(partition, self.mine.pop(partition))
        self.revoked.clear()

    async def save(self, sub) -> None:
        for partition, epoch in list(self.mine.items()):
            if self.chance.random() < 0.02:
                saved = await sub.save_checkpoint(partition, epoch, 1, b"", {b"who": self.name.encode()}, [])
                assert saved or not await self.broker.owns("g", sub.keeper.token, partition, epoch)


@pytest.mark.timeout(300)
def test_whoever_comes_and_goes_a_partition_has_one_owner_and_its_records_come_in_order(kafka_address):
    chance, seen, connect = random.Random(7), dict[tuple[int, int], str](), new_log(kafka_address)

    async def write(broker: KafkaBroker) -> None:
        for n in range(1_000_000):
            await broker.append([Item(n % PARTITIONS, f"k{n}", (Outgoing(f"{n}", b"x"),))])
            await asyncio.sleep(0.005)

    async def succeed_each_other(line: int) -> None:
        started, n = time.monotonic(), 0
        while time.monotonic() < started + SECONDS:
            n += 1
            async with connect() as broker:
                await broker.ensure_log()
                member = Judge(broker, f"m{line}.{n}", chance, seen)
                await member.live(chance.uniform(0.3, 3), chance.choice(["leaves", "leaves", "dies", "stands still"]))

    async def main():
        async with connect() as broker:
            await broker.ensure_log(LogSpec(partitions=PARTITIONS))
            async with asyncio.TaskGroup() as tasks:
                writing = tasks.create_task(write(broker))
                await asyncio.gather(*(succeed_each_other(line) for line in range(4)))
                writing.cancel()
            async with asyncio.timeout(10), broker.subscribe("g", "last", lease=LEASE) as sub:
                while len(sub.owned()) < PARTITIONS:
                    sub.turned()
                    await sub.fetch(100, 0.05)
        assert len(seen) > PARTITIONS

    asyncio.run(main())
