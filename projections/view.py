"""What the path of a workflow says: its requests, handlings and steps. Cut and folded anew by a rollback."""

from __future__ import annotations

import heapq
from collections.abc import Iterator

from msgspec import Struct, field

from ..bus import facts, kinds
from ..bus.message import Envelope, Origin
from .handling import (
    NOWHERE,
    Due,
    Entry,
    Handling,
    Input,
    Key,
    Place,
    Ref,
    Request,
    Step,
    input_of,
    precedes,
)
from .verdict import is_outside

Listeners = dict[str, tuple[str, ...]]
"""Agent -> the kinds that it listens to, at one place of a partition."""


class View(Struct, gc=False, omit_defaults=True):
    """The fold of the path. `apply` takes admitted records only.

    `open` and `agenda` (the same, by agent; `calls`: the requests from inside among them) are in the order of the
    messages on the path. `dues` are heaps by agent, whose first entry is never out of date. What the last record
    changed: `news` are the steps that got a value, `touched` the effects that may be held or lost now, `released` the
    requests for which a step may wait no more.
    """

    path: list[Entry] = field(default_factory=list)
    at: dict[str, int] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
    handlings: dict[str, dict[str, Handling]] = field(default_factory=dict)
    open: dict[Key, None] = field(default_factory=dict)
    agenda: dict[str, dict[str, None]] = field(default_factory=dict)
    calls: dict[str, dict[str, None]] = field(default_factory=dict)
    dues: dict[str, list[Due]] = field(default_factory=dict)
    holding: dict[Key, None] = field(default_factory=dict)
    effects: dict[str, Place] = field(default_factory=dict)
    inbox: dict[str, list[Input]] = field(default_factory=dict)
    receiving: dict[str, dict[Place, None]] = field(default_factory=dict)
    consumed: dict[str, None] = field(default_factory=dict)
    patches: list[tuple[int, Ref]] = field(default_factory=list)
    revoked: dict[str, None] = field(default_factory=dict)
    unclaimed: dict[str, list[Input]] = field(default_factory=dict)
    owed_answers: dict[str, None] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    clients: dict[str, None] = field(default_factory=dict)
    news: list[Place] = field(default_factory=list)
    touched: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)
    inputs: int = 0
    cancelled_at: int = 0

    # ---- questions -------------------------------------------------------------------------------------------------
    def handling(self, agent: str, message: str) -> Handling | None:
        """Return the handling, if the message obliges the agent or the agent has begun it."""
        by_agent = self.handlings.get(message)
        return by_agent.get(agent) if by_agent is not None else None

    def round_of(self, agent: str, message: str) -> int:
        """Return the current round of a handling (0 where there is none)."""
        h = self.handling(agent, message)
        return h.round if h else 0

    def late(self, request: str) -> bool:
        """No answer to this request is wanted: it is not on the path, is answered, or was given up."""
        q = self.requests.get(request)
        return q is None or bool(self.requests[q.root].answered)

    def is_revoked(self, origin: Origin) -> bool:
        """Another workflow has cancelled what this record of it asks for."""
        return _name(origin) in self.revoked

    def is_over(self, message: str) -> bool:
        """Nobody who has not begun with this message may begin: it is answered, was taken by a `receive`, came a
        second time, or everything was cancelled since."""
        q = self.requests.get(message)
        if q is not None and (q.again or self.requests[q.root].answered):
            return True
        return message in self.consumed or self.cancelled_at > self.at[message]

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

    def names(self, effect: str) -> Step | None:
        """Return the step whose newest call is this effect."""
        where = self.effects.get(effect)
        h = self.handling(where[0], where[1]) if where is not None else None
        st = h.steps.get(where[2]) if h is not None and where is not None else None
        return st if st is not None and st.effect == effect else None

    def holds(self, effect: str) -> bool:
        """The path counts on this effect: its step was not cut, not dropped by a redrive, not recorded as failed."""
        st = self.names(effect)
        return st is not None and not st.effect_failed

    def in_flight(self, effect: str) -> bool:
        """An intent of this effect stands, and its outcome is not on the path."""
        st = self.names(effect)
        return st is not None and bool(st.intent) and not st.settled

    def all_handlings(self) -> Iterator[Handling]:
        """Every handling on the path, in no particular order."""
        for by_agent in self.handlings.values():
            yield from by_agent.values()

    def all_unclaimed(self) -> list[Input]:
        """Return the messages that wait for an agent that nobody has hosted yet."""
        waiting = [given for by_agent in self.unclaimed.values() for given in by_agent]
        return [u for u in waiting if u.id not in self.consumed and u.version > self.cancelled_at]

    # ---- the fold --------------------------------------------------------------------------------------------------
    def apply(self, r: Envelope, ref: Ref, listeners: Listeners) -> None:
        """Let an admitted record join the path. `listeners` are the partition's, below this record."""
        self._apply(r, Entry(r.id, ref, None, r), listeners)

    def reapply(self, entry: Entry) -> None:
        """Let a record of an earlier path join this one: whom it obliged, it obliges."""
        assert entry.envelope is not None
        self._apply(entry.envelope, Entry(entry.id, entry.ref, entry.obliges, entry.envelope), None)

    def _apply(self, r: Envelope, entry: Entry, listeners: Listeners | None) -> None:
        if self.news or self.touched or self.released:
            self.news, self.touched, self.released = [], [], []
        ref, kind = entry.ref, r.message_type
        self.path.append(entry)
        version = self.at[r.id] = len(self.path)
        outside = r.work is None and is_outside(r)
        if outside:
            self.inputs += 1
            if r.origin is None:
                self.clients[r.sender_id] = None
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
        if self.dues:
            self._forget_dues()

    # ---- messages --------------------------------------------------------------------------------------------------
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
            expires = None if r.ttl is None else r.timestamp + r.ttl
            h = Handling(
                agent=r.receiver_id, message=r.id, version=version, ref=ref, kind=r.message_type, priority=r.priority,
                inside=r.work is not None, expires=expires,
            )  # fmt: skip
            self.handlings[r.id] = {h.agent: h}
            self._open(h)

    def _redelivered(self, q: Request) -> bool:
        """The same request of another workflow came again: its first copy is the one that is handled."""
        if q.origin is None:
            return False
        first = self.origins.setdefault(_name(q.origin), q.id)
        if first == q.id:
            return False
        q.root, q.again = self.requests[first].root, True
        if self.requests[q.root].answered and q.asked:
            self.owed_answers[q.id] = None
        return True

    def _notify(
        self, r: Envelope, version: int, entry: Entry, listeners: Listeners | None, outside: bool
    ) -> None:  # fmt: skip
        if r.to is not None:
            return
        given = input_of(r, version, entry.ref)
        if listeners is not None:
            entry.obliges = self._obliged(r, listeners)
        if entry.obliges is None:
            self.unclaimed.setdefault(given.receiver, []).append(given)
        if outside:
            self.inbox.setdefault(given.kind, []).append(given)
            if self._receive(given):
                return
        for agent in entry.obliges or ():
            self._oblige(agent, given)

    def _obliged(self, r: Envelope, listeners: Listeners) -> tuple[str, ...] | None:
        if r.receiver_id == "*":
            return tuple(a for a, wanted in listeners.items() if a != r.sender_id and r.message_type in wanted)
        if r.receiver_id not in listeners:
            return () if r.receiver_id in self.clients else None
        return (r.receiver_id,) if r.message_type in listeners[r.receiver_id] else ()

    def claim(self, agent: str, wanted: tuple[str, ...]) -> None:
        """An `owner` record names the agent for the first time: what was addressed to it obliges it now."""
        for given in self.unclaimed.pop(agent, ()):
            wants = given.kind in wanted
            self.path[given.version - 1].obliges = (agent,) if wants else ()
            if wants and not self.is_over(given.id) and self.handling(agent, given.id) is None:
                self._oblige(agent, given, order=False)
        self._order()

    # ---- what is open ----------------------------------------------------------------------------------------------
    def _oblige(self, agent: str, given: Input, *, order: bool = True) -> None:
        h = Handling(
            agent=agent, message=given.id, version=given.version, ref=given.ref, kind=given.kind,
            priority=given.priority, inside=given.inside, expires=given.expires,
        )  # fmt: skip
        self.handlings.setdefault(given.id, {})[agent] = h
        self._open(h, order=order)

    def _open(self, h: Handling, *, order: bool = True) -> None:
        last = next(reversed(self.open)) if self.open else None
        self.open[h.agent, h.message] = None
        agenda = self.agenda.get(h.agent)
        if agenda is None:
            self.agenda[h.agent] = {h.message: None}
        else:
            agenda[h.message] = None
        if h.inside and h.is_call:
            self.calls.setdefault(h.agent, {})[h.message] = None
        if h.expires is not None:
            self._due(h, h.expires)
        if order and last is not None and self._version(last) > h.version:
            self._order()

    def _version(self, key: Key) -> int:
        return self.handlings[key[1]][key[0]].version

    def _order(self) -> None:
        keys = sorted(self.open, key=self._version)
        self.open, self.agenda, self.calls = dict.fromkeys(keys), {}, {}
        for agent, message in keys:
            self.agenda.setdefault(agent, {})[message] = None
            if self.handlings[message][agent].is_call:
                self.calls.setdefault(agent, {})[message] = None

    def _shut(self, h: Handling) -> None:
        if self.open.pop((h.agent, h.message), self) is self:
            return
        agenda = self.agenda[h.agent]
        del agenda[h.message]
        if not agenda:
            del self.agenda[h.agent]
        if h.inside and h.is_call:
            calls = self.calls[h.agent]
            del calls[h.message]
            if not calls:
                del self.calls[h.agent]

    # ---- times -----------------------------------------------------------------------------------------------------
    def _due(self, h: Handling, due: float | None, path: str = "") -> None:
        """Something must be done at that time: for the step at `path`, or for the handling itself."""
        if due is not None:
            heapq.heappush(self.dues.setdefault(h.agent, []), (due, h.message, path))

    def _forget_dues(self) -> None:
        """Drop what is out of date from the top of the heaps."""
        for agent, heap in list(self.dues.items()):
            while heap and not self._stands(agent, *heap[0]):
                heapq.heappop(heap)
            if not heap:
                del self.dues[agent]

    def _stands(self, agent: str, due: float, message: str, path: str) -> bool:
        h = self.handlings[message][agent]
        if h.closed:
            return False
        if path:
            return path in h.pending and h.steps[path].due == due
        return h.due == due or (not h.begun and h.expires == due)

    # ---- receiving -------------------------------------------------------------------------------------------------
    def _receive(self, given: Input) -> bool:
        """Give an outside message to the receives that wait for its kind; True if one took it."""
        served: set[Key] = set()
        for agent, message, path in list(self.receiving.get(given.kind, ())):
            if (agent, message) not in served and given.receiver in (agent, "*"):
                served.add((agent, message))
                self._take(self.handlings[message][agent], path, given, given.version)
        return bool(served)

    def _look(self, h: Handling, path: str, version: int) -> None:
        """A receive begins to wait: it takes the first message that fits, else the next one to come."""
        kind = h.steps[path].receives
        inbox = self.inbox.get(kind, [])
        for i in range(h.cursors.get(kind, 0), len(inbox)):
            given = inbox[i]
            if given.receiver in (h.agent, "*") and given.version > h.version and given.id not in h.taken:
                h.cursors[kind] = i + 1
                self._take(h, path, given, version)
                return
        h.cursors[kind] = len(inbox)
        self.receiving.setdefault(kind, {})[h.agent, h.message, path] = None

    def _deafen(self, h: Handling, path: str) -> None:
        """A receive waits no more."""
        kind = h.steps[path].receives
        places = self.receiving.get(kind)
        if places is not None:
            places.pop((h.agent, h.message, path), None)
            if not places:
                del self.receiving[kind]

    def _take(self, h: Handling, path: str, given: Input, version: int) -> None:
        h.taken[given.id] = None
        h.steps[path].took = given.id
        self.consumed[given.id] = None
        self._settle(h, path, version, given.ref, given.kind, False)
        for other in list(self.handlings.get(given.id, {}).values()):
            if not other.closed:
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
            self._open(h)
        h.begun = True
        if r.message_type not in kinds.MESSAGES or h.starts or h.due is not None or h.parked:
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
        if kind == kinds.ATTEMPT_STARTED:
            h.starts += 1
            h.lone_starts += isinstance(r.fact, facts.AttemptStarted) and r.fact.alone
            return
        h.starts = h.lone_starts = 0
        h.due, h.parked = None, ""
        if kind == kinds.ATTEMPT_FAILED and isinstance(r.fact, facts.AttemptFailed):
            h.parked, h.due = r.fact.parked, r.fact.due
            self._due(h, h.due)
            h.tries += not r.fact.parked
        elif kind == kinds.DEAD_LETTERED:
            h.dead = r.id
            h.causes = getattr(r.fact, "causes", ())

    def _step(self, h: Handling, r: Envelope, version: int, ref: Ref) -> None:
        assert r.work is not None
        kind, fact, path = r.message_type, r.fact, r.work.step
        st = h.steps.get(path)
        if st is None:
            st = h.steps[path] = Step(
                kind=kind, name=getattr(fact, "name", ""), digest=getattr(fact, "digest", ""), child=r.to is not None
            )
            h.pending[path] = None
        effect = getattr(fact, "effect", "")
        if effect:
            self.touched += [effect] if st.effect in ("", effect) else [st.effect, effect]
            st.effect = effect
            self.effects[effect] = (h.agent, h.message, path)
        if r.is_request and r.asked:
            st.request, st.due = r.id, r.deadline
            self._due(h, st.due, path)
        elif kind == kinds.EFFECT_INTENDED:
            st.intent = r.id
        elif kind == kinds.EFFECT_UNKNOWN:
            st.intent = ""
        elif isinstance(fact, facts.TimerSet):
            st.timer, st.due, st.receives, st.since = True, fact.due, fact.kind, version
            self._due(h, st.due, path)
            if fact.kind:
                self._look(h, path, version)
        elif isinstance(fact, facts.EffectFailed) and not fact.final:
            st.tries, st.due = st.tries + 1, fact.due
            self._due(h, st.due, path)
        elif kind == kinds.TIMER_FIRED and st.request:
            self._close(self.requests[st.request], r, version, ref, kind)
        elif not st.settled:
            failed = kind == kinds.EFFECT_FAILED or (kind == kinds.TIMER_FIRED and bool(st.receives))
            self._settle(h, path, version, ref, kind, failed)
            if kind == kinds.STATE_CHANGED:
                self.patches.append((version, ref))

    def _settle(self, h: Handling, path: str, version: int, ref: Ref, kind: str, failed: bool) -> None:
        st = h.steps[path]
        st.settled, st.value, st.value_kind, st.failed = version, ref, kind, failed
        st.effect_failed = kind == kinds.EFFECT_FAILED
        h.pending.pop(path, None)
        self.news.append((h.agent, h.message, path))
        if st.effect:
            self.touched.append(st.effect)
        if st.request:
            self.released.append(st.request)
        if st.receives:
            self._deafen(h, path)

    def _end(self, h: Handling, version: int, end: str) -> None:
        """The handling is over: what it still waits for is given up."""
        h.closed, h.end = version, end
        self._shut(h)
        for path in list(h.pending) if h.pending else ():
            st = h.steps[path]
            if st.receives:
                self._deafen(h, path)
            if not st.request:
                continue
            q = self.requests[st.request]
            st.settled, st.failed, st.own_closing, st.value_kind = version, True, True, end
            del h.pending[path]
            self.released.append(q.id)
            if not self.requests[q.root].answered:
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
            if origin is not None and shared.asked and not (kind in kinds.ANSWERS and r.to == origin.workflow):
                self.owed_answers[shared.id] = None
        self._end_sharers(q, version, kind)

    def _end_sharers(self, q: Request, version: int, end: str) -> None:
        for request in (q.id, *q.sharers):
            by_agent = self.handlings.get(request)
            still_open = [h for h in by_agent.values() if not h.closed] if by_agent is not None else ()
            for h in still_open:
                if not h.closed:  # the end of another one may have ended it
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
            self.revoked[_name(r.origin)] = None
        self.holding.clear()
        for q in list(self.requests.values()):
            if q.root == q.id and not q.answered and (q.asked or (q.agent, q.id) in self.open):
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
            self._forget(h, path)
        h.round, h.closed, h.end, h.causes, h.dead, h.tries, h.due = h.round + 1, 0, "", (), "", 0, None
        h.parked, h.starts, h.lone_starts = "", 0, 0
        h.cursors.clear()
        self.holding.pop(h.key, None)
        self._open(h)
        q = self.requests.get(h.message)
        if q is not None:
            self._reopen(self.requests[q.root])
        for path in h.pending:
            self._due(h, h.steps[path].due, path)
        waiting = [path for path in h.pending if h.steps[path].receives]
        for path in sorted(waiting, key=lambda p: h.steps[p].since):
            self._look(h, path, version)

    def _forget(self, h: Handling, path: str) -> None:
        st = h.steps.pop(path)
        h.pending.pop(path, None)
        h.taken.pop(st.took, None)
        if st.effect:
            self.touched.append(st.effect)
        if st.request in self.requests:
            self.requests[st.request].asker = None

    def _reopen(self, root: Request) -> None:
        """A redrive makes a request unanswered again; what was owed of its answer is not owed any more."""
        root.answered, root.answer, root.answer_id, root.answer_kind = 0, NOWHERE, "", ""
        for request in list(self.owed_answers):
            if self.requests[request].root == root.id:
                del self.owed_answers[request]


def _name(origin: Origin) -> str:
    return f"{origin.workflow} {origin.id}"


__all__ = [
    "NOWHERE", "Entry", "Handling", "Input", "Key", "Listeners", "Place", "Ref", "Request", "Step", "View", "precedes",
]  # fmt: skip
