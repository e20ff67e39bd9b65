"""Rules that random histories seldom meet, each by an example that hangs on it. The model judges it too."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from histories import WORKFLOW, Event, Story
from test_fold_model import expected, seen, step as fold_step

from refold.bus import codec, facts, ids
from refold.bus.message import Expected, Origin
from refold.projections.view import Handling, Step
from refold.projections.workflow import Workflow


class Play(Story):
    """A history that is told, not drawn; product and model are compared after each record."""

    def __init__(self) -> None:
        super().__init__(self._compare)
        self.w = Workflow(WORKFLOW)
        self.last = ""

    def _compare(self, event: Event, verdict: str | None) -> None:
        assert fold_step(self.w, event) == verdict
        assert seen(self.w) == expected(self.model)
        self.last = str(verdict)

    def ask(self, agent: str = "ann", **fields: Any) -> tuple[str, str]:
        """A client asks; returns the handling."""
        m = self.outside("client", agent, "task_request", asked=True, **fields)
        self.append(m)
        return agent, m.id

    def write(self, key: tuple[str, str], kind: str, step: str = "", **fields: Any) -> str:
        """The handling writes; returns the verdict."""
        self.append(self.work(key, kind, step, **fields))
        return self.last

    def note(self, to: str, kind: str = "note", sender: str = "boss") -> str:
        m = self.outside(sender, to, kind)
        self.append(m)
        return m.id

    def operator(self, kind: str, fact: facts.Fact, **fields: Any) -> str:
        self.append(self.outside("operator", "*", kind, fact=fact, **fields))
        return self.last

    def roll_back(self, to: int, *again: str) -> None:
        fact = facts.RolledBack(to_version=to, op_id=f"op{self.count}", reapply=again)
        now = Expected(generation=self.w.generation, inputs=self.w.view.inputs)
        assert self.operator("rolled_back", fact, expected=now) == "admitted"

    def fail(self, key: tuple[str, str], *causes: str) -> None:
        report = facts.Call(causes=causes)
        assert self.write(key, "error_report", done=True, in_reply_to=key[1], fact=report) == "admitted"

    def redrive(self, key: tuple[str, str], keep: str = "") -> str:
        return self.operator("redriven", facts.Redriven(agent=key[0], message=key[1], keep=keep))

    def spawn(self, key: tuple[str, str], step: str) -> str:
        r = self.work(key, "task_request", step, receiver_id="cid", asked=True)
        self.append(codec.with_changes(r, to=ids.child_correlation(r.id)))
        return r.id

    def child_answers(self, spawn: str) -> str:
        origin = Origin(workflow="child", id=f"a{self.count}")
        self.append(self.outside("cid", "ann", "task_response", in_reply_to=spawn, origin=origin))
        return self.last

    def handling_of(self, key: tuple[str, str]) -> Handling:
        return self.w.view.handlings[key[1]][key[0]]

    def step_of(self, key: tuple[str, str], step: str) -> Step:
        return self.handling_of(key).steps[step]


@pytest.fixture
def play() -> Play:
    return Play()


def receives(kind: str = "note") -> facts.TimerSet:
    return facts.TimerSet(kind=kind)


def test_a_failure_that_is_not_admitted_leaves_an_effect_whose_intent_stands_in_flight(play):
    key = play.ask()
    effect = ids.effect_key(WORKFLOW, *key, "1", 0)
    intent = facts.EffectIntended(effect=effect, policy="compensate")
    assert play.write(key, "effect_intended", "1", fact=intent) == "admitted"
    failed = facts.EffectFailed(effect=effect, policy="compensate", final=True)
    assert play.write(key, "effect_failed", "1", round=1, fact=failed) == "ledger"
    assert play.w.ledger.effects[effect].status == "intended"
    play.roll_back(1)
    assert play.w.ledger.unresolved() == [effect]
    assert play.write(key, "effect_failed", "1", generation=0, fact=failed) == "ledger"
    assert play.w.ledger.unresolved() == []  # no intent stands on the path any more: the failure counts


def test_a_receive_that_a_redrive_forgets_takes_its_message_again(play):
    key = play.ask()
    play.write(key, "state_changed", "1", fact=facts.StateChanged())
    play.write(key, "timer_set", "2", fact=receives())
    first, second = play.note("ann"), play.note("ann")
    assert play.step_of(key, "2").took == first
    play.fail(key, "1")
    assert play.redrive(key) == "admitted"
    assert play.handling_of(key).steps == {}
    play.write(key, "timer_set", "1", fact=receives())
    play.write(key, "timer_set", "2", fact=receives())
    assert [play.step_of(key, s).took for s in ("1", "2")] == [first, second]


def test_a_receive_that_a_redrive_forgets_looks_through_all_that_came_again(play):
    key = play.ask()
    first = play.note("ann")
    play.write(key, "timer_set", "1", fact=receives())
    assert play.step_of(key, "1").took == first
    play.fail(key, "1")
    assert play.redrive(key) == "admitted"
    play.write(key, "timer_set", "1", fact=receives())
    assert play.step_of(key, "1").took == first


def test_a_receive_that_a_redrive_keeps_takes_what_came_while_its_handling_was_over(play):
    key = play.ask()
    play.write(key, "timer_set", "1.1.1", fact=receives())
    play.write(key, "state_changed", "1.2.1", fact=facts.StateChanged())
    play.fail(key, "1.2.1")
    came = play.note("ann")
    assert play.redrive(key) == "admitted"
    assert play.step_of(key, "1.1.1").took == came


def test_a_message_that_a_receive_took_obliges_nobody_not_even_who_comes_to_listen_later(play):
    key = play.ask()
    play.write(key, "timer_set", "1", fact=receives())
    play.note("ann")
    for agent in ("ann", "bob"):
        play.claim(agent, ("note",))
    assert [h.key for h in play.w.open_handlings()] == [key]
    everybodys = play.note("*")
    assert {h.agent for h in play.w.open_handlings() if h.message == everybodys} == set()


def test_a_broadcast_that_others_work_on_is_over_for_them_when_a_receive_takes_it(play):
    play.listeners = {"ann": ("note",), "bob": ("note",)}
    key = play.ask()
    note = play.note("*")
    assert play.write(("bob", note), "state_changed", "1", fact=facts.StateChanged()) == "admitted"
    play.write(key, "timer_set", "1", fact=receives())
    assert [h.key for h in play.w.open_handlings()] == [key]
    assert play.write(("bob", note), "handled", done=True) == "void"


def test_what_was_cancelled_before_its_agent_was_heard_of_obliges_it_no_more(play):
    before = play.note("ann")
    play.operator("cancelled", facts.Cancelled())
    after = play.note("ann")
    play.claim("ann", ("note",))
    assert [h.message for h in play.w.open_handlings()] == [after]
    assert play.write(("ann", before), "handled", done=True) == "void"


def test_whom_a_message_obliged_it_obliges_after_a_rollback(play):
    note = play.note("ann")
    play.claim("ann", ("note",))
    play.listeners = {"ann": ("other",)}  # its newest owner wants something else
    assert play.write(("ann", note), "state_changed", "1", fact=facts.StateChanged()) == "admitted"
    play.roll_back(0, note)
    assert [h.key for h in play.w.open_handlings()] == [("ann", note)]


def test_a_message_that_a_lost_receive_took_obliges_its_listener_on_the_new_path(play):
    play.listeners = {"ann": ("note",)}
    key = play.ask()
    play.write(key, "timer_set", "1", fact=receives())
    note = play.note("ann")
    assert [h.key for h in play.w.open_handlings()] == [key]
    play.roll_back(1, note)
    assert [h.key for h in play.w.open_handlings()] == [key, ("ann", note)]


def test_an_answer_that_was_refused_makes_a_delivered_request_owed_again_after_a_rollback(play):
    key = play.ask()
    spawn = play.spawn(key, "1")
    play.append(play.outside("ann", "*", "delivered", fact=facts.Delivered(subject=spawn)))
    play.write(key, "timer_fired", "1", fact=facts.TimerFired())
    assert play.child_answers(spawn) == "late"
    assert play.w.duties() == []
    play.roll_back(2)
    assert [(d.what, d.subject, d.n) for d in play.w.duties()] == [("copy", spawn, 1)]
    assert play.operator("delivered", facts.Delivered(subject=spawn, n=2)) == "invalid"
    assert play.operator("delivered", facts.Delivered(subject=spawn, n=1)) == "ledger"
    assert play.w.duties() == []
    assert play.child_answers(spawn) == "admitted"


def test_a_request_whose_delivery_was_never_marked_is_owed_for_the_first_time_whatever_was_refused(play):
    key = play.ask()
    spawn = play.spawn(key, "1")
    play.write(key, "timer_fired", "1", fact=facts.TimerFired())
    assert play.child_answers(spawn) == "late"
    play.roll_back(2)
    assert [(d.what, d.n) for d in play.w.duties()] == [("copy", 0)]


def test_a_child_that_no_step_waits_for_is_cancelled_unless_its_answer_was_judged(play):
    key = play.ask()
    left, answered = play.spawn(key, "1"), play.spawn(key, "2")
    assert play.child_answers(answered) == "admitted"
    play.operator("cancelled", facts.Cancelled())
    assert [(d.what, d.subject) for d in play.w.duties()] == [("cancel", left)]
    assert play.operator("delivered", facts.Delivered(subject=answered, n=1)) == "invalid"
    assert play.operator("delivered", facts.Delivered(subject=left, cancel=True)) == "ledger"
    assert play.operator("delivered", facts.Delivered(subject=left, cancel=True, n=1)) == "invalid"
    assert play.w.is_complete()


def test_a_persons_answer_to_what_another_workflow_asked_is_carried_by_the_owner_of_who_was_asked(play):
    origin = Origin(workflow="parent", id="spawn1", step="1")
    _, message = play.ask("cid", origin=origin)
    play.append(play.outside("person", "boss", "task_response", in_reply_to=message, to="parent"))
    assert [(d.what, d.to, d.agent) for d in play.w.duties()] == [("copy", "parent", "cid")]


def test_what_a_client_means_for_another_workflow_is_nobodys_to_carry(play):
    play.append(play.outside("client", "bob", "note", to="parent"))
    assert play.last == "admitted"
    assert play.w.is_complete()


def test_a_cancel_of_another_workflows_request_of_the_same_name_revokes_nothing(play):
    play.operator("cancelled", facts.Cancelled(), origin=Origin(workflow="stranger", id="spawn1"))
    start = {"asked": True, "origin": Origin(workflow="parent", id="spawn1")}
    play.append(play.outside("boss", "ann", "task_request", **start))
    assert play.last == "admitted"
    play.operator("cancelled", facts.Cancelled(), origin=Origin(workflow="parent", id="spawn1"))
    play.append(play.outside("boss", "ann", "task_request", **start))
    assert play.last == "late"


def test_a_handling_that_is_open_starts_anew_only_when_it_is_parked(play):
    key = play.ask()
    play.write(key, "state_changed", "1", fact=facts.StateChanged())
    assert play.redrive(key, "none") == "invalid"
    play.write(key, "attempt_failed", fact=facts.AttemptFailed(parked="divergence"))
    assert play.redrive(key) == "invalid"
    assert play.redrive(key, "none") == "admitted"
    assert (play.handling_of(key).round, play.handling_of(key).steps) == (1, {})


def test_a_redrive_is_refused_while_a_step_that_is_kept_has_the_answer(play):
    key = play.ask()
    r = play.work(key, "task_request", "1", receiver_id="bob", asked=True)
    play.append(r)
    callee = ("bob", r.id)
    play.fail(callee)
    assert play.redrive(callee) == "invalid"
    play.fail(key, "1")
    assert play.redrive(key) == "admitted"
    assert play.redrive(callee) == "admitted"  # nothing kept has used that answer


def test_corrections_that_are_no_messages_of_this_workflow_refuse_a_rollback(play):
    play.ask()
    now = Expected(generation=0, inputs=1)
    good = play.outside("client", "ann", "note")
    bad: list[bytes] = [
        b'{"x":1}', b"[]", codec.encode(codec.with_changes(good, correlation_id="other")),
        codec.encode(codec.with_changes(good, answers="m0")),
    ]  # fmt: skip
    for i, raw in enumerate(bad):
        fact = facts.RolledBack(to_version=0, op_id=f"bad{i}", with_inputs=(codec_raw(raw),))
        assert play.operator("rolled_back", fact, expected=now) == "invalid"
    fact = facts.RolledBack(to_version=0, op_id="good", with_inputs=(codec_raw(codec.encode(good)),))
    assert play.operator("rolled_back", fact, expected=now) == "admitted"


def codec_raw(raw: bytes) -> Any:
    return msgspec.Raw(raw)


def test_a_kind_of_a_users_own_that_ends_like_a_failure_is_final(play):
    key = play.ask()
    assert play.write(key, "payment_failed", "1") == "admitted"
    assert play.w.attempt(*key, "1") == 0


def test_the_first_answer_goes_again_to_a_request_that_came_again_and_a_redrive_takes_it_back(play):
    origin = Origin(workflow="parent", id="spawn1")
    key = play.ask(origin=origin)
    play.fail(key)  # an error_report that is not addressed to the parent: it is owed
    play.ask(origin=origin)
    assert sorted(d.what for d in play.w.duties()) == ["answer", "answer"]
    assert play.redrive(key) == "admitted"
    assert play.w.duties() == []
    assert play.write(key, "task_response", done=True, in_reply_to=key[1], to="parent") == "admitted"
    assert [d.what for d in play.w.duties()] == ["copy"]


def test_messages_are_worked_on_in_log_order_also_when_their_agent_comes_late(play):
    first = play.note("ann")
    later = play.ask("ann")
    play.claim("ann", ("note",))
    assert [h.message for h in play.w.agenda("ann")] == [first, later[1]]




def test_a_handling_that_owes_an_answer_is_not_done_without_one(play):
    key, other = play.ask(), play.ask("bob")
    assert play.write(key, "handled", done=True) == "invalid"
    assert play.write(key, "note", "1", done=True) == "invalid"
    assert play.write(key, "task_response", done=True, in_reply_to=other[1]) == "invalid"
    assert not play.handling_of(key).closed
    assert play.write(key, "task_response", done=True, in_reply_to=key[1]) == "admitted"
    assert play.handling_of(key).closed


def test_what_cannot_be_taken_back_refuses_a_rollback_that_is_not_forced(play):
    key = play.ask()
    effect = ids.effect_key(WORKFLOW, *key, "1", 0)
    done = facts.EffectCompleted(effect=effect, policy="irreversible")
    assert play.write(key, "effect_completed", "1", fact=done) == "admitted"
    now = Expected(generation=0, inputs=1)
    fact = facts.RolledBack(to_version=1, op_id="one")
    assert play.operator("rolled_back", fact, expected=now) == "invalid"
    assert play.operator("rolled_back", msgspec.structs.replace(fact, force=True), expected=now) == "admitted"


def test_what_was_completed_last_is_compensated_first_and_called_again_under_another_key(play):
    key = play.ask()
    effects = [ids.effect_key(WORKFLOW, *key, step, 0) for step in ("1", "2")]
    for step, effect in zip(("1", "2"), effects, strict=True):
        play.write(key, "effect_completed", step, fact=facts.EffectCompleted(effect=effect, policy="compensate"))
    play.roll_back(1)
    assert play.w.ledger.owed() == effects[::-1]
    fact = facts.Compensation(effect=effects[1])
    assert play.operator("compensation_started", facts.Compensation(effect=effects[0])) == "invalid"
    assert play.operator("compensation_started", fact) == "ledger"
    assert play.w.ledger.owed() == effects[::-1]
    assert play.operator("compensation_completed", fact) == "ledger"
    assert play.w.ledger.owed() == effects[:1]
    assert play.w.ledger.issue_number(play.w.view, *key, "2") == 1


def test_an_answer_to_a_step_that_stays_stays_after_a_rollback(play):
    key = play.ask()
    spawn = play.spawn(key, "1")
    play.write(key, "state_changed", "2", fact=facts.StateChanged())
    assert play.child_answers(spawn) == "admitted"
    play.roll_back(2)
    assert play.step_of(key, "1").settled
    play.roll_back(1)
    assert play.handling_of(key).steps == {}


def test_what_a_message_says_of_its_urgency_and_its_time_stands_in_its_handling(play):
    play.listeners["ann"] = ("note",)
    m = play.outside("boss", "ann", "note", priority=2, ttl=30.0)
    play.append(m)
    h = play.handling_of(("ann", m.id))
    assert (h.kind, h.priority, h.inside, h.expires) == ("note", 2, False, m.timestamp + 30.0)
    assert play.write(("ann", m.id), "task_request", "1", receiver_id="bob", asked=True, priority=9) == "admitted"
    (asked,) = [h for h in play.w.open_handlings() if h.agent == "bob"]
    assert (asked.kind, asked.priority, asked.inside, asked.expires) == ("task_request", 9, True, None)


def test_a_handling_that_is_redriven_and_its_request_are_as_if_nothing_had_ended(play):
    key = play.ask()
    play.fail(key)
    assert play.handling_of(key).end == "error_report"
    assert play.w.view.requests[key[1]].answer_kind == "error_report"
    assert play.redrive(key) == "admitted"
    h, q = play.handling_of(key), play.w.view.requests[key[1]]
    assert (h.round, h.closed, h.end, h.causes, h.dead, h.tries, h.due, h.parked) == (1, 0, "", (), "", 0, None, "")
    assert (q.answered, q.answer, q.answer_id, q.answer_kind) == (0, (0, -1), "", "")


def test_an_effect_that_failed_for_good_and_is_begun_again_by_a_redrive_is_in_flight_again(play):
    key = play.ask()
    effect = ids.effect_key(WORKFLOW, *key, "1", 0)
    intent = facts.EffectIntended(effect=effect, policy="compensate")
    play.write(key, "effect_intended", "1", fact=intent)
    play.write(key, "effect_failed", "1", fact=facts.EffectFailed(effect=effect, policy="compensate", final=True))
    assert play.w.ledger.effects[effect].status == "failed"
    play.fail(key, "1")
    play.redrive(key)
    assert play.write(key, "effect_intended", "1", fact=intent) == "admitted"
    assert play.w.ledger.effects[effect].status == "intended"
    play.roll_back(1)
    assert play.w.ledger.unresolved() == [effect]


def test_a_compensation_that_ends_although_it_was_waived_has_compensated(play):
    key = play.ask()
    effect = ids.effect_key(WORKFLOW, *key, "1", 0)
    play.write(key, "effect_completed", "1", fact=facts.EffectCompleted(effect=effect, policy="compensate"))
    play.roll_back(1)
    fact = facts.Compensation(effect=effect)
    for kind, status in (
        ("compensation_started", "compensating"), ("compensation_waived", "waived"),
        ("compensation_completed", "compensated"),
    ):  # fmt: skip
        assert play.operator(kind, fact) == "ledger"
        assert play.w.ledger.effects[effect].status == status


def test_what_was_delivered_is_not_looked_at_again(play):
    key = play.ask()
    spawn = play.spawn(key, "1")
    assert list(play.w.ledger.pending) == [spawn]
    assert play.operator("delivered", facts.Delivered(subject=spawn)) == "ledger"
    assert list(play.w.ledger.pending) == []
    assert play.w.duties() == []


def test_what_was_waived_after_it_was_completed_stays_so_and_what_was_parked_may_still_end(play):
    key = play.ask()
    effects = [ids.effect_key(WORKFLOW, *key, step, 0) for step in ("1", "2")]
    for step, effect in zip(("1", "2"), effects, strict=True):
        play.write(key, "effect_completed", step, fact=facts.EffectCompleted(effect=effect, policy="compensate"))
    play.roll_back(1)
    assert play.operator("compensation_started", facts.Compensation(effect=effects[1])) == "ledger"
    assert play.operator("compensation_failed", facts.Compensation(effect=effects[1], final=True)) == "ledger"
    assert play.w.ledger.parked() == [effects[1]]
    assert play.operator("compensation_completed", facts.Compensation(effect=effects[1])) == "ledger"
    assert play.w.ledger.effects[effects[1]].status == "compensated"
    assert play.operator("compensation_waived", facts.Compensation(effect=effects[0])) == "ledger"
    intent = facts.EffectIntended(effect=effects[0], policy="compensate")
    assert play.write(key, "effect_intended", "1", fact=intent) == "admitted"
    assert play.w.ledger.effects[effects[0]].status == "waived"


def test_who_waits_for_a_kind_goes_on_waiting_when_another_who_waits_for_it_is_over(play):
    ann, bob = play.ask("ann"), play.ask("bob")
    for key in (ann, bob):
        play.write(key, "timer_set", "1", fact=receives())
    play.fail(ann)
    note = play.note("*")
    step = play.step_of(bob, "1")
    assert (step.took, step.failed, step.value_kind) == (note, False, "note")
    assert play.w.view.receiving == {}


def test_starts_are_counted_until_something_is_recorded(play):
    key = play.ask()
    for alone in (False, True, True):
        assert play.write(key, "attempt_started", fact=facts.AttemptStarted(alone=alone)) == "admitted"
    assert (play.handling_of(key).starts, play.handling_of(key).lone_starts) == (3, 2)
    play.write(key, "state_changed", "1", fact=facts.StateChanged())
    assert (play.handling_of(key).starts, play.handling_of(key).lone_starts) == (0, 0)


def test_an_effect_whose_step_calls_another_one_since_is_not_held_any_more(play):
    key = play.ask()
    first, second = (ids.effect_key(WORKFLOW, *key, "1", n) for n in (0, 1))
    intended = [facts.EffectIntended(effect=effect, policy="compensate") for effect in (first, second)]
    play.write(key, "effect_intended", "1", fact=intended[0])
    intent = play.w.view.path[-1].id
    assert play.write(key, "effect_unknown", "1", fact=facts.EffectUnknown(intent=intent)) == "admitted"
    assert play.w.ledger.unresolved() == []
    assert play.write(key, "effect_intended", "1", fact=intended[1]) == "admitted"
    assert play.w.ledger.unresolved() == [first]


def test_what_a_parked_handling_asked_is_given_up_by_its_redrive_and_says_so(play):
    key = play.ask()
    play.write(key, "task_request", "1", receiver_id="bob", asked=True)
    asked = play.w.view.path[-1].id
    parked = facts.AttemptFailed(error="Divergence", parked="divergence")
    play.write(key, "attempt_failed", fact=parked)
    assert play.redrive(key, keep="none") == "admitted"
    assert play.w.view.requests[asked].answer_kind == "redriven"
    assert play.w.view.handlings[asked]["bob"].end == "request redriven"


def test_receives_that_a_redrive_keeps_take_their_messages_in_the_order_in_which_they_began_to_wait(play):
    key = play.ask()
    play.write(key, "timer_set", "1.2.1", fact=receives())
    play.write(key, "timer_set", "1.1.1", fact=receives())
    play.fail(key)
    first, second = play.note("ann"), play.note("ann")
    play.redrive(key)
    assert [play.step_of(key, path).took for path in ("1.2.1", "1.1.1")] == [first, second]


def test_what_is_known_to_have_failed_may_be_dropped_although_it_could_not_be_taken_back(play):
    key = play.ask()
    effect = ids.effect_key(WORKFLOW, *key, "1", 0)
    play.write(key, "effect_intended", "1", fact=facts.EffectIntended(effect=effect, policy="irreversible"))
    intent = play.w.view.path[-1].id
    play.write(key, "effect_unknown", "1", fact=facts.EffectUnknown(intent=intent))
    failed = facts.EffectFailed(effect=effect, policy="irreversible", final=True)
    assert play.write(key, "effect_failed", "1", round=1, fact=failed) == "ledger"
    assert play.w.ledger.effects[effect].status == "failed"
    play.fail(key)
    assert play.redrive(key, keep="none") == "admitted"


def test_a_correction_is_an_input_from_outside_whatever_generation_it_was_written_with(play):
    play.ask()
    fix = codec.encode(play.outside("client", "ann", "note", generation=0))
    now = Expected(generation=0, inputs=1)
    fact = facts.RolledBack(to_version=1, op_id="fixed", with_inputs=(msgspec.Raw(fix),))
    assert play.operator("rolled_back", fact, expected=now) == "admitted"
    assert play.w.view.inputs == 2
    assert play.w.view.path[-1].envelope.generation is None


def test_an_effect_that_was_waived_before_it_had_happened_and_is_begun_again_is_in_flight_again(play):
    key = play.ask()
    effect = ids.effect_key(WORKFLOW, *key, "1", 0)
    intent = facts.EffectIntended(effect=effect, policy="compensate")
    play.write(key, "effect_intended", "1", fact=intent)
    play.roll_back(1)
    assert play.w.ledger.unresolved() == [effect]
    assert play.operator("compensation_waived", facts.Compensation(effect=effect)) == "ledger"
    assert play.w.ledger.effects[effect].status == "waived"
    assert play.write(key, "effect_intended", "1", fact=intent) == "admitted"
    assert play.w.ledger.effects[effect].status == "intended"


def test_a_handling_that_goes_on_waits_for_no_next_attempt(play):
    key = play.ask()
    failed = facts.AttemptFailed(error="Oops", due=90.0)
    assert play.write(key, "attempt_failed", fact=failed) == "admitted"
    h = play.handling_of(key)
    assert (h.tries, h.due) == (1, 90.0)
    assert play.write(key, "status_update", "1") == "admitted"
    assert (h.tries, h.due) == (1, None)


def test_a_redrive_forgets_how_often_the_handling_had_started(play):
    key = play.ask()
    parked = facts.AttemptFailed(error="Divergence", parked="divergence")
    play.write(key, "attempt_failed", fact=parked)
    play.write(key, "attempt_started", fact=facts.AttemptStarted(alone=True))
    h = play.handling_of(key)
    assert (h.starts, h.lone_starts) == (1, 1)
    assert play.redrive(key, keep="none") == "admitted"
    assert (h.starts, h.lone_starts, h.parked) == (0, 0, "")


def test_where_a_record_is_stands_on_the_path(play):
    key = play.ask()
    play.write(key, "state_changed", "1", fact=facts.StateChanged())
    assert [entry.ref for entry in play.w.view.path] == [(1, -1), (2, -1)]
    assert play.step_of(key, "1").value == (2, -1)
