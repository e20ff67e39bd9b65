"""How a handling ends: the records of a completion, of a failed attempt, of a dead letter."""

from __future__ import annotations

from typing import Any

import msgspec

from ..bus import codec, facts, kinds
from ..bus.errors import Divergence, Failure, HandlerError
from ..bus.message import AgentMessage
from ..projections.view import Request
from .causes import causes_of, describe_error
from .context import Forward
from .limits import check_id
from .run import Run


def completion(run: Run, result: Any) -> list[AgentMessage]:
    """Return what the handler output since the last append, and the record that completes the handling."""
    w = run.host.workflow()
    duty = w.view.duty(run.agent, run.message.id)
    if isinstance(result, Forward):
        return [*run.outbox, _forward(run, result, duty)]
    if duty is not None:
        answer = run.record(
            kinds.TASK_RESPONSE, "", codec.to_json(result), receiver=duty.sender, done=True, in_reply_to=duty.id,
            to=duty.origin.workflow if duty.origin else None,
        )  # fmt: skip
        run.check_size(answer)
        return [*run.outbox, answer]
    if run.outbox and run.outbox[-1].message_type not in kinds.ENGINE and not run.outbox[-1].asked:
        last = run.outbox[-1]
        assert last.work is not None
        return [*run.outbox[:-1], msgspec.structs.replace(last, work=msgspec.structs.replace(last.work, done=True))]
    return [*run.outbox, run.record(kinds.HANDLED, "", None, receiver=run.agent, done=True)]


def _forward(run: Run, forward: Forward, duty: Request | None) -> AgentMessage:
    check_id(forward.receiver, "$.receiver_id")
    if forward.receiver == "*":
        raise HandlerError("ctx.forward needs one agent to answer in this one's place; '*' is for ctx.send")
    r = run.record(
        kinds.TASK_REQUEST, "", forward.payload, receiver=forward.receiver, done=True,
        answers=duty.id if duty is not None else None, deadline=run.message.deadline, headers=run.message.headers,
    )  # fmt: skip
    run.check_size(r)
    return r


def failure(run: Run, error: BaseException) -> list[AgentMessage]:
    """Return what to append when the handler raised: park, end at once, try again later, or give up."""
    if isinstance(error, Divergence):
        return parked(run, error)
    if isinstance(error, Failure):
        return ended(run, error, dead=False)
    h = run.handling()
    tries = (h.tries if h is not None else 0) + 1
    policy = run.handler.retry
    if tries >= policy.attempts:
        return ended(run, error, dead=True)
    due = run.host.now() + policy.delay(tries, run.host.source.jitter())
    fact = facts.AttemptFailed(error=type(error).__name__, due=due)
    return [run.record(kinds.ATTEMPT_FAILED, "", describe_error(error), receiver=run.agent, fact=fact)]


def parked(run: Run, error: Divergence) -> list[AgentMessage]:
    """A divergence parks the handling; one record says so, however often the code is loaded."""
    h = run.handling()
    if h is not None and h.parked:
        return []
    fact = facts.AttemptFailed(error="Divergence", parked="divergence")
    return [run.record(kinds.ATTEMPT_FAILED, "", str(error), receiver=run.agent, fact=fact)]


def ended(run: Run, error: BaseException, *, dead: bool) -> list[AgentMessage]:
    """The handling is over: a dead letter where it gave up (or nobody waits), an `error_report` to whoever waits."""
    duty = run.host.workflow().view.duty(run.agent, run.message.id)
    text, causes = describe_error(error), causes_of(error)
    out = []
    if dead or duty is None:
        fact = facts.DeadLettered(causes=causes, error=type(error).__name__)
        out.append(
            run.record(kinds.DEAD_LETTERED, "", text, receiver=run.agent, done=duty is None, fact=fact)
        )
    if duty is not None:
        call = facts.Call(causes=causes, error=type(error).__name__)
        to = duty.origin.workflow if duty.origin else None
        out.append(
            run.record(
                kinds.ERROR_REPORT, "", text, receiver=duty.sender, done=True, in_reply_to=duty.id, fact=call, to=to
            )
        )
    return out
