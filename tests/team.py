"""Agents for tests with real processes. Run as: python team.py URL AGENT GROUP [SETTING=VALUE ...]"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from pathlib import Path

from refold import Agent, Context, RetryPolicy
from refold.agents.runtime import serve

worker = Agent("worker", retry=RetryPolicy(attempts=3, initial=0.01, jitter=0))
poison = Agent("poison")
parent = Agent("parent")
blocker = Agent("blocker")


def note(path: str, line: str, key: str = "-") -> str:
    """Stands for a call that is paid for: each one leaves a line."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(f"{line} {key} {os.getpid()}\n")
    return line


async def wait_for_file(path: str) -> str:
    while not Path(path).exists():
        await asyncio.sleep(0.01)
    return path


@worker.on_task
async def work(ctx: Context, job: dict) -> list[int]:
    """Pay, then wait until the gate opens, then pay again."""
    a = await ctx.effect("pid", os.getpid)
    await ctx.effect("pay", note, job["ledger"], f"{job['n']} first", ctx.idempotency_key)
    if "gate" in job:
        await ctx.effect("gate", wait_for_file, job["gate"])
    await ctx.effect("pay", note, job["ledger"], f"{job['n']} second", ctx.idempotency_key)
    return [a, await ctx.effect("pid", os.getpid)]


@worker.on("ping")
async def ping(ctx: Context, job: dict) -> None:
    await ctx.effect("note", note, job["ledger"], f"ping {job['n']}")


@poison.on_task
async def kill(ctx: Context, job: dict) -> str:
    note(job["ledger"], f"{job['n']} started")
    if job.get("deadly"):
        os._exit(9)
    await ctx.effect("gate", asyncio.sleep, 0.05)
    return "survived"


@parent.on_task
async def fan(ctx: Context, job: dict) -> list[list[int]]:
    return await ctx.gather(*(ctx.spawn("worker", {**job, "n": i}) for i in range(job["children"])))


@blocker.on_task
async def block(ctx: Context, job: dict) -> str:
    await ctx.effect("note", note, job["ledger"], f"{job['n']} blocks")
    time.sleep(job["seconds"])  # noqa: ASYNC251 - that is what is tested
    return "done"


AGENTS = {a.name: a for a in (worker, poison, parent, blocker)}

if __name__ == "__main__":
    logging.basicConfig(level="INFO", format="%(process)d %(message)s")
    url, names, group, *rest = sys.argv[1:]
    settings = {k: float(v) if "." in v else int(v) for k, v in (pair.split("=") for pair in rest)}
    raise SystemExit(asyncio.run(serve([AGENTS[n] for n in names.split(",")], url, group=group, **settings)))
