"""`refold doctor`: is this log well, and who works on it?"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import typer

from . import exits
from .opening import opened
from .output import as_json, progress, say, table
from .settings import BrokerOption, JsonOption, broker_url

if TYPE_CHECKING:
    from ..bus.broker import Broker, Health, Member
    from ..projections.overview import Overview

PARTITIONS_PER_WORKER = 64
STARTING = 10.0
"""Seconds that a worker may take to own partitions and to say so."""
ADVICE = frozenset({"sqlite", "write-ahead log", "worker", "replicas", "sync_interval", "hints"})
"""Checks whose failure is said and does not make the log unwell."""

Check = dict[str, Any]


def doctor(broker: BrokerOption = None, json: JsonOption = False) -> None:
    """Look at the log, its settings and its workers, and say what to do. Exit code 1 where something must be done."""

    async def main() -> tuple[Health, list[Check]]:
        async with opened(broker) as log:
            with progress("reading the log", quiet=json) as update:
                return await log.health(), await _checks(log, update)

    health, found = asyncio.run(main())
    checks = [_check(*c) for c in health.checks] + found
    ok = health.ok and all(c["ok"] or c["check"] in ADVICE for c in checks)
    if json:
        as_json({"ok": ok, "durability": health.durability, "why": health.why, "checks": checks})
    else:
        rows = (("ok" if c["ok"] else "!!", c["check"], c["found"], "" if c["ok"] else c["remedy"]) for c in checks)
        table("", ("", "check", "found", "what to do"), rows)
        say(f"\n{broker_url(broker)}: durability {health.durability} ({health.why})")
    if not ok:
        raise typer.Exit(exits.FAILED)


def _check(name: str, ok: bool, found: str, remedy: str = "") -> Check:
    return {"check": name, "ok": ok, "found": found, "remedy": remedy}


async def _checks(log: Broker, update: Any) -> list[Check]:
    from ..projections.overview import overview

    members, found = await log.members(), await overview(log, update)
    ends = await log.positions("end")
    records = sum(end - 1 for end in ends.values()) // log.meta.stride
    about = "about " if log.meta.stride > 1 else ""
    text = f"{log.meta.partitions} partitions, {about}{records} records"
    checks = [_check("log", True, text), *_records(found)]
    checks += [_worker(m) for m in members]
    if not members:
        checks.append(_check("worker", True, "none is running"))
    for group in sorted({m.presence.group for m in members}):
        checks.append(await _group(log, group, members, ends))
    return checks


def _records(found: Overview) -> list[Check]:
    blocked = [r.workflow for r in found.rows if r.blocked]
    return [
        _check(
            "records", not found.undecodable, f"{found.undecodable} cannot be decoded",
            "some other program writes here: they are skipped, `refold tail` shows the newest",
        ),
        _check(
            "partitions", not found.strays, f"{found.strays} records are in the wrong one",
            "a foreign producer partitions otherwise: a worker forwards them, start one",
        ),
        _check("workflows", not blocked, f"{len(found.rows)} open, {len(blocked)} blocked", "`refold ps` says by what"),
    ]  # fmt: skip


def _worker(m: Member) -> Check:
    p = m.presence
    text = f"{p.member}: {', '.join(p.agents)}; {len(p.partitions)} partitions"
    return _check("worker", len(p.partitions) <= PARTITIONS_PER_WORKER, text, "start more workers of its group")


async def _group(log: Broker, group: str, members: list[Member], ends: dict[int, int]) -> Check:
    owned = {p for m in members if m.presence.group == group for p in m.presence.partitions}
    committed = await log.positions("committed", group)
    lag = max((max(0, end - max(committed[p], 1)) for p, end in ends.items()), default=0) // log.meta.stride
    text = f"{group}: owns {len(owned)} of {len(ends)} partitions, checkpoint at most {lag} records behind"
    young = any(time.time() - m.presence.started < STARTING for m in members if m.presence.group == group)
    return _check("group", young or len(owned) == len(ends), text, "wait for a takeover, or look at its workers' lines")
