"""Golden logs: writes new ones (`python tests/golden_logs.py rules-1`), and folds those that are there."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from histories import WORKFLOW, Claimed, Story, random_tape
from random_log import NO_RECORD, RandomLog

from refold.bus import codec, facts, kinds
from refold.bus.broker import Stored
from refold.bus.message import AgentMessage
from refold.bus.partition import partition_of
from refold.projections.history import raw_of
from refold.projections.partition import listen
from refold.projections.patch import merge_patch
from refold.projections.status import report
from refold.projections.workflow import Workflow

GOLDEN = Path(__file__).parent / "golden"
PARTITIONS = 2
STORIES = (3, 14, 15, 92, 65, 35, 89, 79)
LOGS = (1, 2, 7, 19)


class Reader:
    """A plain reader of one partition: every workflow folded from zero, nothing frozen or forgotten."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.workflows: dict[str, Workflow] = {}
        self.listeners: dict[str, tuple[str, ...]] = {}
        self.heard: dict[str, int] = {}
        self.raws: dict[int, bytes] = {}

    def fold(self, s: Stored) -> str:
        """Return the record's verdict, or what else became of it."""
        if s.value == NO_RECORD:
            return "undecodable"
        r = codec.envelope(s.value)
        self.raws[s.position] = s.value
        if not r.correlation_id:
            for agent, wanted in list(listen(self.listeners, self.heard, r)) if s.key is None else ():
                for w in self.workflows.values():
                    w.view.claim(agent, wanted)
            return "of the partition"
        if s.key != r.correlation_id or partition_of(r.correlation_id, PARTITIONS) != self.partition:
            return "misplaced"
        w = self.workflows.setdefault(r.correlation_id, Workflow(r.correlation_id))
        return str(w.admit(r, s.position, dict(self.listeners)))

    def said(self, w: Workflow) -> dict[str, Any]:
        """What the rules say of a workflow, in words that outlive any way to fold it."""
        v = w.view
        found = {
            "generation": w.generation,
            "path": [e.id for e in v.path],
            "closed": [[e.id for e in path] for path in w.closed.values()],
            "state": self._state(w),
            "open": [[h.agent, h.message, h.round] for h in w.open_handlings()],
            "waiting": [[*h.key, p] for h in w.open_handlings() for p in h.pending],
            "values": {
                " ".join((*h.key, p)): self._id(w, st.value) for h in w.open_handlings() for p, st in h.steps.items()
            },
            "effects": {key: e.status for key, e in w.ledger.effects.items()},
            "owed": [*w.ledger.owed(), *w.ledger.unresolved()],
            "duties": [[d.what, d.subject, d.to, d.n] for d in w.duties()],
            "status": str(report(w).status),
            "complete": w.is_complete(),
        }
        return json.loads(json.dumps(found))  # type: ignore[no-any-return]

    def _state(self, w: Workflow) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for _, (position, index) in w.view.patches:
            state = merge_patch(state, codec.payload(raw_of(self.raws[position], index)))
        return state

    @staticmethod
    def _id(w: Workflow, ref: tuple[int, int]) -> str:
        return next((e.id for e in w.view.path if e.ref == ref), "")


def partition_in(path: Path) -> int:
    """The partition that a file holds."""
    return partition_of(WORKFLOW, PARTITIONS) if path.stem.startswith("workflow") else 0


# ---- reading ---------------------------------------------------------------------------------------------------------
def lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text("utf-8").splitlines():
        yield json.loads(line)


def stored(line: dict[str, Any], position: int) -> Stored:
    return Stored(position, line["key"], line["value"].encode(), float(position))


# ---- writing ---------------------------------------------------------------------------------------------------------
def story(seed: int) -> list[tuple[str | None, bytes]]:
    """One workflow's whole life, with whoever came to listen."""
    out: list[tuple[str | None, bytes]] = []
    listeners: dict[str, tuple[str, ...]] = {}
    events = Story().play(random_tape(seed, 80))
    for event in events:
        if isinstance(event, Claimed):
            continue
        out += [(None, raw) for raw in _partition_records(listeners, event.listeners, len(out))]
        listeners = event.listeners
        out.append((WORKFLOW, event.raw))
    return out


def _partition_records(old: dict[str, Any], new: dict[str, Any], n: int) -> Iterator[bytes]:
    gone = [facts.Retired(agent=a) for a in old if a not in new]
    came: list[facts.Fact] = [
        facts.Owner(group="g", epoch=n + 1, agents={a: k}) for a, k in new.items() if old.get(a) != k
    ]
    for i, fact in enumerate([*gone, *came]):
        kind = kinds.OWNER if isinstance(fact, facts.Owner) else kinds.RETIRED
        yield codec.encode(
            AgentMessage(
                id=f"own{n}-{i}", sender_id="m", receiver_id="*", message_type=kind, correlation_id="",
                timestamp=float(n), fact=fact,
            )
        )  # fmt: skip


def partition(seed: int) -> list[tuple[str | None, bytes]]:
    """Several workflows of one partition, with some noise."""
    log = RandomLog(seed, workflows=3, partitions=PARTITIONS)
    log.grow(110)
    return [(s.key, s.value) for s in log.records]


def write(path: Path, records: list[tuple[str | None, bytes]]) -> None:
    reader, out = Reader(partition_in(path)), []
    for position, (key, value) in enumerate(records, 1):
        verdict = reader.fold(Stored(position, key, value, float(position)))
        out.append({"key": key, "value": value.decode(), "verdict": verdict})
    out.append({"folds_to": {name: reader.said(w) for name, w in sorted(reader.workflows.items())}})
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in out), "utf-8")


def main(name: str) -> None:
    folder = GOLDEN / name
    folder.mkdir()  # never over logs that are there
    for seed in STORIES:
        write(folder / f"workflow-{seed}.jsonl", story(seed))
    for seed in LOGS:
        write(folder / f"partition-{seed}.jsonl", partition(seed))


if __name__ == "__main__":
    main(*sys.argv[1:])
