"""The broker itself: opening the log, and what each method of the port is made of."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Literal

from nats.aio.msg import Msg

from ...bus.broker import (
    ANY_LOG,
    MAX_HINT,
    At,
    Broker,
    Capabilities,
    Checkpoint,
    Fence,
    Health,
    Item,
    LogMeta,
    LogSpec,
    Member,
    Page,
    Presence,
    Result,
    Stored,
)  # fmt: skip
from ...bus.errors import BrokerUnavailable, LogMissing
from ...bus.partition import partition_of
from ...bus.stall import exit_stalled
from . import health, leases, presence as presences, streams
from .address import Address, parse
from .appending import Appender
from .checkpoints import Checkpoints
from .connection import Link
from .keeper import Keeper
from .names import Names, last_position
from .reading import Reader
from .subscription import JetStreamSubscription

log = logging.getLogger("refold.nats")

ADDRESS = re.compile(r"[0-9a-f]{32}")


def from_url(url: str) -> JetStreamBroker:
    """`nats://host:4222,host2/namespace?replicas=3&partitions=24`; see `address` for credentials, TLS and the
    environment. Raises ConfigError."""
    return JetStreamBroker(parse(url))


class JetStreamBroker:
    """See `refold.bus.broker.Broker` for what each method promises.

    `on_stall` is called (in a thread) when the event loop has not turned for a subscription's `stall_limit`: it ends
    the process with code 70.

    Duplicates are left to admission: an item is one message, so the servers cannot know the id of each record. They
    recognise a message that this broker itself sends again because its acknowledgement was lost.
    """

    capabilities = Capabilities(compare_and_append=True, shared_between_processes=True, survives_restart=True)

    def __init__(self, address: Address, *, on_stall: Callable[[], None] = exit_stalled) -> None:
        self.address, self.url = address, address.url
        self._on_stall = on_stall
        self._opened: streams.Opened | None = None
        self._opening = asyncio.Lock()
        self._link: Link | None = None
        self._subscriptions: dict[JetStreamSubscription, asyncio.Event] = {}
        self._listeners: dict[str, JetStreamListener] = {}
        self._closed = False
        self._pid = os.getpid()
        self.names: Names
        self.reader: Reader
        self.appender: Appender
        self.checkpoints: Checkpoints

    @property
    def meta(self) -> LogMeta:
        if self._opened is None:
            raise LogMissing(f"{self.url} is not open: call ensure_log")
        return self._opened.meta

    @property
    def _open(self) -> streams.Opened:
        if self._opened is None:
            raise LogMissing(f"{self.url} is not open: call ensure_log")
        if self._closed or os.getpid() != self._pid:
            raise BrokerUnavailable(f"{self.url} is closed" if self._closed else "a broker is not carried over a fork")
        return self._opened

    @property
    def link(self) -> Link:
        """The connection. Raises LogMissing before `ensure_log`."""
        _ = self._open
        assert self._link is not None
        return self._link

    # ---- life --------------------------------------------------------------------------------------------------------
    async def __aenter__(self) -> Broker:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        if self._closed or os.getpid() != self._pid:
            return
        if self._opened is not None:
            await asyncio.gather(*(self._part(sub) for sub in list(self._subscriptions)))
            self._closed = True
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(15):
                    await self.appender.settled()
        self._closed = True
        if self._link is not None:
            await self._link.close()

    async def ensure_log(self, spec: LogSpec = ANY_LOG, *, create: bool = True) -> LogMeta:
        async with self._opening:
            if self._closed:
                raise BrokerUnavailable(f"{self.url} is closed")
            if self._link is None:
                link = Link(self.address)
                await link.open()
                self._link = link
            opened = await streams.ensure(self._link, self.address, spec, create)
            if self._opened is None:
                self._begin(opened, self._link)
            elif opened.meta.log_id != self._opened.meta.log_id:
                raise streams.missing(f"{self.url} (it was made again as {opened.meta.log_id})")
            return opened.meta

    def _begin(self, opened: streams.Opened, link: Link) -> None:
        self._opened, self.names = opened, opened.names
        self.reader = Reader(link, opened.names, opened.replicas > 1)
        self.appender = Appender(
            link, opened.names, opened.meta, self.reader, described=self.address.cloudevents
        )
        self.checkpoints = Checkpoints(link, opened.names, self.reader)

    # ---- records -----------------------------------------------------------------------------------------------------
    async def append(self, items: Sequence[Item], fence: Fence | None = None) -> list[Result]:
        _ = self._open
        return await self.appender.append(items)

    async def append_raw(self, partition: int, records: Sequence[tuple[str | None, bytes]]) -> tuple[int, ...]:
        _ = self._open
        return await self.appender.append_raw(partition, records)

    async def read(self, partition: int, start: int | At = 0, *, end: int | None = None, limit: int = 1000) -> Page:
        _ = self._open
        return await self.reader.page(partition, start, end, limit)

    async def read_workflow(self, correlation_id: str, *, after: int = 0, limit: int = 1000) -> Page:
        partition = partition_of(correlation_id, self.meta.partitions)
        return await self.reader.workflow(partition, correlation_id, after, limit)

    async def read_at(self, partition: int, positions: Sequence[int]) -> list[Stored]:
        _ = self._open
        return await self.reader.at(partition, positions)

    async def positions(self, kind: Literal["begin", "end", "committed"], group: str | None = None) -> dict[int, int]:
        partitions = range(self.meta.partitions)
        if kind == "committed":
            _, holds = await leases.read(self.reader, self.names, group or "")
            saved = {p: held.hold.head.position + 1 for p, held in holds.items() if held.hold.head is not None}
            return dict.fromkeys(partitions, 0) | saved
        found = await asyncio.gather(*(self.reader.state(self.names.stream(p)) for p in partitions))
        states = [one["state"] for one in found]
        if kind == "end":
            return {p: last_position(int(s["last_seq"])) + 1 for p, s in enumerate(states)}
        return {p: last_position(max(int(s["first_seq"]), 1) - 1) + 1 for p, s in enumerate(states)}

    # ---- groups ------------------------------------------------------------------------------------------------------
    @contextlib.asynccontextmanager
    async def subscribe(
        self, group: str, member: str, *, partitions: Collection[int] | None = None, lease: float = 8.0,
        stall_limit: float = 30.0,
    ) -> AsyncIterator[JetStreamSubscription]:  # fmt: skip
        opened = self._open
        failure: BaseException | None = None
        async with asyncio.TaskGroup() as tasks:
            sub = JetStreamSubscription(self, group, tasks)
            sub.keeper = Keeper(
                self.address, self.names, opened.replicas > 1, group, member, opened.meta.partitions,
                None if partitions is None else frozenset(partitions), lease=lease,
                stall_limit=max(stall_limit, 3 * lease), tell=sub.tell, on_stall=self._on_stall,
            )  # fmt: skip
            self._subscriptions[sub] = asyncio.Event()
            sub.keeper.start()
            try:
                await asyncio.shield(asyncio.wrap_future(sub.keeper.joined))
                yield sub
            except BaseException as error:  # noqa: BLE001 - raised as it is, not as one of a group
                failure = error
            finally:
                await self._part(sub)
        if failure is not None:
            raise failure

    async def _part(self, sub: JetStreamSubscription) -> None:
        """Leave the group, unless it has been left."""
        left = self._subscriptions.get(sub)
        if left is None:
            return
        if left.is_set():
            return
        left.set()
        sub.end()
        await asyncio.shield(asyncio.ensure_future(asyncio.to_thread(sub.keeper.stop, True)))
        self._subscriptions.pop(sub, None)

    def die(self) -> None:
        """Let this process's members die, as far as others can tell: nothing is released or renewed. For tests."""
        for sub, left in self._subscriptions.items():
            left.set()
            sub.end()
            sub.keeper.stop(False)

    async def checkpoint(self, group: str, partition: int) -> Checkpoint | None:
        _ = self._open
        return await self.checkpoints.load(group, partition)

    async def checkpoint_groups(self, partition: int) -> list[str]:
        _ = self._open
        holds = await leases.holds_of_partition(self.reader, self.names, partition)
        found = [(hold.head.position, group) for group, hold in holds.items() if hold.head is not None]
        return [group for _, group in sorted(found, key=lambda f: (-f[0], f[1]))]

    # ---- who is alive, and hints -------------------------------------------------------------------------------------
    async def announce(self, presence: Presence, *, ttl: float = 8.0) -> None:
        await presences.tell(self.link, self.names, presence, ttl)

    async def withdraw(self, member: str) -> None:
        await presences.withdraw(self.link, self.names, self.reader, member)

    async def members(self, group: str | None = None, *, gone: bool = False) -> list[Member]:
        _ = self._open
        return await presences.read(self.names, self.reader, group, gone)

    async def notify(self, address: str, hint: bytes) -> None:
        if len(hint) > MAX_HINT:
            raise ValueError(f"a hint of {len(hint)} bytes, at most {MAX_HINT}")
        here = self._listeners.get(address)
        if here is not None:  # nobody else hears it
            here.keep(bytes(hint))
        elif ADDRESS.fullmatch(address):
            with contextlib.suppress(BrokerUnavailable):
                await self.link.publish(self.names.hint(address), hint)

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[JetStreamListener]:
        listener = JetStreamListener()
        heard = await self.link.listen(self.names.hint(listener.address), listener.hear)
        try:
            await self.link.client.flush()
            self._listeners[listener.address] = listener
            yield listener
        finally:
            self._listeners.pop(listener.address, None)
            with contextlib.suppress(Exception):
                await heard.unsubscribe()

    async def health(self) -> Health:
        return await health.look(self._link or Link(self.address), self.address, self._opened)


class JetStreamListener:
    """A subject of its own, outside the streams."""

    def __init__(self) -> None:
        self.address = os.urandom(16).hex()
        self.hints: asyncio.Queue[bytes] = asyncio.Queue(1000)

    def hear(self, msg: Msg) -> None:
        """Take a message."""
        self.keep(msg.data)

    def keep(self, hint: bytes) -> None:
        """Keep a hint, unless nobody has read the last thousand."""
        with contextlib.suppress(asyncio.QueueFull):
            self.hints.put_nowait(hint)

    async def get(self) -> bytes:
        return await self.hints.get()
