"""An independent reading of the rules of a workflow, for tests to compare the product's fold with.

Slow and plain on purpose: the only thing that is kept is the log with its verdicts, and every question is answered by
reading it again from the start. `history` says which paths there were, `Picture` what a path says, `Ledger` what
happened whatever became of the path, `Model.judge` what admission says of the next record. It reads the records' JSON
and shares nothing with `refold.projections`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from refold.bus import ids

Key = tuple[str, str]
Listeners = dict[str, tuple[str, ...]]

ANSWERS = {"task_response", "error_report"}
OUTCOMES = {"effect_completed", "effect_failed"}
JOURNAL = OUTCOMES | {
    "effect_intended", "effect_unknown", "handled", "attempt_started", "attempt_failed",
    "timer_set", "timer_fired", "state_changed",
}  # fmt: skip
CONTROL = {"rolled_back", "forked", "cancelled", "expired", "dead_lettered", "redriven", "discarded"}
COMPENSATION = {"compensation_started", "compensation_completed", "compensation_failed", "compensation_waived"}
PARTITION = {"owner", "owner_released", "retired", "forwarded"}
ENGINE = JOURNAL | CONTROL | COMPENSATION | PARTITION | {"delivered"}
FAILURES = {"error_report", "dead_lettered", "expired", "discarded", "timer_fired"}
PROVISIONAL = {
    "effect_intended", "effect_unknown", "timer_set", "attempt_started", "attempt_failed", "compensation_started",
}  # fmt: skip


@dataclass(frozen=True)
class Rec:
    """What the rules read of a record."""

    id: str
    kind: str
    sender: str
    receiver: str
    generation: int | None = None
    in_reply_to: str | None = None
    asked: bool = False
    answers: str | None = None
    to: str | None = None
    origin: dict[str, Any] | None = None
    expected: dict[str, Any] | None = None
    work: dict[str, Any] | None = None
    fact: dict[str, Any] = field(default_factory=dict)
    workflow: str = ""

    @classmethod
    def read(cls, raw: bytes | str | dict[str, Any]) -> Rec:
        """Read a record's JSON."""
        j = raw if isinstance(raw, dict) else json.loads(raw)
        return cls(
            j["id"], j["message_type"], j["sender_id"], j["receiver_id"], j.get("generation"), j.get("in_reply_to"),
            j.get("asked", False), j.get("answers"), j.get("to"), j.get("origin"), j.get("expected"), j.get("work"),
            j.get("fact") or {}, j["correlation_id"],
        )  # fmt: skip

    @property
    def request(self) -> bool:
        return self.kind == "task_request" and self.in_reply_to is None

    @property
    def notification(self) -> bool:
        return self.kind not in ENGINE and self.kind != "task_request" and self.in_reply_to is None

    @property
    def from_other_workflow(self) -> bool:
        """Another workflow sent this in reply."""
        return self.in_reply_to is not None and self.origin is not None

    @property
    def foreign_answer(self) -> bool:
        return self.from_other_workflow and self.kind in ANSWERS and self.work is None

    @property
    def source(self) -> tuple[str, str] | None:
        """Which record of which other workflow this is."""
        return (self.origin["workflow"], self.origin["id"]) if self.origin else None

    @property
    def outside(self) -> bool:
        """An input of the workflow."""
        return (
            self.generation is None and self.work is None and self.kind not in ENGINE and not self.from_other_workflow
        )

    @property
    def spawn(self) -> bool:
        return self.request and self.asked and self.to is not None

    @property
    def final(self) -> bool:
        return self.kind not in PROVISIONAL and (self.kind != "effect_failed" or bool(self.fact.get("final")))

    @property
    def key(self) -> Key:
        assert self.work is not None
        return self.sender, self.work["message"]

    @property
    def step(self) -> str:
        return (self.work or {}).get("step", "")

    @property
    def round(self) -> int:
        return (self.work or {}).get("round", 0)

    @property
    def done(self) -> bool:
        return (self.work or {}).get("done", False)


@dataclass(frozen=True)
class Line:
    """A place on a path. `obliges` is None while the agent it is addressed to has not been heard of."""

    rec: Rec
    obliges: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Judged:
    """A record of the log, who listened when it came, and its verdict."""

    rec: Rec
    verdict: str
    listeners: Listeners


@dataclass(frozen=True)
class Claim:
    """An `owner` record named this agent for the first time (or again, after it was retired)."""

    agent: str
    kinds: tuple[str, ...]


Log = list[Judged | Claim]


# ---- paths -----------------------------------------------------------------------------------------------------------
def whom(r: Rec, listeners: Listeners, before: list[Line]) -> tuple[str, ...] | None:
    """Whom a record obliges. A client that has spoken in the workflow is no agent to wait for."""
    if not r.notification or r.to is not None:
        return ()
    if r.receiver == "*":
        return tuple(a for a, wanted in listeners.items() if r.kind in wanted and a != r.sender)
    if r.receiver not in listeners:
        spoke = {x.sender for x in [*(line.rec for line in before), r] if x.outside and x.origin is None}
        return () if r.receiver in spoke else None
    return (r.receiver,) if r.kind in listeners[r.receiver] else ()


def history(log: Log) -> list[list[Line]]:
    """The path of each generation; the last one is the current one."""
    paths: list[list[Line]] = [[]]
    for entry in log:
        if isinstance(entry, Claim):
            paths[-1] = [claimed(line, entry) for line in paths[-1]]
        elif entry.verdict == "admitted" and entry.rec.kind == "rolled_back":
            new = rolled_back(paths[-1], entry.rec, entry.listeners)
            assert new is not None
            paths.append(new)
        elif entry.verdict == "admitted":
            paths[-1].append(Line(entry.rec, whom(entry.rec, entry.listeners, paths[-1])))
    return paths


def claimed(line: Line, claim: Claim) -> Line:
    """The line after an owner has named an agent."""
    if line.obliges is not None or line.rec.receiver != claim.agent:
        return line
    return replace(line, obliges=(claim.agent,) if line.rec.kind in claim.kinds else ())


def corrections(r: Rec) -> list[Rec] | None:
    """The messages that a rollback brings with it; None where one is no message of this workflow."""
    try:
        brought = [Rec.read(m) for m in r.fact.get("with_inputs", ())]
    except (KeyError, AttributeError, TypeError):
        return None
    if any(m.workflow != r.workflow or m.answers for m in brought):
        return None
    return [replace(m, id=ids.correction_id(r.id, i), generation=None) for i, m in enumerate(brought)]


def rolled_back(path: list[Line], r: Rec, listeners: Listeners) -> list[Line] | None:
    """The path after a rollback, None where it cannot be."""
    to, brought = r.fact["to_version"], corrections(r)
    if brought is None or not 0 <= to <= len(path):
        return None
    new, lost = path[:to], path[to:]
    for line in lost:
        if line.rec.foreign_answer and not Picture(new).late(line.rec.in_reply_to):
            new = [*new, line]
    inputs = {line.rec.id: line for line in lost if line.rec.outside}
    for wanted in [*(inputs.get(i) for i in r.fact.get("reapply", ())), *brought]:
        line = Line(wanted, whom(wanted, listeners, new)) if isinstance(wanted, Rec) else wanted
        if line is None or not line.rec.outside or line.rec.id in [x.rec.id for x in new]:
            return None
        if line.rec.in_reply_to and Picture(new).late(line.rec.in_reply_to):
            return None
        new = [*new, line]
    return new


# ---- what a path says ------------------------------------------------------------------------------------------------
def precedes(p: str, q: str) -> bool:
    """Program order of two steps."""
    for place, (a, b) in enumerate(zip(p.split("."), q.split("."), strict=False)):
        if a != b:
            return place % 2 == 0 and int(a) < int(b)
    return False


@dataclass
class Call:
    """What is recorded of one step."""

    effect: str | None = None
    intent: str | None = None
    request: str | None = None
    timer: bool = False
    receives: str | None = None
    since: int = 0  # when it began to receive
    settled: Rec | None = None
    effect_failed: bool = False
    given_up_by_own_closing: bool = False

    @property
    def waits(self) -> bool:
        """For a record that its own run does not write."""
        return self.settled is None and (self.timer or self.request is not None)


class Picture:
    """What a path says, read from its start."""

    def __init__(self, path: list[Line]) -> None:
        self.path = path
        self.at: dict[str, int] = {}
        self.requests: dict[str, Rec] = {}
        self.root: dict[str, str] = {}
        self.outcome: dict[str, Rec] = {}  # of a root request: what answered it or gave it up
        self.abandoned: set[str] = set()  # requests that were given up since who had asked was over
        self.opened: dict[Key, int] = {}
        self.shut: dict[Key, Rec] = {}
        self.rounds: dict[Key, int] = {}
        self.begun: set[Key] = set()
        self.calls: dict[tuple[Key, str], Call] = {}
        self.dead: dict[Key, Rec] = {}
        self.discarded: set[Key] = set()
        self.revoked: set[tuple[str, str] | None] = set()
        self.cancelled_at = 0
        self.repeats: set[str] = set()  # requests that another workflow sent again
        self.answer_again: set[str] = set()  # those of them that came after the answer
        self.taken: set[str] = set()  # messages that a receive has taken
        self.parked: set[Key] = set()
        for line in path:
            self._read(line)

    @property
    def version(self) -> int:
        return len(self.path)

    @property
    def inputs(self) -> int:
        return sum(line.rec.outside for line in self.path)

    # ---- questions
    def late(self, request: str | None) -> bool:
        return request not in self.requests or self.root[request] in self.outcome

    def open(self) -> set[Key]:
        return self.opened.keys() - self.shut.keys()

    def over(self, key: Key) -> bool:
        """The handling is closed, or is one that nobody can begin any more."""
        if key in self.opened:
            return key in self.shut
        message = key[1]
        answered = message in self.requests and self.late(message)
        nobodys = message in self.repeats or message in self.taken
        return answered or nobodys or self.cancelled_at > self.at[message]

    def owes(self, key: Key) -> str | None:
        """The request that this handling must answer."""
        q = self.requests.get(key[1])
        if q is None or q.receiver != key[0]:
            return None
        root = self.requests[self.root[q.id]]
        return root.id if q.asked or q.answers else None

    def has(self, r: Rec) -> bool:
        """The step is recorded, or has what r brings."""
        call = self.calls.get((r.key, r.step), Call())
        if call.settled:
            return True
        if r.kind == "effect_intended":
            return call.intent is not None
        if r.kind == "effect_unknown":
            return call.intent != r.fact["intent"]
        if r.kind == "timer_set":
            return call.timer
        return r.request and call.request is not None

    def waiting_for(self, request: str) -> bool:
        return any(c.request == request and not c.settled for c in self.calls.values())

    def holds(self, effect: str) -> bool:
        return any(c.effect == effect and not c.effect_failed for c in self.calls.values())

    def intent_stands(self, effect: str) -> bool:
        return any(c.effect == effect and c.intent and not c.settled for c in self.calls.values())

    def unclaimed(self) -> set[str]:
        """Messages for an agent that nobody has hosted yet."""
        after = [line for line in self.path if self.at[line.rec.id] > self.cancelled_at]
        return {line.rec.id for line in after if line.obliges is None} - self.taken

    def holding_its_place(self) -> set[Key]:
        return {
            k
            for k, end in self.shut.items()
            if end.kind == "dead_lettered" and end is self.dead.get(k) and k[1] not in self.requests
            and k not in self.discarded and self.cancelled_at < self.at[end.id]
        }  # fmt: skip

    def end(self, key: Key) -> Rec | None:
        """The record of this handling that ended it, None where something else did."""
        r = self.shut.get(key)
        return r if r and r.work and r.key == key else None

    def dropped(self, key: Key, keep: str) -> list[str]:
        """The steps that a redrive forgets."""
        steps = {step: call for (k, step), call in self.calls.items() if k == key}
        if keep == "none":
            return list(steps)
        end = self.end(key)
        bad = {s for s, call in steps.items() if call.given_up_by_own_closing}
        bad |= set(end.fact.get("causes", ()) if end else ())
        return [s for s in steps if s in bad or any(precedes(b, s) for b in bad)]

    # ---- reading
    def _read(self, line: Line) -> None:
        r = line.rec
        n = self.at[r.id] = len(self.at) + 1
        if r.request:
            self._request(r, n)
        for agent in line.obliges or ():
            self.opened[agent, r.id] = n
        if r.in_reply_to and r.kind in ANSWERS:
            self.outcome[self.root[r.in_reply_to]] = r
        if r.work:
            self._work(r)
        elif r.kind == "cancelled":
            self._cancelled(r, n)
        elif r.kind in ("redriven", "discarded"):
            key = r.fact["agent"], r.fact["message"]
            self._redriven(r, key, n) if r.kind == "redriven" else self._discarded(r, key)
        self._spread(r)
        self._receive(r)
        self._spread(r)

    def _request(self, r: Rec, n: int) -> None:
        self.requests[r.id] = r
        self.root[r.id] = self.root[r.answers] if r.answers else r.id
        first = next((q for q in self.requests.values() if r.origin and q.source == r.source and q is not r), None)
        if first is not None and r.to is None:
            self.repeats.add(r.id)
            self.root[r.id] = self.root[first.id]
            if self.late(first.id):
                self.answer_again.add(r.id)
        elif r.to is None:
            self.opened[r.receiver, r.id] = n

    def _work(self, r: Rec) -> None:
        key = r.key
        self.opened.setdefault(key, self.at[key[1]])
        self.begun.add(key)
        if r.step:
            self._call(r, self.calls.setdefault((key, r.step), Call()))
        if r.kind != "attempt_started":
            self.parked -= {key}
        if r.kind == "attempt_failed" and r.fact.get("parked"):
            self.parked.add(key)
        if r.kind == "dead_lettered":
            self.dead[key] = r
        if r.kind == "expired" and key[1] in self.requests:
            self.outcome[self.root[key[1]]] = r
        if r.done:
            self.shut[key] = r

    def _call(self, r: Rec, call: Call) -> None:
        call.effect = r.fact.get("effect", call.effect)
        if r.kind == "effect_intended":
            call.intent = r.id
        elif r.kind == "effect_unknown":
            call.intent = None
        elif r.kind == "timer_set":
            call.timer, call.receives, call.since = True, r.fact.get("kind") or None, self.at[r.id]
        elif r.request and r.asked:
            call.request = r.id
        elif r.kind == "timer_fired" and call.request:
            self.outcome[call.request] = r
        elif r.kind != "effect_failed" or r.final:
            call.settled, call.effect_failed = r, r.kind == "effect_failed"

    def _cancelled(self, r: Rec, n: int) -> None:
        self.cancelled_at = n
        if r.origin:
            self.revoked.add(r.source)
        for q in self.requests.values():
            if self.root[q.id] == q.id and (q.asked or (q.receiver, q.id) in self.open()):
                self.outcome.setdefault(q.id, r)
        for key in self.open():
            self.shut[key] = r

    def _discarded(self, r: Rec, key: Key) -> None:
        self.discarded.add(key)
        if key[1] in self.requests:
            self.outcome[self.root[key[1]]] = r

    def _redriven(self, r: Rec, key: Key, n: int) -> None:
        for step in self.dropped(key, r.fact.get("keep", "")):
            call = self.calls.pop((key, step))
            if call.request and not call.settled:
                self.outcome[call.request] = r
        self.rounds[key] = self.rounds.get(key, 0) + 1
        self.opened[key] = n
        self.shut.pop(key, None)
        self.dead.pop(key, None)
        self.parked -= {key}
        if key[1] in self.requests:
            self.outcome.pop(self.root[key[1]], None)
            self.answer_again -= {q for q in self.answer_again if self.root[q] == self.root[key[1]]}

    def _spread(self, r: Rec) -> None:
        """What is answered or given up ends its handlings and settles who asked; what ends gives up what it asked."""
        calm = False
        while not calm:
            calm = True
            for key in self.open():
                if key[1] in self.requests and self.late(key[1]):
                    self.shut[key], calm = r, False
            for (key, _), call in self.calls.items():
                if call.request is None or call.settled:
                    continue
                if call.request in self.outcome:
                    call.settled, calm = self.outcome[call.request], False
                elif key in self.shut:
                    self.outcome[call.request], call.given_up_by_own_closing, calm = r, True, False
                    self.abandoned.add(call.request)

    def _receive(self, r: Rec) -> None:
        """Give messages to the receives that wait, in the order in which they began to wait."""
        for (key, _), call in sorted(self.calls.items(), key=lambda item: item[1].since):
            if call.receives is None or call.settled or key in self.shut:
                continue
            mine = [c.settled for (k, _), c in self.calls.items() if k == key]
            for line in self.path[self.at[key[1]] : len(self.at)]:
                m = line.rec
                fits = m.outside and m.notification and m.to is None and m.kind == call.receives
                if fits and m.receiver in (key[0], "*") and m not in mine:
                    call.settled = m
                    self.taken.add(m.id)
                    self.shut |= {k: r for k in self.open() if k[1] == m.id}
                    break


# ---- what the log says -----------------------------------------------------------------------------------------------
@dataclass
class Effect:
    """One effect, by its key."""

    policy: str
    work: tuple[str, str, str]  # agent, message, step
    status: str = "intended"
    completed: int = 0  # when, counted in records
    ever_completed: bool = False


class Ledger:
    """What happened, whatever became of the path: read from the log's start."""

    def __init__(self, log: Log, now: Picture) -> None:
        self.now = now
        self.effects: dict[str, Effect] = {}
        self.delivered: set[tuple[str, int, bool]] = set()
        self.sent: dict[str, Rec] = {}
        self.heard: set[str] = set()
        self.refused: dict[str, int] = {}
        self.late_starts: dict[str, Rec] = {}
        for i, entry in enumerate(log):
            if isinstance(entry, Judged) and entry.verdict != "duplicate":
                self._read(entry, i, log)

    def _read(self, entry: Judged, i: int, log: Log) -> None:
        r, verdict = entry.rec, entry.verdict
        if r.kind in OUTCOMES or (r.kind == "effect_intended" and verdict == "admitted"):
            in_flight = False
            if r.kind == "effect_failed" and verdict != "admitted":
                in_flight = Picture(history(log[:i])[-1]).intent_stands(r.fact["effect"])
            self._effect(r, i, in_flight)
        if r.kind in COMPENSATION and verdict == "ledger":
            self._compensation(r)
        if r.kind == "delivered" and verdict == "ledger":
            self.delivered.add(mark(r))
        if r.to is not None and verdict == "admitted" and (r.work or self._answers_another(r, log[:i])):
            self.sent[r.id] = r
        if r.foreign_answer and r.in_reply_to:
            self.heard.add(r.in_reply_to)
            if verdict == "late":
                self.refused[r.in_reply_to] = self.refused.get(r.in_reply_to, 0) + 1
        if r.request and r.origin and verdict == "late":
            self.late_starts[r.id] = r

    @staticmethod
    def _answers_another(r: Rec, before: Log) -> bool:
        """A person answers what that workflow has asked."""
        then = Picture(history(before)[-1])
        q = then.requests.get(then.root.get(r.in_reply_to or "", "")) if r.kind in ANSWERS else None
        return q is not None and q.origin is not None and q.origin["workflow"] == r.to

    def _effect(self, r: Rec, i: int, in_flight: bool) -> None:
        new = Effect(r.fact.get("policy", "idempotent"), (*r.key, r.step) if r.work else ("", "", ""))
        e = self.effects.setdefault(r.fact["effect"], new)
        if r.kind == "effect_intended" and (e.status == "failed" or (e.status == "waived" and not e.ever_completed)):
            e.status = "intended"
        if r.kind == "effect_completed" and e.status in ("intended", "failed", "waived"):
            e.status, e.completed, e.ever_completed = "completed", i, True
        if r.kind == "effect_failed" and r.final and e.status == "intended" and not in_flight:
            e.status = "failed"

    def _compensation(self, r: Rec) -> None:
        e = self.effects[r.fact["effect"]]
        if r.kind == "compensation_started":
            e.status = "compensating"
        if r.kind == "compensation_waived":
            e.status = "waived"
        if r.kind == "compensation_completed" and e.status in ("compensating", "parked", "waived"):
            e.status = "compensated"
        if r.kind == "compensation_failed" and r.fact.get("final") and e.status == "compensating":
            e.status = "parked"

    # ---- questions
    def owed(self) -> list[str]:
        """Effects to compensate, the first one next."""
        due = [
            (-e.completed, key)
            for key, e in self.effects.items()
            if e.policy == "compensate"
            and (e.status in ("compensating", "parked") or (e.status == "completed" and not self.now.holds(key)))
        ]
        return [key for _, key in sorted(due)]

    def unresolved(self) -> set[str]:
        return {
            key
            for key, e in self.effects.items()
            if e.policy == "compensate" and e.status == "intended" and not self.now.holds(key)
        }

    def barrier(self) -> bool:
        return bool(self.owed() or self.unresolved())

    def issues(self, agent: str, message: str, step: str) -> int:
        """The number that the key of this step's next effect has."""
        gone = ("compensating", "compensated", "parked")
        return sum(
            e.status in gone
            or (e.status == "waived" and e.ever_completed)
            or (e.status == "completed" and not self.now.holds(key))
            for key, e in self.effects.items()
            if e.work == (agent, message, step)
        )

    def loses_irreversible(self, after: Picture) -> bool:
        return any(
            e.policy == "irreversible" and e.status != "failed" and self.now.holds(key) and not after.holds(key)
            for key, e in self.effects.items()
        )

    def allows_compensation(self, r: Rec) -> bool:
        key = r.fact["effect"]
        if r.kind == "compensation_started":
            return self.owed()[:1] == [key]
        if r.kind == "compensation_waived":
            return key in self.owed() or key in self.unresolved()
        return key in self.effects

    def allows_mark(self, r: Rec) -> bool:
        subject, n, cancel = mark(r)
        if (subject, n, cancel) in self.delivered:
            return False
        sent = self.sent.get(subject)
        if cancel:
            return sent is not None and sent.spawn
        if sent is not None:
            return 0 <= n <= self.refused.get(subject, 0)
        return ("answer", subject, n) in self.duties() or ("refusal", subject, n) in self.duties()

    def duties(self) -> set[tuple[str, str, int]]:
        """What is owed to other workflows: (what, subject, n)."""
        return {*self._copies(), *self._cancels(), *self._answers()}

    def _copies(self) -> Iterator[tuple[str, str, int]]:
        for r in [line.rec for line in self.now.path if line.rec.id in self.sent]:
            ever = any(subject == r.id and not cancel for subject, _, cancel in self.delivered)
            n = self.refused.get(r.id, 0) if r.spawn and ever else 0
            wanted = not r.spawn or self.now.waiting_for(r.id)
            if wanted and (r.id, n, False) not in self.delivered:
                yield "copy", r.id, n

    def _cancels(self) -> Iterator[tuple[str, str, int]]:
        for r in self.sent.values():
            orphan = r.spawn and not self.now.waiting_for(r.id) and r.id not in self.heard
            if orphan and (r.id, 0, True) not in self.delivered:
                yield "cancel", r.id, 0

    def _answers(self) -> Iterator[tuple[str, str, int]]:
        for q in self.now.requests.values():
            if q.origin is None or not q.asked or (q.id, 0, False) in self.delivered:
                continue
            answer = self.now.outcome.get(self.now.root[q.id])
            if q.id in self.now.repeats:
                owed = q.id in self.now.answer_again
            else:
                addressed = answer and answer.kind in ANSWERS and answer.to == q.origin["workflow"]
                owed = answer is not None and not addressed
            if owed:
                yield "answer", q.id, 0
        for q in self.late_starts.values():
            if q.asked and (q.id, 0, False) not in self.delivered:
                yield "refusal", q.id, 0


def mark(r: Rec) -> tuple[str, int, bool]:
    """What a `delivered` says: of a copy, or of a cancel (which is delivered once)."""
    cancel = r.fact.get("cancel", False)
    return r.fact["subject"], 0 if cancel else r.fact.get("n", 0), cancel


# ---- admission -------------------------------------------------------------------------------------------------------
class Model:
    """One workflow: its log, and the verdict of each of its records."""

    def __init__(self) -> None:
        self.log: Log = []

    def admit(self, raw: bytes, listeners: Listeners) -> str:
        """Judge a record and keep it."""
        r = Rec.read(raw)
        verdict = self.judge(r, listeners)
        if r.kind in OUTCOMES and verdict not in ("admitted", "duplicate"):
            verdict = "ledger"
        self.log.append(Judged(r, verdict, dict(listeners)))
        self._forget()
        return verdict

    def claim(self, agent: str, kinds: tuple[str, ...]) -> None:
        """An `owner` named an agent that was not listening."""
        self.log.append(Claim(agent, kinds))
        self._forget()

    def _forget(self) -> None:
        for name in ("paths", "now", "ledger"):
            self.__dict__.pop(name, None)

    # ---- what is true now, read anew after each record
    @cached_property
    def paths(self) -> list[list[Line]]:
        return history(self.log)

    @cached_property
    def now(self) -> Picture:
        return Picture(self.paths[-1])

    @cached_property
    def ledger(self) -> Ledger:
        return Ledger(self.log, self.now)

    @property
    def generation(self) -> int:
        return len(self.paths) - 1

    @property
    def path(self) -> list[str]:
        return [line.rec.id for line in self.paths[-1]]

    @property
    def records(self) -> list[Judged]:
        return [e for e in self.log if isinstance(e, Judged)]

    def known(self) -> set[str]:
        """Ids that have a verdict."""
        done = [e for e in self.records if e.rec.kind == "rolled_back" and e.verdict == "admitted"]
        return {e.rec.id for e in self.records} | {x.id for e in done for x in corrections(e.rec) or ()}

    def complete(self) -> bool:
        blocked = self.now.holding_its_place()
        return not (self.now.open() or blocked or self.ledger.barrier() or self.ledger.duties())

    def status(self) -> str:
        """The word for where the workflow stands."""
        v, now = self.now, self.now.open()
        if v.holding_its_place() or v.parked & now or "parked" in [e.status for e in self.ledger.effects.values()]:
            return "blocked"
        if self.complete():
            return self._how_it_ended()
        waiting = {k for (k, _), c in v.calls.items() if c.waits}
        asked_by_them = {c.request for (k, _), c in v.calls.items() if c.waits and k in now}
        idle = [k in waiting or (k not in v.begun and k[1] in asked_by_them) for k in now]
        return "waiting" if idle and all(idle) else "running"

    def _how_it_ended(self) -> str:
        """By its first asked request, unless everything was cancelled after all that was asked and answered."""
        v = self.now
        asked = [q for q in v.requests.values() if q.to is None]
        ends = [v.at[v.outcome[v.root[q.id]].id] for q in asked if v.root[q.id] in v.outcome]
        if v.cancelled_at and v.cancelled_at >= max([v.at[q.id] for q in asked] + ends, default=0):
            return "cancelled"
        for q in [q for q in asked if q.asked] + asked:
            answer = v.outcome.get(v.root[q.id]) or v.shut.get((q.receiver, q.id))
            failed = q.id in v.abandoned or (answer is not None and answer.kind in FAILURES)
            return "failed" if failed else "completed"
        return "completed"

    def attempt(self, agent: str, message: str, round: int, step: str) -> int:
        """The `attempt` that the next record of this step has."""
        return sum(
            e.rec.work is not None
            and (*e.rec.key, e.rec.round, e.rec.step) == (agent, message, round, step)
            and e.verdict != "duplicate"
            and (e.verdict != "admitted" or not e.rec.final)
            for e in self.records
        )

    # ---- the table of section 3
    def judge(self, r: Rec, listeners: Listeners) -> str:
        v = self.now
        if r.id in self.known() or (r.kind == "rolled_back" and r.fact["op_id"] in self._ops()):
            return "duplicate"
        if r.kind in COMPENSATION:
            return "ledger" if self.ledger.allows_compensation(r) else "invalid"
        if r.kind == "delivered":
            return "ledger" if self.ledger.allows_mark(r) else "invalid"
        if r.generation is not None and r.generation < self.generation:
            return "stale"
        if (r.generation or 0) > self.generation or (r.generation is None and r.work):
            return "invalid"
        if not self._expected(r):
            return "conflict"
        if r.in_reply_to is not None and v.late(r.in_reply_to):
            return "late"
        if r.request and r.origin and r.source in v.revoked:
            return "late"
        if r.work:
            if r.key[1] not in v.at:
                return "stale"
            if v.over(r.key) or r.round != v.rounds.get(r.key, 0) or (r.step and v.has(r)):
                return "void"
        return "admitted" if self._lawful(r, listeners) else "invalid"

    def _ops(self) -> set[str]:
        return {e.rec.fact["op_id"] for e in self.records if e.rec.kind == "rolled_back" and e.verdict == "admitted"}

    def _expected(self, r: Rec) -> bool:
        now = {"version": self.now.version, "generation": self.generation, "inputs": self.now.inputs}
        return all(now[k] == wanted for k, wanted in (r.expected or {}).items() if wanted is not None)

    def _lawful(self, r: Rec, listeners: Listeners) -> bool:
        v = self.now
        if r.kind in PARTITION or (r.kind in JOURNAL | {"dead_lettered", "expired"} and not r.work):
            return False
        if r.kind == "effect_intended" and self.ledger.barrier():
            return False
        owes = v.owes(r.key) if r.work else None
        forwards = r.request and r.done and not r.asked and r.to is None and owes is not None and r.answers == owes
        if r.answers is not None and not forwards:
            return False
        if r.done and r.kind != "expired" and owes is not None and not forwards:
            return r.kind in ANSWERS and r.in_reply_to is not None and v.root[r.in_reply_to] == owes
        match r.kind:
            case "rolled_back":
                return self._may_roll_back(r, listeners)
            case "redriven":
                return self._may_redrive(r, (r.fact["agent"], r.fact["message"]))
            case "discarded":
                return self._may_discard((r.fact["agent"], r.fact["message"]))
            case "forked":
                return not self.records
            case "dead_lettered":
                return r.done or owes is not None
            case "expired":
                return r.done and r.key in v.opened and r.key not in v.begun
        return True

    def _may_roll_back(self, r: Rec, listeners: Listeners) -> bool:
        if not {"generation", "inputs"} <= set(r.expected or ()):
            return False
        if any(x.id in self.known() for x in corrections(r) or ()):
            return False
        new = rolled_back(self.paths[-1], r, listeners)
        if new is None:
            return False
        return r.fact.get("force", False) or not self.ledger.loses_irreversible(Picture(new))

    def _may_discard(self, key: Key) -> bool:
        v = self.now
        unanswered = key in v.dead and key in v.open() and key[1] in v.requests
        return key in v.holding_its_place() or unanswered

    def _may_redrive(self, r: Rec, key: Key) -> bool:
        v, end = self.now, self.now.end(key)
        fresh = r.fact.get("keep") == "none" and key in v.open() and key in v.parked
        failed = end is not None and end.kind in ("dead_lettered", "error_report") and key not in v.discarded
        if not fresh and not failed:
            return False
        if failed and key[1] in v.requests:
            root = v.root[key[1]]
            if any(c.request == root and c.settled for c in v.calls.values()):
                return False
        after = Picture([*self.paths[-1], Line(r)])
        return r.fact.get("force", False) or not self.ledger.loses_irreversible(after)
