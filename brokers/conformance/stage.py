"""Where a case is played: brokers on one log, members of groups, and what is asked of both."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterator, Sequence
from typing import TypeVar

from ...bus.broker import (
    ANY_LOG,
    Appended,
    Broker,
    Fence,
    Item,
    LogSpec,
    Outgoing,
    Result,
    Stored,
    Subscription,
)  # fmt: skip
from ...bus.partition import partition_of
from .member import Member
from .promise import PromiseBroken, check, equal
from .subject import Subject

T = TypeVar("T")

TWO = LogSpec(partitions=2)
LONG = 60.0
"""A lease (seconds) that nobody waits for here: what happens under it does not happen because it ended."""


class Stage:
    """One log and who works on it."""

    def __init__(self, subject: Subject, tasks: asyncio.TaskGroup) -> None:
        self.subject = subject
        self._connect = subject.new_log()
        self._tasks = tasks
        self._brokers: list[Broker] = []
        self._members: list[Member] = []
        self._epochs: dict[tuple[str, int, int], str] = {}

    # ---- brokers -----------------------------------------------------------------------------------------------------
    def connect(self) -> Broker:
        """Return another broker on the log, not yet opened; closed when the case ends."""
        self._brokers.append(self._connect())
        return self._brokers[-1]

    async def open(self, spec: LogSpec = TWO) -> Broker:
        """Return another broker on the log, which is made where it is not there."""
        broker = self.connect()
        await broker.__aenter__()
        await broker.ensure_log(spec)
        return broker

    async def pair(self, spec: LogSpec = TWO) -> tuple[Broker, Broker]:
        """Return two brokers on the log."""
        return await self.open(spec), await self.open(ANY_LOG)

    async def clear(self) -> None:
        """Let everybody leave and close."""
        for member in self._members:
            with contextlib.suppress(Exception):  # the case has failed already, or was about something else
                await member.leave()
        for broker in self._brokers:
            await broker.aclose()

    # ---- members -----------------------------------------------------------------------------------------------------
    async def join(
        self, broker: Broker, name: str, group: str = "g", *, lease: float = LONG,
        partitions: Collection[int] | None = None,
    ) -> Member:  # fmt: skip
        """Return a member of a group; it leaves when the case ends."""
        joined: asyncio.Future[Subscription] = asyncio.get_running_loop().create_future()
        leaving, left = asyncio.Event(), asyncio.Event()

        async def live() -> None:
            try:
                async with broker.subscribe(group, name, lease=lease, partitions=partitions) as sub:
                    joined.set_result(sub)
                    await leaving.wait()
            except Exception as error:
                if joined.done():
                    raise
                joined.set_exception(error)
            finally:
                left.set()

        self.do(live())
        member = Member(await joined, name, group, leaving, left, self._epochs)
        self._members.append(member)
        return member

    def do(self, work: Coroutine[object, object, T]) -> asyncio.Task[T]:
        """Do something beside; the case ends when it has ended."""
        return self._tasks.create_task(work)

    async def until(self, condition: Callable[[], object], *members: Member) -> None:
        """Let the members take what happens to them until the condition holds."""
        while not condition():
            for member in members:
                await member.turn()
            await asyncio.sleep(0.002)

    async def until_so(self, condition: Callable[[], Awaitable[object]]) -> None:
        """Wait until what is asked of a broker is so."""
        while not await condition():  # noqa: ASYNC110 - a broker has no event for it
            await asyncio.sleep(0.005)

    async def lone(self, broker: Broker, name: str = "a", *, lease: float = LONG) -> Member:
        """Return a member that owns every partition."""
        member = await self.join(broker, name, lease=lease)
        await self.until(lambda: len(member.epochs) == broker.meta.partitions, member)
        return member


# ---- records ---------------------------------------------------------------------------------------------------------
def item(partition: int, key: str | None, *ids: str, after: int | None = None) -> Item:
    """Return records whose values say which they are."""
    return Item(partition, key, tuple(Outgoing(id, value(id)) for id in ids), after)


def value(id: str) -> bytes:
    """Return what `item` gives a record to hold."""
    return f'{{"id":"{id}"}}'.encode()


def of(broker: Broker, key: str, *ids: str, after: int | None = None) -> Item:
    """Return records of a workflow, in the partition where it lives."""
    return item(partition_of(key, broker.meta.partitions), key, *ids, after=after)


def keys(broker: Broker, partition: int, count: int) -> list[str]:
    """Return names of workflows that live in a partition."""
    names = (f"workflow-{n}" for n in range(100_000))
    found = (name for name in names if partition_of(name, broker.meta.partitions) == partition)
    return [next(found) for _ in range(count)]


async def appended(broker: Broker, *items: Item, fence: Fence | None = None) -> list[int]:
    """Append, and return the positions of all records; it must succeed."""
    out: list[int] = []
    for result in await broker.append(items, fence):
        check(isinstance(result, Appended), f"an append that nothing speaks against is answered by {result}")
        out += positions_of(result)
    return out


def positions_of(result: Result) -> tuple[int, ...]:
    """Return where the records of an item are; none where it was refused."""
    return result.positions if isinstance(result, Appended) else ()


async def whole(broker: Broker, partition: int, limit: int = 1000) -> list[Stored]:
    """Return all records of a partition, page by page."""
    out: list[Stored] = []
    start: int | None = 0
    while start is not None:
        page = await broker.read(partition, start, limit=limit)
        check(len(page.records) <= limit, f"a page of {len(page.records)} records, at most {limit} were asked for")
        out += page.records
        check(page.next is None or page.next > start, f"the next page of the one at {start} is at {page.next}")
        start = page.next
    return out


async def workflow(broker: Broker, key: str, after: int = 0, limit: int = 1000) -> list[Stored]:
    """Return all records of a workflow, and its partition's own, page by page."""
    out: list[Stored] = []
    place: int | None = after
    while place is not None:
        page = await broker.read_workflow(key, after=place, limit=limit)
        check(len(page.records) <= limit, f"a page of {len(page.records)} records, at most {limit} were asked for")
        out += page.records
        check(page.next is None or page.next > place, f"the next page of the one after {place} is after {page.next}")
        place = page.next
    return out


def values(records: Sequence[Stored]) -> list[bytes]:
    """Return what the records hold."""
    return [record.value for record in records]


@contextlib.contextmanager
def raising(*kinds: type[Exception], what: str) -> Iterator[None]:
    """Check that the body raises one of these."""
    wanted = " or ".join(kind.__name__ for kind in kinds)
    try:
        yield
    except kinds:
        return
    except Exception as error:
        raise PromiseBroken(f"{what} raises {type(error).__name__} ({error}), not {wanted}") from error
    raise PromiseBroken(f"{what} raises nothing, not {wanted}")


def monotonic() -> float:
    """Return the time that deadlines are told in."""
    return time.monotonic()


__all__ = [
    "LONG", "TWO", "Member", "Stage", "appended", "check", "equal", "item", "keys", "monotonic", "of", "positions_of",
    "raising", "value", "values", "whole", "workflow",
]  # fmt: skip
