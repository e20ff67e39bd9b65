"""Reading commands: `ps`, `show`, `state`, `tail`. They never create a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .output import ago, as_json, clock, console, progress, table
from .settings import BrokerOption, JsonOption, broker_url

if TYPE_CHECKING:
    from ..bus.broker import Broker, Member
    from ..projections.overview import Overview, Row
    from ..projections.status import Wait

Id = Annotated[str, typer.Argument(metavar="ID", help="The workflow's id (correlation id).")]


@asynccontextmanager
async def opened(url: str | None) -> AsyncIterator[Broker]:
    """Open a log that is there. Raises LogMissing."""
    from ..brokers import open_broker

    async with open_broker(broker_url(url)) as broker:
        await broker.ensure_log(create=False)
        yield broker


def ps(broker: BrokerOption = None, json: JsonOption = False) -> None:
    """List who works, and the workflows that are open."""

    async def main() -> tuple[Overview, list[Member]]:
        from ..projections.overview import overview

        async with opened(broker) as log:
            with progress("reading the log", quiet=json) as update:
                return await overview(log, update), await log.members()

    found, members = asyncio.run(main())
    if json:
        as_json({"members": [{"age": m.age, **_presence(m)} for m in members], **_plain(found)})
        return
    table(
        "workers", ("member", "group", "pid", "agents", "partitions", "running", "queued", "waiting"),
        (
            (p.member, p.group, p.pid, ", ".join(p.agents), len(p.partitions), p.running, p.queued, p.waiting)
            for p in (m.presence for m in members)
        ),
        empty="no worker is running",
    )  # fmt: skip
    console.print()
    table(
        "open workflows", ("workflow", "status", "records", "agents", "why"),
        ((r.workflow, r.status, r.version, ", ".join(r.agents), _why(r)) for r in found.rows),
        empty="no workflow is open",
    )  # fmt: skip


def _presence(m: Member) -> dict[str, Any]:
    return _plain(m.presence)


def _plain(value: Any) -> dict[str, Any]:
    import msgspec

    plain: dict[str, Any] = msgspec.to_builtins(value)
    return plain


def _why(row: Row) -> str:
    return "; ".join([*row.blocked, *row.unclaimed, *map(_wait, row.waits)])


def _wait(w: Wait) -> str:
    due = f" until {clock(w.due)}" if w.due is not None else ""
    targets = {"request": f"the answer of {w.target}", "message": f"a {w.target!r}", "timer": "the time"}
    return f"{w.agent} waits for {targets.get(w.what, 'a retry')}{due}"


def show(
    id: Id,
    payloads: Annotated[bool, typer.Option("--payloads", help="Show what the messages say.")] = False,
    broker: BrokerOption = None, json: JsonOption = False,
) -> None:  # fmt: skip
    """Show what happened in a workflow, record by record, and its attempts."""

    async def main() -> Any:
        from ..projections.history import read_workflow

        async with opened(broker) as log:
            hosted = {a for m in await log.members() for a in m.presence.agents}
            return await read_workflow(log, id), hosted

    from ..projections.status import report
    from ..projections.timeline import attempts, timeline

    history, hosted = asyncio.run(main())
    state, moments, tries = report(history.workflow, hosted), timeline(history), attempts(history)
    if json:
        as_json({"workflow": id, "report": state, "records": moments, "attempts": tries})
        return
    console.print(f"workflow {id}: [bold]{state.status}[/], {len(moments)} records, generation {state.generation}")
    for line in [*state.blocked, *state.unclaimed, *map(_wait, state.waits)]:
        console.print(f"  {line}")
    console.print()
    rows = (
        (
            m.position, f"+{m.after:.3f}", m.agent, m.kind, m.step, m.about or (m.payload if payloads else ""),
            m.pid or "", "" if m.verdict == "admitted" else m.verdict,
        )
        for m in moments
    )  # fmt: skip
    table("records", ("position", "s", "agent", "kind", "step", "about", "pid", "verdict"), rows)
    again = [t for t in tries if t.number > 1 or not t.outcome]
    if again:
        console.print()
        both = [t for t in tries if any((t.agent, t.message) == (a.agent, a.message) for a in again)]
        rows2 = ((t.agent, t.number, t.pid, t.member, " ".join(t.steps), t.outcome or "(no outcome)") for t in both)
        table("attempts", ("agent", "attempt", "pid", "member", "steps recorded", "outcome"), rows2)


def state(
    id: Id, at: Annotated[str | None, typer.Option(help="A version, g0:12, a record's id, or an ISO time.")] = None,
    broker: BrokerOption = None, json: JsonOption = False,
) -> None:  # fmt: skip
    """Print a workflow's state (what `ctx.update` made of it), now or at a point of its history."""

    async def main() -> Any:
        from ..projections.history import read_workflow

        async with opened(broker) as log:
            return (await read_workflow(log, id)).state(at)

    found = asyncio.run(main())
    if json:
        as_json(found)
    else:
        console.print_json(data=found)


def tail(
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="How many of the newest records.")] = 20,
    workflow: Annotated[str | None, typer.Option("--id", help="Only this workflow.")] = None,
    broker: BrokerOption = None, json: JsonOption = False,
) -> None:  # fmt: skip
    """Print the newest records of the log."""
    asyncio.run(_tail(broker, follow, lines, workflow, _line_json if json else _line))


async def _tail(url: str | None, follow: bool, lines: int, workflow: str | None, show: Callable[..., None]) -> None:
    async with opened(url) as log:
        ends = await log.positions("end")
        newest = []
        for partition, end in ends.items():
            start: int | None = max(1, end - (lines if workflow is None else end))
            while start is not None and start < end:
                page = await log.read(partition, start, end=end)
                newest += [(s, partition) for s in page.records if workflow is None or s.key == workflow]
                start = page.next
        for stored, partition in sorted(newest, key=lambda f: f[0].time)[-lines or len(newest) :]:
            show(partition, stored)
        while follow:
            fresh = []
            for partition, end in (await log.positions("end")).items():
                while ends[partition] < end:
                    page = await log.read(partition, ends[partition], end=end)
                    fresh += [(s, partition) for s in page.records if workflow is None or s.key == workflow]
                    ends[partition] = page.next or end
            for stored, partition in sorted(fresh, key=lambda f: f[0].time):
                show(partition, stored)
            await asyncio.sleep(0.2)


def _line(partition: int, stored: Any) -> None:
    from ..bus import codec
    from ..bus.errors import UndecodableRecord

    where = f"{partition}:{stored.position}"
    try:
        r = codec.envelope(stored.value)
    except UndecodableRecord as error:
        console.print(f"{clock(stored.time)} {where:>8} undecodable: {error}", markup=False)
        return
    step = f" step {r.work.step}" if r.work is not None and r.work.step else ""
    about = getattr(r.fact, "name", "") or getattr(r.fact, "error", "")
    console.print(
        f"{clock(stored.time)} {where:>8} {stored.key or '(partition)'}  {r.sender_id} -> {r.receiver_id}  "
        f"{r.message_type}{step} {about}", markup=False, soft_wrap=True,
    )  # fmt: skip


def _line_json(partition: int, stored: Any) -> None:
    import orjson

    try:
        record = orjson.loads(stored.value)
    except ValueError:
        record = {"undecodable": stored.value.hex()}
    as_json({"partition": partition, "position": stored.position, "time": stored.time, "record": record})


__all__ = ["ago", "opened", "ps", "show", "state", "tail"]
