"""What people call the state of a workflow: running, waiting, blocked, failed, completed, cancelled."""

from __future__ import annotations

from collections.abc import Container
from enum import StrEnum

from msgspec import Struct, field

from ..bus import kinds
from .view import Handling, View
from .workflow import Workflow

FAILURES = frozenset({kinds.ERROR_REPORT, kinds.DEAD_LETTERED, kinds.EXPIRED, kinds.DISCARDED, kinds.TIMER_FIRED})


class Status(StrEnum):
    """`unclaimed`: nothing is open, but a message waits for an agent that no worker has ever hosted there."""

    RUNNING = "running"
    WAITING = "waiting"
    BLOCKED = "blocked"
    FAILED = "failed"
    COMPLETED = "completed"
    CANCELLED = "cancelled"


class Wait(Struct, frozen=True, omit_defaults=True):
    """What an open handling waits for: a request to `target`, a message of `kind`, a timer or a retry until `due`."""

    agent: str
    message: str
    what: str
    step: str = ""
    target: str = ""
    due: float | None = None


class Report(Struct, frozen=True, omit_defaults=True):
    """The state of a workflow in a few words. `waits` and `blocked` name what it hangs on."""

    status: Status
    version: int
    generation: int
    waits: list[Wait] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    unclaimed: list[str] = field(default_factory=list)


def report(w: Workflow, hosted: Container[str] | None = None) -> Report:
    """Return the status of a workflow, with reasons. `hosted`: the agents that somebody hosts now, where known."""
    v = w.view
    waits = [wait for h in w.open_handlings() for wait in waits_of(v, h)]
    blocked = _blocked(w) + (_absent(w, hosted) if hosted is not None else [])
    unclaimed = [f"{u.kind} for {u.receiver!r}, which no worker has ever hosted" for u in v.all_unclaimed()]
    return Report(_status(w, blocked), w.version, w.generation, waits, blocked, unclaimed)


def _blocked(w: Workflow) -> list[str]:
    out = [f"dead letter of {agent} for message {message}" for agent, message in w.view.holding]
    out += [f"{h.agent} is parked: {h.parked}" for h in w.open_handlings() if h.parked]
    return out + [f"compensation of {key} failed" for key in w.ledger.parked()]


def _absent(w: Workflow, hosted: Container[str]) -> list[str]:
    agents = {h.agent for h in w.open_handlings() if h.agent not in hosted}
    return [f"no worker hosts {agent!r} now" for agent in sorted(agents)]


def waits_of(v: View, h: Handling) -> list[Wait]:
    """Return what a handling waits for, as far as it is recorded."""
    out = []
    for path in h.pending:
        st = h.steps[path]
        if st.request:
            out.append(Wait(h.agent, h.message, "request", path, v.requests[st.request].agent, st.due))
        elif st.receives:
            out.append(Wait(h.agent, h.message, "message", path, st.receives, st.due))
        elif st.timer:
            out.append(Wait(h.agent, h.message, "timer", path, due=st.due))
        elif st.tries:
            out.append(Wait(h.agent, h.message, "retry", path, st.name, st.due))
    if h.due is not None and h.tries:
        out.append(Wait(h.agent, h.message, "retry", due=h.due))
    return out


def _status(w: Workflow, blocked: list[str]) -> Status:
    v = w.view
    if blocked:
        return Status.BLOCKED
    if w.is_complete():
        return _ended(v)
    hs = w.open_handlings()
    awaited = {h.steps[path].request for h in hs for path in h.pending}
    if hs and all(h.waits or (not h.begun and h.message in awaited) for h in hs):
        return Status.WAITING
    return Status.RUNNING


def _ended(v: View) -> Status:
    asked = [q for q in v.requests.values() if q.to is None]
    last = max((max(q.version, v.at.get(q.answer_id, 0)) for q in asked), default=0)
    if v.cancelled_at and v.cancelled_at >= last:
        return Status.CANCELLED
    first = next((q for q in asked if q.asked), asked[0] if asked else None)
    if first is None:
        return Status.COMPLETED
    root = v.requests[first.root]
    if root.answered and not root.answer_id:
        return Status.FAILED  # given up, since who had asked was over
    end, h = root.answer_kind, v.handling(first.agent, first.id)
    return Status.FAILED if (end or (h.end if h else "")) in FAILURES else Status.COMPLETED


def next_due(w: Workflow, agents: Container[str] | None = None) -> float | None:
    """Return the earliest time at which something must be done without a record arriving; None if there is none.

    `agents`: only what concerns one of these.
    """
    heaps = w.view.dues
    if not heaps:
        return None
    return min((heap[0][0] for agent, heap in heaps.items() if agents is None or agent in agents), default=None)
