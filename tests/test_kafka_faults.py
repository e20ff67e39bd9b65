"""Brokers that are killed and members that are stopped, with real processes: what was acknowledged is there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from kafka_logs import new_log, new_namespace

from refold import Agent, Context, MessageBus
from refold.agents.worker import Worker
from refold.brokers import open_broker
from refold.brokers.kafka.broker import KafkaBroker
from refold.bus.broker import Assigned, Item, LogSpec, Lost, Outgoing
from refold.bus.errors import BrokerUnavailable

SOON = {"broker.session.timeout.ms": "2000", "broker.heartbeat.interval.ms": "500"}
"""A broker that was killed is let in again when its session is over: 9 s by default."""
THOROUGH = os.environ.get("REFOLD_SERVERS") == "thorough"


class Load:
    """Appends one record after the other in each of some tasks, and remembers what was acknowledged."""

    def __init__(self, broker: KafkaBroker, partitions: int) -> None:
        self.broker, self.partitions = broker, partitions
        self.acknowledged: dict[tuple[int, int], bytes] = {}
        self.unknown: set[bytes] = set()
        self.ended = False
        self.last = time.monotonic()

    async def run(self, who: int) -> None:
        n = 0
        while not self.ended:
            n += 1
            value, partition = b"%d.%d" % (who, n), n % self.partitions
            try:
                (result,) = await self.broker.append([Item(partition, f"w{who}", (Outgoing(f"{who}.{n}", value),))])
            except BrokerUnavailable:
                self.unknown.add(value)
            else:
                self.acknowledged[partition, result.positions[0]] = value
                self.last = time.monotonic()

    async def judge(self) -> None:
        """All that was acknowledged is where it was said, and nothing is there twice."""
        found: dict[tuple[int, int], bytes] = {}
        for partition in range(self.partitions):
            start: int | None = 0
            while start is not None:
                page = await self.broker.read(partition, start)
                found |= {(partition, r.position): r.value for r in page.records}
                start = page.next
        assert {place: found.get(place) for place in self.acknowledged} == self.acknowledged
        twice = [value for value, count in Counter(found.values()).items() if count > 1]
        assert twice == []
        assert set(found.values()) <= set(self.acknowledged.values()) | self.unknown


@contextlib.asynccontextmanager
async def under_load(connect, partitions: int) -> AsyncIterator[Load]:
    async with connect() as broker:
        await broker.ensure_log(LogSpec(partitions=partitions))
        load = Load(broker, partitions)
        async with asyncio.TaskGroup() as tasks:
            for who in range(6):
                tasks.create_task(load.run(who))
            yield load
            load.ended = True
        await load.judge()


async def reach(load: Load, more: int) -> None:
    wanted = len(load.acknowledged) + more
    while len(load.acknowledged) < wanted:
        await asyncio.sleep(0.01)


@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_or_doubled_when_the_broker_is_killed_under_load(own_kafka, tmp_path):
    async def main():
        async with own_kafka(tmp_path, properties=SOON) as server:
            connect = new_log(server.bootstrap, patience=30.0)
            async with under_load(connect, 2) as load:
                for _ in range(4 if THOROUGH else 1):
                    await reach(load, 300)
                    server.nodes[0].kill()
                    await server.nodes[0].restart()
                    await reach(load, 300)

    asyncio.run(main())


@pytest.mark.skipif(not THOROUGH, reason="a server of its own, restarted: make test-servers")
@pytest.mark.timeout(300)
def test_a_worker_survives_the_restart_of_the_broker_and_goes_on(own_kafka, tmp_path):
    agent = Agent("a")

    @agent.on_task
    async def double(ctx: Context, n: int) -> int:
        return 2 * n

    async def main():
        async with own_kafka(tmp_path, properties=SOON) as server:
            url = f"kafka://{server.bootstrap}/{new_namespace()}?partitions=4"
            async with open_broker(url) as broker, MessageBus.open(url) as bus:
                await broker.ensure_log()
                worker = Worker(broker, [agent], group="g", lease=4.0)
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(worker.run())
                    assert await bus.request("a", 1, timeout=30) == 2
                    server.nodes[0].kill()
                    asking = tasks.create_task(bus.request("a", 2, timeout=60))
                    await asyncio.sleep(0.2)
                    await server.nodes[0].restart()
                    assert await asking == 4
                    assert await bus.request("a", 3, timeout=30) == 6
                    worker.stop()

    asyncio.run(main())


@pytest.mark.skipif(not THOROUGH, reason="three nodes: make test-servers")
@pytest.mark.timeout(300)
def test_nothing_acknowledged_is_lost_or_doubled_when_leaders_are_killed_in_a_cluster(own_kafka, tmp_path):
    async def main():
        async with own_kafka(tmp_path, nodes=3) as server:
            connect = new_log(server.bootstrap, "?replication=3", patience=60.0)
            async with under_load(connect, 3) as load:
                for node in server.nodes:
                    await reach(load, 300)
                    node.kill()
                    died = time.monotonic()
                    await reach(load, 300)
                    print(f"a node was killed; 300 records later: {time.monotonic() - died:.1f} s")
                    await node.restart()
                await reach(load, 300)

    asyncio.run(main())


class Process:
    """A member in a process of its own, and what it has said."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process, self.said = process, list[dict]()

    async def listen(self) -> None:
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.said.append(json.loads(line))

    def events(self, kind: str) -> dict[int, int]:
        return {s["partition"]: s["epoch"] for s in self.said if s.get("event") == kind}


@contextlib.asynccontextmanager
async def member(url: str, name: str, lease: float) -> AsyncIterator[Process]:
    command = [sys.executable, "-m", "kafka_member", url, name, str(lease)]
    started = await asyncio.create_subprocess_exec(
        *command, cwd=Path(__file__).parent, stdout=asyncio.subprocess.PIPE
    )
    process = Process(started)
    listening = asyncio.create_task(process.listen())
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            started.kill()
        await started.wait()
        await listening


def test_a_member_that_is_stopped_beyond_its_lease_hears_of_its_loss_and_saves_nothing(go, until, kafka_address):
    async def main():
        connect = new_log(kafka_address, "?partitions=2")
        async with connect() as broker:
            await broker.ensure_log()
            async with member(broker.url, "stopped", 2.0) as stopped:
                await until(lambda: len(stopped.events("Assigned")) == 2)
                stopped.process.send_signal(signal.SIGSTOP)
                async with broker.subscribe("g", "heir", lease=2.0) as heir:
                    since, got = time.monotonic(), dict[int, Assigned]()
                    while len(got) < 2:
                        heir.turned()
                        got |= {e.partition: e for e in await heir.fetch(max_wait=0.1) if isinstance(e, Assigned)}
                    assert time.monotonic() - since < 2.0 + 3
                    assert all(e.after_death and e.epoch > stopped.events("Assigned")[p] for p, e in got.items())
                    assert await heir.save_checkpoint(0, got[0].epoch, 5, b"", {b"k": b"heir"}, [])
                    stopped.process.send_signal(signal.SIGCONT)
                    await until(lambda: len([s for s in stopped.said if s.get("checkpoint") == "fenced"]) == 2)
                    assert stopped.events("Lost").keys() == {0, 1}
                    assert (await broker.checkpoint("g", 0)).entries == {b"k": b"heir"}
                    lost = [e for e in await heir.fetch(max_wait=0) if isinstance(e, Lost)]
                    assert lost == []

    go(main())


def test_a_member_that_is_killed_is_replaced_within_its_lease_and_a_moment(go, until, kafka_address):
    async def main():
        connect = new_log(kafka_address, "?partitions=2")
        async with connect() as broker:
            await broker.ensure_log()
            async with member(broker.url, "killed", 2.0) as killed:
                await until(lambda: len(killed.events("Assigned")) == 2)
                async with broker.subscribe("g", "heir", lease=2.0) as heir:
                    mine, since = dict[int, int](), 0.0
                    while len(mine) < 2:
                        heir.turned()
                        for event in await heir.fetch(max_wait=0.1):
                            if isinstance(event, Assigned):
                                mine[event.partition] = event.epoch
                        if mine and not since:
                            killed.process.kill()
                            since = time.monotonic()
                    assert time.monotonic() - since < 2.0 + 3

    go(main())
