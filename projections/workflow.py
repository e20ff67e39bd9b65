"""One workflow: the pure fold of its records. `admit` judges a record, then lets it change what is true."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from msgspec import Struct, field

from ..bus import facts, ids, kinds
from ..bus.codec import decode, envelope
from ..bus.errors import UndecodableRecord
from ..bus.message import Envelope
from .handling import Entry, Handling, Key, Ref
from .ledger import Duty, Ledger
from .verdict import (
    ADMITTED,
    CONFLICT,
    DUPLICATE,
    INVALID,
    LATE,
    LEDGER,
    STALE,
    VOID,
    Verdict,
    is_final,
    is_foreign_answer,
    is_outside,
)  # fmt: skip
from .view import Listeners, View

NOBODY: Listeners = {}


class NeedsHistory(Exception):
    """The state came from a checkpoint, and this record can only be judged after the workflow was folded anew."""


class Workflow(Struct, gc=False, omit_defaults=True):
    """The fold of one workflow. Equal logs give equal states: no clock, no configuration, no user's code enters it.

    `generation` counts rollbacks; `version` is the length of the path; `verdicts` hold the first verdict of each id.
    """

    correlation: str
    generation: int = 0
    view: View = field(default_factory=View)
    ledger: Ledger = field(default_factory=Ledger)
    verdicts: dict[str, Verdict] = field(default_factory=dict)
    attempts: dict[tuple[str, str, int, str], int] = field(default_factory=dict)
    closed: dict[int, list[Entry]] = field(default_factory=dict)
    ops: dict[str, None] = field(default_factory=dict)
    first: int = 0
    last: int = 0
    whole: bool = True
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def version(self) -> int:
        """Length of the path."""
        return len(self.view.path)

    # ---- the fold --------------------------------------------------------------------------------------------------
    def admit(self, r: Envelope, position: int, listeners: Listeners = NOBODY) -> Verdict:
        """Judge a record and fold it. `position` is where it is in the log; `listeners` the partition's below it.

        Raises NeedsHistory (and changes nothing) where a state from a checkpoint is not enough.
        """
        verdict, id, fact = judge(self, r), r.id, r.fact
        known = id in self.verdicts
        admitted = verdict is ADMITTED
        if not admitted and r.message_type in kinds.OUTCOMES and not known:
            verdict = LEDGER
        if not self.first:
            self.first = position
        self.last = max(self.last, position)
        self.counts[verdict] = self.counts.get(verdict, 0) + 1
        if known:
            return verdict
        self.verdicts[id] = verdict
        if r.work is not None and not (admitted and is_final(r)):
            self._count_attempt(r, verdict)
        if fact is not None or r.to is not None or r.origin is not None:
            self._enter(r, verdict)
        if admitted and isinstance(fact, facts.RolledBack):
            self._roll_back(r, fact, position, listeners)
        else:
            if admitted:
                self.view.apply(r, (position, -1), listeners)
            if self.ledger.sent or self.ledger.effects:
                self._look_again(r, verdict)
        return verdict

    def _count_attempt(self, r: Envelope, verdict: Verdict) -> None:
        w = r.work
        if w is not None and verdict is not DUPLICATE:
            key = (r.sender_id, w.message, w.round, w.step)
            self.attempts[key] = self.attempts.get(key, 0) + 1

    def _enter(self, r: Envelope, verdict: Verdict) -> None:
        """The ledger reads every record; one without fact, `to` and origin has nothing for it."""
        ledger, fact = self.ledger, r.fact
        if verdict in (ADMITTED, LEDGER):
            if isinstance(fact, facts.Compensation):
                status = ledger.compensation(r)
                assert status is not None
                ledger.compensate(r, status)
            elif isinstance(fact, facts.Delivered):
                ledger.deliver(fact)
            elif isinstance(fact, facts.EffectIntended | facts.EffectCompleted | facts.EffectFailed):
                in_flight = verdict is not ADMITTED and self.view.in_flight(fact.effect)
                ledger.enter(r, len(self.verdicts), in_flight=in_flight)
        if verdict is ADMITTED and r.to is not None and (carrier := self._carrier(r)) is not None:
            ledger.send(r, carrier)
        if is_foreign_answer(r) and verdict is not DUPLICATE and r.in_reply_to is not None:
            ledger.hear(r.in_reply_to, verdict is LATE)
        if verdict is LATE and r.is_request and r.asked and r.origin is not None:
            ledger.refuse_start(r)

    def _carrier(self, r: Envelope) -> str | None:
        """Return the agent whose owner carries a record with `to`; None where no agent wrote it and none was asked."""
        if r.work is not None:
            return r.sender_id
        q = self.view.requests.get(r.in_reply_to or "")
        root = self.view.requests[q.root] if q is not None and r.message_type in kinds.ANSWERS else None
        asked_here = root is not None and root.origin is not None and root.origin.workflow == r.to
        return root.agent if root is not None and asked_here else None

    def _look_again(self, r: Envelope, verdict: Verdict) -> None:
        """Bring up to date what is owed, as far as this record may have changed it."""
        view, ledger, fact = self.view, self.ledger, r.fact
        admitted = verdict is ADMITTED
        effect = getattr(fact, "effect", "")
        for key in dict.fromkeys((*view.touched, effect)) if admitted else (effect,):  # in the order of the log
            if key:
                ledger.weigh(key, view)
        subjects = [*view.released, r.id] if admitted else []
        if isinstance(fact, facts.Delivered):
            subjects.append(fact.subject)
        if r.in_reply_to is not None:
            subjects.append(r.in_reply_to)
        for subject in subjects:
            ledger.review(subject, view)

    def _roll_back(self, r: Envelope, fact: facts.RolledBack, position: int, listeners: Listeners) -> None:
        new = rolled_back(self, r, fact, position, listeners)
        fixes = corrections(r, fact, self.correlation)
        assert new is not None
        assert fixes is not None
        self.closed[self.generation] = self.view.path
        self.view = new
        for fix in fixes:
            self.verdicts[fix.id] = ADMITTED
        self.generation += 1
        self.ops[fact.op_id] = None
        self.ledger.start_over(new)

    # ---- questions -------------------------------------------------------------------------------------------------
    def attempt(self, agent: str, message: str, step: str = "") -> int:
        """Return the `attempt` that the next record of this step has."""
        return self.attempts.get((agent, message, self.view.round_of(agent, message), step), 0)

    def duties(self) -> list[Duty]:
        """Return what is owed to other workflows now."""
        if not (self.ledger.pending or self.view.owed_answers or self.ledger.refusals):
            return []
        return self.ledger.duties(self.view)

    def open_handlings(self) -> list[Handling]:
        """Return the handlings that are open, in the order of their messages on the path."""
        return [self.view.handlings[message][agent] for agent, message in self.view.open]

    def agenda(self, agent: str) -> Iterator[Handling]:
        """Yield an agent's open handlings, in the order of their messages on the path."""
        for message in self.view.agenda.get(agent, ()):
            yield self.view.handlings[message][agent]

    def calls(self, agent: str) -> Iterator[Handling]:
        """Yield those of an agent's open handlings whose message is a request from inside the workflow, in order."""
        for message in self.view.calls.get(agent, ()):
            yield self.view.handlings[message][agent]

    def is_complete(self) -> bool:
        """Nothing is open, waits or is owed. A later message opens it again."""
        v = self.view
        return not (v.open or v.holding or self.ledger.barrier() or self.duties())

    def path_at(self, generation: int, version: int) -> list[Entry]:
        """Return the first `version` records of the path of that generation. Never changes once seen."""
        path = self.view.path if generation == self.generation else self.closed[generation]
        return path[:version]


# ---- admission -----------------------------------------------------------------------------------------------------
def judge(s: Workflow, r: Envelope) -> Verdict:
    """Return the verdict of a record, given the workflow folded so far (semantics, section 3). Changes nothing."""
    v, w, g, kind, fact = s.view, r.work, r.generation, r.message_type, r.fact
    if r.id in s.verdicts:
        return DUPLICATE
    if fact is not None:
        if isinstance(fact, facts.RolledBack) and fact.op_id in s.ops:
            return DUPLICATE
        if isinstance(fact, facts.Delivered):
            return LEDGER if s.ledger.may_deliver(fact, v) else INVALID
    if kind in kinds.COMPENSATION:
        return INVALID if s.ledger.compensation(r) is None else LEDGER
    if g is not None and g < s.generation:
        return STALE
    if (g is not None and g > s.generation) or (g is None and w is not None):
        return INVALID
    if r.expected is not None and not _expectation_holds(s, r):
        return CONFLICT
    if r.in_reply_to is not None and v.late(r.in_reply_to):
        return LATE
    if r.origin is not None and r.is_request and v.is_revoked(r.origin):
        return LATE
    if w is not None:
        if w.message not in v.at:
            return STALE
        h = v.handling(r.sender_id, w.message)
        if h is not None and (h.closed or w.round != h.round):
            return VOID
        if h is None and (w.round or v.is_over(w.message)):
            return VOID
        if w.step and v.taken(r):
            return VOID
    return ADMITTED if _lawful(s, r) else INVALID


def _expectation_holds(s: Workflow, r: Envelope) -> bool:
    e = r.expected
    assert e is not None
    return (
        (e.version is None or e.version == s.version)
        and (e.generation is None or e.generation == s.generation)
        and (e.inputs is None or e.inputs == s.view.inputs)
    )


def _lawful(s: Workflow, r: Envelope) -> bool:
    """The rules of single kinds (semantics, sections 4, 6, 7)."""
    v, w, kind = s.view, r.work, r.message_type
    if w is not None:
        duty = v.duty(r.sender_id, w.message)
        if r.answers is not None and (
            not (r.is_request and w.done) or r.asked or r.to is not None or duty is None or r.answers != duty.id
        ):
            return False
        if w.done and duty is not None and kind != kinds.EXPIRED:
            answers = kind in kinds.ANSWERS and r.in_reply_to is not None and v.requests[r.in_reply_to].root == duty.id
            return answers or r.answers == duty.id
    elif r.answers is not None:
        return False
    return kind not in kinds.ENGINE or _engine_lawful(s, r)


def _engine_lawful(s: Workflow, r: Envelope) -> bool:
    kind = r.message_type
    if kind in kinds.PARTITION or (kind in kinds.JOURNAL and r.work is None):
        return False
    if kind == kinds.EFFECT_INTENDED and s.ledger.barrier():
        return False
    return kind not in kinds.CONTROL or _control_lawful(s, r)


def _control_lawful(s: Workflow, r: Envelope) -> bool:
    fact, v, w = r.fact, s.view, r.work
    if isinstance(fact, facts.RolledBack):
        return rolled_back(s, r, fact, 0, NOBODY) is not None
    if isinstance(fact, facts.Redriven):
        return _redrive_lawful(s, fact)
    if isinstance(fact, facts.Discarded):
        h = v.handling(fact.agent, fact.message)
        return h is not None and bool(h.dead) and (h.key in v.holding or _unanswered(v, h))
    if r.message_type == kinds.FORKED:
        return not s.verdicts
    if r.message_type == kinds.EXPIRED:
        h = v.handling(r.sender_id, w.message) if w is not None and w.done else None
        return h is not None and not h.begun
    if r.message_type == kinds.DEAD_LETTERED:  # with nobody waiting it is what ends the handling
        return w is not None and w.done == (v.duty(r.sender_id, w.message) is None)
    return True


def _unanswered(v: View, h: Handling) -> bool:
    return not h.closed and not v.late(h.message)


def _redrive_lawful(s: Workflow, fact: facts.Redriven) -> bool:
    v, h = s.view, s.view.handling(fact.agent, fact.message)
    if h is None or h.discarded:
        return False
    ended = bool(h.closed) and h.end in (kinds.DEAD_LETTERED, kinds.ERROR_REPORT)
    if not ended and not (fact.keep == "none" and not h.closed and h.parked):
        return False
    q = v.requests.get(h.message)
    if q is not None and ended:
        st = v.step_of(v.requests[q.root])
        if st is not None and st.settled:
            return False
    return fact.force or not _drops_irreversible(s, h, fact.keep)


def _drops_irreversible(s: Workflow, h: Handling, keep: str) -> bool:
    for path in s.view.dropped_by_redrive(h, keep):
        e = s.ledger.effects.get(h.steps[path].effect)
        if e is not None and e.policy == "irreversible" and e.status != "failed" and s.view.holds(e.key):
            return True
    return False


# ---- rollback ------------------------------------------------------------------------------------------------------
def corrections(r: Envelope, fact: facts.RolledBack, correlation: str) -> list[Envelope] | None:
    """Return the messages that a rollback brings with it, under the ids that they have; None if one is no message of
    this workflow."""
    out = []
    for i, raw in enumerate(fact.with_inputs):
        try:
            decode(bytes(raw))  # with payload and headers: an agent will read them
            fix = envelope(bytes(raw))
        except UndecodableRecord:
            return None
        if fix.correlation_id != correlation or fix.answers is not None:
            return None
        out.append(msgspec.structs.replace(fix, id=ids.correction_id(r.id, i), generation=None))
    return out


def rolled_back(s: Workflow, r: Envelope, fact: facts.RolledBack, position: int, listeners: Listeners) -> View | None:
    """Return the view after a rollback, None where it breaks the rules. Raises NeedsHistory."""
    if not s.whole:
        raise NeedsHistory
    e, fixes = r.expected, corrections(r, fact, s.correlation)
    if e is None or e.generation is None or e.inputs is None or not 0 <= fact.to_version <= s.version:
        return None
    if fixes is None or any(x.id in s.verdicts for x in fixes):
        return None
    new, lost = _cut(s.view.path, fact.to_version)
    again = [lost.get(i) for i in fact.reapply]
    for entry in again:
        if entry is None or not _fits(new, entry.envelope):
            return None
        new.reapply(entry)
    for i, x in enumerate(fixes):
        if not _fits(new, x):
            return None
        new.apply(x, (position, i), listeners)
    return new if fact.force or not s.ledger.loses_irreversible(s.view, new) else None


def _cut(path: list[Entry], to: int) -> tuple[View, dict[str, Entry]]:
    """Return the path up to a version with the answers that stay, and the inputs that are lost, by id."""
    new, lost = View(), dict[str, Entry]()
    for entry in path[:to]:
        new.reapply(entry)
    for entry in path[to:]:
        x = entry.envelope
        assert x is not None
        if is_foreign_answer(x) and x.in_reply_to is not None and not new.late(x.in_reply_to):
            new.reapply(entry)
        elif is_outside(x):
            lost[x.id] = entry
    return new, lost


def _fits(new: View, x: Envelope | None) -> bool:
    """An input may join this path: it is one, is not on it, and the request that it answers waits."""
    return (
        x is not None
        and is_outside(x)
        and x.id not in new.at
        and (x.in_reply_to is None or not new.late(x.in_reply_to))
    )


__all__ = ["Key", "Listeners", "NeedsHistory", "Ref", "Workflow", "corrections", "judge", "rolled_back"]
