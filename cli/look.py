"""Reading commands: `ps`, `show`, `state`. They never create a file."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import explain
from .opening import opened
from .output import ago, as_json, console, plain, progress, say, table
from .settings import BrokerOption, JsonOption

if TYPE_CHECKING:
    from ..bus.broker import Member
    from ..projections.overview import Overview, Row

Id = Annotated[str, typer.Argument(metavar="ID", help="The workflow's id (correlation id).")]


def ps(broker: BrokerOption = None, json: JsonOption = False) -> None:
    """List who works, and the workflows that are open."""

    import time

    async def main() -> tuple[Overview, list[Member]]:
        from ..projections.overview import overview

        async with opened(broker) as log:
            with progress("reading the log", quiet=json) as update:
                return await overview(log, update), await log.members()

    found, members = asyncio.run(main())
    if json:
        as_json({"members": [{"age": m.age, **plain(m.presence)} for m in members], **plain(found)})
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
    now = time.time()
    table(
        "open workflows", ("workflow", "status", "for", "records", "agents", "why"),
        ((r.workflow, r.status, ago(now - r.since), r.version, ", ".join(r.agents), _why(r)) for r in found.rows),
        empty="no workflow is open",
    )  # fmt: skip
    say("; ".join(_rest(found)))


def _rest(found: Overview) -> list[str]:
    lines = [f"{found.completed} completed workflows are remembered"]
    if found.undecodable:
        lines.append(f"{found.undecodable} records cannot be decoded and are skipped")
    if found.strays:
        lines.append(f"{found.strays} records are in the wrong partition and wait to be forwarded")
    return lines


def _why(row: Row) -> str:
    return "; ".join([*row.blocked, *row.unclaimed, *map(explain.wait, row.waits)])


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
    say(f"workflow {id}: {state.status}, {len(moments)} records, generation {state.generation}")
    for line in explain.reasons(history, state):
        say(f"  {line}")
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
        rows2 = ((t.agent, t.number, t.pid, t.member, " ".join(t.steps), explain.outcome(t)) for t in both)
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
