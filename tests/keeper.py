"""A process that keeps one server for a whole test run: as long as somebody is connected to it, and no longer.

The kernel closes the connections of a test process that is killed, so no server outlives the run that wanted it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from contextlib import AsyncExitStack, ExitStack

import containers

from refold.brokers.servers import kafka_server, nats_server
from refold.bus.errors import RefoldError

PATIENCE = 30.0
"""Seconds in which the first one must connect."""


def say(**what: str | int) -> None:
    print(json.dumps(what), flush=True)


class Users:
    """Who is connected."""

    def __init__(self) -> None:
        self.count = 0
        self.first = asyncio.Event()
        self.nobody = asyncio.Event()

    async def met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.count += 1
        self.first.set()
        try:
            writer.write(b"kept\n")
            await reader.read()
        except ConnectionError:
            pass
        finally:
            writer.close()
            self.count -= 1
            if not self.count:
                self.nobody.set()


async def keep(kind: str, place: str, fetch: bool) -> None:
    async with AsyncExitStack() as stack:
        if containers.available():
            held = stack.enter_context(ExitStack())
            address, version = containers.start(kind, held)
            how = "a container"
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(dir=place, prefix=f"{kind}-"))
            starting = nats_server(folder) if kind == "nats" else kafka_server(folder, fetch=fetch)
            server = await stack.enter_async_context(starting)
            address, version, how = server.bootstrap, server.version, "a process of this machine"
        users = Users()
        door = await asyncio.start_server(users.met, "127.0.0.1", 0)
        say(port=door.sockets[0].getsockname()[1], address=address, version=version, how=how)
        async with asyncio.timeout(PATIENCE):
            await users.first.wait()
        await users.nobody.wait()
        door.close()


if __name__ == "__main__":
    try:
        asyncio.run(keep(sys.argv[1], sys.argv[2], sys.argv[3] == "fetch"))
    except RefoldError as error:
        say(missing=str(error))
