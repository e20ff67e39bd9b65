"""`refold send` and `refold request`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .opening import client
from .output import as_json, console, errors, say
from .payload import read_payload
from .settings import BrokerOption, JsonOption

if TYPE_CHECKING:
    from ..bus.message import AgentMessage

Agent = Annotated[str, typer.Argument(metavar="AGENT", help="The agent's name; '*' is everybody who listens.")]
Payload = Annotated[str | None, typer.Argument(metavar="[JSON]", help="JSON, @file.json, or - for standard input.")]
Workflow = Annotated[str | None, typer.Option("--id", help="The workflow's id. Default: a new one.")]


def send(
    agent: Agent, payload: Payload = None,
    kind: Annotated[str, typer.Option(help="The kind of message.")] = "status_update",
    id: Workflow = None, broker: BrokerOption = None, json: JsonOption = False,
) -> None:  # fmt: skip
    """Send a message that nobody answers."""
    value = read_payload(payload)

    async def main() -> AgentMessage:
        async with client(broker, create=True) as bus:
            return await bus.send(agent, value, kind=kind, id=id)

    message = asyncio.run(main())
    if json:
        as_json({"workflow": message.correlation_id, "message": message.id})
    else:
        say(f"sent {message.message_type} to {message.receiver_id} in workflow {message.correlation_id}")


def request(
    agent: Agent, payload: Payload = None, id: Workflow = None,
    timeout: Annotated[float, typer.Option(min=0, help="Seconds to wait for the answer.")] = 30.0,
    priority: Annotated[int, typer.Option(min=0, max=9, help="9 is most urgent.")] = 5,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the answer.")] = True,
    broker: BrokerOption = None, json: JsonOption = False,
) -> None:  # fmt: skip
    """Ask an agent and print its answer. With --id the same request again returns the same answer."""
    value = read_payload(payload)

    async def main() -> tuple[str, Any]:
        async with client(broker, create=True) as bus:
            handle = await bus.start(agent, value, id=id, priority=priority)
            workflow = handle.correlation_id
            try:
                return workflow, await handle.result(timeout) if wait else None
            except asyncio.CancelledError:
                say(f"the request stays in the log: refold show {workflow}, or refold cancel {workflow}", errors)
                raise

    workflow, answer = asyncio.run(main())
    if json:
        as_json({"workflow": workflow, "answer": answer} if wait else {"workflow": workflow})
    elif not wait:
        say(f"workflow {workflow}; follow it with: refold show {workflow}")
    elif isinstance(answer, str):
        say(answer)
    else:
        console.print_json(data=answer)
