"""`refold send` and `refold request`."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import typer

from .output import as_json, console
from .payload import read_payload
from .settings import BrokerOption, JsonOption, broker_url

Agent = Annotated[str, typer.Argument(metavar="AGENT", help="The agent's name; '*' is everybody who listens.")]
Payload = Annotated[str | None, typer.Argument(metavar="[JSON]", help="JSON, @file.json, or - for standard input.")]
Workflow = Annotated[str | None, typer.Option("--id", help="The workflow's id. Default: a new one.")]


def send(
    agent: Agent,
    payload: Payload = None,
    kind: Annotated[str, typer.Option(help="The kind of message.")] = "status_update",
    id: Workflow = None,
    broker: BrokerOption = None,
    json: JsonOption = False,
) -> None:
    """Send a message that nobody answers."""

    async def main() -> Any:
        from ..agents.client import MessageBus

        async with MessageBus.open(broker_url(broker)) as bus:
            return await bus.send(agent, read_payload(payload), kind=kind, id=id)

    message = asyncio.run(main())
    if json:
        as_json({"workflow": message.correlation_id, "message": message.id})
    else:
        console.print(f"sent {message.message_type} to {message.receiver_id} in workflow {message.correlation_id}")


def request(
    agent: Agent, payload: Payload = None, id: Workflow = None,
    timeout: Annotated[float, typer.Option(help="Seconds to wait for the answer.")] = 30.0,
    priority: Annotated[int, typer.Option(min=0, max=9, help="9 is most urgent.")] = 5,
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the answer.")] = True,
    broker: BrokerOption = None, json: JsonOption = False,
) -> None:  # fmt: skip
    """Ask an agent and print its answer. With --id the same request again returns the same answer."""

    async def main() -> tuple[str, Any]:
        from ..agents.client import MessageBus

        value = read_payload(payload)
        async with MessageBus.open(broker_url(broker)) as bus:
            handle = await bus.start(agent, value, id=id, priority=priority)
            return handle.correlation_id, await handle.result(timeout) if wait else None

    workflow, answer = asyncio.run(main())
    if json:
        as_json({"workflow": workflow, "answer": answer} if wait else {"workflow": workflow})
    elif wait:
        console.print(answer, markup=False) if isinstance(answer, str) else console.print_json(data=answer)
    else:
        console.print(f"workflow {workflow}; follow it with: refold show {workflow}")
