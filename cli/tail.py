"""`refold tail`: the newest records, as the log holds them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from ..bus.errors import InvalidMessage
from .opening import opened
from .output import clock, print_json, say, spelt
from .settings import BrokerOption, JsonOption

if TYPE_CHECKING:
    from ..bus.broker import Broker, Stored

    Wanted = Callable[[Stored], bool]
    Found = list[tuple[int, Stored]]

CHUNK = 200
LOOK = 0.2
"""Seconds between two looks at the log's ends."""


def tail(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the newest records.")] = 20,
    workflow: Annotated[str | None, typer.Option("--id", help="Only this workflow.")] = None,
    all: Annotated[bool, typer.Option("--all", help="Also the partitions' own records (who owns them).")] = False,
    broker: BrokerOption = None, json: JsonOption = False,
) -> None:  # fmt: skip
    """Print the newest records of the log, one a line."""

    def wanted(stored: Stored) -> bool:
        return stored.key == workflow if workflow is not None else all or stored.key is not None

    asyncio.run(_tail(broker, follow, lines, wanted, _line_json if json else _line))


async def _tail(url: str | None, follow: bool, lines: int, wanted: Wanted, show: Callable[[int, Stored], None]) -> None:
    async with opened(url) as log:
        begins, ends = await log.positions("begin"), await log.positions("end")
        found: Found = []
        for p, end in ends.items():
            found += await _newest(log, p, begins[p], end, lines, wanted)
        _show(found, lines, show)
        while follow:
            found = []
            for p, end in (await log.positions("end")).items():
                found += await _between(log, p, ends[p], end, wanted)
                ends[p] = end
            _show(found, len(found), show)
            await asyncio.sleep(LOOK)


def _show(found: Found, lines: int, show: Callable[[int, Stored], None]) -> None:
    in_order = sorted(found, key=lambda f: f[1].time)
    for p, stored in in_order[max(0, len(in_order) - lines) :]:
        show(p, stored)


async def _newest(log: Broker, partition: int, begin: int, end: int, lines: int, wanted: Wanted) -> Found:
    """Read backwards until there are `lines` records that are wanted."""
    found: Found = []
    while end > begin and len(found) < lines:
        start = max(begin, end - CHUNK * log.meta.stride)
        found = await _between(log, partition, start, end, wanted) + found
        end = start
    return found


async def _between(log: Broker, partition: int, start: int | None, end: int, wanted: Wanted) -> Found:
    found: Found = []
    while start is not None and start < end:
        page = await log.read(partition, start, end=end)
        found += [(partition, s) for s in page.records if wanted(s)]
        start = page.next
    return found


def _line(partition: int, stored: Stored) -> None:
    from ..bus import codec
    from ..bus.errors import UndecodableRecord

    where = f"{partition}:{stored.position}"
    try:
        r = codec.envelope(stored.value)
    except UndecodableRecord as error:
        say(f"{clock(stored.time)} {where:>8} undecodable: {error}")
        return
    step = f" step {r.work.step}" if r.work is not None and r.work.step else ""
    about = getattr(r.fact, "name", "") or getattr(r.fact, "error", "")
    what = f"{r.sender_id} -> {r.receiver_id}  {r.message_type}{step} {about}"
    say(f"{clock(stored.time)} {where:>8} {stored.key or '(partition)'}  {what}".rstrip())


def _line_json(partition: int, stored: Stored) -> None:
    import orjson

    line = {"partition": partition, "position": stored.position, "time": stored.time}
    try:
        raw = spelt({**line, "record": orjson.loads(stored.value)})
    except (ValueError, InvalidMessage):  # no JSON, or nested so deep that nobody prints it
        raw = spelt({**line, "record": {"undecodable": stored.value.hex()}})
    print_json(raw)
