"""Big logs, made once: records of one real workflow of each kind, copied under other ids. Kept in `.bench-cache`."""

from __future__ import annotations

import asyncio
import os
import random
import re
import shutil
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import measure
import raw as hand

CACHE = Path(measure.TEMPORARY) / ".bench-cache"
CHUNK = 4000
UUID = re.compile(rb"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
VERSION = 1


def waiter() -> Any:
    """An agent that waits for a message `go`, and answers with it."""
    from refold import Agent

    agent = Agent("waiter")

    @agent.on_task
    async def wait(ctx, payload):  # type: ignore[no-untyped-def]
        return await ctx.receive("go")

    return agent


class Template:
    """The records of one workflow, with places for its ids."""

    def __init__(self, correlation: str, records: list[bytes]) -> None:
        found = dict.fromkeys(id for raw in records for id in UUID.findall(raw))
        own = [b'"id":"%b"' % id for id in found]
        ids = [id for id, mark in zip(found, own, strict=True) if any(mark in raw for raw in records)]
        self.names = [correlation.encode(), *ids]
        self.of = [self._record(raw) for raw in records]

    def _record(self, raw: bytes) -> tuple[bytes, list[int], int]:
        """Return the bytes with %b for each id, which of the names they are, and which one is the record's own."""
        (own,) = re.findall(rb'"id":"([^"]*)"', raw[:60])
        pattern = re.compile(b"|".join(map(re.escape, self.names)))
        order = [self.names.index(found) for found in pattern.findall(raw)]
        return pattern.sub(b"%b", raw.replace(b"%", b"%%")), order, self.names.index(own)

    def fill(self, stamp: int) -> tuple[str, list[tuple[str, bytes]]]:
        """Return a new workflow's correlation id, and its records with their ids. `stamp`: milliseconds of its id."""
        names = [id_at(stamp) for _ in self.names]
        out = []
        for text, order, own in self.of:
            out.append((names[own].decode(), text % tuple([names[i] for i in order])))
        return names[0].decode(), out


def id_at(stamp: int) -> bytes:
    """Return a UUIDv7 of that millisecond."""
    low = random.getrandbits(74)
    a, b, c = f"{stamp:012x}", f"{low >> 62:03x}", f"{low & (1 << 62) - 1:015x}"
    return f"{a[:8]}-{a[8:]}-7{b[-3:]}-8{c[:3]}-{c[3:]}".encode()


async def template(url: str, agents: list[Any], ask: Callable[[Any], Awaitable[str]]) -> Template:
    """Run one workflow and keep what it wrote. `ask` returns its id when all that is wanted is recorded."""
    from refold import run
    from refold.brokers import open_broker
    from refold.projections.checkpoint import read_history

    async with run(*agents, broker=url) as bus:
        correlation = await ask(bus)
    async with open_broker(url) as broker:
        await broker.ensure_log()
        records = [s.value for s in await read_history(broker, correlation) if s.key == correlation]
    return Template(correlation, records)


async def templates(folder: Path) -> tuple[Template, Template]:
    """Return a completed pipeline of six records, and a workflow that waits, of two."""
    from rows.pipeline import agents

    async def pipeline(bus: Any) -> str:
        handle = await bus.start("stage1", hand.PAYLOAD)
        await handle.result(10)
        return str(handle.correlation_id)

    async def waiting(bus: Any) -> str:
        handle = await bus.start("waiter", hand.PAYLOAD)
        while (await handle.status()).version < 2:
            await asyncio.sleep(0.01)
        return str(handle.correlation_id)

    done = await template(f"sqlite:///{folder}/pipeline.db", agents(), pipeline)
    open_ = await template(f"sqlite:///{folder}/waiting.db", [waiter()], waiting)
    return done, open_


async def write(url: str, workflows: Iterator[tuple[str, list[tuple[str, bytes]]]]) -> None:
    """Append workflows, a few thousand a commit."""
    from refold.brokers import open_broker
    from refold.bus.broker import Item, Outgoing
    from refold.bus.partition import partition_of

    async with open_broker(url) as broker:
        partitions = (await broker.ensure_log()).partitions
        batch: list[Item] = []
        for correlation, records in workflows:
            place = partition_of(correlation, partitions)
            batch.append(Item(place, correlation, tuple(Outgoing(id, raw) for id, raw in records)))
            if len(batch) >= CHUNK:
                await broker.append(batch)
                batch = []
        if batch:
            await broker.append(batch)


def newest(template: Template, count: int) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Return so many workflows that began just now."""
    for _ in range(count):
        yield template.fill(int(time.time() * 1000))


def singly(
    workflows: Iterable[tuple[str, list[tuple[str, bytes]]]],
) -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Return what appends each record by itself, as agents do."""
    for correlation, records in workflows:
        for record in records:
            yield correlation, [record]


def prepared(kind: str, size: int) -> Path:
    """Return the folder of a log of about `size` records, made where it is not there yet. Copy it before use.

    `completed`: pipelines that are over. `old`: the same behind one workflow that waits. `waiting`: `size` workflows
    that wait, two records each. Beside the log: `first`, the id of its first workflow.
    """
    from refold.brokers.sqlite.schema import TABLES

    folder = CACHE / f"{kind}-{size}-{crc32(repr((VERSION, TABLES)).encode()):08x}"
    if (folder / "first").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    first = asyncio.run(_prepare(folder, kind, size))
    (folder / "first").write_text(first)
    return folder


async def _prepare(folder: Path, kind: str, size: int) -> str:
    random.seed(size)
    scratch = folder / "scratch"
    scratch.mkdir()
    done, waits = await templates(scratch)
    shutil.rmtree(scratch)
    start = 1_750_000_000_000
    first = ""

    def workflows() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
        nonlocal first
        for i in range(size if kind == "waiting" else size // len(done.of)):
            oldest = kind == "old" and i == 0
            filled = (waits if kind == "waiting" or oldest else done).fill(start + i // 4)
            first = first or filled[0]
            yield filled

    await write(f"sqlite:///{folder}/log.db", workflows())
    return first


def copied(kind: str, size: int, folder: Path) -> str:
    """Copy a prepared log into a folder; its URL."""
    made = prepared(kind, size)
    shutil.copy(made / "log.db", folder / "log.db")
    (folder / "first").write_text((made / "first").read_text())
    os.sync()
    return f"sqlite:///{folder}/log.db"
