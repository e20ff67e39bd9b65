"""A real Apache Kafka in KRaft mode: one node, or three that are broker and controller each, on loopback."""

from __future__ import annotations

import asyncio
import base64
import struct
import subprocess
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from ...bus.errors import BrokerUnavailable
from .jars import VERSION, java, kafka_jars
from .process import HOST, Node, free_ports
from .server import Front, Server, homes, running

HEAP = ("-Xmx384m", "-XX:+UseSerialGC")


@asynccontextmanager
async def kafka_server(
    folder: Path | str,
    *,
    nodes: int = 1,
    port: int = 0,
    properties: Mapping[str, str] | None = None,
    listeners: Mapping[str, str] | None = None,
    fetch: bool = True,
    front: Front | None = None,
) -> AsyncIterator[Server]:
    """Run Apache Kafka, its data in `folder`, which may hold that of an earlier one of as many nodes.

    `port`: of the first node, the others follow on it (0: free ones). `properties`: further ones for each node, which
    win over the ones here. `listeners`: further ones, name -> protocol, as in {"SASL": "SASL_PLAINTEXT"}; their
    addresses are `server.addresses[name]`. `fetch`: get Kafka by Maven where it is not here. `front`: what stands
    before the listeners, `client` and `controller` among them.
    Raises ServerMissing, BrokerUnavailable, ConfigError.
    """
    start = [java(), *HEAP, "-cp", str(await asyncio.to_thread(kafka_jars, fetch=fetch)) + "/*"]
    server, configs = await asyncio.to_thread(
        _prepared, Path(folder), start, nodes, port, properties or {}, listeners or {}, front
    )
    await asyncio.to_thread(_format, server.folder, start, configs)
    async with running(server):
        yield server


def _prepared(
    folder: Path, start: Sequence[str], count: int, port: int, more: Mapping[str, str], listeners: Mapping[str, str],
    front: Front | None,
) -> tuple[Server, list[Path]]:
    folder = folder.absolute()
    names = ["client", "controller", *listeners]
    free = iter(free_ports(count * len(names)))
    ports = {name: [next(free) for _ in range(count)] for name in names}
    if port:
        ports["client"] = list(range(port, port + count))
    reached = {name: [front(name, i, p) if front else p for i, p in enumerate(ports[name])] for name in names}
    nodes, configs = [], []
    for i, home in enumerate(homes(folder, count)):
        found = {**_properties(i, home, ports, reached, listeners), **more}
        config = home / "server.properties"
        config.write_text("".join(f"{key}={_escaped(value)}\n" for key, value in found.items()), encoding="utf-8")
        configs.append(config)
        own = tuple(ports[name][i] for name in names)
        command = [*start, "kafka.Kafka", str(config)]
        nodes.append(Node(f"kafka node{i + 1}", command, home / "log", _Metadata(own[0], i + 1), own))
    addresses = {name: tuple(f"{HOST}:{p}" for p in reached[name]) for name in names if name != "controller"}
    said = f"replication={count}" if count > 1 else ""
    return Server("kafka", VERSION, folder, tuple(nodes), addresses, said), configs


def _properties(
    i: int, home: Path, ports: Mapping[str, list[int]], reached: Mapping[str, list[int]], listeners: Mapping[str, str]
) -> dict[str, str]:
    count = len(ports["client"])
    replicas, in_sync = (str(count), "2") if count > 1 else ("1", "1")
    protocols = {"CLIENT": "PLAINTEXT", "CONTROLLER": "PLAINTEXT", **{n.upper(): p for n, p in listeners.items()}}
    bound, told = ([f"{name.upper()}://{HOST}:{p[name][i]}" for name in ports] for p in (ports, reached))
    return {
        "process.roles": "broker,controller",
        "node.id": str(i + 1),
        "controller.quorum.voters": ",".join(f"{n + 1}@{HOST}:{p}" for n, p in enumerate(reached["controller"])),
        "listeners": ",".join(bound),
        "advertised.listeners": ",".join(told),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "CLIENT",
        "listener.security.protocol.map": ",".join(f"{name}:{protocol}" for name, protocol in protocols.items()),
        "log.dirs": str(home / "data"),
        "min.insync.replicas": in_sync,
        "default.replication.factor": replicas,
        "unclean.leader.election.enable": "false",
        "auto.create.topics.enable": "false",
        "group.initial.rebalance.delay.ms": "0",
        "offsets.topic.num.partitions": "4",
        "transaction.state.log.num.partitions": "4",
        **{f"{topic}.replication.factor": replicas for topic in ("offsets.topic", "transaction.state.log")},
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.replication.factor": replicas,
        "share.coordinator.state.topic.min.isr": in_sync,
    }


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace("\n", "\\n")


def _format(folder: Path, start: Sequence[str], configs: Sequence[Path]) -> None:
    """Make the stores that are not there yet, all under one cluster id. Raises BrokerUnavailable."""
    known = folder / "cluster.id"
    if not known.exists():
        known.write_text("r" + base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")[1:], encoding="ascii")
    for config in configs:
        if (config.parent / "data" / "meta.properties").exists():
            continue
        command = [*start, "kafka.tools.StorageTool", "format", "-t", known.read_text("ascii"), "-c", str(config)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)  # noqa: S603
        if done.returncode:
            said = (done.stdout + done.stderr)[-2000:]
            raise BrokerUnavailable(f"Kafka's store in {config.parent} cannot be made: {said}")


class _Metadata:
    """Asks a node for the brokers of its cluster: ready when it is one of them itself."""

    def __init__(self, port: int, node: int) -> None:
        self.port = port
        self.node = node

    async def __call__(self) -> bool:
        async with asyncio.timeout(2):
            reader, writer = await asyncio.open_connection(HOST, self.port)
            try:
                request = struct.pack(">hhih6si", 3, 1, 1, 6, b"refold", 0)  # Metadata, version 1, of no topic
                writer.write(struct.pack(">i", len(request)) + request)
                (size,) = struct.unpack(">i", await reader.readexactly(4))
                return self.node in _brokers(await reader.readexactly(size))
            finally:
                writer.close()


def _brokers(response: bytes) -> set[int]:
    """Return the node ids of a Metadata response (version 1)."""
    (count,), at, found = struct.unpack_from(">i", response, 4), 8, set()
    for _ in range(count):
        node, host = struct.unpack_from(">ih", response, at)
        at += 6 + host + 4
        (rack,) = struct.unpack_from(">h", response, at)
        at += 2 + max(rack, 0)
        found.add(node)
    return found
