"""How far a group is, where Kafka's own tools look for it: as offsets of a consumer group. refold never reads it."""

from __future__ import annotations

import asyncio
import logging

from ...bus.errors import RefoldError
from ...bus.outage import Outage
from ..keeping import reason
from . import wire
from .link import COORDINATE, Link

log = logging.getLogger("refold.kafka")

PATIENCE = 3.0
"""Seconds: a cluster makes the topic of all groups' offsets when it is asked for the first one."""


class Offsets:
    """Commits the positions of checkpoints, for the consumer group `namespace.group`, which has no members."""

    def __init__(self, link: Link, topic: str) -> None:
        self.link, self.topic = link, topic
        self._coordinators: dict[str, int] = {}
        self._outage = Outage()

    async def commit(self, group: str, partition: int, position: int) -> None:
        """Say that the records up to a position are folded. What goes wrong is said in the log: the next one may do."""
        name = f"{self.topic}.{group}"
        try:
            async with asyncio.timeout(PATIENCE):
                if self._outage.goes_on:  # nobody waits for long again
                    await self._commit(name, partition, position)
                else:
                    await self.link.patiently(lambda: self._commit(name, partition, position))
        except (RefoldError, TimeoutError) as error:
            if self._outage.is_news():
                log.warning("Kafka's tools do not see how far %s is: %s", group, reason(error))
        else:
            self._outage.over()

    async def _commit(self, name: str, partition: int, position: int) -> None:
        try:
            if name not in self._coordinators:
                found = await self.link.ask(None, wire.coordinator_request(name, wire.GROUP))
                self.link.judge(found.error_code, f"the coordinator of {name}")
                self._coordinators[name] = found.coordinator_id
            request = wire.commit_request(name, self.topic, partition, position)
            answer = await self.link.ask(self._coordinators[name], request, COORDINATE)
            self.link.judge(answer.topics[0][1][0][1], f"the offset of consumer group {name}")
        except RefoldError:
            self._coordinators.pop(name, None)
            raise
