"""The log that a fault run plays on: a file, or what a real server keeps, started for this run in its folder."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest
from nats.aio.client import Client

from refold.brokers import open_broker
from refold.brokers.kafka.topics import names_of
from refold.brokers.servers import Front, Server, kafka_server, nats_server
from refold.bus.broker import Broker

from .network import Network

PARTITIONS = 6
"""Of a server's log: enough for several owners, few enough to be taken over fast."""
NAMESPACE = "run"
ADDRESS = "url"
"""The file of a run's folder that says where its log is."""


def address(folder: Path) -> str:
    """Return the URL of a run's log."""
    return (folder / ADDRESS).read_text(encoding="utf-8")


class Log:
    """A log of a server. `lease` and `stall_limit` (seconds) are what workers on it are started with; `healing` is how
    long (seconds) the server itself may take, after a fault is over, to answer again."""

    lease, stall_limit, healing = 1.5, 5.0, 0.0
    disk: Disk
    network: Network

    def __init__(self, url: str, server: Server | None) -> None:
        self.url, self._server = url, server

    @property
    def server(self) -> Server:
        assert self._server is not None, "a file has no server"
        return self._server

    @property
    def name(self) -> str:
        return self.url.partition("://")[0]

    def open(self) -> Broker:
        """Return its broker, not yet opened."""
        return open_broker(self.url)

    def is_locked(self) -> bool:
        """Whether a process that stands still keeps all others from it."""
        return False

    async def delete(self) -> None:
        """Delete all that the server keeps of it."""
        raise NotImplementedError

    async def leader(self, partition: int) -> int:
        """Return which node leads a partition, counted from 0."""
        raise NotImplementedError


class FileLog(Log):
    """A file of SQLite."""

    lease, stall_limit = 1.0, 2.0

    def is_locked(self) -> bool:
        """Somebody holds the log's write lock, and goes on holding it."""
        path = self.url.removeprefix("sqlite:///")
        with contextlib.closing(sqlite3.connect(path, timeout=0.1, isolation_level=None)) as db:
            try:
                db.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            db.execute("ROLLBACK")
        return False


class NatsLog(Log):
    """Streams of a NATS."""

    async def ask(self, verb: str, body: object = None) -> Any:
        """Ask JetStream for something. Raises RuntimeError where it refuses."""
        client = Client()
        await client.connect([f"nats://{host}" for host in self.server.addresses["client"]], connect_timeout=5)
        try:
            msg = await client.request(f"$JS.API.{verb}", msgspec.json.encode(body) if body else b"", timeout=5)
        finally:
            await client.close()
        answer = msgspec.json.decode(msg.data)
        if "error" in answer:
            raise RuntimeError(f"{verb}: {answer['error']}")
        return answer

    async def delete(self) -> None:
        found = await self.ask("STREAM.NAMES")
        for stream in found["streams"]:
            await self.ask(f"STREAM.DELETE.{stream}")

    async def leader(self, partition: int) -> int:
        found = await self.ask(f"STREAM.INFO.{NAMESPACE}_{partition}")
        return int(found["cluster"]["leader"].removeprefix("node")) - 1


class KafkaLog(Log):
    """Topics of a Kafka. Its nodes take each other for dead after 9 s (`broker.session.timeout.ms`)."""

    healing = 9.0

    async def _administer(self, work: Callable[[Any], Awaitable[object]]) -> None:
        from aiokafka.admin import AIOKafkaAdminClient

        client = AIOKafkaAdminClient(bootstrap_servers=list(self.server.addresses["client"]))
        await client.start()
        try:
            await work(client)
        finally:
            await client.close()

    async def delete(self) -> None:
        topics = names_of(NAMESPACE)
        await self._administer(lambda client: client.delete_topics(list(topics)))
        await self._administer(lambda client: self._gone(client, set(topics)))

    async def _gone(self, client: Any, topics: set[str]) -> None:
        async with asyncio.timeout(20):
            while topics & set(await client.list_topics()):
                await asyncio.sleep(0.05)

    async def leader(self, partition: int) -> int:
        leaders = list[int]()

        async def ask(client: Any) -> None:
            (topic,) = await client.describe_topics([names_of(NAMESPACE).log])
            leaders.extend(p["leader"] for p in topic["partitions"] if p["partition"] == partition)

        await self._administer(ask)
        return leaders[0] - 1


Kind = Callable[[Path, int, Front | None], AbstractAsyncContextManager[Log]]


class CannotPlay(Exception):
    """A fault cannot be played on this machine; the text says what is missing."""


def left_out(error: CannotPlay) -> NoReturn:
    """A test cannot be played here: that is a failure, unless somebody has left it out knowingly."""
    if os.environ.get("REFOLD_WITHOUT") == "small-disks":
        pytest.skip(f"a server's full disk is NOT tested: {error}")
    pytest.fail(f"{error}; or leave this out knowingly: REFOLD_WITHOUT=small-disks")


class Disk:
    """A small file system for a server alone, in memory: it can be filled without harm to anybody else."""

    def __init__(self, place: Path) -> None:
        self.place, self._ballast = place, place / "ballast"

    @contextlib.contextmanager
    def mounted(self, size: int) -> Iterator[None]:
        """Mount it, `size` MiB large. Raises CannotPlay where that is not allowed."""
        made = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={size}m", "tmpfs", str(self.place)], capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        if made.returncode:
            raise CannotPlay(f"a small disk cannot be mounted (as root on Linux it can): {made.stderr.strip()}")
        try:
            yield
        finally:
            subprocess.run(["umount", "--lazy", str(self.place)], check=False)

    def fill(self) -> None:
        """Leave no space."""
        with contextlib.suppress(OSError), self._ballast.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(65536))

    def free(self) -> None:
        """Give the space back."""
        self._ballast.unlink()


@asynccontextmanager
async def _file(folder: Path, nodes: int, front: Front | None) -> AsyncIterator[Log]:
    yield FileLog(f"sqlite:///{folder}/log.db", None)


@asynccontextmanager
async def _nats(folder: Path, nodes: int, front: Front | None) -> AsyncIterator[Log]:
    async with nats_server(folder / "server", nodes=nodes, front=front) as server:
        yield NatsLog(f"{_url(server)}&replicas={nodes}&sync=always", server)


@asynccontextmanager
async def _kafka(folder: Path, nodes: int, front: Front | None) -> AsyncIterator[Log]:
    async with kafka_server(folder / "server", nodes=nodes, front=front) as server:
        yield KafkaLog(f"{_url(server)}&replication={nodes}", server)


def _url(server: Server) -> str:
    return f"{server.scheme}://{server.bootstrap}/{NAMESPACE}?partitions={PARTITIONS}"


KINDS: dict[str, Kind] = {"sqlite": _file, "nats": _nats, "kafka": _kafka}


@asynccontextmanager
async def laid(
    kind: str, folder: Path, nodes: int = 1, disk: int = 0, network: bool = False
) -> AsyncIterator[Log]:
    """Lay the ground of a run: its log, and the file that says to the processes where that is. `disk`: MiB of a disk of
    its server's own; `network`: its nodes are reached through one that can be cut. Raises CannotPlay."""
    home = Disk(folder / "server")
    home.place.mkdir(exist_ok=True)
    with contextlib.ExitStack() as ground:
        if disk:
            ground.enter_context(home.mounted(disk))
        between = ground.enter_context(Network()) if network else None
        async with KINDS[kind](folder, nodes, between and between.front) as log:
            log.disk = home
            if between is not None:
                log.network, between.nodes = between, log.server.nodes
            (folder / ADDRESS).write_text(log.url, encoding="utf-8")
            yield log
