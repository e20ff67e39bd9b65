"""Following one workflow through the port: read by key, fold, again from where it stopped."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from ..bus.broker import Broker, Stored
from ..bus.codec import envelope
from ..bus.errors import UndecodableRecord
from ..bus.message import Envelope
from ..bus.partition import partition_of
from ..bus.values import check_text
from .partition import Heard, is_own, listen
from .verdict import Verdict
from .view import Listeners
from .workflow import Workflow

KEPT = 8
"""So many of the newest answers are kept as bytes."""


class Judged(NamedTuple):
    """A record of the workflow with its verdict. `time` is when the log took it (unix seconds)."""

    position: int
    time: float
    verdict: Verdict
    envelope: Envelope
    value: bytes


class Follower:
    """The fold of one workflow, brought up to date by `catch_up`.

    `after`: the position before the workflow's first record, where it is known; 0 reads from the start. Who listened
    below that position is not known then: it is enough for an answer, not for the status (`whole`).
    """

    def __init__(self, broker: Broker, correlation: str, after: int = 0) -> None:
        check_text(correlation, "$.correlation_id")
        self.broker = broker
        self.correlation = correlation
        self.partition = partition_of(correlation, broker.meta.partitions)
        self.workflow = Workflow(correlation)
        self.listeners: Listeners = {}
        self.heard: Heard = {}
        self.owners: dict[str, Envelope] = {}
        self.whole = not after
        self.answers: dict[int, bytes] = {}
        self._after = after

    async def catch_up(self) -> None:
        """Fold everything that the log holds of the workflow now."""
        async for _ in self.read():
            pass

    async def read(self) -> AsyncIterator[Judged]:
        """Fold on, and yield each record of the workflow that is new."""
        after: int | None = self._after
        while after is not None:
            page = await self.broker.read_workflow(self.correlation, after=after)
            for stored in page.records:
                if stored.position <= self._after:
                    continue  # another task that follows too has folded it meanwhile
                self._after = stored.position
                try:
                    r = envelope(stored.value)
                except UndecodableRecord:
                    continue
                if is_own(r) and stored.key is None:
                    self.owners[r.id] = r
                    for agent, wanted in list(listen(self.listeners, self.heard, r)):
                        self.workflow.view.claim(agent, wanted)
                elif r.correlation_id == stored.key == self.correlation:
                    verdict = self.workflow.admit(r, stored.position, dict(self.listeners))
                    if r.in_reply_to is not None:
                        self._keep(stored)
                    yield Judged(stored.position, stored.time, verdict, r, stored.value)
            after = page.next

    def _keep(self, answer: Stored) -> None:
        """The newest answers are at hand: who followed for one need not read it again."""
        self.answers[answer.position] = answer.value
        if len(self.answers) > KEPT:
            del self.answers[next(iter(self.answers))]
