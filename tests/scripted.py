"""A worker without a handler: it writes the next record that the fold asks for, until nothing is left to do."""

from __future__ import annotations

from itertools import count
from typing import Any

from histories import WORKFLOW

from refold.bus import codec, facts, ids, kinds
from refold.bus.message import AgentMessage, Origin, Work
from refold.projections.handling import Handling
from refold.projections.ledger import Duty
from refold.projections.verdict import Verdict
from refold.projections.workflow import Workflow

MANY = 400


class Scripted:
    """Goes on with a workflow at `position`. Each record that it writes must be accepted."""

    def __init__(self, w: Workflow) -> None:
        self.w = w
        self.numbers = count()

    def append(self, r: AgentMessage) -> Verdict:
        return self.w.admit(codec.envelope(codec.encode(r)), self.w.last + 1)

    def accepted(self, r: AgentMessage) -> None:
        verdict = self.append(r)
        assert verdict in (Verdict.ADMITTED, Verdict.LEDGER), (verdict, r)

    # ---- records
    def control(self, kind: str, fact: facts.Fact, **fields: Any) -> AgentMessage:
        return AgentMessage(
            id=f"scripted{next(self.numbers)}", sender_id="operator", receiver_id="*", message_type=kind,
            correlation_id=WORKFLOW, fact=fact, **fields,
        )  # fmt: skip

    def work(self, h: Handling, kind: str, step: str = "", done: bool = False, **fields: Any) -> AgentMessage:
        attempt = self.w.attempt(h.agent, h.message, step)
        id = ids.derived(WORKFLOW, self.w.generation, h.agent, h.message, h.round, step, attempt, kind)
        work = Work(message=h.message, step=step, round=h.round, attempt=attempt, writer="scripted", done=done)
        return AgentMessage(
            id=id, sender_id=h.agent, receiver_id=fields.pop("receiver", "*"), message_type=kind,
            correlation_id=WORKFLOW, generation=self.w.generation, work=work, **fields,
        )  # fmt: skip

    # ---- what an open handling can do
    def end(self, h: Handling) -> None:
        """With the answer that it owes, else with nothing to say."""
        duty = self.w.view.duty(h.agent, h.message)
        if duty is None:
            self.accepted(self.work(h, kinds.HANDLED, done=True))
        else:
            to = duty.origin.workflow if duty.origin else None
            answer = {"in_reply_to": duty.id, "receiver": duty.sender, "to": to}
            self.accepted(self.work(h, kinds.TASK_RESPONSE, done=True, **answer))

    def dead_letter(self, h: Handling) -> None:
        """And an error_report to whoever waits."""
        duty = self.w.view.duty(h.agent, h.message)
        if not h.dead:
            self.accepted(self.work(h, kinds.DEAD_LETTERED, done=duty is None, fact=facts.DeadLettered()))
        if duty is not None:
            to = duty.origin.workflow if duty.origin else None
            report = {"in_reply_to": duty.id, "receiver": duty.sender, "to": to}
            self.accepted(self.work(h, kinds.ERROR_REPORT, done=True, **report))

    def step_on(self, h: Handling) -> None:
        """Take a step that nobody has taken."""
        step = str(max((int(path.split(".")[0]) for path in h.steps), default=0) + 1)
        self.accepted(self.work(h, kinds.STATE_CHANGED, step, fact=facts.StateChanged()))

    def intend(self, h: Handling) -> None:
        """Begin an effect that can be compensated."""
        step = str(max((int(path.split(".")[0]) for path in h.steps), default=0) + 1)
        n = self.w.ledger.issue_number(self.w.view, h.agent, h.message, step)
        effect = ids.effect_key(WORKFLOW, h.agent, h.message, step, n)
        fact = facts.EffectIntended(effect=effect, policy="compensate")
        self.accepted(self.work(h, kinds.EFFECT_INTENDED, step, fact=fact))

    # ---- what an owner does
    def settle_effects(self) -> None:
        """Find out about what is unresolved, then compensate what is owed."""
        ledger = self.w.ledger
        for key in ledger.unresolved():
            e = ledger.effects[key]
            work = Work(message=e.message, step=e.step, writer="scripted")
            r = self.control(kinds.EFFECT_FAILED, facts.EffectFailed(effect=key, policy=e.policy, final=True))
            r = codec.with_changes(r, work=work, sender_id=e.agent, generation=self.w.generation)
            self.accepted(r)
        while ledger.owed():
            fact = facts.Compensation(effect=ledger.owed()[0])
            self.accepted(self.control(kinds.COMPENSATION_STARTED, fact))
            self.accepted(self.control(kinds.COMPENSATION_COMPLETED, fact))

    def deliver(self, duty: Duty) -> None:
        fact = facts.Delivered(subject=duty.subject, n=duty.n, cancel=duty.what == "cancel")
        self.accepted(self.control(kinds.DELIVERED, fact))
        if duty.what == "copy" and self.w.view.awaited(duty.subject):
            origin = Origin(workflow="child", id=f"answer{next(self.numbers)}")
            answer = AgentMessage(
                id=f"copy{next(self.numbers)}", sender_id="cid", receiver_id="ann", message_type=kinds.TASK_RESPONSE,
                correlation_id=WORKFLOW, in_reply_to=duty.subject, origin=origin,
            )  # fmt: skip
            self.accepted(answer)

    def finish(self) -> None:
        """Do all that is to be done."""
        w = self.w
        for _ in range(MANY):
            if w.is_complete():
                return
            self.settle_effects()
            for duty in w.duties():
                self.deliver(duty)
            for agent, message in list(w.view.holding):
                self.accepted(self.control(kinds.DISCARDED, facts.Discarded(agent=agent, message=message)))
            for h in w.open_handlings()[:1]:
                self.end(h)
        raise AssertionError(f"not complete after {MANY} rounds")
