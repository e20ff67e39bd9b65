"""What the path of a workflow says: its requests, handlings and steps. Cut and folded anew by a rollback."""

from __future__ import annotations

from collections.abc import Iterator

from msgspec import Struct, field

from ..bus import facts, kinds
from ..bus.message import Envelope, Origin
from .verdict import is_outside

Key = tuple[str, str]
"""(agent, id of the message that it handles)."""
Ref = tuple[int, int]
"""Where a record's bytes are: (position, index of the correction inside a `rolled_back`, or -1)."""
NOWHERE: Ref = (0, -1)


class Step(Struct, gc=False, omit_defaults=True):
    """One call of a handler, as far as it is recorded.

    `kind`, `name` and `digest` say what was called; `settled` is the version at which its value (`value`, of kind
    `value_kind`) was known, 0 if it is not.
    """

    kind: str
    name: str = ""
    digest: str = ""
    child: bool = False
    effect: str = ""
    intent: str = ""
    request: str = ""
    timer: bool = False
    receives: str = ""
    due: float | None = None
    tries: int = 0
    settled: int = 0
    value: Ref = NOWHERE
    value_kind: str = ""
    failed: bool = False
    own_closing: bool = False

    @property
    def waits(self) -> bool:
        """It waits for a record that its own run does not write."""
        return not self.settled and bool(self.request or self.timer)


class Handling(Struct, gc=False, omit_defaults=True):
    """The work of one agent on one message. `version` is the place of the message on the path."""

    agent: str
    message: str
    version: int
    ref: Ref = NOWHERE
    kind: str = ""
    priority: int = 5
    inside: bool = False
    expires: float | None = None
    round: int = 0
    steps: dict[str, Step] = field(default_factory=dict)
    taken: list[str] = field(default_factory=list)
    begun: bool = False
    tries: int = 0
    due: float | None = None
    parked: str = ""
    starts: int = 0
    lone_starts: int = 0
    dead: str = ""
    discarded: bool = False
    closed: int = 0
    end: str = ""
    causes: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """What it is found by."""
        return self.agent, self.message


class Request(Struct, gc=False, omit_defaults=True):
    """A `task_request` on the path. `root` is the request whose answer it shares (itself, if it was not forwarded)."""

    id: str
    agent: str
    sender: str
    version: int
    ref: Ref = NOWHERE
    asked: bool = False
    root: str = ""
    sharers: list[str] = field(default_factory=list)
    asker: Key | None = None
    step: str = ""
    to: str | None = None
    origin: Origin | None = None
    deadline: float | None = None
    answered: int = 0
    answer: Ref = NOWHERE
    answer_id: str = ""
    answer_kind: str = ""


class Input(Struct, gc=False, array_like=True):
    """A message from outside that a `receive` may take, or one whose receiver nobody has hosted yet."""

    id: str
    version: int
    kind: str
    receiver: str
    ref: Ref
    priority: int = 5
    inside: bool = False
    expires: float | None = None


class Entry(Struct, gc=False, array_like=True, omit_defaults=True):
    """A record on the path. `envelope` is None where the state came from a checkpoint.

    `obliges` are the agents that listened when it came, None until it is known whom it obliges.
    """

    id: str
    ref: Ref
    obliges: tuple[str, ...] | None = None
    envelope: Envelope | None = None


def precedes(step: str, other: str) -> bool:
    """Program order: odd places of a path number steps, even ones name branches of a gather (concurrent)."""
    for i, (a, b) in enumerate(zip(step.split("."), other.split("."), strict=False)):
        if a != b:
            return i % 2 == 0 and int(a) < int(b)
    return False


def _input(r: Envelope, version: int, ref: Ref) -> Input:
    expires = None if r.ttl is None else r.timestamp + r.ttl
    return Input(r.id, version, r.message_type, r.receiver_id, ref, r.priority, r.work is not None, expires)


class View(Struct, gc=False):
    """The fold of the path. `apply` takes admitted records only."""

    path: list[Entry] = field(default_factory=list)
    at: dict[str, int] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
    handlings: dict[str, dict[str, Handling]] = field(default_factory=dict)
    open: dict[Key, None] = field(default_factory=dict)
    holding: dict[Key, None] = field(default_factory=dict)
    effects: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    inbox: list[Input] = field(default_factory=list)
    patches: list[tuple[int, Ref]] = field(default_factory=list)
    revoked: dict[str, None] = field(default_factory=dict)
    unclaimed: list[Input] = field(default_factory=list)
    owed_answers: list[str] = field(default_factory=list)
    origins: dict[str, str] = field(default_factory=dict)
    news: list[tuple[str, str, str]] = field(default_factory=list)
    clients: dict[str, None] = field(default_factory=dict)
    inputs: int = 0
    cancelled_at: int = 0

    # ---- questions -------------------------------------------------------------------------------------------------
    def handling(self, agent: str, message: str) -> Handling | None:
        """Return the handling, if the message obliges the agent or the agent has begun it."""
        return self.handlings.get(message, {}).get(agent)

    def round_of(self, agent: str, message: str) -> int:
        """Return the current round of a handling (0 where there is none)."""
        h = self.handling(agent, message)
        return h.round if h else 0

    def late(self, request: str) -> bool:
        """No answer to this request is wanted: it is not on the path, is answered, or was given up."""
        q = self.requests.get(request)
        return q is None or bool(self.requests[q.root].answered)

    def step_of(self, q: Request) -> Step | None:
        """Return the step that waits for the request, or has got its answer."""
        if q.asker is None:
            return None
        h = self.handling(*q.asker)
        st = h.steps.get(q.step) if h else None
        return st if st is not None and st.request == q.id else None

    def awaited(self, request: str) -> bool:
        """A step of an open handling waits for this request."""
        q = self.requests.get(request)
        if q is None or q.asker is None or q.asker not in self.open:
            return False
        st = self.step_of(q)
        return st is not None and not st.settled

    def duty(self, agent: str, message: str) -> Request | None:
        """Return the request that this handling must answer before it is done, if any."""
        q = self.requests.get(message)
        if q is None or q.agent != agent or q.to is not None:
            return None
        return self.requests[q.root] if q.asked or q.root != q.id else None

    def taken(self, r: Envelope) -> bool:
        """The step of `r` is recorded, or has what `r` brings."""
        assert r.work is not None
        h = self.handling(r.sender_id, r.work.message)
        st = h.steps.get(r.work.step) if h else None
        kind = r.message_type
        if st is None:
            return kind == kinds.EFFECT_UNKNOWN
        if st.settled:
            return True
        if kind == kinds.EFFECT_INTENDED:
            return bool(st.intent)
        if kind == kinds.EFFECT_UNKNOWN:
            return not st.intent or not isinstance(r.fact, facts.EffectUnknown) or r.fact.intent != st.intent
        if kind == kinds.TIMER_SET:
            return st.timer
        return r.is_request and bool(st.request)

    def holds(self, effect: str) -> bool:
        """The path counts on this effect: its step was not cut, not dropped by a redrive, not recorded as failed."""
        where = self.effects.get(effect)
        if where is None:
            return False
        h = self.handling(where[0], where[1])
        st = h.steps.get(where[2]) if h else None
        return st is not None and st.effect == effect and not st.failed

    def all_handlings(self) -> Iterator[Handling]:
        """Every handling on the path, in no particular order."""
        for by_agent in self.handlings.values():
            yield from by_agent.values()

    # ---- the fold --------------------------------------------------------------------------------------------------
    def apply(
        self, r: Envelope, ref: Ref, listeners: dict[str, tuple[str, ...]], obliges: tuple[str, ...] | None = None
    ) -> None:
        """Let an admitted record join the path. `listeners` are the partition's, below this record.

        `obliges` is given where a rollback applies the record again: whom it obliged then, it obliges now.
        """
        self.news = []
        entry = Entry(r.id, ref, obliges, r)
        self.path.append(entry)
        version = self.at[r.id] = len(self.path)
        outside = is_outside(r)
        self.inputs += outside
        if outside and r.origin is None:
            self.clients[r.sender_id] = None
        kind = r.message_type
        if kind == kinds.TASK_REQUEST and r.in_reply_to is None:
            self._request(r, version, ref)
        elif r.in_reply_to is not None:
            if kind in kinds.ANSWERS:
                self._close(self.requests[self.requests[r.in_reply_to].root], r, version, ref, kind)
        elif kind not in kinds.ENGINE:
            self._notify(r, version, entry, listeners, outside)
        elif kind in kinds.CONTROL:
            self._control(r, version, ref)
        if r.work is not None:
            self._work(r, version, ref)

    def _request(self, r: Envelope, version: int, ref: Ref) -> None:
        root = self.requests[r.answers].root if r.answers and r.answers in self.requests else r.id
        q = self.requests[r.id] = Request(
            id=r.id, agent=r.receiver_id, sender=r.sender_id, version=version, ref=ref, asked=r.asked, root=root,
            to=r.to, origin=r.origin, deadline=r.deadline,
        )  # fmt: skip
        if root != r.id:
            self.requests[root].sharers.append(r.id)
        if r.work is not None and r.work.step and r.asked:
            q.asker, q.step = (r.sender_id, r.work.message), r.work.step
        if r.to is None and not self._redelivered(q):
            self._open(r, r.receiver_id, version, ref)

    def _redelivered(self, q: Request) -> bool:
        """The same request of another workflow came again: its first copy is the one that is handled."""
        if q.origin is None:
            return False
        first = self.origins.setdefault(f"{q.origin.workflow} {q.origin.id}", q.id)
        if first == q.id:
            return False
        q.root = self.requests[first].root
        if self.requests[q.root].answered:
            self.owed_answers.append(q.id)
        return True

    def _open(self, r: Envelope, agent: str, version: int, ref: Ref) -> Handling:
        return self._oblige(agent, _input(r, version, ref))

    def _oblige(self, agent: str, given: Input) -> Handling:
        h = Handling(
            agent=agent, message=given.id, version=given.version, ref=given.ref, kind=given.kind,
            priority=given.priority, inside=given.inside, expires=given.expires,
        )  # fmt: skip
        self.handlings.setdefault(given.id, {})[agent] = h
        self.open[h.key] = None
        return h

    def _notify(
        self, r: Envelope, version: int, entry: Entry, listeners: dict[str, tuple[str, ...]], outside: bool
    ) -> None:
        if r.to is not None:
            return
        given = _input(r, version, entry.ref)
        if outside:
            self.inbox.append(given)
            if self._receive(given):
                entry.obliges = ()
                return
        if entry.obliges is None:
            entry.obliges = self._obliged(r, listeners)
        if entry.obliges is None:
            self.unclaimed.append(given)
        for agent in entry.obliges or ():
            self._oblige(agent, given)

    def _obliged(self, r: Envelope, listeners: dict[str, tuple[str, ...]]) -> tuple[str, ...] | None:
        if r.receiver_id == "*":
            return tuple(a for a, wanted in listeners.items() if a != r.sender_id and r.message_type in wanted)
        if r.receiver_id not in listeners:
            return () if r.receiver_id in self.clients else None
        return (r.receiver_id,) if r.message_type in listeners[r.receiver_id] else ()

    def claim(self, agent: str, wanted: tuple[str, ...]) -> None:
        """An `owner` record names the agent for the first time: what was addressed to it obliges it now."""
        for given in [u for u in self.unclaimed if u.receiver == agent]:
            self.unclaimed.remove(given)
            taken = any(given.id in h.taken for h in self.all_handlings())
            if given.kind in wanted and not taken and given.version > self.cancelled_at:
                self._oblige(agent, given)

    def _receive(self, given: Input) -> bool:
        """Give an outside message to the receives that wait for its kind; True if one took it."""
        took = False
        for key in list(self.open):
            h = self.handlings[key[1]][key[0]]
            if given.receiver not in (h.agent, "*") or given.version <= h.version:
                continue
            for path, st in h.steps.items():
                if st.receives == given.kind and not st.settled:
                    self._take(h, path, given, given.version)
                    took = True
                    break
        return took

    def _settle(self, h: Handling, path: str, version: int, ref: Ref, kind: str, failed: bool) -> None:
        st = h.steps[path]
        st.settled, st.value, st.value_kind, st.failed = version, ref, kind, failed
        self.news.append((h.agent, h.message, path))

    def _take(self, h: Handling, path: str, given: Input, version: int) -> None:
        h.taken.append(given.id)
        self._settle(h, path, version, given.ref, given.kind, False)
        for other in list(self.handlings.get(given.id, {}).values()):
            if not other.closed and other.key != h.key:
                self._end(other, version, "received")

    # ---- handlings and their steps ---------------------------------------------------------------------------------
    def _work(self, r: Envelope, version: int, ref: Ref) -> None:
        w = r.work
        assert w is not None
        h = self.handling(r.sender_id, w.message)
        if h is None:
            entry = self.path[self.at[w.message] - 1]
            h = Handling(agent=r.sender_id, message=w.message, version=self.at[w.message], ref=entry.ref)
            self.handlings.setdefault(w.message, {})[r.sender_id] = h
            self.open[h.key] = None
        self._attempt(h, r)
        if w.step:
            self._step(h, r, version, ref)
        if w.done:
            h.causes = getattr(r.fact, "causes", ())
            self._end(h, version, r.message_type)
            if r.message_type == kinds.DEAD_LETTERED and w.message not in self.requests:
                self.holding[h.key] = None

    def _attempt(self, h: Handling, r: Envelope) -> None:
        kind = r.message_type
        h.begun = True
        if kind == kinds.ATTEMPT_STARTED:
            h.starts += 1
            h.lone_starts += isinstance(r.fact, facts.AttemptStarted) and r.fact.alone
            return
        h.starts = h.lone_starts = 0
        h.due = None
        if kind == kinds.ATTEMPT_FAILED and isinstance(r.fact, facts.AttemptFailed):
            h.parked, h.due = r.fact.parked, r.fact.due
            h.tries += not r.fact.parked
        elif kind == kinds.DEAD_LETTERED:
            h.dead = r.id
            h.causes = getattr(r.fact, "causes", ())
        elif r.work is not None and r.work.step:
            h.parked = ""

    def _step(self, h: Handling, r: Envelope, version: int, ref: Ref) -> None:
        assert r.work is not None
        kind, fact = r.message_type, r.fact
        st = h.steps.get(r.work.step)
        if st is None:
            st = h.steps[r.work.step] = Step(
                kind=kind, name=getattr(fact, "name", ""), digest=getattr(fact, "digest", ""), child=r.to is not None
            )
        effect = getattr(fact, "effect", "")
        if effect:
            st.effect = effect
            self.effects[effect] = (h.agent, h.message, r.work.step)
        if r.is_request and r.asked:
            st.request, st.due = r.id, r.deadline
        elif kind == kinds.EFFECT_INTENDED:
            st.intent = r.id
        elif kind == kinds.EFFECT_UNKNOWN:
            st.intent = ""
        elif isinstance(fact, facts.TimerSet):
            self._set_timer(h, r.work.step, fact, version)
        elif isinstance(fact, facts.EffectFailed) and not fact.final:
            st.tries, st.due = st.tries + 1, fact.due
        elif kind == kinds.TIMER_FIRED and st.request:
            self._close(self.requests[st.request], r, version, ref, kind)
        elif not st.settled:
            failed = kind == kinds.EFFECT_FAILED or (kind == kinds.TIMER_FIRED and bool(st.receives))
            self._settle(h, r.work.step, version, ref, kind, failed)
            if kind == kinds.STATE_CHANGED:
                self.patches.append((version, ref))

    def _set_timer(self, h: Handling, path: str, fact: facts.TimerSet, version: int) -> None:
        st = h.steps[path]
        st.timer, st.due, st.receives = True, fact.due, fact.kind
        if not fact.kind:
            return
        for given in self.inbox:
            fits = given.kind == fact.kind and given.receiver in (h.agent, "*") and given.version > h.version
            if fits and given.id not in h.taken:
                self._take(h, path, given, version)
                return

    def _end(self, h: Handling, version: int, end: str) -> None:
        """The handling is over: what it still waits for is given up."""
        h.closed, h.end = version, end
        self.open.pop(h.key, None)
        for st in h.steps.values():
            if st.request and not st.settled:
                q = self.requests[st.request]
                st.settled, st.failed, st.own_closing, st.value_kind = version, True, True, end
                if not self.requests[q.root].answered:
                    self._give_up(q, version, end)

    def _give_up(self, q: Request, version: int, end: str) -> None:
        q.answered, q.answer_kind = version, end
        self._end_sharers(q, version, end)

    def _close(self, q: Request, r: Envelope, version: int, ref: Ref, kind: str) -> None:
        """The request is answered, or given up by `r`: the step that asked has its value, its handlings are over."""
        if q.answered:
            return
        q.answered, q.answer, q.answer_id, q.answer_kind = version, ref, r.id, kind
        for request in (q.id, *q.sharers):
            shared = self.requests[request]
            st = self.step_of(shared)
            if st is not None and not st.settled and shared.asker is not None:
                h = self.handlings[shared.asker[1]][shared.asker[0]]
                self._settle(h, shared.step, version, ref, kind, kind != kinds.TASK_RESPONSE)
            origin = shared.origin
            if origin is not None and not (kind in kinds.ANSWERS and r.to == origin.workflow):
                self.owed_answers.append(shared.id)
        self._end_sharers(q, version, kind)

    def _end_sharers(self, q: Request, version: int, end: str) -> None:
        for request in (q.id, *q.sharers):
            for h in list(self.handlings.get(request, {}).values()):
                if not h.closed:
                    self._end(h, version, f"request {end}")

    # ---- control ---------------------------------------------------------------------------------------------------
    def _control(self, r: Envelope, version: int, ref: Ref) -> None:
        fact = r.fact
        if r.message_type == kinds.CANCELLED:
            self._cancel(r, version, ref)
        elif r.message_type == kinds.EXPIRED and r.work is not None:
            q = self.requests.get(r.work.message)
            if q is not None:
                self._close(self.requests[q.root], r, version, ref, kinds.EXPIRED)
        elif isinstance(fact, facts.Discarded):
            h = self.handlings[fact.message][fact.agent]
            h.discarded, h.dead = True, ""
            self.holding.pop(h.key, None)
            q = self.requests.get(fact.message)
            if q is not None:
                self._close(self.requests[q.root], r, version, ref, kinds.DISCARDED)
        elif isinstance(fact, facts.Redriven):
            self._redrive(self.handlings[fact.message][fact.agent], version, fact.keep)

    def _cancel(self, r: Envelope, version: int, ref: Ref) -> None:
        self.cancelled_at = version
        if r.origin is not None:
            self.revoked[r.origin.id] = None
        self.holding.clear()
        for q in list(self.requests.values()):
            if q.root == q.id and not q.answered and (q.asked or q.asker is not None):
                self._close(q, r, version, ref, kinds.CANCELLED)
        for agent, message in list(self.open):
            h = self.handlings[message][agent]
            if not h.closed:
                self._end(h, version, kinds.CANCELLED)

    def dropped_by_redrive(self, h: Handling, keep: str) -> list[str]:
        """Return the paths of the steps that a redrive of this handling forgets."""
        if keep == "none":
            return list(h.steps)
        causes = [*h.causes, *(path for path, st in h.steps.items() if st.own_closing)]
        return [p for p in h.steps if any(p == c or precedes(c, p) for c in causes)]

    def _redrive(self, h: Handling, version: int, keep: str) -> None:
        if not h.closed:
            self._end(h, version, kinds.REDRIVEN)
        for path in self.dropped_by_redrive(h, keep):
            st = h.steps.pop(path)
            if st.request and st.request in self.requests:
                self.requests[st.request].asker = None
        if keep == "none":
            h.taken.clear()
        h.round, h.closed, h.end, h.causes, h.dead, h.tries, h.due = h.round + 1, 0, "", (), "", 0, None
        h.parked, h.starts, h.lone_starts = "", 0, 0
        self.holding.pop(h.key, None)
        self.open[h.key] = None
        q = self.requests.get(h.message)
        if q is not None:
            root = self.requests[q.root]
            root.answered, root.answer, root.answer_id, root.answer_kind = 0, NOWHERE, "", ""
