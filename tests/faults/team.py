"""A worker of a fault run. Run in tests/ as: python -m faults.team FOLDER [SETTING=VALUE ...]

Its agents pay (a line in the ledger for each call), ask each other, open child workflows, and some messages are
poison. `die_in_checkpoint=SECONDS` kills the process at a random moment within each move of the write-ahead log.
"""

from __future__ import annotations

import asyncio
import faulthandler
import logging
import os
import random
import resource
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from refold import Agent, Context, RetryPolicy, Worker
from refold.agents import worker as worker_module
from refold.agents.runtime import serve
from refold.brokers.sqlite import tidy
from refold.bus.errors import RefoldError

from . import ledger, logs

QUICK = RetryPolicy(attempts=3, initial=0.01, maximum=0.05, jitter=0)
clerk = Agent("clerk", retry=QUICK)
auditor = Agent("auditor", retry=QUICK)
taster = Agent("taster", retry=QUICK, timeout=1.0)
MEMORY = 2 * 1024**3
"""Bytes that a taster may have beyond what it has: the poison that asks for more is refused them."""


async def pay(path: str, key: str, pause: float) -> str:
    receipt = ledger.pay(path, key)
    await asyncio.sleep(pause)
    return receipt


@clerk.on_task
async def order(ctx: Context, job: dict[str, Any]) -> list[str]:
    """Pay, have it audited here and in a child workflow, rest, pay again."""
    first = await ctx.effect("charge", pay, job["ledger"], ctx.idempotency_key, job["pause"], retry=QUICK)
    ctx.update({"charged": first})
    here, there = await ctx.gather(ctx.request(auditor, job), ctx.spawn(auditor, job))
    await ctx.sleep(job["pause"] / 2)
    ctx.send(auditor, job["number"], kind="note")
    last = await ctx.effect("ship", pay, job["ledger"], ctx.idempotency_key, job["pause"], retry=QUICK)
    return [first, here, there, last]


@auditor.on_task
async def audit(ctx: Context, job: dict[str, Any]) -> str:
    return await ctx.effect("audit", pay, job["ledger"], ctx.idempotency_key, job["pause"], retry=QUICK)


@auditor.on("note")
async def note(ctx: Context, number: int) -> None:
    ctx.update({"noted": number})


@taster.on_task
async def taste(ctx: Context, job: dict[str, Any]) -> str:
    """Innocents pay once; poison raises, hangs, blocks the loop, asks for all memory, or kills the process."""
    poison = job.get("poison")
    ledger.write(job["starts"], number=job["number"], poison=poison)
    if poison == "raise":
        raise RuntimeError("poison")
    if poison == "hang":
        await asyncio.sleep(3600)
    if poison == "block":
        time.sleep(3600)  # noqa: ASYNC251 - that is the poison
    if poison == "memory":
        hoard = [bytearray(16 * 1024 * 1024) for _ in range(10_000)]
        return str(len(hoard))
    if poison == "kill":
        os._exit(9)
    return await ctx.effect("taste", ledger.pay, job["ledger"], ctx.idempotency_key)


def die_in_checkpoints(folder: Path, within: float) -> None:
    """Let each move of the write-ahead log be this process's last moment."""
    move = tidy.checkpoint

    def fatal(path: str, empty: bool) -> None:
        ledger.write(folder / "seen", fault="killed in a move of the write-ahead log")
        moment = random.random() * within
        threading.Timer(moment, os.kill, (os.getpid(), signal.SIGKILL)).start()
        move(path, empty)

    tidy.checkpoint = fatal


def tell(folder: Path, worker: Worker) -> None:
    """Leave what only this process knows: appends that were refused since another one owns the partition."""
    ledger.write(folder / "workers", fenced=worker.fenced, handled=worker.handled)


def main() -> int:
    folder, *rest = sys.argv[1:]
    settings: dict[str, Any] = dict(pair.split("=") for pair in rest)
    wanted = settings.pop("agents", "clerk,auditor").split(",")
    agents = [a for a in (clerk, auditor, taster) if a.name in wanted]
    faulthandler.register(signal.SIGUSR1)
    logging.basicConfig(level="INFO", format="%(asctime)s %(process)d %(name)s %(levelname)s %(message)s")
    if (within := float(settings.pop("die_in_checkpoint", 0))) > 0:
        tidy.PASSIVE = tidy.TRUNCATE = 40_000
        die_in_checkpoints(Path(folder), within)
    if (moves := int(settings.pop("moves", 0))) > 0:
        tidy.PASSIVE, tidy.TRUNCATE, tidy.AGAIN = moves, 3 * moves, 0.0
    worker_module.CHECKPOINT_SECONDS = float(settings.pop("checkpoint", 0.2))
    if settings.pop("limit_memory", ""):
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    numbers = {k: float(v) if "." in v else int(v) for k, v in settings.items() if k != "member"}
    return asyncio.run(work(Path(folder), agents, settings.get("member"), numbers))


async def work(folder: Path, agents: list[Agent], member: str | None, numbers: dict[str, Any]) -> int:
    made: list[Worker] = []

    def ready(worker: Worker) -> None:
        ledger.write(folder / "ready")
        made.append(worker)

    asyncio.get_running_loop().add_signal_handler(signal.SIGUSR2, say_what_waits)
    try:
        return await serve(
            agents, logs.address(folder), group="+".join(a.name for a in agents), member=member,
            on_ready=ready, **numbers,
        )  # fmt: skip
    finally:
        for worker in made:
            tell(folder, worker)


def say_what_waits() -> None:
    """Write where each task stands."""
    for task in asyncio.all_tasks():
        task.print_stack(file=sys.stderr)
    sys.stderr.flush()


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except RefoldError as error:
        raise SystemExit(f"{type(error).__name__}: {error}") from error
