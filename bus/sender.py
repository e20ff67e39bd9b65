"""The way into the log: validate -> authorise -> seal -> append."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from . import rules
from .broker import Broker, Conflict, Duplicate, Fenced, Item, Outgoing
from .clock import Clock, Source
from .errors import YourBug
from .message import AgentMessage
from .partition import partition_of

Authorise = Callable[[AgentMessage], None]
"""Raises NotAllowed."""
Seal = Callable[[AgentMessage], AgentMessage]
"""Returns the message as it is to be stored (signed, encrypted)."""


class Position(NamedTuple):
    """Where a record is: its partition, and its place within it."""

    partition: int
    position: int


def allow(message: AgentMessage) -> None:
    """The permissive policy."""


def unsealed(message: AgentMessage) -> AgentMessage:
    """The message as it is."""
    return message


class Sender:
    """Appends messages from outside. Concurrent senders share the broker's commits."""

    def __init__(
        self, broker: Broker, *, authorise: Authorise = allow, seal: Seal = unsealed, clock: Clock | None = None,
        source: Source | None = None,
    ) -> None:  # fmt: skip
        self.broker = broker
        self.clock = clock or Clock()
        self.source = source or Source()
        self._authorise = authorise
        self._seal = seal

    async def send_message(self, message: AgentMessage) -> Position:
        """Append one message; durable when it returns. Sending the same id again returns the first one's position.

        Raises InvalidMessage, TooLarge, NotAllowed (nothing was sent); BrokerUnavailable and its kin (try again with
        the same message: its id makes that safe).
        """
        (position,) = await self.send_messages([message])
        return position

    async def send_messages(self, messages: Sequence[AgentMessage]) -> list[Position]:
        """Append several messages in one call, each on its own; all are judged before any is sent."""
        for message in messages:
            rules.check_outside(message)
        return await self._append(messages)

    async def send_control(self, message: AgentMessage) -> Position:
        """Append a control record (a verb's)."""
        (position,) = await self._append([message])
        return position

    async def _append(self, messages: Sequence[AgentMessage]) -> list[Position]:
        meta, items = self.broker.meta, []
        for message in messages:
            raw = rules.check(message, meta)
            self._authorise(message)
            sealed = self._seal(message)
            if sealed is not message:
                raw = rules.check(sealed, meta)
            correlation = message.correlation_id
            partition = partition_of(correlation, meta.partitions)
            items.append(Item(partition, correlation, (Outgoing(message.id, raw),)))
        results = await self.broker.append(items)
        out = []
        for item, result in zip(items, results, strict=True):
            if isinstance(result, Conflict | Fenced):
                raise YourBug(f"the broker answered {result} to an append that asked for nothing")
            position = result.position if isinstance(result, Duplicate) else result.positions[0]
            out.append(Position(item.partition, position))
        return out


__all__ = ["Authorise", "Position", "Seal", "Sender", "allow", "unsealed"]
