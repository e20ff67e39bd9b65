"""What one workflow sends to another: the copies, cancels and answers that are owed, and the marks that end it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from ..bus import codec, facts, ids, kinds
from ..bus.errors import UndecodableRecord
from ..bus.message import AgentMessage, Origin
from ..projections.ledger import Duty
from ..projections.workflow import Workflow

UNREADABLE = "the answer cannot be decoded"
Read = Callable[[tuple[int, int]], Awaitable[bytes]]


async def message_for(duty: Duty, w: Workflow, read: Read, now: float) -> AgentMessage:
    """Return the message that carries a duty to the other workflow. Equal for every owner that derives it.

    Raises UndecodableRecord where it was to be a copy of a message that nobody can decode.
    """
    if duty.what == "cancel":
        return AgentMessage(
            id=ids.cancel_id(duty.subject), sender_id=duty.agent, receiver_id="*", message_type=kinds.CANCELLED,
            correlation_id=duty.to, timestamp=now, causation_id=duty.subject,
            origin=Origin(workflow=w.correlation, id=duty.subject),
            fact=facts.Cancelled(actor=duty.agent, reason="its parent waits no more"),
        )  # fmt: skip
    if duty.what == "refusal":
        workflow, request, agent = w.ledger.refusals[duty.subject]
        text = "cancelled before it started"
        return _report(duty, w, agent, workflow, request, text, kinds.CANCELLED, now)
    if duty.what == "answer":
        return await _answer(duty, w, read, now)
    return await _copy(duty, w, read, now)


def _report(
    duty: Duty, w: Workflow, agent: str, workflow: str, request: str, text: str, error: str, now: float
) -> AgentMessage:
    return AgentMessage(
        id=ids.copy_id(w.correlation, duty.subject, duty.n), sender_id=agent, receiver_id="*",
        message_type=kinds.ERROR_REPORT, payload=text, correlation_id=workflow, timestamp=now,
        causation_id=duty.subject, in_reply_to=request, origin=Origin(workflow=w.correlation, id=duty.subject),
        fact=facts.Call(error=error),
    )  # fmt: skip


async def _answer(duty: Duty, w: Workflow, read: Read, now: float) -> AgentMessage:
    """The answer to a request of another workflow that was closed by a record not addressed to it."""
    q = w.view.requests[duty.subject]
    root = w.view.requests[q.root]
    assert q.origin is not None
    if root.answer_kind not in kinds.ANSWERS:
        text = f"the request was {root.answer_kind}"
        return _report(duty, w, q.agent, q.origin.workflow, q.origin.id, text, root.answer_kind, now)
    raw = await read(root.answer)
    try:
        said = codec.decode(raw)
    except UndecodableRecord:
        return _report(duty, w, q.agent, q.origin.workflow, q.origin.id, UNREADABLE, "UndecodableRecord", now)
    return _of(said, w, duty, said.id, q.origin.workflow, q.origin.id)


async def _copy(duty: Duty, w: Workflow, read: Read, now: float) -> AgentMessage:
    version = w.view.at[duty.subject]
    raw = await read(w.view.path[version - 1].ref)
    try:
        source, whole = codec.decode(raw), True
    except UndecodableRecord:
        source, whole = codec.bare(raw), False
    answered = w.view.requests.get(source.in_reply_to or "")
    root = w.view.requests[answered.root] if answered is not None else None
    in_reply_to = root.origin.id if root is not None and root.origin is not None else None
    if whole:
        return _of(source, w, duty, source.id, duty.to, in_reply_to)
    if in_reply_to is None:
        raise UndecodableRecord(f"{source.message_type} {source.id} cannot be decoded")
    return _report(duty, w, source.sender_id, duty.to, in_reply_to, UNREADABLE, "UndecodableRecord", now)


def _of(
    source: AgentMessage, w: Workflow, duty: Duty, id: str, to: str, in_reply_to: str | None
) -> AgentMessage:
    call = facts.Call(causes=(), error=getattr(source.fact, "error", ""))
    return AgentMessage(
        id=ids.copy_id(w.correlation, duty.subject, duty.n),
        sender_id=source.sender_id, receiver_id=source.receiver_id, message_type=source.message_type,
        payload=source.payload, schema=source.schema, headers=source.headers, asked=source.asked,
        deadline=source.deadline, ttl=source.ttl, priority=source.priority, timestamp=source.timestamp,
        correlation_id=to, causation_id=id, in_reply_to=in_reply_to,
        origin=Origin(
            workflow=w.correlation, id=id, step=source.work.step if source.work else "",
            generation=source.generation or 0,
        ),
        fact=call if call.error else None,
    )  # fmt: skip


def mark(duty: Duty, w: Workflow, now: float) -> AgentMessage:
    """Return the `delivered` that ends a duty."""
    cancel = duty.what == "cancel"
    return AgentMessage(
        id=ids.mark_id(w.correlation, duty.subject, duty.n, cancel), sender_id=duty.agent, receiver_id="*",
        message_type=kinds.DELIVERED, correlation_id=w.correlation, timestamp=now, causation_id=duty.subject,
        generation=w.generation, fact=facts.Delivered(subject=duty.subject, n=duty.n, cancel=cancel),
    )  # fmt: skip
