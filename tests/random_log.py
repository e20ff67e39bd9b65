"""Random logs for tests of folds: what agents, clients, owners and people could have written, and some noise."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from refold.brokers.memory import MemoryBroker
from refold.bus import codec, facts, ids, kinds
from refold.bus.broker import LogSpec, Stored
from refold.bus.message import AgentMessage, Expected, Origin, Work
from refold.bus.partition import partition_of
from refold.projections.partition import listen
from refold.projections.view import Handling
from refold.projections.workflow import Workflow

AGENTS = ("a", "b", "c")
KINDS = ("note", "task_request")
NO_RECORD = b"not a record"


class RandomLog:
    """Writes one partition of a log of `partitions`, record by record; `records` is the log.

    It keeps every workflow's fold from zero, so that most of what it writes is sensible.
    """

    def __init__(self, seed: int, *, workflows: int = 6, partition: int = 0, partitions: int = 2) -> None:
        self.seed, self.random = seed, random.Random(seed)
        self.partition, self.partitions = partition, partitions
        names = (f"w{seed}-{i}" for i in range(100_000))
        mine = (n for n in names if partition_of(n, partitions) == partition)
        self.names = [next(mine) for _ in range(workflows)]
        self.folds = {n: Workflow(n) for n in self.names}
        self.listeners: dict[str, tuple[str, ...]] = {}
        self.heard: dict[str, int] = {}
        self.records: list[Stored] = []
        self.epoch = 0
        self.number = 0

    def grow(self, n: int) -> list[Stored]:
        """Write `n` more records; return them."""
        start = len(self.records)
        while len(self.records) < start + n:
            self._act()
        return self.records[start:]

    # ---- writing -----------------------------------------------------------------------------------------------------
    def _put(self, m: AgentMessage) -> None:
        own = m.message_type in kinds.PARTITION
        raw = codec.encode(m)
        position = len(self.records) * 3 + 2
        self.records.append(Stored(position, None if own else m.correlation_id, raw, 1000.0 + position))
        r = codec.envelope(raw)
        if own:
            for agent, wanted in list(listen(self.listeners, self.heard, r)):
                for w in self.folds.values():
                    w.view.claim(agent, wanted)
        elif m.correlation_id in self.folds:
            self.folds[m.correlation_id].admit(r, position, dict(self.listeners))

    def _message(self, kind: str, **fields: Any) -> AgentMessage:
        self.number += 1
        fields.setdefault("sender_id", "client")
        fields.setdefault("receiver_id", "*")
        fields.setdefault("id", f"m{self.seed}-{self.number}")
        fields.setdefault("payload", {"n": self.number})
        return AgentMessage(message_type=kind, timestamp=float(self.number), **fields)

    def _act(self) -> None:
        w = self.folds[self.random.choice(self.names)]
        acts = [
            (3, self._outside), (1, self._owner), (24, self._work), (2, self._control), (2, self._ledger),
            (1, self._again), (1, self._stale), (2, self._reply), (0.4, self._noise),
        ]  # fmt: skip
        (act,) = self.random.choices([a for _, a in acts], [weight for weight, _ in acts])
        act(w)

    def _outside(self, w: Workflow) -> None:
        kind = self.random.choice(["task_request", "task_request", "note", "other"])
        fields: dict[str, Any] = {
            "receiver_id": self.random.choice([*AGENTS, "*"] if kind != "task_request" else AGENTS),
            "asked": kind == "task_request" and self.random.random() < 0.8,
            "priority": self.random.randrange(10), "ttl": self.random.choice([None, 5.0]),
        }  # fmt: skip
        if self.random.random() < 0.2:
            fields["origin"] = Origin(workflow="parent", id=f"o{self.random.randrange(6)}")
        if self.random.random() < 0.1:
            fields["expected"] = Expected(version=0)
        self._put(self._message(kind, correlation_id=w.correlation, **fields))

    def _owner(self, w: Workflow) -> None:
        kind = self.random.choice([kinds.OWNER, kinds.OWNER, kinds.OWNER_RELEASED, kinds.RETIRED])
        fact: facts.Fact
        if kind == kinds.OWNER:
            self.epoch += 1
            hosted = self.random.sample(AGENTS, self.random.randrange(1, 3))
            fact = facts.Owner(group="g", epoch=self.epoch, agents=dict.fromkeys(hosted, KINDS), member="m", pid=7)
        elif kind == kinds.OWNER_RELEASED:
            fact = facts.OwnerReleased(group="g", epoch=self.epoch)
        else:
            fact = facts.Retired(agent=self.random.choice(AGENTS))
        self._put(self._message(kind, correlation_id="", fact=fact))

    def _work(self, w: Workflow) -> None:
        hs = w.open_handlings()
        if not hs:
            return self._outside(w)
        h = self.random.choice(hs)
        if self.random.random() < 0.25:
            return self._end(w, h)
        open_steps = [p for p, st in h.steps.items() if not st.settled]
        if open_steps and self.random.random() < 0.5:
            return self._settle(w, h, self.random.choice(open_steps))
        return self._step(w, h, str(len(h.steps) + 1))

    def _write(self, w: Workflow, h: Handling, kind: str, step: str = "", done: bool = False, **fields: Any) -> None:
        attempt = w.attempt(h.agent, h.message, step)
        work = Work(
            message=h.message, step=step, round=h.round, attempt=attempt, writer=f"o#{self.random.randrange(3)}",
            done=done,
        )  # fmt: skip
        id = ids.derived(w.correlation, w.generation, h.agent, h.message, h.round, step, attempt, kind)
        m = self._message(
            kind, id=id, sender_id=h.agent, correlation_id=w.correlation, generation=w.generation, work=work, **fields
        )
        self._put(m)

    def _effect(self, w: Workflow, h: Handling, step: str) -> str:
        n = w.ledger.issue_number(w.view, h.agent, h.message, step)
        return ids.effect_key(w.correlation, h.agent, h.message, step, n)

    def _step(self, w: Workflow, h: Handling, step: str) -> None:
        effect, policy = self._effect(w, h, step), self.random.choice(["idempotent", "compensate", "irreversible"])
        done = facts.EffectCompleted(effect=effect, policy=policy, cost={"eur": 0.5})
        kind, fields = self.random.choice([
            (kinds.STATE_CHANGED, {"payload": {f"k{self.random.randrange(3)}": self.random.choice([None, self.number])},
                                   "fact": facts.StateChanged()}),
            (kinds.EFFECT_COMPLETED, {"fact": done}),
            (kinds.EFFECT_INTENDED, {"fact": facts.EffectIntended(effect=effect, policy=policy)}),
            (kinds.EFFECT_FAILED, {"fact": facts.EffectFailed(effect=effect, policy=policy, due=9.0)}),
            (kinds.TIMER_SET, {"fact": facts.TimerSet(due=50.0)}),
            (kinds.TIMER_SET, {"fact": facts.TimerSet(due=None, kind="note")}),
            (kinds.TASK_REQUEST, {"receiver_id": self.random.choice(AGENTS), "asked": True, "fact": facts.Call()}),
            (kinds.TASK_REQUEST, {"receiver_id": "b", "asked": True, "to": "child", "deadline": 70.0}),
            (kinds.ATTEMPT_FAILED, {"fact": facts.AttemptFailed(error="E", due=3.0)}),
            (kinds.ATTEMPT_STARTED, {"fact": facts.AttemptStarted(alone=True)}),
            ("note", {"receiver_id": self.random.choice([*AGENTS, "*", "client"])}),
        ])  # fmt: skip
        step = "" if kind in (kinds.ATTEMPT_FAILED, kinds.ATTEMPT_STARTED) else step
        self._write(w, h, kind, step, **fields)

    def _settle(self, w: Workflow, h: Handling, step: str) -> None:
        st = h.steps[step]
        if st.effect or st.intent:
            effect = st.effect
            final = self.random.random() < 0.5
            if self.random.random() < 0.6:
                self._write(w, h, kinds.EFFECT_COMPLETED, step, fact=facts.EffectCompleted(effect=effect))
            elif st.intent and self.random.random() < 0.3:
                self._write(w, h, kinds.EFFECT_UNKNOWN, step, fact=facts.EffectUnknown(intent=st.intent))
            else:
                self._write(w, h, kinds.EFFECT_FAILED, step, fact=facts.EffectFailed(effect=effect, final=final))
        else:
            self._write(w, h, kinds.TIMER_FIRED, step)

    def _end(self, w: Workflow, h: Handling) -> None:
        duty = w.view.duty(h.agent, h.message)
        chance = self.random.random()
        if chance < 0.2:
            self._write(
                w, h, kinds.DEAD_LETTERED, done=duty is None, fact=facts.DeadLettered(causes=tuple(h.steps)[:1])
            )
        elif chance < 0.25 and not h.begun:
            self._write(w, h, kinds.EXPIRED, done=True)
        elif duty is None:
            self._write(w, h, kinds.HANDLED, done=True)
        else:
            to = duty.origin.workflow if duty.origin is not None else None
            kind = self.random.choice([kinds.TASK_RESPONSE, kinds.TASK_RESPONSE, kinds.ERROR_REPORT])
            self._write(w, h, kind, done=True, in_reply_to=duty.id, receiver_id=duty.sender, to=to)

    def _reply(self, w: Workflow) -> None:
        """A child's answer, or a person's."""
        open_ = [q for q in w.view.requests.values() if not w.view.late(q.id)]
        if open_:
            q = self.random.choice(open_)
            origin = Origin(workflow="child", id="c") if q.to is not None else None
            self._put(
                self._message(
                    kinds.TASK_RESPONSE, correlation_id=w.correlation, sender_id=q.agent, in_reply_to=q.id,
                    origin=origin,
                )
            )  # fmt: skip

    def _control(self, w: Workflow) -> None:
        hs = list(w.view.all_handlings())
        chance = self.random.random()
        fact: facts.Fact
        if chance < 0.5 and w.version:
            to = self.random.randrange(w.version)
            lost = [e.id for e in w.view.path[to:] if e.envelope is not None and e.envelope.generation is None]
            fix = self._message("note", correlation_id=w.correlation, receiver_id="a")
            fact = facts.RolledBack(
                to_version=to, op_id=f"op{self.random.randrange(40)}", force=self.random.random() < 0.5,
                reapply=tuple(lost[: self.random.randrange(3)]),
                with_inputs=tuple(msgspec.Raw(codec.encode(fix)) for _ in range(self.random.randrange(2))),
            )  # fmt: skip
            expected = Expected(generation=w.generation, inputs=w.view.inputs)
            m = self._message(kinds.ROLLED_BACK, correlation_id=w.correlation, fact=fact, expected=expected)
        elif chance < 0.9 and hs:
            h = self.random.choice(hs)
            force = self.random.random() < 0.5
            fact = facts.Redriven(agent=h.agent, message=h.message, keep=self.random.choice(["", "none"]), force=force)
            kind = kinds.REDRIVEN
            if self.random.random() < 0.3:
                fact, kind = facts.Discarded(agent=h.agent, message=h.message), kinds.DISCARDED
            m = self._message(kind, correlation_id=w.correlation, fact=fact)
        else:
            origin = Origin(workflow="parent", id=f"o{self.random.randrange(6)}")
            m = self._message(kinds.CANCELLED, correlation_id=w.correlation, fact=facts.Cancelled(), origin=origin)
        self._put(m)

    def _ledger(self, w: Workflow) -> None:
        owed = w.ledger.owed()
        duties = w.duties()
        if owed and self.random.random() < 0.7:
            kind = self.random.choice(sorted(kinds.COMPENSATION))
            fact: facts.Fact = facts.Compensation(effect=owed[0], final=self.random.random() < 0.5)
            self._put(self._message(kind, correlation_id=w.correlation, sender_id="a", fact=fact))
        elif duties:
            d = self.random.choice(duties)
            fact = facts.Delivered(subject=d.subject, n=d.n, cancel=d.what == "cancel")
            self._put(self._message(kinds.DELIVERED, correlation_id=w.correlation, sender_id=d.agent, fact=fact))

    def _again(self, w: Workflow) -> None:
        """A record that is there already."""
        known = [s for s in self.records if s.key in self.folds and s.value != NO_RECORD]
        if known:
            self._put(codec.decode(self.random.choice(known).value))

    def _stale(self, w: Workflow) -> None:
        """A zombie goes on: a generation or a round that is over."""
        hs = list(w.view.all_handlings())
        if hs and w.generation:
            h = self.random.choice(hs)
            work = Work(message=h.message, step="1", round=h.round, writer="o#9")
            fact = facts.EffectCompleted(effect=self._effect(w, h, "1"), policy="compensate")
            self._put(
                self._message(
                    kinds.EFFECT_COMPLETED, correlation_id=w.correlation, sender_id=h.agent, fact=fact, work=work,
                    generation=w.generation - 1,
                )
            )  # fmt: skip

    def _noise(self, w: Workflow) -> None:
        """Bytes that are no record, and records that belong elsewhere."""
        position = len(self.records) * 3 + 2
        chance = self.random.random()
        if chance < 0.4:
            self.records.append(Stored(position, w.correlation, NO_RECORD, 1000.0 + position))
            return
        if chance < 0.6:
            self._misfiled(w, position)
            return
        other = next(n for i in range(1000) if partition_of(n := f"stray{i}", self.partitions) != self.partition)
        stray = self._message("task_request", correlation_id=other, receiver_id="a")
        self.records.append(Stored(position, other, codec.encode(stray), 1000.0 + position))


    def _misfiled(self, w: Workflow, position: int) -> None:
        """A record under a key that is not its workflow's, or an owner's under a workflow's: whoever reads one
        workflow cannot meet both, so they count nowhere here."""
        fact = facts.Owner(group="g", epoch=999, agents=dict.fromkeys(AGENTS, KINDS))
        made = [
            (f"{w.correlation}x", self._message("task_request", correlation_id=w.correlation, receiver_id="a")),
            (None, self._message("task_request", correlation_id=w.correlation, receiver_id="a")),
            (w.correlation, self._message(kinds.OWNER, correlation_id="", fact=fact)),
        ]
        key, m = self.random.choice(made)
        self.records.append(Stored(position, key, codec.encode(m), 1000.0 + position))


async def written(log: RandomLog) -> MemoryBroker:
    """The log as a broker: positions are the broker's own."""
    broker = MemoryBroker()
    await broker.ensure_log(LogSpec(partitions=log.partitions))
    await broker.append_raw(log.partition, [(s.key, s.value) for s in log.records])
    return broker


def whole(log: RandomLog, records: list[Stored]) -> dict[str, Workflow]:
    """Every workflow's fold from zero, with nothing frozen, parked or forgotten."""
    folds, listeners = {n: Workflow(n) for n in log.names}, dict[str, tuple[str, ...]]()
    heard: dict[str, int] = {}
    for s in records:
        if s.value == NO_RECORD:
            continue
        r = codec.envelope(s.value)
        if s.key is None and not r.correlation_id:
            for agent, wanted in list(listen(listeners, heard, r)):
                for w in folds.values():
                    w.view.claim(agent, wanted)
        elif r.correlation_id == s.key and r.correlation_id in folds:
            folds[r.correlation_id].admit(r, s.position, dict(listeners))
    return folds
