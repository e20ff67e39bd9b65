"""Workflows of any length, and segments so small that short ones have many."""

from __future__ import annotations

from random import Random

import pytest

from refold.bus import codec, facts, ids, kinds
from refold.bus.broker import Stored
from refold.bus.message import AgentMessage, Expected, Work
from refold.projections import segments
from refold.projections.handling import Handling
from refold.projections.partition import PartitionFold
from refold.projections.workflow import Workflow

TALK = "talk"


def cut_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a state of a few records be cut."""
    for name, value in {"LIMIT": 500, "LEAST": 100, "MOST": 300, "SMALL": 40, "RATE": 4}.items():
        monkeypatch.setattr(segments, name, value)


class LongTalk:
    """Writes one workflow and folds it. Each turn of four records is a question, two calls and the answer; where
    `one` is true all calls belong to one question."""

    def __init__(self, *, one: bool = False) -> None:
        self.fold = PartitionFold(0, 1)
        self.one, self.random, self.position = one, Random(7), 0
        self.records: list[Stored] = []
        self._append(AgentMessage(
            id="owner", sender_id="o", receiver_id="*", message_type=kinds.OWNER, correlation_id="",
            fact=facts.Owner(group="g", epoch=1, agents={"ann": ("task_request",)}),
        ))  # fmt: skip

    @property
    def workflow(self) -> Workflow:
        w = self.fold.find(TALK)
        assert w is not None
        return w

    def grow(self, records: int) -> None:
        """Write that many records."""
        for _ in range(records):
            self._next()

    def end(self) -> None:
        """Write until the workflow is complete."""
        if not self.workflow.open_handlings():
            self._next()
        (h,) = self.workflow.open_handlings()
        self._answer(h)
        assert self.fold.settle(self.workflow)

    def roll_back(self, version: int) -> None:
        """Cut the path."""
        expected = Expected(generation=self.workflow.generation, inputs=self.workflow.view.inputs)
        fact = facts.RolledBack(to_version=version, op_id=f"op{self.position}")
        self._append(AgentMessage(
            id=f"back{self.position}", sender_id="operator", receiver_id="*", message_type=kinds.ROLLED_BACK,
            correlation_id=TALK, fact=fact, expected=expected,
        ))  # fmt: skip

    def _append(self, message: AgentMessage) -> None:
        self.position += 1
        raw = codec.encode(message)
        r = codec.envelope(raw)
        for correlation in self.fold.missing(r):
            self.fold.restore(correlation, self.records)
        self.records.append(Stored(self.position, message.correlation_id or None, raw, 0.0))
        folded = self.fold.fold(self.records[-1], r)
        assert folded.verdict in ("admitted", "ledger")

    def _next(self) -> None:
        w = self.fold.find(TALK)
        open_ = w.open_handlings() if w is not None else []
        if not open_:
            id = f"{self.random.getrandbits(128):032x}"
            self._append(AgentMessage(
                id=f"{id[:8]}-{id[8:12]}-7{id[12:15]}-8{id[15:18]}-{id[18:30]}", sender_id="client",
                receiver_id="ann", message_type=kinds.TASK_REQUEST, correlation_id=TALK, asked=True,
            ))  # fmt: skip
        elif self.one or len(open_[0].steps) < 2:
            step = str(len(open_[0].steps) + 1)
            effect = ids.effect_key(TALK, "ann", open_[0].message, step, 0)
            self._work(open_[0], kinds.EFFECT_COMPLETED, step, fact=facts.EffectCompleted(effect=effect))
        else:
            self._answer(open_[0])

    def _answer(self, h: Handling) -> None:
        self._work(h, kinds.TASK_RESPONSE, done=True, in_reply_to=h.message)

    def _work(self, h: Handling, kind: str, step: str = "", *, done: bool = False, **fields: object) -> None:
        generation = self.workflow.generation
        id = ids.derived(TALK, generation, h.agent, h.message, h.round, step, 0, kind)
        work = Work(message=h.message, step=step, round=h.round, writer="o#1", done=done)
        self._append(AgentMessage(
            id=id, sender_id=h.agent, receiver_id="client", message_type=kind, correlation_id=TALK,
            generation=generation, work=work, **fields,
        ))  # fmt: skip
