"""A network on loopback that can be cut: a proxy stands before each listener of each node, for clients and for nodes.

Behind a cut bytes vanish, in both directions: connections hang, and new ones are taken and lead nowhere. When it is
healed, what hung is closed, or what was sent meanwhile arrives late, as TCP sends it again. Whose a connection is, is
found by the process that its port belongs to.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

import psutil

from refold.brokers.servers import Node
from refold.brokers.servers.process import HOST

T = TypeVar("T")


class Tear(NamedTuple):
    """The next piece that is `wanted` breaks its connection: half of it arrives, or (`whole`) all, but no answer."""

    wanted: Callable[[bytes], bool]
    whole: bool


class End(asyncio.Protocol):
    """One end of a wire."""

    def __init__(self, wire: Wire) -> None:
        self.wire, self.other = wire, self
        self.transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.wire.made(self)

    def data_received(self, data: bytes) -> None:
        self.wire.passes(self, data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.wire.ended = True
        if not self.wire.hung:  # behind a cut nobody hears of it
            self.wire.close()

    def write(self, data: bytes) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.write(data)

    def pause_writing(self) -> None:
        if (transport := self.other.transport) is not None:
            transport.pause_reading()

    def resume_writing(self) -> None:
        if (transport := self.other.transport) is not None:
            transport.resume_reading()


class Wire:
    """A connection through a proxy: from whoever has made it (`near`) to a listener of a node (`far`)."""

    def __init__(self, network: Network, node: int, port: int) -> None:
        self.network, self.node, self.port = network, node, port
        self.near, self.far = End(self), End(self)
        self.near.other, self.far.other = self.far, self.near
        self.peer = 0
        """The port of whoever has made it."""
        self.early: list[bytes] = []
        """What was sent before the node has taken the connection."""
        self.late: list[tuple[End, bytes]] = []
        """What was sent while it hung."""
        self.hung = self.muted = self.ended = self.closed = self.stale = False

    def made(self, end: End) -> None:
        assert end.transport is not None
        if self.closed:
            end.transport.abort()
        elif end is self.near:
            self.peer = end.transport.get_extra_info("peername")[1]
            self.network.taken(self)
        else:
            for data in self.early:
                self.passes(self.near, data)

    async def connect(self) -> None:
        """Connect to the node; where nobody listens, whoever has made the connection is told so."""
        try:
            await asyncio.get_running_loop().create_connection(lambda: self.far, HOST, self.port)
        except OSError:
            self.close()

    def passes(self, end: End, data: bytes) -> None:
        """An end has sent something."""
        if self.hung:
            self.network.dropped += len(data)
            self.late.append((end, data))
        elif end is self.far:
            if self.muted:
                self.close()
            else:
                self.near.write(data)
        elif self.far.transport is None:
            self.early.append(data)
        else:
            self._send(data, self.network.noted(self, data))

    def _send(self, data: bytes, tear: Tear | None) -> None:
        if tear is None or tear.whole:
            self.far.write(data)
            self.muted = self.muted or tear is not None
        else:
            self.far.write(data[: len(data) // 2])
            self.close()

    def resume(self) -> None:
        """Let what was sent while it hung arrive; who gave up meanwhile is heard of then."""
        self.hung = False
        for end, data in self.late:
            self.passes(end, data)
        self.late.clear()
        if self.ended or self.far.transport is None:
            self.close()

    def close(self) -> None:
        """End it, for both; what was written arrives."""
        self.closed, self.hung = True, False
        self.network.wires.discard(self)
        for end in (self.near, self.far):
            if end.transport is not None:
                end.transport.close()


class Network:
    """The proxies, in a thread of their own. `front` is for `nats_server` and `kafka_server`; `nodes` are theirs."""

    def __init__(self) -> None:
        self.nodes: tuple[Node, ...] = ()
        self.wires: set[Wire] = set()
        self.dropped = self.hung = self.stale = self.torn = 0
        """Bytes that were behind a cut; connections that were cut, or led nowhere; bytes that a node which is cut off
        from the others has had from clients; connections that were broken in the middle of something."""
        self._cut: tuple[int, bool] | None = None
        self._tears = deque[Tear]()
        self._listeners: dict[int, int] = {}
        self._servers: list[asyncio.Server] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="network", daemon=True)

    def __enter__(self) -> Network:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._do(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _end(self) -> None:
        for server in self._servers:
            server.close()
        for wire in list(self.wires):
            wire.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- what is done to it --------------------------------------------------------------------------------------
    def front(self, listener: str, node: int, port: int) -> int:
        """Stand before the port of a node (counted from 0); return the port by which it is reached from now on."""
        place = socket.create_server((HOST, 0))
        self._listeners[port] = node

        async def serve() -> None:
            loop = asyncio.get_running_loop()
            self._servers.append(await loop.create_server(lambda: Wire(self, node, port).near, sock=place))

        self._do(serve())
        return int(place.getsockname()[1])

    def cut(self, node: int, *, clients: bool) -> None:
        """Cut a node off from the other nodes, and from `clients` where that is so."""
        async def cut() -> None:
            self._cut, owners = (node, clients), self._owners()
            for wire in self.wires:
                self._judge(wire, owners)

        self._do(cut())

    def heal(self, *, late: bool = False) -> None:
        """Let everything through again; connections that hung are closed, or (`late`) go on with what was sent."""
        async def heal() -> None:
            self._cut = None
            for wire in [wire for wire in self.wires if wire.hung]:
                wire.resume() if late else wire.close()

        self._do(heal())

    def tear(self, wanted: Callable[[bytes], bool], *, whole: bool) -> None:
        """Break a connection in the middle of the next piece that is `wanted`, or (`whole`) before its answer comes."""
        self._tears.append(Tear(wanted, whole))

    def past(self) -> list[str]:
        """Return the connections to a node's listeners that others than the node itself have past the proxies."""
        own = {node.pid: n for n, node in enumerate(self.nodes)}
        return [
            f"process {c.pid}: {c.laddr} to {c.raddr}" for c in psutil.net_connections("tcp")
            if c.raddr and c.status == psutil.CONN_ESTABLISHED and c.pid != os.getpid()
            and c.raddr.port in self._listeners and own.get(c.pid) != self._listeners[c.raddr.port]
        ]  # fmt: skip

    # ---- what the wires ask --------------------------------------------------------------------------------------
    def taken(self, wire: Wire) -> None:
        """Somebody has connected."""
        self.wires.add(wire)
        if self._cut is not None:
            self._judge(wire, self._owners())
        if wire.hung:
            return
        task = self._loop.create_task(wire.connect())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def noted(self, wire: Wire, data: bytes) -> Tear | None:
        """Note what goes to a node, and return how it is torn."""
        if self._cut is not None and wire.stale:
            self.stale += len(data)
        if self._tears and self._tears[0].wanted(data):
            self.torn += 1
            return self._tears.popleft()
        return None

    def _owners(self) -> dict[int, int]:
        """Return for each port of a connection of a node's process the node."""
        found = {}
        for n, node in enumerate(self.nodes):
            if node.alive:
                found |= {c.laddr.port: n for c in psutil.Process(node.pid).net_connections("tcp") if c.laddr}
        return found

    def _judge(self, wire: Wire, owners: dict[int, int]) -> None:
        """Say of a wire on which side of the cut it is."""
        assert self._cut is not None
        (node, clients), source = self._cut, owners.get(wire.peer)
        if source is None:
            wire.hung, wire.stale = clients and wire.node == node, wire.node == node
        else:
            wire.hung, wire.stale = source != wire.node and node in (source, wire.node), False
        self.hung += wire.hung
