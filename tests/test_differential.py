"""The same operations on every broker: equal answers, an equal path and an equal state (I14); what was acknowledged is
there once, in order, with its bytes (I1, I15)."""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any

import pytest
from random_log import NO_RECORD, RandomLog, whole

from refold.brokers import open_broker
from refold.bus import codec
from refold.bus.broker import Appended, Assigned, Broker, Duplicate, Item, LogSpec, Outgoing, Result, Stored
from refold.bus.partition import partition_of
from refold.projections.checkpoint import changes, fold_records, read_partition
from refold.projections.history import History, read_workflow
from refold.projections.partition import PartitionFold
from refold.projections.status import report
from refold.projections.verdict import Verdict

THOROUGH = os.environ.get("REFOLD_TESTS") == "thorough"
FILES, HISTORIES = (30, 50) if THOROUGH else (4, 50)
PARTITIONS = 4


def operations(seed: int) -> list[list[Item]]:
    """Calls of `append`: the records of many histories, one or several a call, some of them a second time."""
    chance, histories = random.Random(seed), list[list[Item]]()
    for i in range(HISTORIES):
        log = RandomLog(seed * 1000 + i, workflows=2, partition=i % PARTITIONS, partitions=PARTITIONS)
        log.grow(40)
        histories.append([item for s in log.records if (item := _item(log, s)) is not None])
    calls = list[list[Item]]()
    while histories := [h for h in histories if h]:
        some = chance.sample(histories, min(len(histories), 6))
        calls.append([h.pop(0) for h in some for _ in range(min(len(h), chance.randrange(1, 5)))])
        if chance.random() < 0.2:
            calls.append(chance.choice(calls))
    return calls


def _item(log: RandomLog, s: Stored) -> Item | None:
    if s.value == NO_RECORD:
        return Item(log.partition, s.key, (Outgoing(f"bytes{log.seed}-{s.position}", s.value),))
    return Item(log.partition, s.key, (Outgoing(codec.envelope(s.value).id, s.value),))


def said(result: Result) -> str:
    return type(result).__name__


class Side:
    """A broker, and all that it has acknowledged."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.acknowledged: dict[int, list[tuple[int, str | None, bytes]]] = {p: [] for p in range(PARTITIONS)}
        self.first: dict[tuple[int, str | None, str], bytes] = {}

    async def append(self, items: Sequence[Item]) -> list[str]:
        results = await self.broker.append(items)
        for item, result in zip(items, results, strict=True):
            if isinstance(result, Appended):
                for position, r in zip(result.positions, item.records, strict=True):
                    self.acknowledged[item.partition].append((position, item.key, r.value))
                    self.first.setdefault((item.partition, item.key, r.id), r.value)
        return [said(r) for r in results]

    def known(self, partition: int) -> list[tuple[tuple[int, str | None, str], bytes]]:
        """What was appended, in order; what was appended again, by a broker that knows no ids, where it was first."""
        return [(name, value) for name, value in self.first.items() if name[0] == partition]

    async def read_all(self, partition: int) -> list[Stored]:
        out, start = list[Stored](), 0
        while start is not None:
            page = await self.broker.read(partition, start, limit=97)
            out += page.records
            start = page.next  # type: ignore[assignment]
        return out

    async def checkpoint(self, partition: int) -> None:
        """Fold what there is, and keep it."""
        async with self.broker.subscribe("g", f"m{partition}", partitions=[partition]) as sub:
            assigned = [e for e in await sub.fetch() if isinstance(e, Assigned)]
            (epoch,) = [a.epoch for a in assigned]
            fold = PartitionFold(partition, PARTITIONS)
            async for _ in fold_records(self.broker, fold, await self.read_all(partition)):
                pass
            changed, gone = changes(fold, lambda w: True)
            anchor = fold.last_id.encode()
            assert await sub.save_checkpoint(partition, epoch, fold.position, anchor, changed, gone)


def digest(history: History) -> dict[str, Any]:
    """What is true of a workflow, without the positions, which each broker chooses, and what was there already."""
    w = history.workflow
    new = [j for j in history.records if j.verdict != Verdict.DUPLICATE]
    return {
        "path": [e.id for e in history.path()],
        "closed": {g: [e.id for e in path] for g, path in w.closed.items()},
        "verdicts": {v: n for v, n in w.verdicts.items() if v != Verdict.DUPLICATE},
        "judged": [(j.envelope.id, j.verdict) for j in new],
        "state": history.state(),
        "report": report(w),
        "duties": w.duties(),
        "owed": w.ledger.owed(),
        "steps": {(*h.key, p): st.value_kind for h in w.view.all_handlings() for p, st in h.steps.items()},
    }


@pytest.mark.parametrize("seed", range(FILES))
def test_equal_operations_give_an_equal_path_and_state_on_every_broker(go, tmp_path, seed):
    go(equal_on(seed, "memory://", f"sqlite:///{tmp_path}/log.db"))


@pytest.mark.parametrize("scheme", ["nats", "kafka"])
@pytest.mark.parametrize("seed", range(FILES))
def test_equal_operations_give_an_equal_path_and_state_on_the_brokers_that_people_run(go, request, scheme, seed):
    address = request.getfixturevalue(f"{scheme}_address")
    go(equal_on(seed, "memory://", f"{scheme}://{address}/d-{uuid.uuid4().hex[:12]}"))


async def equal_on(seed: int, *urls: str) -> None:
    async with AsyncExitStack() as stack:
        sides = [Side(await stack.enter_async_context(open_broker(url))) for url in urls]
        for side in sides:
            await side.broker.ensure_log(LogSpec(partitions=PARTITIONS))
        calls = operations(seed)
        for i, items in enumerate(calls):
            first, *others = [await side.append(items) for side in sides]
            for side, answers in zip(sides[1:], others, strict=True):
                expected = first if side.broker.capabilities.refuse_duplicates else ["Appended"] * len(items)
                assert answers == expected, items
            if i == len(calls) // 2:
                for side in sides:
                    for partition in range(PARTITIONS):
                        await side.checkpoint(partition)
        names = {item.key for items in calls for item in items if item.key and item.key.startswith("w")}
        names = {n for n in names if not n.endswith("x")}
        await compare(sides, sorted(names))


async def compare(sides: list[Side], names: list[str]) -> None:
    for name in names:
        digests = [digest(await read_workflow(side.broker, name)) for side in sides]
        assert digests[0] == digests[1], name
    for partition in range(PARTITIONS):
        logs = [await side.read_all(partition) for side in sides]
        assert sides[0].known(partition) == sides[1].known(partition)
        for side, log in zip(sides, logs, strict=True):
            assert [(s.position, s.key, s.value) for s in log] == side.acknowledged[partition]
            fold = await read_partition(side.broker, partition)
            for name in [n for n in names if partition_of(n, PARTITIONS) == partition]:
                w = (await read_workflow(side.broker, name)).workflow
                found = fold.find(name) or fold.recent.get(name)
                assert found is not None or w.is_complete()
                assert found is None or (found.version, found.verdicts) == (w.version, w.verdicts)
                assert found is None or report(found) == report(w)


def test_what_a_broker_refused_as_a_duplicate_is_one_for_admission_too(go):
    """Refusing early is an optimisation: the fold of a log with every duplicate in it is the same."""

    async def main():
        for seed in range(10):
            log = RandomLog(seed, workflows=2)
            log.grow(60)
            async with open_broker("memory://") as broker:
                await broker.ensure_log(LogSpec(partitions=log.partitions))
                refused = 0
                for s in log.records:
                    item = _item(log, s)
                    assert item is not None
                    refused += isinstance((await broker.append([item]))[0], Duplicate)
                everything = whole(log, log.records)
                for name in log.names:
                    if everything[name].last:
                        w = (await read_workflow(broker, name)).workflow
                        assert w.verdicts == everything[name].verdicts
                        assert [e.id for e in w.view.path] == [e.id for e in everything[name].view.path]
                assert refused or seed

    go(main())
