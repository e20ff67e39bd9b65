"""What really happened in a workflow, whatever became of its path: effects, their compensation, deliveries."""

from __future__ import annotations

from msgspec import Struct, field

from ..bus import facts, kinds
from ..bus.message import Envelope
from .verdict import is_final
from .view import View


class Effect(Struct, gc=False, omit_defaults=True):
    """One effect, by its idempotency key. `status`: intended, completed, failed, compensating, compensated, parked,
    waived. `completed_at` orders completions; `was_completed` survives a waiver."""

    key: str
    policy: str
    agent: str
    message: str = ""
    step: str = ""
    status: str = "intended"
    completed_at: int = 0
    was_completed: bool = False
    writer: str = ""


class Sent(Struct, gc=False, omit_defaults=True):
    """An admitted record that is meant for another workflow, and what became of it."""

    id: str
    to: str
    spawn: bool = False
    agent: str = ""
    delivered: tuple[int, ...] = ()
    cancel_delivered: bool = False
    refused: int = 0
    judged: bool = False


class Duty(Struct, frozen=True, gc=False):
    """Something that the owner must carry to another workflow.

    `what`: copy (of the record `subject`), cancel (of the child that `subject` opened), answer (what closed the
    request `subject` without being addressed to its origin), refusal (`subject` is a start that came too late).
    `agent` is the one whose owner carries it; `n` counts repetitions.
    """

    what: str
    subject: str
    to: str
    agent: str
    n: int = 0


class Ledger(Struct, gc=False):
    """Reads every record and is never cut."""

    effects: dict[str, Effect] = field(default_factory=dict)
    guarded: int = 0
    sent: dict[str, Sent] = field(default_factory=dict)
    pending: dict[str, None] = field(default_factory=dict)
    answered: dict[str, None] = field(default_factory=dict)
    refusals: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    # ---- effects ---------------------------------------------------------------------------------------------------
    def enter(self, r: Envelope, order: int) -> None:
        """Enter an effect's intent or outcome. A known key is one effect; a completion outweighs a failure."""
        fact = r.fact
        if not isinstance(fact, facts.EffectIntended | facts.EffectCompleted | facts.EffectFailed):
            return
        e = self.effects.get(fact.effect)
        if e is None:
            e = self.effects[fact.effect] = Effect(fact.effect, fact.policy, r.sender_id)
            if r.work is not None:
                e.message, e.step = r.work.message, r.work.step
            self.guarded += fact.policy in ("compensate", "irreversible")
        if isinstance(fact, facts.EffectCompleted):
            if e.status in ("intended", "failed", "waived"):
                e.status, e.completed_at, e.was_completed = "completed", order, True
        elif isinstance(fact, facts.EffectFailed):
            if is_final(r) and e.status == "intended":
                e.status = "failed"
        elif e.status == "failed" or (e.status == "waived" and not e.was_completed):
            e.status = "intended"

    def owed(self, view: View) -> list[str]:
        """Return keys of effects to compensate, in reverse order of completion."""
        if not self.guarded:
            return []
        es = [
            e
            for e in self.effects.values()
            if e.policy == "compensate"
            and (e.status in ("compensating", "parked") or (e.status == "completed" and not view.holds(e.key)))
        ]
        return [e.key for e in sorted(es, key=lambda e: -e.completed_at)]

    def unresolved(self, view: View) -> list[str]:
        """Return keys of `compensate` effects in flight that the path does not hold."""
        if not self.guarded:
            return []
        return [
            e.key
            for e in self.effects.values()
            if e.policy == "compensate" and e.status == "intended" and not view.holds(e.key)
        ]

    def barrier(self, view: View) -> bool:
        """No new intent may be admitted now."""
        return bool(self.guarded) and bool(self.owed(view) or self.unresolved(view))

    def compensation(self, r: Envelope, view: View) -> str | None:
        """Return the status of the effect after this compensation record, None where the record breaks the rules."""
        fact = r.fact
        assert isinstance(fact, facts.Compensation)
        e = self.effects.get(fact.effect)
        if e is None:
            return None
        if r.message_type == kinds.COMPENSATION_STARTED:
            return "compensating" if self.owed(view)[:1] == [e.key] else None
        if r.message_type == kinds.COMPENSATION_WAIVED:
            return "waived" if e.key in self.owed(view) + self.unresolved(view) else None
        if r.message_type == kinds.COMPENSATION_COMPLETED and e.status in ("compensating", "parked", "waived"):
            return "compensated"
        if r.message_type == kinds.COMPENSATION_FAILED and fact.final and e.status == "compensating":
            return "parked"
        return e.status

    def compensate(self, r: Envelope, status: str) -> None:
        """Enter a compensation record that the rules allow."""
        fact = r.fact
        assert isinstance(fact, facts.Compensation)
        e = self.effects[fact.effect]
        e.status = status
        if r.message_type == kinds.COMPENSATION_STARTED and r.work is not None:
            e.writer = r.work.writer

    def issue_number(self, view: View, agent: str, message: str, step: str) -> int:
        """Return n of the idempotency key that a call of this step has now (see `ids.effect_key`)."""
        n = 0
        for e in self.effects.values():
            if (e.agent, e.message, e.step) != (agent, message, step):
                continue
            gone = e.status == "completed" and not view.holds(e.key)
            n += gone or e.status in ("compensating", "compensated", "parked")
            n += e.status == "waived" and e.was_completed
        return n

    def loses_irreversible(self, held: View, holds: View) -> bool:
        """An irreversible effect that may have happened is held by the one view and not by the other."""
        return bool(self.guarded) and any(
            e.policy == "irreversible" and e.status != "failed" and held.holds(e.key) and not holds.holds(e.key)
            for e in self.effects.values()
        )

    # ---- other workflows -------------------------------------------------------------------------------------------
    def send(self, r: Envelope) -> None:
        """Enter an admitted record that is meant for another workflow."""
        assert r.to is not None
        if r.id not in self.sent:
            self.sent[r.id] = Sent(r.id, r.to, spawn=r.is_request and r.asked, agent=r.sender_id)
            self.pending[r.id] = None

    def hear(self, request: str, refused: bool) -> None:
        """An answer from the other workflow was judged."""
        sent = self.sent.get(request)
        if sent is not None:
            sent.judged = True
            sent.refused += refused
            if refused:
                self.pending[request] = None

    def refuse_start(self, r: Envelope) -> None:
        """A start that came after its own cancel: its parent is owed an `error_report`."""
        assert r.origin is not None
        self.refusals[r.id] = (r.origin.workflow, r.origin.id, r.receiver_id)

    def may_deliver(self, fact: facts.Delivered, view: View) -> bool:
        """Judge a `delivered`."""
        subject, sent = fact.subject, self.sent.get(fact.subject)
        if fact.cancel:
            return sent is not None and sent.spawn and not sent.cancel_delivered
        if sent is not None:
            return fact.n not in sent.delivered and 0 <= fact.n <= sent.refused
        owing = subject in self.refusals or subject in view.owed_answers
        return owing and subject not in self.answered and fact.n == 0

    def deliver(self, fact: facts.Delivered) -> None:
        """Enter a `delivered` that the rules allow."""
        sent = self.sent.get(fact.subject)
        if fact.cancel and sent is not None:
            sent.cancel_delivered = True
        elif sent is not None:
            sent.delivered = (*sent.delivered, fact.n)
        else:
            self.answered[fact.subject] = None

    def duties(self, view: View) -> list[Duty]:
        """Return all that is owed to other workflows now, oldest first."""
        out: list[Duty] = []
        for subject in list(self.pending):
            duty = self._duty(self.sent[subject], view)
            if duty is not None:
                out.append(duty)
            elif self._settled(self.sent[subject], view):
                del self.pending[subject]
        for request in view.owed_answers:
            q = view.requests[request]
            if request not in self.answered and q.origin is not None and view.requests[q.root].answered:
                out.append(Duty("answer", request, q.origin.workflow, q.agent))
        for subject, (workflow, _, agent) in self.refusals.items():
            if subject not in self.answered:
                out.append(Duty("refusal", subject, workflow, agent))
        return out

    def _duty(self, sent: Sent, view: View) -> Duty | None:
        on_path = sent.id in view.at
        if not sent.spawn:
            return Duty("copy", sent.id, sent.to, sent.agent) if on_path and 0 not in sent.delivered else None
        if on_path and view.awaited(sent.id):
            if not sent.delivered or (sent.refused and sent.refused not in sent.delivered):
                return Duty("copy", sent.id, sent.to, sent.agent, n=sent.refused if sent.delivered else 0)
            return None
        if not sent.judged and not sent.cancel_delivered:
            return Duty("cancel", sent.id, sent.to, sent.agent)
        return None

    def _settled(self, sent: Sent, view: View) -> bool:
        """Nothing but a rollback can make it owed again (a rollback looks at all that was sent)."""
        if not sent.spawn:
            return 0 in sent.delivered
        return not view.awaited(sent.id) and (sent.judged or sent.cancel_delivered)

    def reopen(self) -> None:
        """After a rollback: look at everything that was ever sent again."""
        for subject in self.sent:
            self.pending[subject] = None
