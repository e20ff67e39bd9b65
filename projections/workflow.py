"""One workflow: the pure fold of its records. `admit` judges a record, then lets it change what is true."""

from __future__ import annotations

from collections.abc import Iterable

import msgspec
from msgspec import Struct, field

from ..bus import facts, ids, kinds
from ..bus.codec import envelope
from ..bus.message import Envelope
from .ledger import Duty, Ledger
from .verdict import Verdict, is_control, is_final, is_outside, is_reply
from .view import Entry, Handling, Key, Ref, View

Listeners = dict[str, tuple[str, ...]]
NOBODY: Listeners = {}


class NeedsHistory(Exception):
    """The state came from a checkpoint, and this record can only be judged after the workflow was folded anew."""


class Workflow(Struct, gc=False):
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
        verdict = judge(self, r)
        if not self.first:
            self.first = position
        self.last = max(self.last, position)
        self.counts[verdict] = self.counts.get(verdict, 0) + 1
        if r.id in self.verdicts:
            return verdict
        if r.message_type in kinds.OUTCOMES and verdict not in (Verdict.ADMITTED, Verdict.DUPLICATE):
            verdict = Verdict.LEDGER
        before = self.view
        self.verdicts[r.id] = verdict
        self._count_attempt(r, verdict)
        self._enter(r, verdict)
        if verdict is Verdict.ADMITTED:
            if isinstance(r.fact, facts.RolledBack):
                self._roll_back(r, r.fact, position, listeners)
            else:
                before.apply(r, (position, -1), listeners)
        return verdict

    def _count_attempt(self, r: Envelope, verdict: Verdict) -> None:
        w = r.work
        if w is not None and verdict is not Verdict.DUPLICATE and (verdict is not Verdict.ADMITTED or not is_final(r)):
            key = (r.sender_id, w.message, w.round, w.step)
            self.attempts[key] = self.attempts.get(key, 0) + 1

    def _enter(self, r: Envelope, verdict: Verdict) -> None:
        """The ledger reads every record."""
        kind, ledger = r.message_type, self.ledger
        if verdict in (Verdict.ADMITTED, Verdict.LEDGER):
            if kind in kinds.COMPENSATION:
                status = ledger.compensation(r, self.view)
                assert status is not None
                ledger.compensate(r, status)
            elif isinstance(r.fact, facts.Delivered):
                ledger.deliver(r.fact)
            elif kind in kinds.OUTCOMES or kind == kinds.EFFECT_INTENDED:
                ledger.enter(r, len(self.verdicts))
        if verdict is Verdict.ADMITTED and r.to is not None:
            ledger.send(r)
        if is_reply(r) and verdict is not Verdict.DUPLICATE and r.in_reply_to is not None:
            ledger.hear(r.in_reply_to, verdict is Verdict.LATE)
        if verdict is Verdict.LATE and r.is_request and r.origin is not None:
            ledger.refuse_start(r)

    def _roll_back(self, r: Envelope, fact: facts.RolledBack, position: int, listeners: Listeners) -> None:
        new = rolled_back(self, r, fact, position, listeners)
        assert new is not None
        self.closed[self.generation] = self.view.path
        self.view = new
        for fix in corrections(r, fact):
            self.verdicts[fix.id] = Verdict.ADMITTED
        self.generation += 1
        self.ops[fact.op_id] = None
        self.ledger.reopen()

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
        hs = [self.view.handlings[message][agent] for agent, message in self.view.open]
        return sorted(hs, key=lambda h: h.version)

    def is_complete(self) -> bool:
        """Nothing is open, waits or is owed. A later message opens it again."""
        v = self.view
        return not (v.open or v.holding or self.ledger.barrier(v) or self.duties())

    def path_at(self, generation: int, version: int) -> list[Entry]:
        """Return the first `version` records of the path of that generation. Never changes once seen."""
        path = self.view.path if generation == self.generation else self.closed[generation]
        return path[:version]


def fold(records: Iterable[tuple[int, bytes]], correlation: str, listeners: Listeners = NOBODY) -> Workflow:
    """Return the fold of (position, bytes) of one workflow, from its start."""
    w = Workflow(correlation)
    for position, raw in records:
        w.admit(envelope(raw), position, listeners)
    return w


# ---- admission -----------------------------------------------------------------------------------------------------
def judge(s: Workflow, r: Envelope) -> Verdict:
    """Return the verdict of a record, given the workflow folded so far (semantics, section 3). Changes nothing."""
    v, w, g, kind, fact = s.view, r.work, r.generation, r.message_type, r.fact
    if r.id in s.verdicts or (isinstance(fact, facts.RolledBack) and fact.op_id in s.ops):
        return Verdict.DUPLICATE
    if kind in kinds.COMPENSATION:
        return Verdict.INVALID if s.ledger.compensation(r, v) is None else Verdict.LEDGER
    if isinstance(fact, facts.Delivered):
        return Verdict.LEDGER if s.ledger.may_deliver(fact, v) else Verdict.INVALID
    if g is not None and g < s.generation:
        return Verdict.STALE
    if (g is not None and g > s.generation) or (g is None and w is not None):
        return Verdict.INVALID
    if r.expected is not None and not _expectation_holds(s, r):
        return Verdict.CONFLICT
    if r.in_reply_to is not None and v.late(r.in_reply_to):
        return Verdict.LATE
    if r.is_request and r.origin is not None and r.origin.id in v.revoked:
        return Verdict.LATE
    if w is not None:
        if w.message not in v.at:
            return Verdict.STALE
        h = v.handling(r.sender_id, w.message)
        if h is not None and (h.closed or w.round != h.round):
            return Verdict.VOID
        if h is None and (w.round or _over(s, r.sender_id, w.message)):
            return Verdict.VOID
        if w.step and v.taken(r):
            return Verdict.VOID
    return Verdict.ADMITTED if _lawful(s, r) else Verdict.INVALID


def _expectation_holds(s: Workflow, r: Envelope) -> bool:
    e = r.expected
    assert e is not None
    return (
        (e.version is None or e.version == s.version)
        and (e.generation is None or e.generation == s.generation)
        and (e.inputs is None or e.inputs == s.view.inputs)
    )


def _over(s: Workflow, agent: str, message: str) -> bool:
    """A handling that nobody has begun is over when its message is answered, or everything was cancelled since."""
    q = s.view.requests.get(message)
    return (q is not None and bool(s.view.requests[q.root].answered)) or s.view.cancelled_at > s.view.at[message]


def _lawful(s: Workflow, r: Envelope) -> bool:
    """The rules of single kinds (semantics, sections 4, 6, 7)."""
    v, w, kind = s.view, r.work, r.message_type
    if kind in kinds.PARTITION or (kind in kinds.JOURNAL and w is None):
        return False
    if kind == kinds.EFFECT_INTENDED and s.ledger.barrier(v):
        return False
    if w is not None:
        duty = v.duty(r.sender_id, w.message)
        if r.answers is not None and (
            not (r.is_request and w.done) or r.asked or r.to is not None or duty is None or r.answers != duty.id
        ):
            return False
        if w.done and kind != kinds.EXPIRED and duty is not None:
            answers = kind in kinds.ANSWERS and r.in_reply_to is not None and v.requests[r.in_reply_to].root == duty.id
            return answers or r.answers == duty.id
    elif r.answers is not None:
        return False
    return not is_control(r) or _control_lawful(s, r)


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
        if w is None:
            return False
        h = v.handling(r.sender_id, w.message)
        return h is not None and not h.begun
    return r.message_type != kinds.DEAD_LETTERED or w is not None


def _unanswered(v: View, h: Handling) -> bool:
    return not h.closed and not v.late(h.message)


def _redrive_lawful(s: Workflow, fact: facts.Redriven) -> bool:
    v, h = s.view, s.view.handling(fact.agent, fact.message)
    if h is None or h.discarded:
        return False
    ended = bool(h.closed) and h.end in (kinds.DEAD_LETTERED, kinds.ERROR_REPORT)
    if not ended and not (fact.keep == "none" and not h.closed and h.begun):
        return False
    q = v.requests.get(h.message)
    if q is not None and ended:
        st = v.step_of(v.requests[q.root])
        if st is not None and st.settled:
            return False
    return fact.force or not _drops_irreversible(s, h, fact.keep)


def _drops_irreversible(s: Workflow, h: Handling, keep: str) -> bool:
    for path in s.view.dropped_by_redrive(h, keep):
        st = h.steps[path]
        e = s.ledger.effects.get(st.effect) if st.effect else None
        if e is not None and e.policy == "irreversible" and e.status != "failed" and not st.failed:
            return True
    return False


# ---- rollback ------------------------------------------------------------------------------------------------------
def corrections(r: Envelope, fact: facts.RolledBack) -> list[Envelope]:
    """Return the messages that a rollback brings with it, under the ids that they have."""
    out = []
    for i, raw in enumerate(fact.with_inputs):
        fix = envelope(bytes(raw))
        out.append(msgspec.structs.replace(fix, id=ids.correction_id(r.id, i), generation=None))
    return out


def rolled_back(
    s: Workflow, r: Envelope, fact: facts.RolledBack, position: int, listeners: Listeners
) -> View | None:
    """Return the view after a rollback, None where it breaks the rules. Raises NeedsHistory."""
    if not s.whole:
        raise NeedsHistory
    e = r.expected
    if e is None or e.generation is None or e.inputs is None or not 0 <= fact.to_version <= s.version:
        return None
    new, path = View(), s.view.path
    for entry in path[: fact.to_version]:
        _reapply(new, entry, listeners)
    lost: dict[str, Entry] = {}
    for entry in path[fact.to_version :]:
        x = entry.envelope
        assert x is not None
        if is_reply(x) and x.in_reply_to is not None and not new.late(x.in_reply_to):
            _reapply(new, entry, listeners)
        elif is_outside(x):
            lost[x.id] = entry
    if not _apply_inputs(s, r, fact, new, lost, position, listeners):
        return None
    return new if fact.force or not s.ledger.loses_irreversible(s.view, new) else None


def _reapply(view: View, entry: Entry, listeners: Listeners) -> None:
    assert entry.envelope is not None
    view.apply(entry.envelope, entry.ref, listeners, entry.obliges)


def _apply_inputs(
    s: Workflow, r: Envelope, fact: facts.RolledBack, new: View, lost: dict[str, Entry], position: int,
    listeners: Listeners,
) -> bool:  # fmt: skip
    fixes = corrections(r, fact)
    again = [lost.get(i) for i in fact.reapply]
    brought = [Entry(x.id, (position, i), None, x) for i, x in enumerate(fixes)]
    if any(x.id in s.verdicts for x in fixes):
        return False
    for entry in [*again, *brought]:
        x = entry.envelope if entry is not None else None
        if x is None or entry is None or not is_outside(x) or x.id in new.at:
            return False
        if x.in_reply_to is not None and new.late(x.in_reply_to):
            return False
        _reapply(new, entry, listeners)
    return True


__all__ = ["Key", "Listeners", "NeedsHistory", "Ref", "Workflow", "corrections", "fold", "judge", "rolled_back"]
