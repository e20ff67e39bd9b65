"""Garbage for logs: records that decode and make no sense, made of sensible ones, and bytes that are no record."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import msgspec

from refold.bus import facts, kinds
from refold.projections.workflow import Workflow

Tree = dict[str, Any]
KINDS = (*sorted(kinds.ENGINE | kinds.MESSAGES), "note", "own")
AGENTS = ("a", "b", "c", "*", "client", "nobody")
STEPS = ("", "1", "2", "3", "1.1", "2.1.1", "word", "1..2", "-1", "9" * 30, "\u0663", "1.x")
COUNTS = (0, 0, 0, 1, 2, -1, 2**63 - 1)
BAD_JSON = (
    b"", b"\x00\xff", b"null", b"[]", b"{}", b"{", b'{"id":1}', b"[" * 5000, b'{"a":' * 1000, b"\xef\xbb\xbf{}",
)  # fmt: skip
RAW_PAYLOADS = ("1e400", "18446744073709551616", "9" * 5000, '"\\ud800"', "[" * 600 + "]" * 600, "-0", "1E5", "[1,]")


class Garbage:
    """Makes records about the workflows of a log from those that it holds (`sample`)."""

    def __init__(self, seed: int, names: list[str]) -> None:
        self.random = random.Random(seed)
        self.names = names
        self.trees: list[Tree] = []
        self.number = 0

    def sample(self, raw: bytes) -> None:
        """The log holds this record."""
        try:
            tree = json.loads(raw)
        except (ValueError, RecursionError):
            return
        if isinstance(tree, dict) and "message_type" in tree:
            self.trees.append(tree)

    def record(self, workflow: Callable[[str], Workflow | None] = lambda name: None) -> tuple[str | None, bytes]:
        """Return a key and bytes. `workflow` tells the fold of one, so that the garbage fits it better."""
        self.number += 1
        if self.random.random() < 0.05 or not self.trees:
            return self._pick(self.names), self._bytes()
        tree = self._changed()
        w = workflow(tree.get("correlation_id", ""))
        if w is not None:
            self._fit(tree, w)
        tree = {name: value for name, value in tree.items() if value is not None}
        raw = json.dumps(tree).encode()
        if self.random.random() < 0.05:
            raw = raw[:-1] + f',"payload":{self._pick(RAW_PAYLOADS)}}}'.encode()
        key = None if tree.get("message_type") in kinds.PARTITION else tree.get("correlation_id")
        return (key if self.random.random() < 0.97 else self._pick([None, *self.names])), raw

    def _pick(self, values: Any) -> Any:
        return self.random.choice(list(values))

    def _chance(self, share: float) -> bool:
        return self.random.random() < share

    def _bytes(self) -> bytes:
        if self._chance(0.5) or not self.trees:
            return self._pick(BAD_JSON) if self._chance(0.7) else self.random.randbytes(self.random.randrange(200))
        raw = bytearray(json.dumps(self._pick(self.trees)).encode())
        for _ in range(self.random.randrange(1, 6)):
            raw[self.random.randrange(len(raw))] = self.random.randrange(256)
        return bytes(raw)

    def _ids(self) -> list[Any]:
        some = self.random.sample(self.trees, min(5, len(self.trees)))
        return [*(t["id"] for t in some if "id" in t), "unknown"]

    def _changed(self) -> Tree:
        """A record that is there, with some of its fields replaced."""
        tree = dict(self._pick(self.trees))
        if self._chance(0.85):
            tree["id"] = f"garbage-{self.number}"
        for name in self.random.sample(sorted(self._fields()), self._pick([1, 1, 1, 2, 2, 3, 5])):
            tree[name] = self._fields()[name]
        if self._chance(0.25):
            tree["message_type"] = self._pick(sorted(kinds.CONTROL | kinds.LEDGER))
        if self._chance(0.7) and tree["message_type"] in facts.FACTS:
            tree["fact"] = self._fact(tree["message_type"])
        if tree.get("work") and self._chance(0.3):
            tree["generation"] = 0
        return tree

    def _fields(self) -> Tree:
        pick, ids = self._pick, self._ids()
        work = {
            "message": pick(ids), "step": pick(STEPS), "round": pick(COUNTS), "attempt": pick(COUNTS),
            "writer": "owner#1", "done": self._chance(0.4),
        }  # fmt: skip
        return {
            "sender_id": pick(AGENTS), "receiver_id": pick(AGENTS), "message_type": pick(KINDS),
            "correlation_id": pick(self.names), "causation_id": pick([*ids, None]), "in_reply_to": pick([*ids, None]),
            "answers": pick([*ids, None]), "asked": self._chance(0.5), "generation": pick([None, *COUNTS]),
            "to": pick([*self.names, "child", None]), "deadline": pick([None, 0, 1e9]), "ttl": pick([None, 0, 1e9]),
            "origin": pick([None, {"workflow": pick([*self.names, "parent"]), "id": pick(ids)}]),
            "expected": pick([None, {"version": pick(range(20))}, {"generation": 0, "inputs": pick(range(9))}, {}]),
            "work": pick([None, work]), "fact": self._fact(pick(KINDS)), "headers": pick([{}, {"x": "y"}, 5, {"a": 1}]),
            "schema": pick([None, "s", 7]), "refold-unknown": pick([None, [1, {"a": None}]]),
        }  # fmt: skip

    def _fact(self, kind: str) -> Tree:
        fact: Tree = {}
        for f in msgspec.structs.fields(facts.FACTS.get(kind, facts.Call)):
            if f.required or self._chance(0.7):
                fact[f.name] = self._part(f.name, f.type)
        return fact

    def _part(self, name: str, wanted: Any) -> Any:
        pick, ids = self._pick, self._ids()
        if name in ("intent", "subject", "message", "parent"):
            return pick(ids)
        if name == "effect":
            known = [t["fact"].get("effect") for t in self.trees if isinstance(t.get("fact"), dict)]
            return pick([e for e in known if e] or ["effect"])
        known_parts = {
            "agent": pick("abcz"), "causes": [pick(STEPS), pick(STEPS)], "reapply": [pick(ids), pick(ids)],
            "with_inputs": pick([[], [{}], [5], [None], [self._pick(self.trees)], [self._input()]]),
            "agents": {pick("abc"): ["note", "task_request"]}, "cost": {"eur": pick([1.0, -1e15])},
            "policy": pick(["compensate", "irreversible", "idempotent", "retain", "odd"]),
            "due": pick([None, 1.0, 1e11]),
            "keep": pick(["", "none", "odd"]), "op_id": pick(["o1", "o2", "o3"]), "group": pick("gh"),
            "kind": pick(["", "note", "task_request", "own"]), "epoch": pick([0, 1, 10**6]),
        }  # fmt: skip
        if name in known_parts:
            return known_parts[name]
        return self._chance(0.5) if wanted is bool else pick(COUNTS) if "int" in str(wanted) else pick(["", "text"])

    def _input(self) -> Tree:
        return {**self._pick(self.trees), "message_type": "note", "work": None, "generation": None, "headers": 5}

    def _fit(self, tree: Tree, w: Workflow) -> None:
        """Let it refer to what the workflow has, so that it comes further than the first check."""
        kind, fact = tree["message_type"], tree.get("fact")
        handlings = list(w.view.all_handlings())
        if kind == kinds.ROLLED_BACK and isinstance(fact, dict) and self._chance(0.8):
            tree.update(work=None, generation=None, expected={"generation": w.generation, "inputs": w.view.inputs})
            fact.update(to_version=self.random.randrange(w.version + 1), op_id=f"op-{self.number}")
        elif kind in (kinds.REDRIVEN, kinds.DISCARDED) and handlings and isinstance(fact, dict):
            h = self._pick(handlings)
            tree.update(work=None, generation=None)
            fact.update(agent=h.agent, message=h.message)
        elif kind == kinds.DELIVERED and isinstance(fact, dict) and w.duties():
            fact["subject"] = self._pick(w.duties()).subject
        elif kind in kinds.COMPENSATION and isinstance(fact, dict) and w.ledger.effects:
            fact["effect"] = self._pick(w.ledger.effects)
        elif handlings and isinstance(tree.get("work"), dict) and self._chance(0.6):
            h = self._pick(w.open_handlings() or handlings)
            step = self._pick([*h.steps, tree["work"].get("step", "")])
            work = {**tree["work"], "message": h.message, "round": h.round, "step": step}
            tree.update(sender_id=h.agent, work=work, generation=w.generation)
            if self._chance(0.8):
                tree.update(expected=None, answers=None)
        if w.view.requests and self._chance(0.3):
            tree["in_reply_to"] = self._pick(w.view.requests)
            tree["message_type"] = self._pick([*sorted(kinds.ANSWERS), kind])
