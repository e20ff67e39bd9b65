"""Histories of one workflow: what clients, agents, operators, other workflows, zombies and strangers may append to it.

A history is played from a tape of small numbers, so that Hypothesis can shorten it. What is plausible next is asked of
the model (`model.py`), never of the product. Records that are held back for a while before they are appended are the
zombies: they believe in a generation, a round or a step that has gone since.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec
from hypothesis import strategies as st
from model import Key, Listeners, Model

from refold.bus import codec, facts, ids
from refold.bus.message import AgentMessage, Expected, Origin, Work

WORKFLOW = "w"
PARENT = "parent"
AGENTS = ("ann", "bob", "cid")
NOTES = ("status_update", "note", "tick")
STEPS = ("1", "2", "3", "4", "2.1", "2.2", "2.1.1", "2.2.1", "3.1", "3.2")
POLICIES = ("idempotent", "compensate", "compensate", "retain", "irreversible")

Move = tuple[int, int, int, int]


class Claimed(NamedTuple):
    """The partition's `owner` record named this agent, which did not listen before."""

    agent: str
    kinds: tuple[str, ...]


class Appended(NamedTuple):
    """A record of the workflow, and who listened when it came."""

    position: int
    raw: bytes
    listeners: Listeners


Event = Claimed | Appended
Watch = Callable[[Event, str | None], None]


class Story:
    """Plays moves and keeps what came of them. Stops by itself when the tape ends.

    `watch` is called after each event, with the model's verdict (None after a claim).
    """

    def __init__(self, watch: Watch | None = None) -> None:
        self.model = Model()
        self.watch: Watch = watch or (lambda event, verdict: None)
        self.events: list[Event] = []
        self.listeners: Listeners = {}
        self.held: list[AgentMessage] = []
        self.written: list[AgentMessage] = []
        self.count = 0
        self.numbers: list[int] = []
        self.holding = False

    # ---- the tape
    def play(self, tape: Iterable[Move]) -> list[Event]:
        for which, *rest in tape:
            self.numbers = list(rest)
            self.holding = which >= 240
            MOVES[which % len(MOVES)](self)
        return self.events

    def number(self) -> int:
        """The next number of this move; the last ones are made from it."""
        n = self.numbers.pop(0) if self.numbers else 0
        if not self.numbers:
            self.numbers.append((n * 73 + 41) % 256)
        return n

    def pick(self, options: Iterable[Any]) -> Any:
        """One of some options, None if there is none."""
        found = list(options)
        return found[self.number() % len(found)] if found else None

    def chance(self, percent: int) -> bool:
        return self.number() * 100 < percent * 256

    # ---- appending
    def say(self, message: AgentMessage) -> None:
        if self.holding:
            self.held.append(message)
        else:
            self.append(message)

    def append(self, message: AgentMessage) -> None:
        raw = codec.encode(message)
        self.written.append(message)
        self.count += 1
        event = Appended(self.count, raw, dict(self.listeners))
        self.events.append(event)
        self.watch(event, self.model.admit(raw, self.listeners))

    def claim(self, agent: str, wanted: tuple[str, ...]) -> None:
        """An `owner` record names an agent that did not listen."""
        event = Claimed(agent, wanted)
        self.events.append(event)
        self.model.claim(agent, wanted)
        self.watch(event, None)

    def fresh(self) -> str:
        return f"m{self.count}-{len(self.held)}-{len(self.written)}"

    def outside(self, sender: str, receiver: str, kind: str, **fields: Any) -> AgentMessage:
        fields.setdefault("id", self.fresh())
        return AgentMessage(
            sender_id=sender, receiver_id=receiver, message_type=kind, correlation_id=WORKFLOW,
            timestamp=float(self.count), **fields,
        )  # fmt: skip

    def work(self, key: Key, kind: str, step: str = "", done: bool = False, **fields: Any) -> AgentMessage:
        """A record of the handling `key`, as its owner writes it now."""
        agent, message = key
        round = fields.pop("round", self.model.now.rounds.get(key, 0))
        generation = fields.pop("generation", self.model.generation)
        attempt = self.model.attempt(agent, message, round, step)
        fields.setdefault("id", ids.derived(WORKFLOW, generation, agent, message, round, step, attempt, kind))
        fields.setdefault("receiver_id", "*")
        return AgentMessage(
            sender_id=agent, message_type=kind, correlation_id=WORKFLOW, timestamp=float(self.count),
            causation_id=message, generation=generation,
            work=Work(message=message, step=step, round=round, attempt=attempt, writer="run", done=done), **fields,
        )  # fmt: skip

    # ---- what may be said
    def handling(self) -> Key | None:
        """An open handling; where there is none, a client asks for something instead."""
        found: Key | None = self.pick(sorted(self.model.now.open()))
        if found is None:
            request(self)
        return found

    def any_handling(self) -> Key | None:
        key: Key | None = self.pick(sorted(self.model.now.opened))
        return key

    def any_request(self) -> str | None:
        found: str | None = self.pick(self.model.now.requests)
        return found

    def free_step(self, key: Key) -> str:
        used = {s for k, s in self.model.now.calls if k == key}
        free = [s for s in STEPS if s not in used]
        return str(self.pick(free[:3]) if free and self.chance(90) else self.pick(STEPS))

    def pending_step(self, key: Key) -> str | None:
        found: str | None = self.pick(s for (k, s), c in self.model.now.calls.items() if k == key and not c.settled)
        return found


# ---- from outside ----------------------------------------------------------------------------------------------------
def request(s: Story) -> None:
    s.say(s.outside("client", s.pick(AGENTS), "task_request", asked=s.chance(85), ttl=s.pick([None, 60.0])))


def start(s: Story) -> None:
    """Of a workflow that must not exist, or of one that is believed to have some version."""
    version = s.pick([0, 0, s.model.now.version, s.number() % 8])
    s.say(s.outside("client", s.pick(AGENTS), "task_request", asked=True, expected=Expected(version=version)))


def asked_by_parent(s: Story) -> None:
    workflow = PARENT if s.chance(85) else "stranger"
    origin = Origin(workflow=workflow, id=f"spawn{s.number() % 4}", step="1")
    s.say(s.outside("boss", s.pick(AGENTS), "task_request", asked=s.chance(90), origin=origin))


def note(s: Story) -> None:
    s.say(s.outside(s.pick(["client", *AGENTS]), s.pick([*AGENTS, "*", "nobody"]), s.pick(NOTES)))


def person_answers(s: Story) -> None:
    if q := s.any_request():
        kind = s.pick(["task_response", "task_response", "error_report", "note"])
        to = PARENT if s.chance(30) else None
        s.say(s.outside("person", "client", kind, in_reply_to=q, to=to))


# ---- who listens -----------------------------------------------------------------------------------------------------
def owner(s: Story) -> None:
    agent = s.pick([*AGENTS, "nobody"])
    wanted = tuple(k for k in NOTES if s.chance(60))
    if agent not in s.listeners:
        s.claim(agent, wanted)
    s.listeners = {**s.listeners, agent: wanted}


def retired(s: Story) -> None:
    agent = s.pick(s.listeners)
    s.listeners = {a: k for a, k in s.listeners.items() if a != agent}


# ---- a handler's calls -----------------------------------------------------------------------------------------------
def effect(s: Story) -> None:
    """The next record of an effect: its intent, its outcome, or that nobody knows it."""
    key = s.handling()
    if key is None:
        return
    v = s.model.now
    guarded = [p for (k, p), c in v.calls.items() if k == key and c.effect and not c.settled]
    step = s.pick(guarded) if guarded and s.chance(80) else s.free_step(key)
    call = v.calls.get((key, step))
    known = s.model.ledger.effects.get(call.effect) if call and call.effect else None
    policy = known.policy if known else s.pick(POLICIES)
    effect = ids.effect_key(WORKFLOW, *key, step, s.model.ledger.issues(*key, step))
    if call and call.intent and s.chance(20):
        s.say(s.work(key, "effect_unknown", step, fact=facts.EffectUnknown(intent=call.intent)))
    elif policy != "idempotent" and not (call and call.intent):
        s.say(s.work(key, "effect_intended", step, fact=facts.EffectIntended(effect=effect, policy=policy)))
    elif s.chance(65):
        s.say(s.work(key, "effect_completed", step, fact=facts.EffectCompleted(effect=effect, policy=policy)))
    else:
        final = s.chance(60)
        fact = facts.EffectFailed(effect=effect, policy=policy, final=final, due=None if final else 8.0 + s.number())
        s.say(s.work(key, "effect_failed", step, fact=fact))


def ask(s: Story) -> None:
    if key := s.handling():
        asked = s.chance(90)
        step, deadline = s.free_step(key), s.pick([None, None, 7.0 + s.number()])
        s.say(s.work(key, "task_request", step, receiver_id=s.pick(AGENTS), asked=asked, deadline=deadline))


def spawn(s: Story) -> None:
    if key := s.handling():
        record = s.work(key, "task_request", s.free_step(key), receiver_id="cid", asked=True)
        s.say(msgspec.structs.replace(record, to=ids.child_correlation(record.id)))


def wait(s: Story) -> None:
    if key := s.handling():
        kind = s.pick(["", *NOTES])
        due = s.pick([None, 9.0, 5.0 + s.number()])
        s.say(s.work(key, "timer_set", s.free_step(key), fact=facts.TimerSet(due=due, kind=kind)))


def fire(s: Story) -> None:
    """A timer reaches its end: a wait's, or a request's."""
    key = s.handling()
    step = s.pending_step(key) if key else None
    if key and step:
        s.say(s.work(key, "timer_fired", step, fact=facts.TimerFired()))


def output(s: Story) -> None:
    if key := s.handling():
        kind = s.pick([*NOTES, "state_changed"])
        to = PARENT if s.chance(20) else None
        s.say(s.work(key, kind, s.free_step(key), receiver_id=s.pick([*AGENTS, "*"]), to=to))


# ---- how a handling ends ---------------------------------------------------------------------------------------------
def complete(s: Story) -> None:
    """As it must: with the answer that it owes, else with its last output, else with `handled`."""
    key = s.handling()
    if key is None:
        return
    owes = s.model.now.owes(key)
    if owes is None:
        kind = s.pick(["handled", "handled", *NOTES])
        s.say(s.work(key, kind, "" if kind == "handled" else s.free_step(key), done=True))
        return
    q = s.model.now.requests[owes]
    error = s.chance(40)
    s.say(s.work(
        key, "error_report" if error else "task_response", done=True, in_reply_to=s.pick([owes, owes, key[1]]),
        receiver_id=q.sender, to=q.origin["workflow"] if q.origin else None,
        fact=facts.Call(causes=causes(s, key)) if error else None,
    ))  # fmt: skip


def causes(s: Story, key: Key) -> tuple[str, ...]:
    """Steps of a handling that failed, or some step."""
    settled = [p for (k, p), c in s.model.now.calls.items() if k == key and c.settled]
    return tuple(p for p in settled if s.chance(40))


def forward(s: Story) -> None:
    key = s.handling()
    owes = s.model.now.owes(key) if key else None
    if key and owes:
        s.say(s.work(
            key, "task_request", s.free_step(key), done=True, receiver_id=s.pick(AGENTS),
            answers=owes if s.chance(90) else s.any_request(), asked=s.chance(5),
        ))  # fmt: skip


def dead_letter(s: Story) -> None:
    """A dead letter, and the error_report that follows it when somebody waits (a crash may come between)."""
    key = s.handling()
    if key is None:
        return
    owes = s.model.now.owes(key)
    fact = facts.DeadLettered(causes=causes(s, key))
    s.say(s.work(key, "dead_lettered", done=owes is None or s.chance(10), fact=fact))
    if owes is not None and s.chance(60):
        report = facts.Call(causes=fact.causes)
        s.say(s.work(key, "error_report", done=True, in_reply_to=owes, receiver_id="client", fact=report))


def attempt(s: Story) -> None:
    if key := s.handling():
        kind = s.pick(["attempt_started", "attempt_failed", "attempt_failed"])
        parked = facts.AttemptFailed(parked="divergence") if s.chance(50) else facts.AttemptFailed(due=6.0 + s.number())
        s.say(s.work(key, kind, fact=facts.AttemptStarted() if kind == "attempt_started" else parked))


def expired(s: Story) -> None:
    fresh = sorted(s.model.now.open() - s.model.now.begun)
    key = s.pick(fresh) if fresh and s.chance(80) else s.handling()
    if key:
        s.say(s.work(key, "expired", done=s.chance(95), fact=facts.Expired()))


# ---- an operator -----------------------------------------------------------------------------------------------------
def control(s: Story, kind: str, fact: facts.Fact, **fields: Any) -> None:
    s.say(s.outside("operator", "*", kind, fact=fact, **fields))


def cancel(s: Story) -> None:
    origin = Origin(workflow=PARENT, id=f"spawn{s.number() % 4}") if s.chance(50) else None
    control(s, "cancelled", facts.Cancelled(), origin=origin)


def redrive(s: Story) -> None:
    v = s.model.now
    failed = sorted(k for k in v.shut if (end := v.end(k)) and end.kind in ("error_report", "dead_lettered"))
    again = failed + sorted(v.parked & v.open())
    key = s.pick(again) if again and s.chance(90) else s.any_handling()
    if key:
        keep = "none" if s.chance(30) or (key in v.parked and s.chance(70)) else ""
        fact = facts.Redriven(agent=key[0], message=key[1], keep=keep, force=s.chance(15))
        control(s, "redriven", fact)


def discard(s: Story) -> None:
    key = s.pick(sorted(s.model.now.dead))
    if key:
        control(s, "discarded", facts.Discarded(agent=key[0], message=key[1]))


def roll_back(s: Story) -> None:
    """Mostly lawful: with the inputs it expects, some of those that are lost, and some corrections."""
    m = s.model
    to = m.now.version - s.number() % (min(m.now.version, 8) + 1) if s.chance(80) else s.number() % (m.now.version + 2)
    lost = [line.rec for line in m.now.path[to:]]
    again = [r.id for r in lost if (r.outside and s.chance(60)) or s.chance(2)]
    if again and s.chance(4):
        again.append(again[0])
    brought = [s.outside("client", s.pick(AGENTS), s.pick(["task_request", *NOTES])) for _ in range(s.number() % 8 - 5)]
    if s.chance(10) and (q := s.any_request()):
        brought.append(s.outside("person", "client", "task_response", in_reply_to=q))
    if s.chance(8):
        brought.append(s.pick([
            msgspec.structs.replace(s.outside("client", "ann", "note"), correlation_id="other"),
            s.outside("client", "ann", "task_request", answers="m1"),
            s.outside("client", "ann", "note", work=Work(message="m1")),
            s.outside("client", "ann", "handled"),
            s.outside("cid", "ann", "task_response", in_reply_to="m1", origin=Origin(workflow="child", id="a")),
        ]))  # fmt: skip
    wrong = s.pick([0] * 12 + [1])
    expected = Expected(generation=m.generation, inputs=m.now.inputs + wrong) if s.chance(96) else None
    fact = facts.RolledBack(
        to_version=to, op_id=f"op{s.number() % 40}", reapply=tuple(again), force=s.chance(15),
        with_inputs=tuple(msgspec.Raw(codec.encode(b)) for b in brought) + ((msgspec.Raw(b'{"x":1}'),) * s.chance(2)),
    )  # fmt: skip
    control(s, "rolled_back", fact, expected=expected)


def forked(s: Story) -> None:
    control(s, "forked", facts.Forked(parent=PARENT, parent_generation=0, parent_version=3))


# ---- compensation and other workflows --------------------------------------------------------------------------------
def compensate(s: Story) -> None:
    ledger = s.model.ledger
    due = [*ledger.owed()[:1] * 3, *ledger.owed(), *sorted(ledger.unresolved())]
    if not due and s.chance(75):
        saga(s)
        return
    effect = s.pick(due) if due else s.pick([*ledger.effects, "nothing", "nothing"])
    if effect not in ledger.effects:
        kind = s.pick(["started", "completed", "failed", "waived"])
        control(s, f"compensation_{kind}", facts.Compensation(effect="nothing"))
        return
    begun = ledger.effects[effect].status == "compensating"
    then = ["completed", "completed", "failed"] if begun else ["started", "started", "waived"]
    kind = s.pick(then if s.chance(90) else ["started", "completed", "failed", "waived"])
    control(s, f"compensation_{kind}", facts.Compensation(effect=effect, final=s.chance(70)))


def saga(s: Story) -> None:
    """An effect that can be compensated, in one go; what follows may take it back."""
    key = s.handling()
    if key is None or s.model.ledger.barrier():
        return
    before, step = s.model.now.version, s.free_step(key)
    effect = ids.effect_key(WORKFLOW, *key, step, s.model.ledger.issues(*key, step))
    s.say(s.work(key, "effect_intended", step, fact=facts.EffectIntended(effect=effect, policy="compensate")))
    if s.chance(75):
        s.say(s.work(key, "effect_completed", step, fact=facts.EffectCompleted(effect=effect, policy="compensate")))
    if s.chance(60):
        fact = facts.RolledBack(to_version=before, op_id=f"saga{s.count}")
        expected = Expected(generation=s.model.generation, inputs=s.model.now.inputs)
        control(s, "rolled_back", fact, expected=expected)


def reconcile(s: Story) -> None:
    """An effect whose outcome nobody knew is settled."""
    if effect := s.pick(sorted(s.model.ledger.unresolved())):
        e = s.model.ledger.effects[effect]
        agent, message, step = e.work
        fact = facts.EffectCompleted(effect=effect, policy=e.policy)
        s.say(s.work((agent, message), "effect_completed", step, fact=fact))


def other_answers(s: Story) -> None:
    spawns = [r.id for r in s.model.ledger.sent.values() if r.spawn]
    if q := (s.pick(spawns) if s.chance(95) else s.any_request()):
        kind = s.pick(["task_response", "error_report"])
        origin = Origin(workflow="child", id=f"answer{s.number() % 3}", step="1")
        s.say(s.outside("cid", "ann", kind, in_reply_to=q, origin=origin))


def delivered(s: Story) -> None:
    due = sorted(s.model.ledger.duties())
    if due and s.chance(85):
        what, subject, n = s.pick(due)
        fact = facts.Delivered(subject=subject, n=n, cancel=what == "cancel")
    else:
        subject = s.pick([*s.model.ledger.sent, *s.model.path])
        fact = facts.Delivered(subject=subject or "nothing", n=s.number() % 3, cancel=s.chance(20))
    s.say(s.outside("ann", "*", "delivered", fact=fact))


# ---- what goes wrong -------------------------------------------------------------------------------------------------
def again(s: Story) -> None:
    kind = s.pick(sorted({m.message_type for m in s.written}))
    if old := s.pick(m for m in s.written if m.message_type == kind):
        s.append(old)


def release(s: Story) -> None:
    """A zombie writes what it believed some time ago."""
    if s.held:
        s.append(s.held.pop(s.number() % len(s.held)))
    else:
        s.holding = True
        s.pick(WORKING)(s)


def rewrite(s: Story) -> None:
    """A zombie repeats a call under another id: another attempt, an older round, another generation."""
    if old := s.pick(m for m in s.written if m.work):
        generation = s.pick([old.generation, s.model.generation, s.model.generation + 1])
        s.append(msgspec.structs.replace(old, id=s.fresh(), generation=generation))


def spoil(s: Story) -> None:
    """A record as it was written before, but for one thing that must not be, under an id of its own."""
    kind = s.pick(sorted({m.message_type for m in s.written}))
    old = s.pick(m for m in s.written if m.message_type == kind)
    if old is None:
        return
    over = s.pick(sorted(s.model.now.shut)) or ("ann", "nothing")
    what = s.pick(["stale", "newer", "unexpected", "late", "void", "round"])
    changes: dict[str, Any] = {
        "stale": {"generation": s.model.generation - 1},
        "newer": {"generation": s.model.generation + 1},
        "unexpected": {"expected": Expected(version=s.model.now.version + 1), "generation": None, "work": None},
        "late": {"in_reply_to": "nothing", "generation": None, "work": None},
        "void": {"work": Work(message=over[1]), "sender_id": over[0], "generation": s.model.generation},
        "round": {"work": Work(message=over[1], round=7), "sender_id": over[0], "generation": s.model.generation},
    }[what]
    s.append(msgspec.structs.replace(old, id=s.fresh(), **changes))


def junk(s: Story) -> None:
    """Records that a foreign program, or a bug, may append."""
    key = s.any_handling() or ("ann", "nothing")
    mid = s.pick([*s.model.path, "nothing"])
    made: list[Callable[[], AgentMessage]] = [
        lambda: s.outside("x", "ann", "task_response", in_reply_to=mid),
        lambda: s.outside("x", "ann", "note", in_reply_to=mid),
        lambda: s.outside("x", "ann", "task_request", in_reply_to=mid),
        lambda: s.outside("x", "ann", "task_request", answers=mid),
        lambda: s.outside("x", "ann", "note", work=Work(message=mid)),
        lambda: s.outside("x", "ann", "note", generation=s.number() % 3),
        lambda: s.outside("x", "ann", "handled"),
        lambda: s.outside("x", "ann", "dead_lettered"),
        lambda: s.outside("x", "ann", "retired", fact=facts.Retired(agent="ann")),
        lambda: s.outside("x", "*", "rolled_back", fact=facts.RolledBack(to_version=0, op_id="op0")),
        lambda: s.outside("x", "*", "discarded", fact=facts.Discarded(agent="ann", message=mid)),
        lambda: s.outside("x", "*", "redriven", fact=facts.Redriven(agent="ann", message=mid)),
        lambda: s.outside("x", "*", "expired", fact=facts.Expired()),
        lambda: s.outside("x", "bob", "note", to=PARENT),
        lambda: s.outside("x", "bob", "task_request", asked=True, to="child"),
        lambda: s.outside("x", "ann", "note", expected=Expected(version=s.number() % 6, inputs=s.number() % 3)),
        lambda: s.work(("zed", mid), "handled", done=True),
        lambda: s.work(("zed", mid), "note", "1"),
        lambda: s.work(key, "effect_unknown", s.pick(STEPS), fact=facts.EffectUnknown(intent=mid)),
        lambda: s.work(key, "handled", done=True, round=s.number() % 3),
        lambda: s.work(key, "handled", done=True, generation=s.number() % 3),
        lambda: s.work(key, "task_response", done=True, in_reply_to=mid),
        lambda: s.work(key, "task_request", s.pick(STEPS), done=True, answers=mid),
        lambda: s.work(key, "note", s.pick(STEPS), answers=mid),
    ]
    s.say(s.pick(made)())


WEIGHTS: dict[Callable[[Story], None], int] = {
    request: 6, start: 2, asked_by_parent: 4, note: 8, person_answers: 3, owner: 6, retired: 1,
    effect: 30, ask: 10, spawn: 6, wait: 8, fire: 5, output: 7,
    complete: 14, forward: 5, dead_letter: 8, attempt: 2, expired: 3,
    cancel: 2, redrive: 9, discard: 3, roll_back: 6, forked: 1,
    compensate: 9, saga: 4, reconcile: 2, other_answers: 7, delivered: 7,
    again: 4, release: 9, rewrite: 5, spoil: 16, junk: 8,
}  # fmt: skip
MOVES: list[Callable[[Story], None]] = [move for move, weight in WEIGHTS.items() for _ in range(weight)]
random.Random(7).shuffle(MOVES)  # or moves that are near each other on the tape would be near in kind

WORKING = [effect, ask, wait, output, complete, request]

_number = st.integers(0, 255)
tapes: st.SearchStrategy[list[Move]] = st.lists(st.tuples(_number, _number, _number, _number), min_size=4, max_size=80)


def random_tape(seed: int, length: int = 70) -> list[Move]:
    """A tape that is the same for the same seed."""
    dice = random.Random(seed)
    return [(dice.randrange(256), dice.randrange(256), dice.randrange(256), dice.randrange(256)) for _ in range(length)]
