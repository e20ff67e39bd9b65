"""A server of one or more nodes: what a test does to it, and how it is started and ended as a whole."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import NamedTuple

from ...bus.errors import ConfigError
from .process import Node

NAMESPACE = "refold"

Front = Callable[[str, int, int], int]
"""What stands between the nodes and all others: given the name of a listener, a node (counted from 0) and the port it
listens on, it returns the port by which clients and other nodes reach it."""


class Server(NamedTuple):
    """A server that runs. `addresses` are host:port of its nodes for clients, by listener where it has several;
    `settings` is what its URL says beside them."""

    scheme: str
    version: str
    folder: Path
    nodes: tuple[Node, ...]
    addresses: dict[str, tuple[str, ...]]
    settings: str = ""

    @property
    def bootstrap(self) -> str:
        """host:port of all nodes, with commas: what the clients of this server take."""
        return ",".join(self.addresses["client"])

    @property
    def url(self) -> str:
        """The URL to use with refold."""
        return f"{self.scheme}://{self.bootstrap}/{NAMESPACE}{'?' if self.settings else ''}{self.settings}"


def homes(folder: Path, count: int) -> list[Path]:
    """Return the folder of each node, made where it is not there.

    Raises ConfigError where the folder holds the data of another number of nodes.
    """
    there = len(list(folder.glob("node[0-9]*")))
    if there not in (0, count):
        raise ConfigError(f"{folder} holds the data of {there} nodes, not of {count}: choose another folder")
    found = [folder / f"node{i + 1}" for i in range(count)]
    for home in found:
        home.mkdir(parents=True, exist_ok=True)
    return found


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[Server]:
    """Start all nodes, wait until each answers, end them in the end.

    Raises BrokerUnavailable with the end of a log where one does not come up.
    """
    with _alone(server.folder):
        try:
            await _up(server.nodes)
            yield server
        finally:
            await asyncio.shield(asyncio.gather(*(node.end() for node in server.nodes)))


async def _up(nodes: tuple[Node, ...]) -> None:
    for node in nodes:
        node.begin()
    try:
        async with asyncio.TaskGroup() as group:
            for node in nodes:
                group.create_task(node.ready())
    except BaseExceptionGroup as error:
        raise _first(error) from error


def _first(error: BaseExceptionGroup[BaseException]) -> BaseException:
    found: BaseException = error
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder: two servers over the same data would destroy it. Raises ConfigError."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{folder} belongs to a server that runs: choose another, or end it") from None
        yield
    finally:
        os.close(lock)
