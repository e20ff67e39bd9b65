"""From records to work: fold a batch, tell the runs what happened, start what is open. Synchronous but for reads."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING

from ..bus import facts, kinds
from ..bus.broker import Stored
from ..bus.errors import TryAgain
from ..bus.message import Envelope
from ..projections.checkpoint import SETTLED
from ..projections.partition import Folded
from ..projections.verdict import ADMITTED, Verdict
from ..projections.view import Handling
from ..projections.workflow import Workflow
from .hints import ADDRESS, Hint, encode
from .place import Place, RunKey
from .run import Run

if TYPE_CHECKING:
    from .worker import Worker

log = logging.getLogger("refold.worker")


async def fold_batch(worker: Worker, place: Place, records: list[Stored]) -> None:
    """Fold the records of one partition, in order, and let what they changed be worked on."""
    touched: dict[str, Workflow] = {}
    now, fold = worker.clock.now(), place.fold
    for stored in records:
        if stored.position <= fold.position:
            continue
        if len(touched) >= SETTLED and not place.active:
            settle_all(worker, place, touched)
        r = fold.open_envelope(stored)
        if r is None:
            log.warning("partition %d: undecodable bytes at %d are skipped", place.partition, stored.position)
            continue
        for correlation in fold.missing(r):
            await worker.restore(place, correlation)
        folded = fold_one(worker, place, stored, r)
        place.saw(r.timestamp, now)
        if folded.workflow is not None:
            touched[folded.workflow.correlation] = folded.workflow
    settle_all(worker, place, touched)
    if not place.active:
        place.cool(worker.agents, worker.live_share)
        if fold.position >= place.owner_position >= 0:
            activate(worker, place)
    if worker.hints:
        await send_hints(worker)


async def send_hints(worker: Worker) -> None:
    """Tell the clients of what was folded where their answers are. A hint that cannot be sent is lost: they look."""
    hints, worker.hints = worker.hints, []
    with contextlib.suppress(TryAgain):
        for address, hint in hints:
            await worker.broker.notify(address, hint)


def fold_one(worker: Worker, place: Place, stored: Stored, r: Envelope) -> Folded:
    """Fold one record and tell the runs of its workflow."""
    if place.fold.entries:
        place.touch(r.correlation_id)
    worker.records.put(place.partition, stored)
    folded = place.fold.fold(stored, r)
    worker.folded += 1
    if folded.workflow is None:
        if folded.verdict is Verdict.MISPLACED:
            worker.strays.add(place.partition)
        for correlation in place.fold.claimed:
            worker.later(place, correlation)
        return folded
    tell(worker, place, folded, folded.workflow)
    return folded


def tell(worker: Worker, place: Place, f: Folded, w: Workflow) -> None:
    """Let the runs of the workflow know what a record changed."""
    r, correlation = f.envelope, w.correlation
    runs = place.runs.get(correlation)
    if f.verdict is ADMITTED:
        if r.message_type == kinds.ROLLED_BACK:
            end_all(worker, place, correlation, "rolled back")
            place.idle.pop(correlation, None)
            return
        for agent, message, path in w.view.news:
            key = (correlation, agent, message)
            place.wakes(key)
            run = runs.get(key) if runs else None
            if run is not None:
                st = run.known(path)
                run.settled(path, f.value if st is not None and st.value == (f.position, -1) else None)
    fact, work = r.fact, r.work
    if fact is not None:
        if f.verdict is ADMITTED and isinstance(fact, facts.Redriven | facts.Discarded):
            place.wakes((correlation, fact.agent, fact.message))
        if isinstance(fact, facts.Delivered):
            place.delivering.discard((correlation, fact.subject, fact.n, fact.cancel))
    if work is not None and (runs or worker.cohorts.active):
        key = (correlation, r.sender_id, work.message)
        if worker.cohorts.active and r.message_type != kinds.ATTEMPT_STARTED:
            worker.passed(place, key)
        run = runs.get(key) if runs else None
        if run is not None and (run.writer == work.writer or run.awaits(r.id)):
            own_record(worker, place, key, run, f)
    if runs:
        end_closed(worker, place, w, list(runs.items()))


def own_record(worker: Worker, place: Place, key: RunKey, run: Run, f: Folded) -> None:
    """One of a live run's own records was folded."""
    r, verdict = f.envelope, f.verdict
    run.judged(r, verdict)
    if run.finishing and r.id == run.last_id:
        run.last_id = ""
        if verdict in (Verdict.INVALID, Verdict.CONFLICT):
            log.error("refold wrote a record that admission refuses: %s is %s (%s)", r.message_type, verdict, r.id)
            worker.rest(1.0, place, key)
        place.remove(key, run)
    if r.in_reply_to is not None and verdict is ADMITTED and (address := run.message.headers.get(ADDRESS)):
        worker.hints.append((address, encode(Hint(r.correlation_id, r.in_reply_to, f.position))))


def end_closed(worker: Worker, place: Place, w: Workflow, runs: list[tuple[RunKey, Run]]) -> None:
    """End the runs whose handling is over, or in another round."""
    for key, run in runs:
        h = w.view.handling(run.agent, run.message_id)
        if (h is None or h.closed or h.round != run.round) and not run.finishing:
            worker.crew.end(place, key, run, "its handling is over" if h is None or h.closed else "redriven")


def end_all(worker: Worker, place: Place, correlation: str, why: str) -> None:
    """End every run of a workflow."""
    for key, run in list(place.runs.get(correlation, {}).items()):
        worker.crew.end(place, key, run, why)


def settle_all(worker: Worker, place: Place, touched: dict[str, Workflow]) -> None:
    """Settle the workflows that were touched."""
    for w in touched.values():
        settle(worker, place, w)
    touched.clear()


def settle(worker: Worker, place: Place, w: Workflow) -> None:
    """After a batch: start what is open, deliver what is owed, note what is due, forget what is complete."""
    if place.ended:
        return
    w = place.fold.live.get(w.correlation, w)
    if place.settle(w) or not place.active:
        return
    consider(worker, place, w)
    if w.duties():
        worker.deliver(place, w.correlation)
    due = place.schedule(w, worker.agents)
    if due is not None:
        worker.due_at(due)
    worker.trim(place, w)


def activate(worker: Worker, place: Place) -> None:
    """Everything acknowledged before the takeover is folded: handlers and timers may start."""
    place.active = True
    fold = place.fold
    known = fold.groups.get(worker.group)
    died = place.after_death or (known is not None and known.after_death)
    for correlation in [*fold.live, *fold.entries]:
        if correlation in fold.entries and place.put_off(correlation):
            continue
        w = place.find(correlation)
        if w is None:
            continue
        if died:
            hold_back(worker, place, w)
        settle(worker, place, w)
    worker.due_at(place.next_due())
    if fold.strays:
        worker.strays.add(place.partition)
    if died:
        worker.cohorts.death()
        start_cohort(worker)
    worker.catch_up_later(place)
    worker.on_active(place)


def hold_back(worker: Worker, place: Place, w: Workflow) -> None:
    """After a death: what was runnable starts in cohorts."""
    now = place.now(worker.clock.now())
    for agent in worker.agents.values():
        for h in may_run(w, agent.name, agent.concurrency, _only_waits):
            if not _only_waits(h) and not h.parked and (h.due is None or h.due <= now):
                key = (w.correlation, h.agent, h.message)
                worker.cohorts.hold((place, key), suspect=bool(h.starts))


def _only_waits(h: Handling) -> bool:
    return h.begun and not h.starts and any(st.waits for st in h.steps.values())


def start_cohort(worker: Worker) -> None:
    """Start the next messages that were held back; what must run alone waits until nothing else runs."""
    cohorts, scheduler = worker.cohorts, worker.scheduler
    trials = cohorts.next(scheduler.used > 0)
    scheduler.hold() if cohorts.needs_quiet else scheduler.unhold()
    for place, key in trials:
        w = place.find(key[0])
        h = w.view.handling(key[1], key[2]) if w is not None else None
        if w is not None and h is not None and not h.closed:
            consider(worker, place, w)
            if place.run_of(key[0], h) is not None or scheduler.is_queued((place, key)):
                continue
        worker.passed(place, key)  # it cannot start now: it is over, not due, or behind another one


def consider(worker: Worker, place: Place, w: Workflow) -> None:
    """Queue the handlings of this worker's agents that may start: in log order, one at a time per agent."""
    v, correlation = w.view, w.correlation
    if not v.open or not place.active or place.ended or worker.draining:
        return
    for name, messages in list(v.agenda.items()):
        agent = worker.agents.get(name)
        if agent is None:
            continue
        alone = len(messages) == 1 and not v.holding  # nothing can be in its way
        for h in list(w.agenda(name)) if alone else may_run(w, name, agent.concurrency, partial(_waits, place, w)):
            key, runs = (correlation, name, h.message), place.runs.get(correlation)
            if (runs is None or key not in runs) and not (place.idle and place.is_idle(key)):
                _start(worker, place, key, w, h)


def _waits(place: Place, w: Workflow, h: Handling) -> bool:
    run = place.run_of(w.correlation, h)
    if run is None:
        return place.is_idle((w.correlation, h.agent, h.message))
    return not (run.has_slot or run.calls or run.wants_slot)


def may_run(w: Workflow, agent: str, limit: int, waits: Callable[[Handling], bool]) -> Iterator[Handling]:
    """Yield the handlings of an agent that run or may: `limit` in log order, none behind a dead letter.

    A request made inside the workflow does not queue behind handlings that only wait, nor behind what queues itself:
    they may wait for its answer.
    """
    barrier = min((w.view.handlings[m][a].version for a, m in w.view.holding if a == agent), default=None)
    under_way, all_wait = 0, True
    last = 0
    first = list(islice(w.agenda(agent), limit))
    for h in chain(first, w.calls(agent)):
        if barrier is not None and h.version > barrier:
            return
        if h.version <= last:
            continue  # a call that is among the first
        last = h.version
        yield h
        under_way += 1
        all_wait = all_wait and waits(h)
        if under_way >= limit and not all_wait:
            return


def _start(worker: Worker, place: Place, key: RunKey, w: Workflow, h: Handling) -> None:
    waiting = worker.cohorts.waiting
    if (waiting and (place, key) in waiting) or key in place.resting or place.has_diverged(key, h.round):
        return
    if h.due is not None or (h.expires is not None and not h.begun):
        now = place.now(worker.clock.now())
        if h.due is not None and h.due > now and not h.parked:
            return
        if not h.begun and h.expires is not None and h.expires <= now:
            worker.due_at(h.expires)
            return
    worker.crew.queue(place, key, w, h)
