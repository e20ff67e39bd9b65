"""`refold doctor`: is this log well, and who works on it?"""

from __future__ import annotations

import asyncio
from typing import Any

import typer

from . import exits
from .look import opened
from .output import as_json, console, table
from .settings import BrokerOption, JsonOption, broker_url

PARTITIONS_PER_WORKER = 64


def doctor(broker: BrokerOption = None, json: JsonOption = False) -> None:
    """Look at the log, its settings and its workers; says what to do about what is wrong. Exit code 1 where something
    must be done."""
    found = asyncio.run(_look(broker))
    if json:
        as_json(found)
    else:
        table("", ("", "check", "found", "what to do"), (_row(c) for c in found["checks"]))
        console.print(f"\n{broker_url(broker)}: durability {found['durability']} ({found['why']})")
    if not found["ok"]:
        raise typer.Exit(exits.FAILED)


def _row(check: dict[str, Any]) -> tuple[str, str, str, str]:
    ok = check["ok"]
    return "ok" if ok else "!!", check["check"], check["found"], "" if ok else check["remedy"]


async def _look(url: str | None) -> dict[str, Any]:
    async with opened(url) as log:
        health, members = await log.health(), await log.members()
        checks = [_check(*c) for c in health.checks]
        ends = await log.positions("end")
        records = sum(end - 1 for end in ends.values())
        checks.append(_check("log", True, f"{log.meta.partitions} partitions, {records} records", ""))
        by_group: dict[str, set[int]] = {}
        for m in members:
            by_group.setdefault(m.presence.group, set()).update(m.presence.partitions)
            many = len(m.presence.partitions) > PARTITIONS_PER_WORKER
            text = f"{m.presence.member}: {len(m.presence.partitions)} partitions"
            checks.append(_check("worker", not many, text, "start more workers of its group"))
        for group, owned in by_group.items():
            committed = await log.positions("committed", group)
            lag = max(max(0, ends[p] - max(committed[p], 1)) for p in ends)
            free = log.meta.partitions - len(owned)
            text = f"{group}: {len(owned)} partitions owned, checkpoint at most {lag} records behind"
            checks.append(_check("group", free == 0, text, "wait for a takeover, or look at its workers' logs"))
        if not members:
            checks.append(_check("workers", True, "none is running", ""))
        return {
            "ok": health.ok and all(c["ok"] for c in checks if c["check"] in ("file", "integrity", "space", "group")),
            "durability": health.durability, "why": health.why, "checks": checks,
        }  # fmt: skip


def _check(name: str, ok: bool, found: str, remedy: str) -> dict[str, Any]:
    return {"check": name, "ok": ok, "found": found, "remedy": remedy}
