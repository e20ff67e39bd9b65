"""A process's connections to the cluster, in one event loop: asking the right node, again where that helps."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping
from typing import Any, TypeVar

from ...bus.errors import BrokerUnavailable, ConfigError, LogCorrupt, LogMismatch, LogMissing, RefoldError
from . import wire
from .address import Address
from .requests import TopicsRequest
from .wire import Part

T = TypeVar("T")

PATIENCE = 30.0
"""Seconds within which a cluster must have answered: an election of a dead leader takes 9."""
REQUEST = 10.0
CLOSING = 5.0
"""Seconds that connections have to close: it waits for whatever is asked, and nobody waits for that any more."""
PAUSE, LONGEST_PAUSE = 0.02, 0.5

# Connections to a node: a request that waits for records keeps those behind it on its connection waiting.
READ, COORDINATE, WATCH, LISTEN = 0, 1, 2, 3
PRODUCE = (10, 11)
POLL = (20, 21)


async def together(works: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Do things at once; what the first one raises ends the others, and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


class Again(BrokerUnavailable):
    """Something that goes away by itself."""


class Link:
    """The connections. Everything that is asked raises BrokerUnavailable when there was no answer within `patience`."""

    def __init__(self, address: Address, *, patience: float = PATIENCE) -> None:
        self.address, self.patience = address, patience
        self.client: Any = None
        self.ids: dict[str, str] = {}
        """Topic -> id, of those that must stay the same."""
        self._opening = asyncio.Lock()
        self._pause = PAUSE

    async def open(self, topics: Collection[str]) -> None:
        """Connect, and keep knowing who leads the partitions of these topics; again for more topics."""
        async with self._opening:
            if self.client is None:
                client = wire.Client(**self.address.client(), request_timeout_ms=int(REQUEST * 1000))
                try:
                    async with asyncio.timeout(self.patience):
                        await client.bootstrap()
                except wire.NETWORK as error:
                    await client.close()
                    raise await self._unreachable(error) from error
                self.client = client
        if topics:
            self.client.set_topics(sorted(topics))
            await self.look()

    async def _unreachable(self, error: BaseException) -> RefoldError:
        where = ", ".join(self.address.servers)
        if refusal := await wire.refusal(self.address.client()):
            return ConfigError(f"Kafka at {where} lets nobody in with these settings: {refusal}")
        return BrokerUnavailable(f"no Kafka answers at {where} ({type(error).__name__} {error}".rstrip() + ")")

    async def aclose(self) -> None:
        """Close the connections."""
        client, self.client = self.client, None
        if client is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSING):
                    await client.close()

    async def look(self) -> None:
        """Ask again who leads what. Raises Again where nobody answers in time, or the link is closed meanwhile."""
        try:
            async with asyncio.timeout(REQUEST):
                await self._up().force_metadata_update()
        except TimeoutError as error:
            raise Again("no node of the cluster answers") from error

    async def rest(self) -> None:
        """Wait a moment before something is tried again, longer each time until something is answered."""
        pause, self._pause = self._pause, min(2 * self._pause, LONGEST_PAUSE)
        await asyncio.sleep(pause)
        with contextlib.suppress(BrokerUnavailable):
            await self.look()

    def _up(self) -> Any:
        if self.client is None:
            raise BrokerUnavailable("the connection to Kafka is closed")
        return self.client

    # ---- asking ------------------------------------------------------------------------------------------------------
    async def ask(self, node: int | str | None, request: Any, lane: int = READ) -> Any:
        """Return a node's answer (None: anyone's). Raises Again where there was none."""
        client = self._up()
        if node is None:
            node = client.get_random_node()
        try:
            answer = await client.send(node, request, group=lane)
        except NotImplementedError as error:
            raise ConfigError(f"this Kafka is too old or too new for refold: {error}") from error
        except (AttributeError, KeyError) as error:  # it was closed while it connected
            raise Again(f"the connection to Kafka is closed: {error}") from error
        except wire.NETWORK as error:
            raise Again(f"Kafka does not answer: {error or type(error).__name__}") from error
        self._pause = PAUSE
        return answer

    async def patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Do something that may be done again, until it succeeds or `patience` is over."""
        until, pause = time.monotonic() + self.patience, PAUSE
        while True:
            try:
                return await work()
            except Again as error:
                if time.monotonic() + pause > until:
                    raise BrokerUnavailable(str(error)) from error
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            with contextlib.suppress(BrokerUnavailable):
                await self.look()

    def judge(self, code: int, what: str) -> None:
        """Raise what an error code means."""
        if code == wire.OK:
            return
        if code in wire.NO_RIGHT:
            raise ConfigError(f"{what}: Kafka gives no right to this {wire.NO_RIGHT[code]}; see `refold broker plan`")
        if code in wire.AGAIN:
            raise Again(f"{what}: {wire.named(code)}")
        raise BrokerUnavailable(f"{what}: {wire.named(code)}")

    def leader(self, topic: str, partition: int) -> int:
        """Return who leads a partition. Raises Again where nobody does."""
        node = wire.leader(self._up(), topic, partition)
        if node is None or node == -1:
            raise Again(f"nobody leads partition {partition} of {topic}")
        return node

    # ---- where records are -------------------------------------------------------------------------------------------
    async def offsets(
        self, topic: str, partitions: Collection[int], at: int = wire.LATEST, *, isolation: int = 0
    ) -> dict[int, int]:
        """Return an offset of each partition: an end of it, or of the first record at a time (ms; -1: none)."""
        return await self.patiently(lambda: self._offsets(topic, partitions, at, isolation))

    async def _offsets(self, topic: str, partitions: Collection[int], at: int, isolation: int) -> dict[int, int]:
        by_node: dict[int, dict[int, int]] = defaultdict(dict)
        for partition in partitions:
            by_node[self.leader(topic, partition)][partition] = at
        out: dict[int, int] = {}
        requests = ((node, wire.offsets_request(topic, wanted, isolation)) for node, wanted in by_node.items())
        for answer in await together(self.ask(node, request) for node, request in requests):
            for partition, error, found in wire.offsets_of(answer):
                if error == wire.UNKNOWN_TOPIC:
                    await self.still_there(topic)
                self.judge(error, f"partition {partition} of {topic}")
                out[partition] = found
        return out

    async def still_there(self, topic: str) -> None:
        """Raises LogMissing where a topic has been deleted (a node that has just restarted may not know it yet)."""
        if (await self.topics([topic]))[topic].error == wire.UNKNOWN_TOPIC:
            raise LogMissing(f"topic {topic} is not there any more")

    async def still_the_same(self, topic: str) -> None:
        """Raises LogMismatch where another topic has the name by now; Again where there is none."""
        found = (await self.topics([topic]))[topic]
        self.judge(found.error, f"topic {topic}")
        if self.ids.get(topic, found.id) != found.id:
            raise LogMismatch(f"topic {topic} was deleted and made again meanwhile")

    async def topics(self, names: Collection[str]) -> dict[str, wire.Topic]:
        """Return what is known of topics; one that is not there has the error UNKNOWN_TOPIC: no node knows it (one
        that has just started, or is behind, may not)."""
        found = dict[str, wire.Topic]()
        for node in self._nodes():
            with contextlib.suppress(Again):
                answer = wire.topics_of(await self.ask(node, TopicsRequest(list(names))))
                found |= {n: t for n, t in answer.items() if n not in found or found[n].error}
            if found and all(topic.error != wire.UNKNOWN_TOPIC for topic in found.values()):
                return found
        if not found:
            raise Again("no node of the cluster answers")
        return found

    def _nodes(self) -> list[int]:
        nodes = wire.nodes(self._up())
        random.shuffle(nodes)
        return nodes

    # ---- fetching ----------------------------------------------------------------------------------------------------
    async def fetch(
        self, node: int, wanted: Mapping[tuple[str, int], int], *, wait: float = 0.0, lane: int = READ,
        isolation: int = 0, max_bytes: int = 8 << 20, part_bytes: int = 1 << 20,
    ) -> dict[tuple[str, int], Part]:  # fmt: skip
        """Return what one node has of partitions from offsets on, once. Raises Again; LogCorrupt."""
        request = wire.fetch_request(wanted, int(wait * 1000), max_bytes, isolation, part_bytes)
        answer = await self.ask(node, request, lane)
        try:
            return wire.parts_of(answer, wanted, isolation)
        except ValueError as error:
            raise LogCorrupt(f"Kafka returned a record that does not match its checksum: {error}") from error

    async def fetch_parts(
        self, topic: str, offsets: Mapping[int, int], *, part_bytes: int = 1 << 20
    ) -> dict[int, Part]:
        """Return what there is of several partitions from offsets on, with patience; a part that is OUT_OF_RANGE says
        so."""

        async def once() -> dict[int, Part]:
            by_node: dict[int, dict[tuple[str, int], int]] = defaultdict(dict)
            for partition, offset in offsets.items():
                by_node[self.leader(topic, partition)][topic, partition] = offset
            found = await together(self.fetch(node, wanted, part_bytes=part_bytes) for node, wanted in by_node.items())
            parts = {partition: part for answer in found for (_, partition), part in answer.items()}
            for partition, part in parts.items():
                if part.error != wire.OUT_OF_RANGE:
                    self.judge(part.error, f"partition {partition} of {topic}")
            return parts

        return await self.patiently(once)

    async def fetch_one(
        self, topic: str, partition: int, offset: int, *, isolation: int = 0, part_bytes: int = 1 << 20
    ) -> Part:
        """Return what there is of a partition from an offset on, with patience; never a gap that is not one."""

        async def once() -> Part:
            node = self.leader(topic, partition)
            found = await self.fetch(node, {(topic, partition): offset}, isolation=isolation, part_bytes=part_bytes)
            part = found[topic, partition]
            if part.error != wire.OUT_OF_RANGE:
                self.judge(part.error, f"partition {partition} of {topic}")
            return part

        return await self.patiently(once)
