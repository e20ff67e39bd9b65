"""The broker itself: opening the log, and what each method of the port is made of."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from typing import Literal

from ...bus.broker import (
    ANY_LOG,
    DEFAULT_MAX_APPEND,
    DEFAULT_MAX_RECORD,
    MAX_HINT,
    RULES,
    Appended,
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
from ...bus.clock import Clock, Source
from ...bus.errors import BrokerUnavailable, LogMismatch, LogMissing
from ...bus.partition import partition_of
from ...bus.stall import exit_stalled
from ..cloudevents import attributes
from ..shares import is_mine
from ..sizes import check
from . import health, topics, wire
from .address import Address, parse
from .checkpoints import Checkpoints
from .control import Control, Made, Told, Withdrawn, meta_of
from .hints import Hints, KafkaListener
from .keeper import Keeper, Membership
from .link import PATIENCE, Link, together
from .offsets import Offsets
from .outbox import Outbox, Pair
from .reading import Log
from .subscription import KafkaSubscription

log = logging.getLogger("refold.kafka")


def from_url(url: str) -> KafkaBroker:
    """`kafka://host:9092,host2/namespace?partitions=24&replication=3`; see `docs/kafka.md`. Raises ConfigError."""
    return KafkaBroker(parse(url))


def _appended(offset: int, count: int) -> Appended:
    return Appended((offset + 1,) if count == 1 else tuple(range(offset + 1, offset + 1 + count)))


def described(value: bytes) -> wire.Headers:
    """Return the headers of a record."""
    return [(name, text.encode()) for name, text in attributes(value, "ce_", "content-type").items()]


class KafkaBroker:
    """See `refold.bus.broker.Broker` for what each method promises.

    `patience` is how long (seconds) a call waits for a cluster that does not answer; `on_stall` is called (in a thread)
    when the event loop has not turned for a subscription's `stall_limit`: it ends the process with code 70.
    """

    capabilities = Capabilities(shared_between_processes=True, survives_restart=True)

    def __init__(
        self, address: Address, *, patience: float = PATIENCE, on_stall: Callable[[], None] = exit_stalled,
        clock: Clock | None = None, source: Source | None = None,
    ) -> None:  # fmt: skip
        self.address, self.url = address, address.url
        self.clock, self.source = clock or Clock(), source or Source()
        self.names = topics.names_of(address.namespace)
        self.link = Link(address, patience=patience)
        self.outbox = Outbox(
            self.link, compression=wire.compression(address.settings.get("compression", "none")),
            describe=described if address.settings.get("cloudevents") == "true" else None,
        )  # fmt: skip
        self.log = Log(self.link, self.names.log)
        self.control = Control(self.link, self.outbox, self.names.control)
        self.checkpoints = Checkpoints(self.link, self.names.checkpoints)
        self.offsets = Offsets(self.link, self.names.log) if address.settings.get("offsets") == "true" else None
        self.hints = Hints(self.link, self.outbox, None)
        self._on_stall = on_stall
        self._meta: LogMeta | None = None
        self._topic_id = ""
        self._subscriptions: dict[KafkaSubscription, bool] = {}
        self._closed = False

    @property
    def meta(self) -> LogMeta:
        if self._meta is None:
            raise LogMissing(f"{self.url} is not open: call ensure_log")
        return self._meta

    # ---- life --------------------------------------------------------------------------------------------------------
    async def __aenter__(self) -> Broker:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        if self._closed:
            return
        self._closed = True
        async with contextlib.AsyncExitStack() as last:  # each is closed, whatever happens to the others
            last.push_async_callback(self.link.aclose)
            last.push_async_callback(self.log.aclose)
            last.push_async_callback(self.outbox.aclose)
            last.push_async_callback(self.hints.aclose)
            for sub in self._subscriptions:
                last.push_async_callback(self._part, sub)

    async def ensure_log(self, spec: LogSpec = ANY_LOG, *, create: bool = True) -> LogMeta:
        if self._closed:
            raise BrokerUnavailable(f"{self.url} is closed")
        await self.link.open([])
        known = await topics.known(self.link, self.names)
        if self.names.log not in known and not create:
            raise self._missing("there is no log")
        lacking = [name for name in self.names[:3] if name not in known]
        if lacking:
            await self._make(spec, known, lacking, create)
        self._meta = await self._verified(spec, create)
        return self._meta

    def _missing(self, what: str) -> LogMissing:
        return LogMissing(
            f"{what} at {self.url}: start a worker (`refold run app.py`) or send something to make one, or name "
            "another with --broker"
        )

    async def _make(self, spec: LogSpec, known: dict[str, wire.Topic], lacking: list[str], create: bool) -> None:
        """Make the topics that are not there, unless that of the records holds some."""
        if self.names.log in known:
            await self.link.open([self.names.log])
            ends = await self.link.offsets(self.names.log, known[self.names.log].partitions)
            if not create or any(ends.values()):
                raise LogMismatch(
                    f"topic {self.names.log} is there without {', '.join(lacking)}: see `refold broker plan {self.url}`"
                )
        partitions = spec.partitions or self.address.number("partitions") or topics.DEFAULT_PARTITIONS
        if self.names.log in known:
            partitions = len(known[self.names.log].partitions)
        replication = self.address.number("replication") or min(3, len(self.link.client.cluster.brokers()))
        wanted = topics.wanted(self.names, partitions, replication, spec.max_append or DEFAULT_MAX_APPEND)
        await topics.make(self.link, [topic for topic in wanted if topic.name not in known])
        await topics.led(self.link, lacking)

    async def _verified(self, spec: LogSpec, create: bool) -> LogMeta:
        facts = await topics.facts(self.link, self.names)
        await topics.led(self.link, list(facts.topics))
        await self.link.open(list(facts.topics))
        for name in facts.topics:
            self.outbox.limits[name] = int(facts.setting(name, "max.message.bytes") or topics.ROOM)
        found = facts.topics[self.names.log]
        meta = meta_of(await self.control.read(), RULES)
        topics.verify(facts, self.address, meta.max_append if meta else spec.max_append or DEFAULT_MAX_APPEND)
        if meta is None:
            if not create:
                raise self._missing("there is no log")
            meta = await self._describe(spec, found)
        self._compare(meta, spec, found)
        self._topic_id = found.id
        self.link.ids[self.names.log] = found.id
        self.hints.topic = self.names.hints if self.names.hints in facts.topics else None
        return meta

    async def _describe(self, spec: LogSpec, found: wire.Topic) -> LogMeta:
        """Say what the log is, if nobody has said it meanwhile."""
        ends = await self.link.offsets(self.names.log, found.partitions)
        if any(ends.values()):
            raise LogMismatch(
                f"topic {self.names.log} holds records, and {self.names.control} does not know the log: it is another "
                "one's topic, or the control topic was made again"
            )
        meta = LogMeta(
            log_id=self.source.new_id(), partitions=len(found.partitions), created=self.clock.now(), rules=RULES,
            max_record=spec.max_record or DEFAULT_MAX_RECORD, max_append=spec.max_append or DEFAULT_MAX_APPEND,
        )  # fmt: skip
        said = meta_of(await self.control.write(Made(meta, found.id)), RULES)
        assert said is not None
        return said

    def _compare(self, meta: LogMeta, spec: LogSpec, found: wire.Topic) -> None:
        """Compare a log with what the caller needs, and with what it was. Raises LogMismatch."""
        asked = {name: getattr(spec, name) for name in spec.__struct_fields__}
        asked["partitions"] = asked["partitions"] or self.address.number("partitions")
        wrong = [
            f"{name} is {getattr(meta, name)}, asked for {wanted}"
            for name, wanted in asked.items()
            if wanted is not None and wanted != getattr(meta, name)
        ]
        if wrong:
            what = "; ".join(wrong)
            raise LogMismatch(f"{self.url} is not what was asked for: {what}. A log is never changed: use another")
        if len(found.partitions) != meta.partitions:
            raise LogMismatch(
                f"topic {self.names.log} has {len(found.partitions)} partitions, the log was made with "
                f"{meta.partitions}: workflows would be looked for where they are not"
            )
        made = self.control.state.made
        if made is not None and made.topic and found.id != made.topic:
            raise LogMismatch(f"topic {self.names.log} was deleted and made again: log {meta.log_id} is gone")

    # ---- appending ---------------------------------------------------------------------------------------------------
    async def append(self, items: Sequence[Item], fence: Fence | None = None) -> list[Result]:
        loads = [self._load(item.partition, [(item.key, r.value) for r in item.records]) for item in items]
        puts = [self.outbox.put(self.names.log, i.partition, *load) for i, load in zip(items, loads, strict=True)]
        return [_appended(await put, len(load[0])) for put, load in zip(puts, loads, strict=True)]

    def _load(self, partition: int, records: Sequence[tuple[str | None, bytes]]) -> tuple[list[Pair], int]:
        """Return what is to be stored, and its size. Raises ValueError, TooLarge, TypeError."""
        size = check(self.meta, partition, [value for _, value in records])
        return [(None if key is None else key.encode(), value) for key, value in records], size

    async def append_raw(self, partition: int, records: Sequence[tuple[str | None, bytes]]) -> tuple[int, ...]:
        pairs, size = self._load(partition, records)
        return _appended(await self.outbox.put(self.names.log, partition, pairs, size), len(pairs)).positions

    # ---- reading -----------------------------------------------------------------------------------------------------
    async def read(self, partition: int, start: int | At = 0, *, end: int | None = None, limit: int = 1000) -> Page:
        _ = self.meta
        return await self.log.page(partition, start, end, limit)

    async def read_workflow(self, correlation_id: str, *, after: int = 0, limit: int = 1000) -> Page:
        partition = partition_of(correlation_id, self.meta.partitions)
        return await self.log.workflow(partition, correlation_id, after, limit)

    async def read_at(self, partition: int, positions: Sequence[int]) -> list[Stored]:
        _ = self.meta
        return await self.log.at(partition, positions)

    async def positions(self, kind: Literal["begin", "end", "committed"], group: str | None = None) -> dict[int, int]:
        partitions = range(self.meta.partitions)
        if kind != "committed":
            at = wire.EARLIEST if kind == "begin" else wire.LATEST
            found = await self.link.offsets(self.names.log, partitions, at)
            return {p: found[p] + 1 for p in partitions}
        known = await together(self.checkpoints.committed(p) for p in partitions)
        return {p: known[p][group or ""] + 1 if (group or "") in known[p] else 0 for p in partitions}

    # ---- groups ------------------------------------------------------------------------------------------------------
    @contextlib.asynccontextmanager
    async def subscribe(
        self, group: str, member: str, *, partitions: Collection[int] | None = None, lease: float = 8.0,
        stall_limit: float = 30.0,
    ) -> AsyncIterator[KafkaSubscription]:  # fmt: skip
        who = Membership(
            self.address, self.names, self._topic_id, group, member, self.meta.partitions,
            None if partitions is None else frozenset(partitions), lease, max(stall_limit, 3 * lease),
        )  # fmt: skip
        sub = KafkaSubscription(self, group)
        sub.keeper = Keeper(who, sub.tell, self._on_stall)
        sub.joining = asyncio.create_task(asyncio.to_thread(sub.keeper.join))
        self._subscriptions[sub] = True
        try:
            await asyncio.shield(sub.joining)  # its thread goes on when this is cancelled, so it must be waited for
            yield sub
        finally:
            await self._part(sub)

    async def _part(self, sub: KafkaSubscription) -> None:
        """Leave the group, unless it has been left."""
        await asyncio.wait([sub.joining])
        leave = self._subscriptions.pop(sub, False)
        await asyncio.to_thread(sub.keeper.stop, leave=leave)
        await sub.aclose()

    def die(self) -> None:
        """Let this process's members die, as far as others can tell: nothing is released. For tests."""
        for sub in self._subscriptions:
            self._subscriptions[sub] = False
            threading.Thread(target=sub.keeper.stop, kwargs={"leave": False}).start()

    async def owns(self, group: str, token: str, partition: int, epoch: int) -> bool:
        """Whether the group's fold, up to all that was acknowledged, gives a partition to a member."""
        known = (await self.control.read()).groups.get(group)
        return known is not None and is_mine(known.leases.get(partition), token, epoch)

    async def checkpoint(self, group: str, partition: int) -> Checkpoint | None:
        _ = self.meta
        return await self.checkpoints.load(group, partition)

    async def checkpoint_groups(self, partition: int) -> list[str]:
        _ = self.meta
        return await self.checkpoints.groups(partition)

    # ---- who is alive, and hints -------------------------------------------------------------------------------------
    async def announce(self, presence: Presence, *, ttl: float = 8.0) -> None:
        _ = self.meta
        await self.control.write(Told(presence, ttl))

    async def withdraw(self, member: str) -> None:
        _ = self.meta
        await self.control.write(Withdrawn(member))

    async def members(self, group: str | None = None, *, gone: bool = False) -> list[Member]:
        _ = self.meta
        out, now = [], self.clock.now()
        for presence, told, ttl in (await self.control.read()).presences.values():
            age = max(0.0, now - told)
            member = Member(presence, age, age <= ttl)
            if (group is None or presence.group == group) and (member.alive or gone):
                out.append(member)
        return out

    async def notify(self, address: str, hint: bytes) -> None:
        if len(hint) > MAX_HINT:
            raise ValueError(f"a hint of {len(hint)} bytes, at most {MAX_HINT}")
        self.hints.send(address, bytes(hint))
        await asyncio.sleep(0)

    @contextlib.asynccontextmanager
    async def listen(self) -> AsyncIterator[KafkaListener]:
        _ = self.meta
        listener = await self.hints.open()
        try:
            yield listener
        finally:
            await self.hints.shut(listener)

    async def health(self) -> Health:
        append = self._meta.max_append if self._meta else DEFAULT_MAX_APPEND
        return await health.look(self.link, self.address, self.names, append)
