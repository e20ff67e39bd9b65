"""A client of a fault run, a process of its own. Run in tests/ as: python -m faults.client FOLDER NAME FIRST LAST SEED

It starts workflows FIRST..LAST-1 (the same ids again after a kill), sends notes, waits for answers, and writes a
history: a line `invoke` before each operation, then `ok`, `fail` (it did not happen) or `info` (nobody knows).
"""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from refold import AgentMessage, MessageBus
from refold.bus.errors import (
    AgentError,
    BrokerUnavailable,
    LogFull,
    LogLocked,
    NoSuchWorkflow,
    RefoldError,
    RequestTimeout,
)

from . import ledger, logs

PATIENCE = 120.0
"""Seconds that an operation is tried again: the campaign asks sooner whether there is progress."""


class Client:
    """Does what it is told, and writes down what came of it."""

    def __init__(self, folder: Path, name: str, bus: MessageBus, seed: int) -> None:
        self.folder = folder
        self.name = name
        self.bus = bus
        self.random = random.Random(seed)

    def say(self, op: str, outcome: str, **more: Any) -> None:
        ledger.write(self.folder / "history", client=self.name, op=op, outcome=outcome, **more)

    async def insist(self, op: str, work: Any, **names: Any) -> Any:
        """Do it until it is known to have happened."""
        async with asyncio.timeout(PATIENCE):
            while True:
                self.say(op, "invoke", **names)
                try:
                    return await work()
                except (LogFull, LogLocked, NoSuchWorkflow) as error:
                    self.say(op, "fail", error=type(error).__name__, **names)
                except (BrokerUnavailable, RequestTimeout) as error:
                    self.say(op, "info", error=type(error).__name__, **names)
                await asyncio.sleep(0.25)

    async def order(self, number: int, job: dict[str, Any], agent: str) -> None:
        """Start a workflow, speak in it, wait for its answer."""
        name = f"{agent}-{number}"
        await asyncio.sleep(self.random.random() * job.pop("spread"))
        if job.pop("started"):
            handle = await self.insist("attach", lambda: self.bus.attach(name), workflow=name)
        else:
            handle = await self.insist("start", lambda: self.bus.start(agent, job, id=name), workflow=name)
            self.say("start", "ok", workflow=name, id=handle.request_id)
        for n in range(job.get("notes", 0)):
            await self.note(name, agent, n)
        try:
            answer = await self.insist("result", lambda: handle.result(5), workflow=name)
            self.say("result", "ok", workflow=name, answer=answer)
        except AgentError as error:
            self.say("result", "ok", workflow=name, error=str(error))

    async def note(self, workflow: str, agent: str, n: int) -> None:
        """Append a message under an id of our own, so that it can be sent again safely."""
        message = AgentMessage(
            id=f"{self.name}-{workflow}-{n}", sender_id=self.name, receiver_id=agent, message_type="remark",
            payload={"n": n, "by": self.name}, correlation_id=workflow,
        )  # fmt: skip
        where = await self.insist("append", lambda: self.bus.send_message(message), id=message.id)
        self.say("append", "ok", id=message.id, workflow=workflow, partition=where.partition, position=where.position)


async def main(folder: Path, name: str, first: int, last: int, seed: int, more: dict[str, str]) -> None:
    agent = more.get("agent", "clerk")
    async with MessageBus.open(logs.address(folder), sender=name) as bus, asyncio.TaskGroup() as tasks:
        client = Client(folder, name, bus, seed)
        for number in range(first, last):
            job = job_of(folder, number, more)
            waits = {"spread": float(more.get("spread", 1.0)), "started": "started" in more}
            tasks.create_task(client.order(number, job | waits, agent))


def job_of(folder: Path, number: int, settings: dict[str, str]) -> dict[str, Any]:
    """Return what a workflow is started with."""
    poison = dict(pair.split(":") for pair in filter(None, settings.get("poison", "").split(",")))
    return {
        "number": number, "ledger": str(folder / "ledger"), "starts": str(folder / "starts"),
        "pause": float(settings.get("pause", 0.05)), "notes": int(settings.get("notes", 2)),
        "poison": poison.get(str(number)),
    }  # fmt: skip


def run(work: Awaitable[None]) -> None:
    """Run it; what the log refuses for good is said in one line."""
    try:
        asyncio.run(work)  # type: ignore[arg-type]
    except* RefoldError as errors:
        raise SystemExit(f"{type(errors.exceptions[0]).__name__}: {errors.exceptions[0]}") from errors


if __name__ == "__main__":
    place, who, low, high, number, *pairs = sys.argv[1:]
    run(main(Path(place), who, int(low), int(high), int(number), dict(pair.split("=", 1) for pair in pairs)))
