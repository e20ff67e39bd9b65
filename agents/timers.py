"""What is due: deadlines of steps, times to live, retries. Records of a time that came, by the owner of the agent."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..bus import facts, kinds
from ..bus.message import AgentMessage
from ..projections.view import Handling
from ..projections.workflow import Workflow
from .execution import append_records
from .place import Place
from .writing import work_record

if TYPE_CHECKING:
    from .worker import Worker

async def fire(worker: Worker, place: Place) -> None:
    """Act on everything that is due in a partition now."""
    now = place.now(worker.clock.now())
    for correlation in place.take_due(now):
        place.touch(correlation)
        w = place.find(correlation)
        if w is None:
            place.forget(correlation)
            continue
        records = due_records(worker, place, w, now)
        place.schedule(w, worker.agents)
        if records:
            await append_records(worker, place.partition, correlation, records, place.fence(worker.group))
        worker.later(place, correlation)


def due_records(worker: Worker, place: Place, w: Workflow, now: float) -> list[AgentMessage]:
    """Return the records of what is due in a workflow; wake the handlings whose retry is."""
    out: list[AgentMessage] = []
    for h in w.open_handlings():
        if h.agent not in worker.agents:
            continue
        if not h.begun and h.expires is not None and h.expires <= now:
            out.append(_expired(place, w, h, now))
            continue
        for path in h.pending:
            st = h.steps[path]
            if st.due is None or st.due > now:
                continue
            if st.waits:
                out.append(_fired(place, w, h, path, now))
            else:
                place.wakes((w.correlation, h.agent, h.message))
        if h.due is not None and h.due <= now:
            place.wakes((w.correlation, h.agent, h.message))
    return out


def _fired(place: Place, w: Workflow, h: Handling, path: str, now: float) -> AgentMessage:
    return work_record(
        w, agent=h.agent, message=h.message, round=h.round, generation=w.generation, writer=f"{place.owner_id}#0",
        kind=kinds.TIMER_FIRED, now=now, step=path, receiver=h.agent, fact=facts.TimerFired(), priority=h.priority,
    )  # fmt: skip


def _expired(place: Place, w: Workflow, h: Handling, now: float) -> AgentMessage:
    q = w.view.requests.get(h.message)
    return work_record(
        w, agent=h.agent, message=h.message, round=h.round, generation=w.generation, writer=f"{place.owner_id}#0",
        kind=kinds.EXPIRED, now=now, receiver=q.sender if q is not None else h.agent, done=True, fact=facts.Expired(),
        payload="its time to live passed before its handling began", priority=h.priority,
    )  # fmt: skip
