"""What things cost, for the sheet of docs/brokers.md: `python bench/costs.py [nats kafka ...]` writes bench/costs.json.

Costs of processors are processor time, which a busy machine falsifies less than seconds; the lowest of several turns.
"""

from __future__ import annotations

import asyncio
import datetime
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import logs
import psutil
import raw as hand
from rows.pipeline import agents

from refold import Agent, AgentMessage, Worker, run
from refold.brokers import open_broker
from refold.brokers.servers import kafka_server, nats_server
from refold.brokers.servers.process import free_ports
from refold.bus.broker import Assigned, Checkpoint, Item, LogSpec, Outgoing, Stored
from refold.bus.partition import partition_of
from refold.projections.checkpoint import STUBS, changes, restore
from refold.projections.frozen import peek
from refold.projections.partition import PartitionFold

HERE = Path(__file__).parent
COSTS = HERE / "costs.json"
TURNS, MANY = 5, 10_000
WORKFLOWS, AT_ONCE = 1_500, 100
SUBJECTS, FORGOTTEN = 100_000, 150
STARTED = 1_750_000_000_000
Records = list[Stored]


# ---- the fold and its checkpoint: one process, no server -------------------------------------------------------------
def stored(template: logs.Template, count: int) -> Records:
    """Return the records of so many workflows, one after the other, as one partition holds them."""
    filled = (template.fill(STARTED + i) for i in range(count))
    rows = [(name, value) for name, records in filled for _, value in records]
    return [Stored(n, name, value, 0.0) for n, (name, value) in enumerate(rows, 1)]


def folded(records: Records) -> PartitionFold:
    """Fold records as an owner does."""
    fold = PartitionFold(0, 1)
    for one in records:
        r = fold.open_envelope(one)
        assert r is not None
        w = fold.fold(one, r).workflow
        if w is not None:
            fold.settle(w)
    return fold


def each(work: Any, count: int) -> float:
    """Return microseconds of processor time for each of `count` things: the lowest of several turns."""
    turns = []
    for _ in range(TURNS):
        before = time.process_time()
        work()
        turns.append((time.process_time() - before) / count * 1e6)
    return min(turns)


def fold_costs(done: logs.Template, waits: logs.Template) -> dict[str, float]:
    """What the fold costs a record, and what a checkpoint costs a workflow."""
    completed, waiting = stored(done, MANY), stored(waits, MANY)
    found = {
        "records_of_a_pipeline": float(len(done.of)),
        "record_bytes": sum(len(s.value) for s in completed) / len(completed),
        "fold_us": each(lambda: folded(completed), len(completed)),
    }
    for name, records in (("open", waiting), ("stub", completed)):
        fold = folded(records)
        entries, _ = changes(fold, lambda w: True, whole=True)
        size = sum(len(k) + len(v) for k, v in entries.items() if name == "open" or k.startswith(STUBS))
        found[f"{name}_bytes"] = size / MANY
        kept = Checkpoint(fold.position, fold.last_id.encode(), entries)
        found[f"{name}_restore_us"] = each(lambda kept=kept: restored(kept), MANY)  # type: ignore[misc]
        found[f"{name}_memory"] = resident(kept)
    return found


def restored(checkpoint: Checkpoint) -> PartitionFold:
    """Load a checkpoint, and look at what is due, as whoever takes a partition over does."""
    fold = PartitionFold(0, 1)
    assert restore(fold, checkpoint)
    for entry in fold.entries.values():
        assert peek(entry).due is None
    return fold


def resident(checkpoint: Checkpoint) -> float:
    """Return the bytes that a restored fold keeps, for each workflow of it."""
    import tracemalloc

    tracemalloc.start()
    fold = restored(checkpoint)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert fold.position
    return held / MANY


# ---- brokers ---------------------------------------------------------------------------------------------------------
@asynccontextmanager
async def served(kind: str, folder: Path) -> AsyncIterator[tuple[str, list[psutil.Process], str]]:
    """Yield the URL of an empty log, its server's processes, and the server's version."""
    if kind == "sqlite":
        import sqlite3

        yield f"sqlite:///{folder}/log.db", [], sqlite3.sqlite_version
        return
    (profile,) = free_ports(1)
    (folder / "profile").write_text(str(profile))
    made = kafka_server(folder / kind) if kind == "kafka" else nats_server(folder / kind, extra=f"prof_port: {profile}")
    async with made as server:
        pids = [node.pid for node in server.nodes]
        yield server.url, [psutil.Process(pid) for pid in pids], server.version


def cpu(processes: Iterable[psutil.Process]) -> float:
    """Return the seconds of processor time that they have used."""
    return sum(sum(p.cpu_times()[:2]) for p in processes)


def on_disk(folder: Path) -> int:
    """Return the bytes that the files of a folder occupy."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


async def broker_costs(kind: str, folder: Path) -> dict[str, float | str]:
    """What a pipeline of five stages costs the worker and the server, and what one more group costs."""
    async with served(kind, folder) as (url, server, version):
        async with open_broker(url) as broker:
            await broker.ensure_log(LogSpec(partitions=4))
        await pipelines(url, 200)
        mine, theirs, disk = time.process_time(), cpu(server), on_disk(folder)
        seconds = await pipelines(url, WORKFLOWS)
        found: dict[str, float | str] = {
            "version": version,
            "rate": WORKFLOWS / seconds,
            "worker_us": (time.process_time() - mine) / WORKFLOWS * 1e6,
            "server_us": (cpu(server) - theirs) / WORKFLOWS * 1e6,
            "disk_bytes": (on_disk(folder) - disk) / WORKFLOWS,
        }
        found |= await group_cost(url, server)
        found |= await checkpoint_cost(url)
        if kind == "nats":
            found |= await subject_cost(url, folder)
        if kind == "kafka":
            found["index_memory"] = index_memory()
        return found


async def pipelines(url: str, count: int) -> float:
    """Let workflows pass the five stages, 100 at once; the seconds that took."""
    ended = asyncio.Queue[None]()

    def on_handled(handling: Any) -> None:
        if handling.agent == f"stage{hand.STAGES}":
            ended.put_nowait(None)

    async with run(*agents(), broker=url, group="stages", on_handled=on_handled) as bus:
        todo = iter(range(count))

        async def client() -> None:
            for _ in todo:
                await bus.send_message(AgentMessage.request("stage1", hand.PAYLOAD))
                await ended.get()

        started = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(AT_ONCE)))
        return time.perf_counter() - started


async def group_cost(url: str, server: list[psutil.Process]) -> dict[str, float]:
    """What another group, which has nothing to do in this log, costs a record of it while others work."""
    command = [sys.executable, __file__, "--bystander", url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: ASYNC220 - nothing else runs
        assert process.stdout is not None
        process.stdout.readline()
        theirs, mine = cpu(server), cpu([psutil.Process(process.pid)])
        await pipelines(url, WORKFLOWS)
        await asyncio.sleep(1)  # what it has not folded yet
        found = {
            "group_us": (cpu([psutil.Process(process.pid)]) - mine) / WORKFLOWS * 1e6,
            "server_with_group_us": (cpu(server) - theirs) / WORKFLOWS * 1e6,
        }
        process.terminate()
        folded = int(process.stdout.readline())
    assert folded >= WORKFLOWS * 6, f"it has folded {folded} records"
    return found


async def bystander(url: str) -> None:
    """Host an agent that nobody asks."""
    agent = Agent("bystander")

    @agent.on_task
    async def nothing(payload: Any) -> Any:
        return payload

    async with open_broker(url) as broker:
        await broker.ensure_log()
        worker = Worker(broker, [agent], group="bystanders")
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
        task = asyncio.create_task(worker.run())
        await worker.caught_up.wait()
        print("there", flush=True)
        await task
        print(worker.folded, flush=True)


async def subject_cost(url: str, folder: Path) -> dict[str, float]:
    """Return the bytes by which the server's heap grows for each workflow of one small record.

    `known_memory`: at once, while the server remembers the record's id and what it wrote lately. `subject_memory`: when
    it has forgotten both, after two minutes and a little more.
    """
    port = int((folder / "profile").read_text())
    async with open_broker(url) as broker:
        partitions = (await broker.ensure_log()).partitions
        before = await asyncio.to_thread(heap, port)
        for first in range(0, SUBJECTS, 500):
            names = [logs.id_at(STARTED + i).decode() for i in range(first, first + 500)]
            await broker.append([Item(partition_of(n, partitions), n, (Outgoing(n, b"{}"),)) for n in names])
        known = await asyncio.to_thread(heap, port)
        await asyncio.sleep(FORGOTTEN)
        kept = await asyncio.to_thread(heap, port)
    return {"known_memory": (known - before) / SUBJECTS, "subject_memory": (kept - before) / SUBJECTS}


def heap(port: int) -> int:
    """Return the bytes that a NATS server holds, after it has collected its garbage."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/debug/pprof/heap?gc=1&debug=1", timeout=60) as answer:
        found = re.search(rb"# HeapAlloc = (\d+)", answer.read())
    assert found is not None
    return int(found[1])


def index_memory() -> float:
    """Return the bytes that who looks up workflows on Kafka keeps for each workflow of six records."""
    import tracemalloc

    from refold.brokers.kafka.reading import Index
    from refold.brokers.kafka.wire import Raw

    index: Any = Index(None, 0)  # type: ignore[arg-type]
    tracemalloc.start()
    for n in range(MANY):
        for m in range(6):
            index._add(Raw(6 * n + m, 0, str(n).encode(), b""))
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return held / MANY


async def checkpoint_cost(url: str) -> dict[str, float]:
    """Seconds, as microseconds for each entry, that a checkpoint of waiting workflows takes to be written and read."""
    entries = {os.urandom(16): os.urandom(367) for _ in range(MANY)}
    async with open_broker(url) as broker:
        await broker.ensure_log()
        async with broker.subscribe("costs", "me", partitions=[0]) as sub:
            assigned: list[Any] = []
            while not assigned:
                assigned = [event for event in await sub.fetch() if isinstance(event, Assigned)]
            writes, reads = [], []
            for turn in range(1, TURNS + 1):
                before = time.perf_counter()
                assert await sub.save_checkpoint(0, assigned[0].epoch, turn, b"", entries, [])
                writes.append(time.perf_counter() - before)
                async with open_broker(url) as reader:
                    await reader.ensure_log()
                    before = time.perf_counter()
                    found = await reader.checkpoint("costs", 0)
                    reads.append(time.perf_counter() - before)
                assert found is not None
                assert found.entries == entries
            return {"open_write_us": min(writes) / MANY * 1e6, "open_read_us": min(reads) / MANY * 1e6}


# ---- what is written -------------------------------------------------------------------------------------------------
def measured_on() -> dict[str, str]:
    """Say on what, and when."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    return {
        "commit": commit.stdout.strip(), "day": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "processors": str(os.cpu_count()), "machine": platform.machine(), "python": platform.python_version(),
        "load": f"{os.getloadavg()[0]:.1f}",
    }  # fmt: skip


def main() -> None:
    """Measure, and keep what was measured before of what is not measured now."""
    if sys.argv[1:2] == ["--bystander"]:
        asyncio.run(bystander(sys.argv[2]))
        return
    random.seed(1)
    wanted = sys.argv[1:] or ["fold", "sqlite", "nats", "kafka"]
    found = json.loads(COSTS.read_text("utf-8")) if COSTS.exists() else {}
    for part in wanted:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if part == "fold":
                costs: dict[str, Any] = dict(fold_costs(*asyncio.run(logs.templates(folder))))
            else:
                costs = asyncio.run(broker_costs(part, folder))
        found[part] = {"measured": measured_on()} | costs
        COSTS.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", "utf-8")
        print(part, json.dumps(costs, indent=1))


if __name__ == "__main__":
    main()
