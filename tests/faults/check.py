"""The judge of a fault run: compares the clients' history and the ledger of calls with the log, and nothing else.

It reads records as JSON and shares no rule with the product but the reading of a workflow's verdicts, which the
model's tests judge. Each finding is a sentence; an empty list is a run in which every promise held.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from refold.brokers import open_broker
from refold.bus.broker import Broker
from refold.projections.checkpoint import read_partition
from refold.projections.history import History, read_workflow
from refold.projections.verdict import Verdict

from . import ledger, logs

Record = dict[str, Any]


class Placed(NamedTuple):
    """A record of the log where it is."""

    partition: int
    position: int
    key: str | None
    record: Record


class Checked(NamedTuple):
    """What a run came to: findings (broken promises), and numbers that tell what it saw."""

    findings: list[str]
    records: int
    acknowledged: int
    calls: int
    repeated: int
    deaths: int
    late: int


async def whole_log(broker: Broker) -> tuple[list[Placed], set[str]]:
    """Read every record; and the digests of bytes that are no record."""
    out, garbage = [], set[str]()
    for partition in range(broker.meta.partitions):
        start: int | None = 0
        while start is not None:
            page = await broker.read(partition, start)
            for s in page.records:
                try:
                    record = json.loads(s.value)
                except ValueError:
                    record = None
                if isinstance(record, dict) and "message_type" in record:
                    out.append(Placed(partition, s.position, s.key, record))
                else:
                    garbage.add(digest_of(s.value))
            start = page.next
    return out, garbage


def digest_of(value: bytes) -> str:
    return hashlib.blake2b(value).hexdigest()


async def check(folder: Path, *, failed: frozenset[str] = frozenset()) -> Checked:
    """Judge a run that is over; `failed` are the workflows whose answer must be an error."""
    lines = ledger.read(folder / "history")
    async with open_broker(logs.address(folder)) as broker:
        await broker.ensure_log(create=False)
        log, garbage = await whole_log(broker)
        names = dict.fromkeys(p.record["correlation_id"] for p in log if p.record["correlation_id"])
        histories = [await read_workflow(broker, name) for name in names]
        findings = [*acknowledged(lines, log), *from_nowhere(lines, log), *ordered(lines), *caused(log)]
        findings += [*answers(lines, failed), *effects(histories, folder), *once(histories), *dead(log, failed)]
        findings += remade(log, histories, folder)
        findings += planted(garbage, folder)
        if broker.capabilities.fence_appends:
            findings += fenced(log, histories)
        findings += await folds(broker, histories)
    calls = ledger.read(folder / "ledger")
    return Checked(
        findings, len(log), sum(line["outcome"] == "ok" for line in lines), len(calls),
        len(calls) - len({c["key"] for c in calls}), deaths(log), len(late_writes(log, histories)),
    )  # fmt: skip


def planted(garbage: set[str], folder: Path) -> list[str]:
    """What is no record was put there by the run."""
    known = {line["digest"] for line in ledger.read(folder / "planted")}
    return [f"bytes that nobody has planted: {digest}" for digest in garbage - known]


def dead(log: list[Placed], failed: frozenset[str]) -> list[str]:
    """Nothing is given up but what must fail."""
    return [
        f"{p.record['correlation_id']}: {p.record['message_type']}: {p.record.get('fact')}" for p in log
        if p.record["message_type"] == "dead_lettered" and p.record["correlation_id"] not in failed
    ]  # fmt: skip


def once(histories: list[History]) -> list[str]:
    """Of what several owners have written for one piece of work, one record counts."""
    out = []
    for history in histories:
        seen = set[tuple[object, ...]]()
        for j in history.records:
            r, w = j.envelope, j.envelope.work
            if w is not None and j.verdict is Verdict.ADMITTED:
                name = r.sender_id, r.message_type, w.message, w.round, w.attempt, w.step
                if name in seen:
                    out.append(f"{history.correlation}: {name} counts twice")
                seen.add(name)
    return out


def deaths(log: list[Placed]) -> int:
    """Return how many epochs have a successor and were not given up."""
    def epochs(kind: str) -> set[tuple[str, int]]:
        return {
            (f"{p.partition} {p.record['fact']['group']}", p.record["fact"]["epoch"]) for p in log
            if p.record["message_type"] == kind
        }  # fmt: skip

    owned, newest = epochs("owner"), dict[str, int]()
    for group, epoch in owned:
        newest[group] = max(newest.get(group, 0), epoch)
    return sum(epoch < newest[group] for group, epoch in owned - epochs("owner_released"))


def acknowledged(lines: list[Record], log: list[Placed]) -> list[str]:
    """Nothing that was acknowledged is lost: prefix, middle and tail."""
    at = {(p.partition, p.position): p.record["id"] for p in log}
    ids = {p.record["id"] for p in log}
    out = []
    for line in lines:
        if line["outcome"] != "ok" or "id" not in line:
            continue
        if line["id"] not in ids:
            out.append(f"{line['op']} of {line['id']} was acknowledged and is not in the log")
        elif "position" in line and at.get((line["partition"], line["position"])) != line["id"]:
            out.append(f"{line['id']} was acknowledged at {line['partition']}:{line['position']}, which holds another")
    return out


def from_nowhere(lines: list[Record], log: list[Placed]) -> list[str]:
    """A message of a client is in the log only if the client has sent it; and every position holds one record."""
    invoked = {line["id"] for line in lines if line["op"] == "append"}
    started = {line["workflow"] for line in lines if line["op"] == "start"}
    out = []
    for p in log:
        r = p.record
        if r["message_type"] == "remark" and r["id"] not in invoked:
            out.append(f"{r['id']} is in the log and nobody sent it")
        outside = r["message_type"] == "task_request" and r.get("work") is None and r.get("origin") is None
        if outside and r["correlation_id"] not in started:
            out.append(f"{r['correlation_id']} was started by nobody")
    if len({(p.partition, p.position) for p in log}) != len(log):
        out.append("a position holds more than one record")
    return out


def ordered(lines: list[Record]) -> list[str]:
    """What a client sent into one workflow, each after the acknowledgement of the last, is in that order."""
    last: dict[tuple[str, str], int] = defaultdict(int)
    out = []
    for line in lines:
        if line["op"] == "append" and line["outcome"] == "ok":
            key = line["pid"], line["workflow"]
            if line["position"] <= last[key]:  # type: ignore[index]
                out.append(f"{line['id']} stands before what its client had sent earlier")
            last[key] = line["position"]  # type: ignore[index]
    return out


def caused(log: list[Placed]) -> list[str]:
    """Cause before effect: what a record follows from stands before it in its partition."""
    seen: dict[int, set[str]] = defaultdict(set)
    out = []
    for p in log:
        cause, r = p.record.get("causation_id"), p.record
        inside = r.get("origin") is None and r.get("work") is not None
        if cause is not None and inside and cause not in seen[p.partition]:
            out.append(f"{r['message_type']} {r['id']} stands before its cause {cause}")
        seen[p.partition].add(r["id"])
    return out


def answers(lines: list[Record], failed: frozenset[str]) -> list[str]:
    """Every workflow that was started has one answer, the same for whoever asked, and an error where there must be."""
    started = {line["workflow"] for line in lines if line["op"] == "start"}
    got: dict[str, set[str]] = defaultdict(set)
    for line in lines:
        if line["op"] == "result" and line["outcome"] == "ok":
            got[line["workflow"]].add(json.dumps(line["answer"]) if "answer" in line else "error")
    out = [f"{w} has no answer" for w in sorted(started - got.keys())]
    out += [f"{w} has answers {sorted(a)}" for w, a in got.items() if len(a) > 1]
    out += [f"{w} ended in {sorted(a)}" for w, a in got.items() if ("error" in a) != (w in failed)]
    return out


def effects(histories: list[History], folder: Path) -> list[str]:
    """Exactly one effective row of the ledger for each (workflow, agent, message, step), and no call beside them."""
    receipts: dict[str, set[str]] = defaultdict(set)
    for call in ledger.read(folder / "ledger"):
        receipts[call["key"]].add(call["receipt"])
    out, known = [], set()
    for history in histories:
        rows: dict[tuple[str, str, str], list[tuple[str, str]]] = defaultdict(list)
        for j in history.records:
            r = j.envelope
            if r.message_type == "effect_completed" and r.work is not None:
                known.add(r.fact.effect)  # type: ignore[union-attr]
                if j.verdict is Verdict.ADMITTED:
                    value = json.loads(j.value).get("payload")
                    rows[r.sender_id, r.work.message, r.work.step].append((r.fact.effect, value))  # type: ignore[union-attr]
        for where, found in rows.items():
            if len(found) != 1:
                out.append(f"{history.correlation} {where} has {len(found)} effective outcomes")
            if found[0][1] not in receipts[found[0][0]]:
                out.append(f"{history.correlation} {where} records a receipt that no call has returned")
    out += [f"a call under key {key} is known to nobody" for key in receipts if key not in known]
    return out


def remade(log: list[Placed], histories: list[History], folder: Path) -> list[str]:
    """No call is made by an owner that took its partition over after the outcome of the same call was recorded."""
    at = {p.record["id"]: p for p in log}
    owned: dict[tuple[int, int], list[int]] = defaultdict(list)
    for p in log:
        if p.record["message_type"] == "owner":
            owned[p.partition, p.record["fact"]["pid"]].append(p.position)
    recorded = {
        j.envelope.fact.effect: at[j.envelope.id]  # type: ignore[union-attr]
        for history in histories for j in history.records
        if j.envelope.message_type == "effect_completed" and j.verdict is Verdict.ADMITTED
    }  # fmt: skip
    out = []
    for call in ledger.read(folder / "ledger"):
        done = recorded.get(call["key"])
        if done is not None and min(owned[done.partition, call["pid"]], default=0) > done.position:
            out.append(f"the call under key {call['key']} was recorded, and made again by process {call['pid']}")
    return out


def successions(log: list[Placed]) -> dict[str, tuple[int, int]]:
    """Return for each `owner` record that has a successor in its group: its partition, the successor's position."""
    newest: dict[tuple[int, str], str] = {}
    out = {}
    for p in log:
        if p.record["message_type"] == "owner":
            key = p.partition, p.record["fact"]["group"]
            if key in newest:
                out[newest[key]] = (p.partition, p.position)
            newest[key] = p.record["id"]
    return out


def late_writes(log: list[Placed], histories: list[History]) -> list[tuple[str, Verdict]]:
    """What owners wrote after their successor's `owner` record: kind and verdict."""
    ended = successions(log)
    out = []
    for history in histories:
        for j in history.records:
            w = j.envelope.work
            owner = w.writer.partition("#")[0] if w is not None else ""
            if owner in ended and j.position > ended[owner][1]:
                out.append((j.envelope.message_type, j.verdict))
    return out


def fenced(log: list[Placed], histories: list[History]) -> list[str]:
    """No write of an owner that has a successor is in the log, but outcomes of calls that it was in."""
    outcomes = ("effect_completed", "effect_failed")
    return [f"{kind} ({verdict}) of an owner that had a successor" for kind, verdict in late_writes(log, histories)
            if kind not in outcomes]  # fmt: skip


async def folds(broker: Broker, histories: list[History]) -> list[str]:
    """Checkpoint and tail equal the fold from zero; nothing is open any more."""
    out = []
    partitions = [await read_partition(broker, n) for n in range(broker.meta.partitions)]
    for history in histories:
        w = history.workflow
        if not w.is_complete():
            out.append(f"{w.correlation} is not complete: {[h.key for h in w.open_handlings()]}")
        if any(p.find(w.correlation) is not None for p in partitions):
            out.append(f"{w.correlation} is open by checkpoint and tail, complete by its fold from zero")
    return out
