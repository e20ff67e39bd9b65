"""Other processes: whether they are at the same log, now and when this one has ended.

Run as a program (`python -m refold.brokers.conformance.processes OPENER URL`) it is that other process.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from importlib import import_module

from ...bus.broker import Appended, Broker, Item, Outgoing
from ...bus.errors import RefoldError
from .case import Cases
from .promise import PromiseBroken
from .stage import Stage, appended, check, equal, item, keys, value, values, whole
from .subject import Subject

CASES = Cases()


@CASES.add("Broker.append", "Broker.read", "Subscription.fetch", claims="shared_between_processes")
async def another_process_works_on_the_same_log_at_the_same_time(stage: Stage) -> None:
    broker = await stage.open()
    (key,) = keys(broker, 0, 1)
    (at,) = await appended(broker, item(0, key, "a"))
    member = await stage.lone(broker)
    member.seek(0, at + 1)
    there = await _process(stage.subject, broker)
    equal((there.get("log"), there.get("found")), (broker.meta.log_id, ["a"]), "the log and records that it finds")
    (new,) = await member.take(0, 1)
    equal((new.position, new.value), (there.get("position"), value("b")), "what it has appended")


@CASES.add("Broker.append", disclaims="shared_between_processes")
async def another_process_is_not_on_the_same_log(stage: Stage) -> None:
    broker = await stage.open()
    await appended(broker, item(0, None, "a"))
    there = await _process(stage.subject, broker)
    check(there.get("log") != broker.meta.log_id, "another process is on the log, which is not claimed")
    equal(values(await whole(broker, 0)), [value("a")], "the log")


@CASES.add("Broker.append", "Broker.aclose", "Subscription.save_checkpoint", claims="survives_restart")
async def what_was_appended_and_saved_is_there_after_a_restart_and_epochs_go_on(stage: Stage) -> None:
    broker = await stage.open()
    await appended(broker, item(0, None, "a"))
    member = await stage.lone(broker)
    epoch = member.epochs[0]
    check(await member.sub.save_checkpoint(0, epoch, 1, b"", {b"k": b"v"}, []), "a checkpoint is refused")
    await member.leave()
    await broker.aclose()
    there = await _process(stage.subject, broker)
    equal((there.get("log"), there.get("found")), (broker.meta.log_id, ["a"]), "the log and records after a restart")
    equal(there.get("checkpoint"), {"k": "v"}, "the checkpoint after a restart")
    check(isinstance(now := there.get("epoch"), int) and now > epoch, f"epoch {now} after a restart follows on {epoch}")


@CASES.add("Broker.append", "Broker.aclose", disclaims="survives_restart")
async def nothing_is_there_after_a_restart(stage: Stage) -> None:
    broker = await stage.open()
    await appended(broker, item(0, None, "a"))
    await broker.aclose()
    there = await _process(stage.subject, broker)
    check(there.get("log") != broker.meta.log_id, "the log survives a restart, which is not claimed")


async def _process(subject: Subject, broker: Broker) -> dict[str, object]:
    """Let another process open the log, and return what it says."""
    command = (sys.executable, "-m", __name__, subject.opener, subject.url(broker))
    path = os.pathsep.join(p or os.curdir for p in sys.path)
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}
    )
    try:
        out, problem = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        raise PromiseBroken(f"another process ended with {process.returncode}: {problem.decode(errors='replace')}")
    said: dict[str, object] = json.loads(out)
    return said


async def _look(opener: str, url: str) -> dict[str, object]:
    """Open the log and say what is there; then append to it."""
    module, _, name = opener.partition(":")
    async with getattr(import_module(module), name)(url) as broker:
        try:
            await broker.ensure_log(create=False)
        except RefoldError as error:
            return {"error": str(error)}
        found = [json.loads(r.value)["id"] for r in await whole(broker, 0)]
        known = await broker.checkpoint("g", 0)
        (result,) = await broker.append([Item(0, None, (Outgoing("b", value("b")),))])
        said = {"log": broker.meta.log_id, "found": found, "position": None, "epoch": await _epoch(broker)}
        if isinstance(result, Appended):
            said["position"] = result.positions[0]
        if known is not None:
            said["checkpoint"] = {k.decode(): v.decode() for k, v in known.entries.items()}
        return said


async def _epoch(broker: Broker) -> int | None:
    """Return the epoch under which partition 0 is had, if it is free."""
    if await broker.members("g"):
        return None
    async with broker.subscribe("g", "another process", lease=60.0) as sub:
        for _ in range(20):
            sub.turned()
            await sub.fetch(max_wait=0.1)
            if 0 in sub.owned():
                return sub.owned()[0]
    return None


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asyncio.run(_look(*sys.argv[1:]))))
