"""What really happened in a workflow, whatever became of its path: effects, their compensation, deliveries."""

from __future__ import annotations

from msgspec import Struct, field

from ..bus import facts, kinds
from ..bus.message import Envelope
from .handling import Place
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


class Ledger(Struct, gc=False, omit_defaults=True):
    """Reads every record and is never cut.

    `loose` are the `compensate` effects that are owed or unresolved now, `pending` what was sent and is owed now:
    both are brought up to date (`weigh`, `review`) when a record may have changed them, so that asking is cheap.
    """

    effects: dict[str, Effect] = field(default_factory=dict)
    issued: dict[Place, list[str]] = field(default_factory=dict)
    loose: dict[str, None] = field(default_factory=dict)
    sent: dict[str, Sent] = field(default_factory=dict)
    pending: dict[str, None] = field(default_factory=dict)
    answered: dict[str, None] = field(default_factory=dict)
    refusals: dict[str, tuple[str, str, str]] = field(default_factory=dict)

    # ---- effects ---------------------------------------------------------------------------------------------------
    def enter(self, r: Envelope, order: int, *, in_flight: bool = False) -> None:
        """Enter an effect's intent or outcome. A known key is one effect; a completion outweighs a failure.

        `in_flight`: the record is not admitted, and an intent of the effect stands on the path.
        """
        fact = r.fact
        if not isinstance(fact, facts.EffectIntended | facts.EffectCompleted | facts.EffectFailed):
            return
        e = self.effects.get(fact.effect)
        if e is None:
            e = self.effects[fact.effect] = Effect(fact.effect, fact.policy, r.sender_id)
            if r.work is not None:
                e.message, e.step = r.work.message, r.work.step
            self.issued.setdefault((e.agent, e.message, e.step), []).append(e.key)
        if isinstance(fact, facts.EffectCompleted):
            if e.status in ("intended", "failed", "waived"):
                e.status, e.completed_at, e.was_completed = "completed", order, True
        elif isinstance(fact, facts.EffectFailed):
            if is_final(r) and e.status == "intended" and not in_flight:
                e.status = "failed"
        elif e.status == "failed" or (e.status == "waived" and not e.was_completed):
            e.status = "intended"

    def weigh(self, key: str, view: View) -> None:
        """The effect, or whether the path holds it, may have changed."""
        e = self.effects.get(key)
        if e is None or e.policy != "compensate":
            return
        begun = e.status in ("compensating", "parked")
        if begun or (e.status in ("completed", "intended") and not view.holds(key)):
            self.loose[key] = None
        else:
            self.loose.pop(key, None)

    def owed(self) -> list[str]:
        """Return keys of effects to compensate or whose compensation has begun or is parked, last completed first."""
        es = [e for key in self.loose if (e := self.effects[key]).status != "intended"]
        return [e.key for e in sorted(es, key=lambda e: -e.completed_at)]

    def unresolved(self) -> list[str]:
        """Return keys of `compensate` effects in flight that the path does not hold."""
        return [key for key in self.loose if self.effects[key].status == "intended"]

    def barrier(self) -> bool:
        """No new intent may be admitted now."""
        return bool(self.loose)

    def parked(self) -> list[str]:
        """Return keys of effects whose compensation failed for good."""
        return [key for key in self.loose if self.effects[key].status == "parked"]

    def compensation(self, r: Envelope) -> str | None:
        """Return the status of the effect after this compensation record, None where the record breaks the rules."""
        fact = r.fact
        assert isinstance(fact, facts.Compensation)
        e = self.effects.get(fact.effect)
        if e is None:
            return None
        if r.message_type == kinds.COMPENSATION_STARTED:
            return "compensating" if self.owed()[:1] == [e.key] else None
        if r.message_type == kinds.COMPENSATION_WAIVED:
            return "waived" if e.key in self.loose else None
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
        for key in self.issued.get((agent, message, step), ()):
            e = self.effects[key]
            gone = e.status == "completed" and not view.holds(key)
            n += gone or e.status in ("compensating", "compensated", "parked")
            n += e.status == "waived" and e.was_completed
        return n

    def loses_irreversible(self, held: View, holds: View) -> bool:
        """An irreversible effect that may have happened is held by the one view and not by the other."""
        return any(
            e.policy == "irreversible" and e.status != "failed" and held.holds(e.key) and not holds.holds(e.key)
            for e in self.effects.values()
        )

    # ---- other workflows -------------------------------------------------------------------------------------------
    def send(self, r: Envelope, agent: str) -> None:
        """Enter an admitted record that is meant for another workflow; the owner of `agent` carries it."""
        assert r.to is not None
        self.sent[r.id] = Sent(r.id, r.to, spawn=r.is_request and r.asked, agent=agent)

    def hear(self, request: str, refused: bool) -> None:
        """An answer from the other workflow was judged."""
        sent = self.sent.get(request)
        if sent is not None:
            sent.judged = True
            sent.refused += refused

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
        """Return all that is owed to other workflows now, in the order in which it became owed."""
        out = [duty for subject in self.pending if (duty := self._duty(self.sent[subject], view)) is not None]
        for request in view.owed_answers:
            q = view.requests[request]
            if request not in self.answered and q.origin is not None:
                out.append(Duty("answer", request, q.origin.workflow, q.agent))
        for subject, (workflow, _, agent) in self.refusals.items():
            if subject not in self.answered:
                out.append(Duty("refusal", subject, workflow, agent))
        return out

    def review(self, subject: str, view: View) -> None:
        """What became of a record that was sent may have changed."""
        sent = self.sent.get(subject)
        if sent is None:
            return
        if self._duty(sent, view) is None:
            self.pending.pop(subject, None)
        else:
            self.pending[subject] = None

    def _duty(self, sent: Sent, view: View) -> Duty | None:
        on_path = sent.id in view.at
        if not sent.spawn:
            return Duty("copy", sent.id, sent.to, sent.agent) if on_path and 0 not in sent.delivered else None
        if on_path and view.awaited(sent.id):
            n = sent.refused if sent.delivered else 0
            return Duty("copy", sent.id, sent.to, sent.agent, n=n) if n not in sent.delivered else None
        if not sent.judged and not sent.cancel_delivered:
            return Duty("cancel", sent.id, sent.to, sent.agent)
        return None

    def start_over(self, view: View) -> None:
        """After a rollback: look at all that ever happened again."""
        for key in self.effects:
            self.weigh(key, view)
        for subject in self.sent:
            self.review(subject, view)
