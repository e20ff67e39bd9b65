"""Verbs: `cancel`, `retry`, `dlq`."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .look import Id
from .opening import client, opened
from .output import ago, as_json, console, progress, say, table
from .settings import BrokerOption, JsonOption

if TYPE_CHECKING:
    from ..agents.client import MessageBus

Reason = Annotated[str, typer.Option(help="Why; kept in the log.")]
Agent = Annotated[str, typer.Argument(metavar="AGENT")]
Message = Annotated[str, typer.Argument(metavar="MESSAGE", help="The id of the message (see `refold dlq ls`).")]

dlq = typer.Typer(help="Dead letters: what gave up, and what to do about it.", no_args_is_help=True)


def _do(url: str | None, work: Callable[[MessageBus], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        async with client(url) as bus:
            return await work(bus)

    return asyncio.run(main())


def actor() -> str:
    """Return who says the verb, as an id."""
    return "".join(c for c in getpass.getuser() if "!" <= c <= "~") or "operator"


def cancel(id: Id, reason: Reason = "", broker: BrokerOption = None, json: JsonOption = False) -> None:
    """Close everything that is open in a workflow, and in its children."""
    from ..agents import control

    _do(broker, lambda bus: control.cancel(bus, id, actor=actor(), reason=reason))
    if json:
        as_json({"workflow": id, "cancelled": True})
    else:
        say(f"workflow {id} is cancelled")


def retry(
    id: Id, fresh: Annotated[bool, typer.Option("--fresh", help="Forget all recorded steps: start anew.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Also where an irreversible effect is repeated.")] = False,
    reason: Reason = "", broker: BrokerOption = None, json: JsonOption = False,
) -> None:  # fmt: skip
    """Run what failed in a workflow again. A handling that diverged goes on by itself with code that fits."""
    from ..agents import control

    again = _do(broker, lambda bus: control.retry(bus, id, fresh=fresh, force=force, actor=actor(), reason=reason))
    if json:
        as_json([r._asdict() for r in again])
    for r in () if json else again:
        say(f"{r.agent} handles {r.message} again in workflow {r.workflow} (round {r.round})")


@dlq.command("ls")
def dlq_list(broker: BrokerOption = None, json: JsonOption = False) -> None:
    """List what gave up and was not dealt with."""

    async def main() -> Any:
        import time

        from ..projections.dead_letters import dead_letters

        async with opened(broker) as log:
            with progress("scanning the log", quiet=json) as update:
                return await dead_letters(log, update), time.time()

    found, now = asyncio.run(main())
    if json:
        as_json(found)
        return
    rows = (
        (d.workflow, d.agent, d.message, d.kind, ago(now - d.time), "blocks" if d.holds else "", d.error) for d in found
    )
    table("dead letters", ("workflow", "agent", "message", "kind", "ago", "", "error"), rows, empty="no dead letters")


@dlq.command("show")
def dlq_show(id: Id, broker: BrokerOption = None, json: JsonOption = False) -> None:
    """Show the dead letters of one workflow with the message that each could not handle."""

    async def main() -> Any:
        from ..bus import codec
        from ..projections import dead_letters
        from ..projections.history import read_workflow

        async with opened(broker) as log:
            history = await read_workflow(log, id)
            payloads = {j.envelope.id: codec.shown(j.value) for j in history.records}
            return [(d, payloads.get(d.message)) for d in dead_letters.of(history)]

    found = asyncio.run(main())
    if json:
        as_json([{"letter": d, "payload": payload} for d, payload in found])
        return
    for d, payload in found:
        say(f"{d.agent} gave up on {d.kind} {d.message} (round {d.round}): {d.error}")
        console.print_json(data=payload)
    if not found:
        say(f"workflow {id} has no dead letters")


@dlq.command("redrive")
def dlq_redrive(
    id: Id, agent: Agent, message: Message, reason: Reason = "",
    force: Annotated[bool, typer.Option("--force", help="Also where an irreversible effect is repeated.")] = False,
    broker: BrokerOption = None, json: JsonOption = False,
) -> None:  # fmt: skip
    """Handle a dead letter again: the failed steps run anew, what succeeded is kept."""
    from ..agents import control

    r = _do(
        broker, lambda bus: control.redrive(bus, id, agent, message, actor=actor(), reason=reason, force=force)
    )
    if json:
        as_json(r._asdict())
    else:
        say(f"{r.agent} handles {r.message} again in workflow {r.workflow} (round {r.round})")


@dlq.command("discard")
def dlq_discard(
    id: Id, agent: Agent, message: Message, reason: Reason = "", broker: BrokerOption = None, json: JsonOption = False
) -> None:
    """Give a dead letter up: the messages behind it go on."""
    from ..agents import control

    _do(broker, lambda bus: control.discard(bus, id, agent, message, actor=actor(), reason=reason))
    if json:
        as_json({"workflow": id, "agent": agent, "message": message, "discarded": True})
    else:
        say(f"{message} is discarded; {agent} goes on in workflow {id}")
