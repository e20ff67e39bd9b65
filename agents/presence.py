"""Who is alive now: a worker announces itself, and is refused where its group hosts other agents."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import msgspec

from ..bus.broker import Member, Presence
from ..bus.errors import GroupConflict, TryAgain
from ..bus.outage import Outage

if TYPE_CHECKING:
    from .worker import Worker

log = logging.getLogger("refold.worker")

EVERY = 2.0
HOLDS = 8.0


@contextlib.asynccontextmanager
async def join(worker: Worker) -> AsyncIterator[None]:
    """Announce the worker for as long as the context is open. Raises GroupConflict."""
    started = worker.clock.now()
    check(msgspec.structs.replace(worker.presence(), started=started), await worker.broker.members())
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(_tell(worker, started))
        try:
            yield
        finally:
            task.cancel()
    if worker.reached:
        with contextlib.suppress(TryAgain):
            await worker.broker.withdraw(worker.member)


async def _tell(worker: Worker, started: float) -> None:
    outage = Outage(worker.clock.monotonic)
    while True:
        try:
            presence = msgspec.structs.replace(worker.presence(), started=started)
            await worker.broker.announce(presence, ttl=HOLDS)
            outage.over()
        except TryAgain as error:
            if outage.is_news():
                log.warning("could not announce this worker: %s", error)
        await worker.clock.sleep(EVERY)


def check(own: Presence, members: list[Member]) -> None:
    """Members of a group host the same agents, or some of the same; an agent belongs to one group."""
    mine = set(own.agents)
    for member in members:
        other, theirs = member.presence, set(member.presence.agents)
        if not member.alive or other.member == own.member:
            continue
        who = f"{other.member} (pid {other.pid})"
        if other.group == own.group and not (mine <= theirs or theirs <= mine):
            raise GroupConflict(
                f"group {own.group!r}: {who} hosts {_names(theirs)}, this worker {_names(mine)}; workers of one group "
                "host the same agents, or a part of them: choose another --group"
            )
        if other.group != own.group and mine & theirs:
            raise GroupConflict(
                f"{_names(mine & theirs)} is hosted by {who} in group {other.group!r}; an agent belongs to one group: "
                f"use --group {other.group}"
            )


def _names(agents: set[str]) -> str:
    return ", ".join(sorted(agents))
