"""Why no answer came in time: never heard of, gone, or still at it. Says how to attach and how to cancel."""

from __future__ import annotations

from difflib import get_close_matches

from ..bus.broker import Broker, Member
from ..bus.errors import AgentUnavailable, NoSuchAgent, RequestTimeout
from ..projections.follow import Follower
from ..projections.status import Wait, waits_of


async def why_no_answer(
    broker: Broker, follower: Follower, request_id: str, waited: float, now: float
) -> RequestTimeout:
    """Return the error of a client that has `waited` seconds, until `now` (unix seconds)."""
    q = follower.workflow.view.requests.get(request_id)
    agent = q.agent if q is not None else "?"
    members = [m for m in await broker.members(gone=True) if agent in m.presence.agents]
    workflow = follower.correlation
    stays = (
        f"The request stays in the log: attach with `await bus.attach({workflow!r})` or `refold show {workflow}`, "
        f"cancel with `refold cancel {workflow}`"
    )
    ids = {"correlation_id": workflow, "request_id": request_id}
    if any(m.alive for m in members):
        progress = _progress(follower, agent, request_id, now)
        return RequestTimeout(f"no answer within {waited:g} s: {progress}. {stays}", **ids)
    if members or agent in follower.listeners:
        seen = f"last seen {_ago(min(m.age for m in members))} ago" if members else "seen before, when is not known"
        return AgentUnavailable(
            f"no worker hosts agent {agent!r} now ({seen}). {stays}; it is answered when a worker starts", **ids
        )
    known = await _known(broker, follower)
    close = get_close_matches(agent, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else _list(known)
    return NoSuchAgent(
        f"no worker has ever announced an agent {agent!r}; {hint} {stays}; a worker that is started later answers it",
        **ids,
    )


async def _known(broker: Broker, follower: Follower) -> list[str]:
    members: list[Member] = await broker.members(gone=True)
    return sorted({agent for m in members for agent in m.presence.agents} | set(follower.listeners))


def _list(known: list[str]) -> str:
    return f"known are {', '.join(known)}." if known else "no worker has been seen on this log at all."


def _progress(follower: Follower, agent: str, request_id: str, now: float) -> str:
    h = follower.workflow.view.handling(agent, request_id)
    if h is None or not h.begun:
        return f"{agent!r} has recorded nothing yet (queued, or in its first step)"
    if h.parked:
        return f"{agent!r} is parked: {h.parked}"
    waits = [_wait(w) for w in waits_of(follower.workflow.view, h) if w.what != "retry" or (w.due or 0.0) > now]
    if waits:
        return f"{agent!r} waits for {' and '.join(waits)}"
    done = sum(1 for st in h.steps.values() if st.settled)
    return f"{agent!r} is running, attempt {h.tries + 1}, {done} steps recorded"


def _wait(w: Wait) -> str:
    targets = {"request": f"the answer of {w.target!r}", "message": f"a message {w.target!r}", "timer": "the time"}
    return targets.get(w.what, "a retry")


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
