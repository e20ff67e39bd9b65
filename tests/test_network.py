"""The network that faults are played on: what it cuts, what it lets through, and appends whose connection it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections import Counter

import pytest
from faults.network import Network
from jetstream_logs import item, new_url
from kafka_logs import new_namespace

from refold.brokers import open_broker
from refold.brokers.servers import Node
from refold.brokers.servers.process import HOST, free_ports
from refold.bus.broker import LogSpec
from refold.bus.errors import BrokerUnavailable

NODE = """
import asyncio, sys
kept = []
async def asked(word, port):
    try:
        async with asyncio.timeout(0.3):
            reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
            kept.append(writer)
            writer.write(word.encode() + b"\\n")
            return await reader.readline()
    except TimeoutError:
        return b"silence\\n"
async def serve(reader, writer):
    while line := await reader.readline():
        word, _, port = line.decode().strip().partition(" ")
        writer.write(await asked(word, port) if port else line)
async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1])) as server:
        await server.serve_forever()
asyncio.run(main())
"""
"""It says what it hears, or what it hears when it says that to the port that is named."""


class Talk:
    """A connection to a node."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def say(self, text: str, within: float = 5.0) -> str:
        self.writer.write(f"{text}\n".encode())
        try:
            async with asyncio.timeout(within):
                return (await self.reader.readline()).decode().strip()
        except TimeoutError:
            return "silence"


@contextlib.asynccontextmanager
async def two_nodes(folder, network):
    """Two nodes, and the ports by which they are reached."""
    ports, nodes = free_ports(2), []
    fronts = [await asyncio.to_thread(network.front, "client", n, port) for n, port in enumerate(ports)]
    try:
        for n, port in enumerate(ports):
            async def answers(port=port) -> bool:
                return await (await talk(port)).say("up") == "up"

            command = [sys.executable, "-c", NODE, str(port)]
            nodes.append(Node(f"node{n}", command, folder / f"{n}.log", answers, [port]))
            nodes[-1].begin()
            await nodes[-1].ready()
        network.nodes = tuple(nodes)
        yield fronts, ports
    finally:
        for node in nodes:
            node.kill()


async def talk(port: int) -> Talk:
    return Talk(*await asyncio.open_connection(HOST, port))


def test_a_node_that_is_cut_off_from_the_others_is_heard_by_clients_alone(go, tmp_path):
    async def main():
        with Network() as network:
            async with two_nodes(tmp_path, network) as (fronts, _):
                first, second = [await talk(port) for port in fronts]
                assert await first.say(f"hello {fronts[1]}") == "hello"
                network.cut(0, clients=False)
                assert [await first.say("hello"), await second.say("hello")] == ["hello", "hello"]
                assert network.stale == len("hello\n")
                assert await (await talk(fronts[0])).say("hello") == "hello"
                assert await first.say(f"hello {fronts[1]}") == "silence"
                assert await second.say(f"hello {fronts[0]}") == "silence"
                assert await first.say(f"hello {fronts[0]}") == "hello"  # itself
                assert network.dropped == 2 * len("hello\n")
                network.heal()
                assert await first.say(f"hello {fronts[1]}") == "hello"

    go(main())


def test_what_is_said_across_a_cut_vanishes_both_ways_and_what_hung_is_closed_when_it_is_healed(go, tmp_path):
    async def main():
        with Network() as network:
            async with two_nodes(tmp_path, network) as (fronts, ports):
                old, asking, past = await talk(fronts[0]), await talk(fronts[0]), await talk(ports[0])
                asked = asyncio.create_task(asking.say(f"hello {fronts[1]}"))
                assert [await old.say("hello"), await asked] == ["hello", "hello"]
                network.cut(0, clients=True)
                new = await talk(fronts[0])
                assert [await old.say("hello", 0.3), await new.say("hello", 0.3)] == ["silence", "silence"]
                assert await past.say(f"hello {fronts[1]}") == "silence"
                assert await (await talk(fronts[1])).say(f"hello {fronts[0]}") == "silence"
                assert network.dropped == 4 * len("hello\n")
                network.heal()
                assert [await old.reader.read(), await new.reader.read()] == [b"", b""]
                assert await (await talk(fronts[0])).say(f"hello {fronts[1]}") == "hello"

    go(main())


def test_what_was_said_across_a_cut_may_arrive_late_where_a_connection_was_there_before(go, tmp_path):
    async def main():
        with Network() as network:
            async with two_nodes(tmp_path, network) as (fronts, _):
                old, gone = [await talk(fronts[0]) for _ in range(2)]
                assert [await old.say("one"), await gone.say("one")] == ["one", "one"]
                network.cut(0, clients=True)
                assert [await old.say("two", 0.3), await gone.say(f"two {fronts[0]}", 0.3)] == ["silence", "silence"]
                new = await talk(fronts[0])
                assert await new.say("two", 0.3) == "silence"
                gone.writer.close()
                await gone.writer.wait_closed()
                network.heal(late=True)
                assert [await old.reader.readline(), await new.reader.readline()] == [b"two\n", b""]
                assert [await old.say("three"), await (await talk(fronts[0])).say("three")] == ["three", "three"]

    go(main())


def test_who_reaches_a_node_past_the_network_is_seen(go, tmp_path):
    async def main():
        with Network() as network:
            async with two_nodes(tmp_path, network) as (fronts, ports):
                first = await talk(fronts[0])
                assert await first.say(f"hello {fronts[1]}") == "hello"
                assert network.past() == []
                assert await first.say(f"hello {ports[1]}") == "hello"
                (found,) = network.past()
                assert str(network.nodes[0].pid) in found and str(ports[1]) in found

    go(main())


@pytest.mark.parametrize("kind", ["nats", "kafka"])
@pytest.mark.timeout(120)
def test_an_append_whose_connection_is_cut_in_the_middle_of_it_is_neither_lost_nor_doubled(kind, request, tmp_path):
    """Half of it has arrived, or all of it and its answer is lost."""
    server_of = request.getfixturevalue(f"own_{kind}")

    async def main():
        with Network() as network:
            async with server_of(tmp_path, front=network.front) as server:
                address = server.bootstrap
                url = new_url(address) if kind == "nats" else f"kafka://{address}/{new_namespace()}"
                async with open_broker(url) as broker:
                    await broker.ensure_log(LogSpec(partitions=1))
                    await judged(broker, network, APPENDS[kind])

    asyncio.run(main())


APPENDS = {"nats": lambda data: b"PUB t" in data, "kafka": lambda data: data[4:6] == b"\0\0"}
"""What is an append: a message to a subject of the log's, a request of kind 0 (Produce)."""


async def judged(broker, network, wanted) -> None:
    places, unknown = dict[int, bytes](), set[bytes]()
    for n in range(6):
        network.tear(wanted, whole=n % 2 == 1)
        ids = [f"{n}.{i}" for i in range(3)]
        try:
            (result,) = await broker.append([item(0, "k", *ids)])
            places |= zip(result.positions, (id.encode() for id in ids), strict=True)
        except BrokerUnavailable:
            unknown |= {id.encode() for id in ids}
        assert network.torn == n + 1
    found = {r.position: r.value for r in (await broker.read(0, 0)).records}
    assert {p: found.get(p) for p in places} == places
    assert max(Counter(found.values()).values()) == 1
    assert set(found.values()) <= set(places.values()) | unknown
    assert len(places) >= 9
