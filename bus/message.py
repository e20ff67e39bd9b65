"""`AgentMessage`: the one thing that is written to the log, and `Envelope`, the part of it that the fold reads."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from msgspec import Raw, Struct, field
from uuid_utils import uuid7

from .facts import Correlation, Count, Fact, Id, Priority, Seconds, StepPath, Time, Writer
from .kinds import ERROR_REPORT, TASK_REQUEST, TASK_RESPONSE, MessageType

if TYPE_CHECKING:
    FactField = Fact | None
else:  # on the wire a fact's Struct depends on the record's kind: the codec decodes it in a second step
    FactField = Raw

__all__ = ["AgentMessage", "Envelope", "Expected", "MessageType", "Origin", "Work", "new_id"]


def new_id() -> str:
    """A fresh id of a message from outside: UUIDv7, so that ids sort by time."""
    return str(uuid7())


class Work(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Which piece of work wrote a record: the run `writer` of the handling of `message`, at `step`, in `round`."""

    message: Id
    step: StepPath = ""
    round: Count = 0
    attempt: Count = 0
    writer: Writer = ""
    done: bool = False


class Origin(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Of a message from another workflow: that workflow, its record's id, step and generation."""

    workflow: Id
    id: Id
    step: StepPath = ""
    generation: Count = 0


class Expected(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """A condition that admission judges; a field that is None is not asked for."""

    version: Count | None = None
    generation: Count | None = None
    inputs: Count | None = None


class Envelope(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """All of a record but its payload, schema and headers."""

    id: Id
    sender_id: Id
    receiver_id: Id
    message_type: Id
    correlation_id: Correlation
    timestamp: Time
    priority: Priority = 5
    ttl: Seconds | None = None
    causation_id: Id | None = None
    generation: Count | None = None
    in_reply_to: Id | None = None
    asked: bool = False
    answers: Id | None = None
    deadline: Time | None = None
    to: Id | None = None
    origin: Origin | None = None
    expected: Expected | None = None
    work: Work | None = None
    fact: FactField = None

    @property
    def is_request(self) -> bool:
        """A `task_request` that is not itself an answer."""
        return self.message_type == TASK_REQUEST and self.in_reply_to is None


class AgentMessage(Envelope, frozen=True, kw_only=True, omit_defaults=True, dict=True, gc=True):
    """One message between agents, one event of the log.

    `payload` is any JSON value. `timestamp`, `deadline` are unix seconds, `ttl` seconds, `priority` 0..9 (9 is most
    urgent). `id` and `timestamp` have defaults; everything from `generation` on is written by the engine.

    >>> ask = AgentMessage(sender_id="me", receiver_id="writer", message_type="task_request",
    ...                    payload={"topic": "tides"}, correlation_id="tides-42")
    >>> ask.reply("done").receiver_id
    'me'
    """

    id: Id = field(default_factory=new_id)
    timestamp: Time = field(default_factory=time.time)
    payload: Any = None
    schema: str | None = None
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def request(cls, receiver: str, payload: Any, *, sender: str = "client", **fields: Any) -> AgentMessage:
        """A request that must be answered; it opens a workflow of its own unless `correlation_id=` is given."""
        fields.setdefault("correlation_id", new_id())
        return cls(
            sender_id=sender, receiver_id=receiver, message_type=TASK_REQUEST, payload=payload, asked=True, **fields
        )

    def reply(self, payload: Any, *, error: bool = False, **fields: Any) -> AgentMessage:
        """The answer of this message's receiver to its sender (in the workflow that it came from)."""
        fields.setdefault("sender_id", self.receiver_id)
        return AgentMessage(
            receiver_id=self.sender_id,
            message_type=ERROR_REPORT if error else TASK_RESPONSE,
            payload=payload,
            correlation_id=self.correlation_id,
            causation_id=self.id,
            in_reply_to=self.answers or self.id,
            to=self.origin.workflow if self.origin else None,
            priority=self.priority,
            **fields,
        )

    def follow_up(self, receiver: str, kind: str, payload: Any, **fields: Any) -> AgentMessage:
        """A message that follows from this one, in the same workflow."""
        fields.setdefault("sender_id", self.receiver_id)
        return AgentMessage(
            receiver_id=receiver,
            message_type=kind,
            payload=payload,
            correlation_id=self.correlation_id,
            causation_id=self.id,
            priority=self.priority,
            **fields,
        )
