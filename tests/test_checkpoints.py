"""A checkpoint and the records after it give the same fold as the whole log, wherever it was taken (I2, I6)."""

from __future__ import annotations

import random
from typing import Any

import msgspec
import pytest
from long_talk import cut_small
from random_log import RandomLog, whole, written

from refold.bus import codec
from refold.bus.broker import Checkpoint, Stored
from refold.bus.ids import record_key
from refold.bus.message import AgentMessage, Work
from refold.projections import partition as partition_module, recent as recent_module
from refold.projections.checkpoint import changes, fold_records, restore
from refold.projections.frozen import thaw
from refold.projections.handling import Entry
from refold.projections.partition import PartitionFold
from refold.projections.status import report
from refold.projections.workflow import Workflow


def bare(w: Workflow) -> Workflow:
    """A workflow without what a checkpoint leaves out."""
    path = [Entry(e.id, e.ref, e.obliges) for e in w.view.path]
    view = msgspec.structs.replace(w.view, path=path, news=[], touched=[], released=[])
    return msgspec.structs.replace(w, view=view, whole=False, closed={})


@pytest.mark.parametrize("seed", range(60))
def test_a_checkpoint_and_the_tail_equal_the_fold_from_zero(go, seed, monkeypatch):
    chance = random.Random(seed)
    monkeypatch.setattr(partition_module, "RECENT", chance.choice([0, 1, 256]))
    monkeypatch.setattr(recent_module, "OBJECTS", chance.choice([0, 1, 16]))
    if seed % 2:
        cut_small(monkeypatch)
    monkeypatch.setattr(partition_module, "SHORT", random.Random(-seed).choice([0, 3, 8, 100]))

    async def main():
        log = RandomLog(seed, workflows=chance.choice([2, 6]))
        log.grow(chance.choice([60, 200]))
        broker = await written(log)
        records = broker.log.partitions[log.partition]
        fold, kept = PartitionFold(log.partition, log.partitions), dict[bytes, bytes]()
        verdicts: dict[str, dict[str, str]] = {}
        for i, stored in enumerate(records):
            async for folded in fold_records(broker, fold, [stored]):
                if folded.workflow is None:
                    continue
                verdicts.setdefault(folded.workflow.correlation, {}).setdefault(folded.envelope.id, folded.verdict)
            if chance.random() < 0.3:
                for w in [w for w in fold.live.values() if chance.random() < 0.5]:
                    fold.park(w)
            if chance.random() < 0.15:
                changed, gone = changes(fold, lambda w: True)
                kept = {**{k: v for k, v in kept.items() if k not in gone}, **changed}
                if chance.random() < 0.5:
                    again = PartitionFold(log.partition, log.partitions)
                    saved = Checkpoint(fold.position, fold.last_id.encode(), kept)
                    assert restore(again, msgspec.msgpack.decode(msgspec.msgpack.encode(saved), type=Checkpoint))
                    fold = again
            if i % 7 == 0 or i == len(records) - 1:
                expected = whole(log, records[: i + 1])
                open_ = {n for n, w in expected.items() if w.last and not w.is_complete()}
                assert {*fold.live, *fold.entries} == open_
                for n in open_:
                    found = fold.live.get(n) or thaw(fold.entries[n])
                    assert bare(found) == bare(expected[n])
                    assert report(found) == report(expected[n])
                for n in list(fold.recent) if chance.random() < 0.3 else ():
                    found = fold.recent.get(n)
                    assert found is not None
                    assert bare(found) == bare(expected[n])
                fold.recent.trim(partition_module.RECENT)
        for n, w in whole(log, records).items():
            assert verdicts.get(n, {}).items() <= w.verdicts.items()

    go(main())


def test_what_began_and_ended_between_two_checkpoints_is_removed_from_none():
    fold = PartitionFold(0, 1)

    def send(id: str, workflow: str, sender: str = "ann", kind: str = "task_request", **fields: Any) -> None:
        m = AgentMessage(id=id, sender_id=sender, receiver_id="a", message_type=kind, correlation_id=workflow, **fields)
        stored = Stored(fold.position + 1, workflow, codec.encode(m), 0.0)
        fold.settle(fold.fold(stored, fold.open_envelope(stored)).workflow)

    def over(workflow: str) -> None:
        work = Work(message=f"ask {workflow}", done=True)
        send(f"done {workflow}", workflow, "a", "handled", generation=0, work=work)

    send("ask open", "open")
    first, gone = changes(fold, lambda w: True)
    assert record_key("open") in first and gone == []
    send("ask short", "short")
    over("short")
    over("open")
    assert not fold.live
    second, gone = changes(fold, lambda w: True)
    assert record_key("short") not in second and gone == [record_key("open")]
