"""Logs of every published number of the rules fold to what they folded to then."""

from __future__ import annotations

from collections import Counter

import pytest
from golden_logs import GOLDEN, PARTITIONS, Reader, lines, partition_in, stored

from refold.brokers.memory import MemoryBroker
from refold.bus import codec, kinds
from refold.bus.broker import RULES, LogSpec
from refold.projections.checkpoint import read_partition
from refold.projections.status import report
from refold.projections.verdict import Verdict

LOGS = sorted(GOLDEN.glob("rules-*/*.jsonl"))


@pytest.mark.parametrize("path", LOGS, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_log_written_under_published_rules_folds_to_what_it_folded_to_then(path):
    reader, (*records, end) = Reader(partition_in(path)), list(lines(path))
    for position, line in enumerate(records, 1):
        assert reader.fold(stored(line, position)) == line["verdict"], line["value"]
    for name, expected in end["folds_to"].items():
        assert reader.said(reader.workflows[name]) == expected, name
    assert end["folds_to"].keys() == reader.workflows.keys()


@pytest.mark.parametrize("path", [p for p in LOGS if p.stem.startswith("partition")], ids=lambda p: p.stem)
def test_a_worker_that_reads_such_a_log_sees_the_same(go, path):
    async def main():
        *records, end = list(lines(path))
        broker = MemoryBroker()
        await broker.ensure_log(LogSpec(partitions=PARTITIONS))
        await broker.append_raw(0, [(line["key"], line["value"].encode()) for line in records])
        fold = await read_partition(broker, 0)
        for name, expected in end["folds_to"].items():
            w = fold.find(name) or fold.recent.get(name)
            assert (w.generation, [e.id for e in w.view.path]) == (expected["generation"], expected["path"])
            assert report(w).status == expected["status"]

    go(main())


def test_there_are_logs_of_every_number_of_the_rules():
    assert {path.parent.name for path in LOGS} == {f"rules-{n}" for n in range(1, RULES + 1)}


def test_the_logs_hold_every_verdict_and_every_kind():
    verdicts, written = Counter(), set()
    for path in LOGS:
        for line in list(lines(path))[:-1]:
            verdicts[line["verdict"]] += 1
            if line["verdict"] not in ("undecodable", "of the partition", "misplaced"):
                written.add(codec.envelope(line["value"].encode()).message_type)
    assert verdicts.keys() >= {str(v) for v in Verdict}
    assert written >= {*kinds.MESSAGES, *kinds.ENGINE} - kinds.PARTITION
