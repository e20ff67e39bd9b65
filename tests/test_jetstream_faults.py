"""NATS under faults: servers that are killed, connections that are cut, members that stand still."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sys
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

import pytest
from faults.network import Network
from jetstream_logs import item, new_url
from nats.aio.client import Client
from nats.aio.msg import Msg

from refold.brokers.jetstream import JetStreamBroker, from_url, isolation
from refold.brokers.jetstream.address import parse
from refold.bus.broker import Appended, Assigned, Batch, LogSpec, Lost
from refold.bus.errors import BrokerUnavailable

THOROUGH = os.environ.get("REFOLD_SERVERS") == "thorough"
TWO = LogSpec(partitions=2)


class Load:
    """Appends from several tasks at once, for as long as it is let. What came of an unknown append is not asked."""

    def __init__(self, brokers) -> None:
        self.brokers = brokers
        self.acknowledged: dict[tuple[int, int], bytes] = {}
        self.ended = asyncio.Event()

    async def run(self, writers: int = 6) -> None:
        async with asyncio.TaskGroup() as tasks:
            for n in range(writers):
                tasks.create_task(self._write(n))

    async def _write(self, n: int) -> None:
        broker, count = self.brokers[n % len(self.brokers)], 0
        while not self.ended.is_set():
            ids = [f"{n}.{count}.{i}" for i in range(1 + count % 3)]
            try:
                (result,) = await broker.append([item(count % 2, f"w{n}", *ids)])
            except BrokerUnavailable:
                count += 1
                continue
            assert isinstance(result, Appended)
            for position, id in zip(result.positions, ids, strict=True):
                assert (count % 2, position) not in self.acknowledged
                self.acknowledged[count % 2, position] = id.encode()
            count += 1
            if count % 20 == 0:
                await asyncio.sleep(0)

    async def until(self, more: int, within: float = 15.0) -> None:
        """Wait until so many more are acknowledged."""
        wanted = len(self.acknowledged) + more
        async with asyncio.timeout(within):
            while len(self.acknowledged) < wanted:
                await asyncio.sleep(0.01)

    async def check(self) -> None:
        """Nothing that was acknowledged is lost, or elsewhere, or there twice; each writer's records are in order."""
        for partition in (0, 1):
            found, start = {}, 0
            while start is not None:
                page = await self.brokers[0].read(partition, start)
                found |= {r.position: r.value for r in page.records}
                start = page.next
            told = {p: v for (part, p), v in self.acknowledged.items() if part == partition}
            assert {p: found.get(p) for p in told} == told
            told_values = set(told.values())
            values = [v for v in found.values() if v in told_values]
            assert len(values) == len(told_values)


@asynccontextmanager
async def under_load(url: str):
    async with AsyncExitStack() as stack:
        brokers = [await stack.enter_async_context(from_url(url)) for _ in range(2)]
        for broker in brokers:
            await broker.ensure_log(TWO)
        load = Load(brokers)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.run())
            await load.until(200)
            yield load
            await load.until(200)
            load.ended.set()
        await load.check()


async def follow(sub, seen: dict[int, list[bytes]], wanted) -> None:
    """Read both partitions from their start until what is wanted was seen."""
    async with asyncio.timeout(20):
        while not wanted():
            sub.turned()
            with suppress(BrokerUnavailable):
                for event in await sub.fetch(max_wait=0.1):
                    if isinstance(event, Assigned):
                        seen[event.partition] = []
                        sub.seek(event.partition, 0)
                    if isinstance(event, Batch):
                        seen[event.partition] += [r.value for r in event.records]


def test_a_server_that_is_killed_under_load_loses_nothing_that_was_acknowledged(own_nats, tmp_path):
    async def main():
        async with AsyncExitStack() as stack:
            server = await stack.enter_async_context(own_nats(tmp_path))
            load = await stack.enter_async_context(under_load(new_url(server.bootstrap)))
            async with load.brokers[0].subscribe("g", "m", lease=3.0) as sub:
                seen: dict[int, list[bytes]] = {}
                await follow(sub, seen, lambda: len(seen) == 2 and all(seen.values()))
                for _ in range(2):
                    server.nodes[0].kill()
                    await asyncio.sleep(0.2)
                    await server.nodes[0].restart()
                    await load.until(200)
                told = set(load.acknowledged.values())
                await follow(sub, seen, lambda: told <= {v for vs in seen.values() for v in vs})
                for values in seen.values():
                    assert len(values) == len(set(values))

    asyncio.run(main())


def test_a_connection_that_is_cut_again_and_again_loses_and_doubles_nothing(nats_address):
    async def main():
        async with under_load(new_url(nats_address)) as load:
            chance = random.Random(7)
            for _ in range(4):
                await asyncio.sleep(chance.random() / 10)
                for broker in load.brokers:
                    broker.link.client._transport._io_writer.transport.abort()
                await load.until(100)
            assert all(broker.link.reconnects >= 4 for broker in load.brokers)

    asyncio.run(main())


def test_a_server_is_left_after_a_while_without_an_answer_of_use(monkeypatch):
    """Silence is none, nor is "no leader"; a refusal and what it reads from its own replica say nothing."""
    now = [0.0]
    monkeypatch.setattr(isolation.time, "monotonic", lambda: now[0])

    def msg(data: bytes, **headers: str) -> Msg:
        return Msg(Client(), "inbox", data=data, headers=headers or None)

    nobody, stored = msg(b"", Status="503"), msg(b'{"stream":"s","seq":1}')
    no_leader = msg(b'{"type":"...","error":{"code":503,"err_code":10008,"description":"unavailable"}}')
    record, no_record = msg(b'{"code":503}', Status="503"), msg(b"", Status="404")
    refused = msg(b'{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 7"},"seq":0}')
    waits = msg(b'{"error":{"code":409,"err_code":10158,"description":"duplicate message id is in process"},"seq":0}')
    info = msg(b'{"type":"io.nats.jetstream.api.v1.stream_info_response","config":{}}')
    one = isolation.Isolation()
    for now[0], told in ((100, nobody), (105, no_leader), (108, waits), (109, record), (109.5, no_record)):
        assert not one.answered("$JS.API.DIRECT.GET.s" if told in (record, no_record) else "s.1", told)
    now[0] = 115
    assert not one.answered("s.1", stored)
    assert not one.silent()
    now[0] = 124.9
    assert not one.silent() and not one.answered("s.1", refused) and not one.answered("$JS.API.STREAM.INFO.s", info)
    now[0] = 125.1
    assert one.answered("s.1", waits)
    assert not one.silent(), "another server is given as long"
    now[0] = 200
    assert not one.silent(), "that was long ago"


@pytest.mark.skipif(not THOROUGH, reason="three nodes: make test-servers")
@pytest.mark.timeout(120)
def test_who_is_connected_to_a_server_that_is_cut_off_from_the_others_goes_to_another(own_nats, tmp_path):
    async def main():
        with Network() as network:
            async with own_nats(tmp_path, nodes=3, front=network.front) as server:
                network.nodes = server.nodes
                address = server.addresses["client"][0]
                async with from_url(new_url(address, replicas=3)) as broker:
                    await broker.ensure_log(TWO)
                    await broker.append([item(0, "k", "before"), item(1, "k", "before")])
                    network.cut(0, clients=False)
                    cut, stored = time.monotonic(), set[int]()
                    while len(stored) < 2:
                        for partition in {0, 1} - stored:
                            with suppress(BrokerUnavailable):
                                await broker.append([item(partition, "k", "after")])
                                stored.add(partition)
                    print(f"stored {time.monotonic() - cut:.1f} s after the cut")
                    assert network.stale > 0 and broker.link.client.connected_url.netloc != address
                    network.heal()

    asyncio.run(main())


# ---- members -------------------------------------------------------------------------------------------------------
class Child:
    """A member in another process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said: list[dict[str, object]] = []

    async def until(self, wanted, within: float = 15.0) -> None:
        assert self.process.stdout is not None
        async with asyncio.timeout(within):
            while not wanted(self.said):
                self.said.append(json.loads(await self.process.stdout.readline()))


@asynccontextmanager
async def child(url: str, member: str, lease: float):
    command = (sys.executable, "-m", "jetstream_process", url, member, str(lease))
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, cwd=Path(__file__).parent, stdin=pipe, stdout=pipe)
    try:
        yield Child(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def test_a_process_that_stands_still_beyond_its_lease_loses_what_it_owned_and_hears_of_it(nats_address):
    async def main():
        url = new_url(nats_address)
        async with from_url(url) as broker:
            await broker.ensure_log(TWO)
            async with child(url, "still", 1.0) as still:
                await still.until(lambda said: sum(s.get("event") == "Assigned" for s in said) == 2)
                os.kill(still.process.pid, signal.SIGSTOP)
                async with broker.subscribe("g", "heir", lease=1.0) as sub:
                    events = []
                    while len([e for e in events if isinstance(e, Assigned)]) < 2:
                        sub.turned()
                        events += await sub.fetch(max_wait=0.1)
                    assert all(e.after_death and e.epoch == 2 for e in events if isinstance(e, Assigned))
                    os.kill(still.process.pid, signal.SIGCONT)
                    await still.until(lambda said: sum("saved_late" in s for s in said) == 2)
                    lost = [(s["partition"], s["epoch"]) for s in still.said if s.get("event") == "Lost"]
                    assert sorted(lost) == [(0, 1), (1, 1)]
                    assert [s["saved_late"] for s in still.said if "saved_late" in s] == [False, False]

    asyncio.run(main())


def test_a_process_that_is_killed_on_this_host_is_replaced_before_its_lease_ends(nats_address):
    async def main():
        url = new_url(nats_address)
        async with from_url(url) as broker:
            await broker.ensure_log(TWO)
            async with child(url, "dead", 60.0) as dead:
                await dead.until(lambda said: sum(s.get("event") == "Assigned" for s in said) == 2)
                dead.process.kill()
                await dead.process.wait()
                async with asyncio.timeout(10), broker.subscribe("g", "heir", lease=60.0) as sub:
                    while len(sub.owned()) < 2:
                        sub.turned()
                        await sub.fetch(max_wait=0.1)

    asyncio.run(main())


def test_a_loop_that_is_blocked_keeps_its_leases_until_the_stall_limit(nats_address):
    async def main():
        stalled = []
        broker = JetStreamBroker(parse(new_url(nats_address), {}), on_stall=lambda: stalled.append(time.monotonic()))
        async with broker:
            await broker.ensure_log(TWO)
            async with broker.subscribe("g", "m", lease=0.4, stall_limit=1.5) as sub:
                while len(sub.owned()) < 2:
                    await sub.fetch(max_wait=0.1)
                sub.turned()
                time.sleep(1.0)  # noqa: ASYNC251 - two leases and a half
                assert sub.deadline(0) > time.monotonic() and not stalled
                assert not [e for e in await sub.fetch(max_wait=0.1) if isinstance(e, Lost)]
                async with asyncio.timeout(5):
                    while not stalled:
                        await asyncio.sleep(0.01)
                renewed = sub.keeper.renewed
                await asyncio.sleep(0.3)
                assert sub.keeper.renewed == renewed

    asyncio.run(main())


if THOROUGH:

    def test_the_death_of_a_leader_in_a_cluster_loses_nothing_and_work_goes_on(own_nats, tmp_path):
        async def main():
            async with AsyncExitStack() as stack:
                server = await stack.enter_async_context(own_nats(tmp_path, nodes=3))
                load = await stack.enter_async_context(under_load(new_url(server.bootstrap, replicas=3)))
                for _ in range(3):
                    info = await load.brokers[0].link.asked(f"STREAM.INFO.{load.brokers[0].names.stream(0)}")
                    leader = server.nodes[int(info["cluster"]["leader"].removeprefix("node")) - 1]
                    leader.kill()
                    await load.until(200)
                    await leader.restart()
                    await load.until(200)

        asyncio.run(main())
