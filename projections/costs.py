"""What the effects of each workflow cost, whatever became of its path: a ledger, ready to be run as a projection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..bus import facts
from ..bus.broker import Broker
from .checkpoint import fold_records
from .partition import PartitionFold
from .projection import Record
from .verdict import Verdict

HAPPENED = (Verdict.ADMITTED, Verdict.LEDGER)
CLOCK = "now"
"""Name of the effect that `ctx.now` records: it calls nobody."""


class Costs:
    """Per workflow: calls `recorded` and `failed`, how many of those recorded changed no state (`beside`: a branch that
    was rolled back, a second run of the same call), and the sums of what was metered (`cost`: unit -> amount)."""

    name = "costs"
    version = 1
    scope = "ledger"

    def start(self) -> dict[str, Any]:
        """Return an empty bill."""
        return {"recorded": 0, "failed": 0, "beside": 0, "cost": {}}

    def key(self, record: Record) -> str | None:
        """Return the workflow of an effect's outcome that is not in the log twice."""
        fact = record.envelope.fact
        if record.verdict not in HAPPENED or not isinstance(fact, facts.EffectCompleted | facts.EffectFailed):
            return None
        return record.envelope.correlation_id if fact.name != CLOCK else None

    def apply(self, state: dict[str, Any], record: Record) -> dict[str, Any]:
        """Return the bill with one more outcome."""
        fact = record.envelope.fact
        if isinstance(fact, facts.EffectFailed):
            return {**state, "failed": state["failed"] + 1}
        assert isinstance(fact, facts.EffectCompleted)
        cost = dict(state["cost"])
        for unit, amount in fact.cost.items():
            cost[unit] = cost.get(unit, 0.0) + amount
        beside = state["beside"] + (record.verdict is Verdict.LEDGER)
        return {**state, "recorded": state["recorded"] + 1, "beside": beside, "cost": cost}


async def costs(
    broker: Broker, on_progress: Callable[[int, int], None] = lambda done, of: None
) -> dict[str, dict[str, Any]]:
    """Return workflow -> bill. Reads the whole log: `on_progress(records read, records)`."""
    ledger, bills = Costs(), dict[str, dict[str, Any]]()
    begin, end = await broker.positions("begin"), await broker.positions("end")
    done, total = 0, sum(end[p] - begin[p] for p in end) // broker.meta.stride
    for partition in end:
        fold = PartitionFold(partition, broker.meta.partitions)
        start: int | None = begin[partition]
        while start is not None:
            page = await broker.read(partition, start)
            async for f in fold_records(broker, fold, page.records):
                record = Record(partition, f.position, f.verdict, f.envelope, f.value)
                key = ledger.key(record)
                if key is not None:
                    bills[key] = ledger.apply(bills.get(key, ledger.start()), record)
            done += len(page.records)
            on_progress(done, total)
            start = page.next
    return bills
