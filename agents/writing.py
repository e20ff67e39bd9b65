"""Making the records of a handling: ids that every owner derives alike."""

from __future__ import annotations

from typing import Any

from ..bus import ids
from ..bus.message import AgentMessage, Work
from ..projections.workflow import Workflow


def work_record(
    w: Workflow, *, agent: str, message: str, round: int, generation: int, writer: str, kind: str, now: float,
    step: str = "", payload: Any = None, receiver: str = "*", done: bool = False, **fields: Any,
) -> AgentMessage:  # fmt: skip
    """Return a record that `agent` writes while it handles `message`. `now` is its timestamp (unix seconds)."""
    attempt = w.attempts.get((agent, message, round, step), 0)
    return AgentMessage(
        id=ids.derived(w.correlation, generation, agent, message, round, step, attempt, kind),
        sender_id=agent,
        receiver_id=receiver,
        message_type=kind,
        payload=payload,
        correlation_id=w.correlation,
        timestamp=now,
        causation_id=message,
        generation=generation,
        work=Work(message=message, step=step, round=round, attempt=attempt, writer=writer, done=done),
        **fields,
    )
