"""The faults: each function plays one run and heals it; what the run has seen is counted in `stage.seen`."""

from __future__ import annotations

import contextlib
import signal
import time
from pathlib import Path

from . import ledger, server_faults
from .damage import ALLOWED, DAMAGES, Backup, has_remedy
from .power_loss import PowerLoss
from .stage import START, NoProgress, Process, Scenario, Stage

POISONS = ("raise", "hang", "block", "memory", "kill")


async def worker_killed(stage: Stage) -> None:
    """Workers are killed with SIGKILL in the middle of their work, and started again."""
    for _ in range(2):
        stage.worker()
    client = stage.client("ann", 0, 24)
    await stage.until(lambda: stage.calls() > 3, START, "work has begun")
    for _ in range(4):
        await stage.pause(0.05, 0.3)
        if not client.alive:
            break
        stage.random.choice(stage.workers()).kill()
        stage.seen += 1
        stage.worker()
    await stage.over(client)
    await stage.drain()


async def client_killed(stage: Stage) -> None:
    """A client is killed between its operations; another one with the same ids finishes them."""
    stage.worker()
    first = stage.client("ann", 0, 24, spread=0.3)
    await stage.until(lambda: stage.acknowledged() > stage.random.randrange(1, 30), START, "the client is at work")
    first.kill()
    stage.seen += any(line["outcome"] == "ok" for line in stage.history())
    await stage.over(stage.client("ann", 0, 24, spread=0.3))
    await stage.drain()


async def checkpointer_killed(stage: Stage) -> None:
    """Whoever moves the write-ahead log is killed while it does, again and again; another process goes on."""
    stage.worker()
    client = stage.client("ann", 0, 24, notes=6)
    marks = stage.folder / "seen"
    for _ in range(4):
        fatal = stage.worker(die_in_checkpoint=0.004, checkpoint=0.05)
        await stage.until(lambda fatal=fatal: not (fatal.alive and client.alive), 10, "a move of the write-ahead log")
    stage.seen += len(ledger.read(marks))
    for process in stage.workers()[1:]:
        process.kill()
    await stage.over(client)
    await stage.drain()


async def worker_stopped(stage: Stage) -> None:
    """A worker is stopped beyond its lease in the middle of its work, replaced, and resumed: it must be fenced.

    It is stopped outside of its commits: inside of one it holds the log's write lock, and then nobody can go on.
    """
    first = stage.worker()
    client = stage.client("ann", 0, 24, spread=0.3, pause=0.1)
    await stage.until(lambda: stage.calls() > 3, START, "work has begun")
    await stage.pause(0.0, 0.2)
    await stage.stop(first)
    while stage.log.is_locked():
        first.signal(signal.SIGCONT)
        await stage.pause(0.0, 0.02)
        await stage.stop(first)
    stage.worker()
    calls = stage.calls()
    await stage.until(lambda: stage.calls() > calls, 15, "another worker goes on")
    await stage.pause(0.0, 0.5)
    first.signal(signal.SIGCONT)
    await stage.over(client)
    await stage.drain()
    stage.seen += stage.fenced()
    stage.late_counts = True


async def two_race(stage: Stage) -> None:
    """Two workers and two clients start at the same moment on a log that is not there yet, with the same ids."""
    for _ in range(2):
        stage.worker()
    clients = [stage.client(name, 0, 16, spread=0.05) for name in ("ann", "bob")]
    await stage.over(*clients, within=START)
    by = {line["client"] for line in stage.history() if line["op"] == "start" and line["outcome"] == "ok"}
    await stage.drain()
    stage.seen += len(by) == 2


async def disk_full(stage: Stage) -> None:
    """No file of any process may grow any more; then there is space again."""
    stage.worker()
    client = stage.client("ann", 0, 24, notes=4)
    await stage.until(lambda: stage.calls() > 3 and stage.size() > 300_000, START, "the log is larger than the notes")
    await stage.pause(0.0, 0.3)
    log = stage.size()
    running = [p for p in stage.processes if p.alive]
    for process in running:
        process.limit_files(log + stage.random.randrange(0, 20_000))
    await stage.until(lambda: not client.alive or stage.refused_space(), 10, "somebody is told that the disk is full")
    stage.seen += stage.refused_space()
    for process in running:
        if process.alive:
            process.limit_files(2**40)
    await stage.over(client)
    await stage.drain()


async def poisoned(stage: Stage, innocents: int = 1000) -> None:
    """Five kinds of poison among many innocents, and workers that are restarted all the while."""
    kinds = stage.random.sample(range(innocents), len(POISONS))
    poison = dict(zip(kinds, POISONS, strict=True))
    stage.failed = frozenset(f"taster-{n}" for n in kinds)
    settings = {"agents": "taster", "limit_memory": 1, "concurrency": 16, "lease": 0.4, "stall_limit": 1.2}
    client = stage.client(
        "ann", 0, innocents, agent="taster", notes=0, spread=0.5, poison=",".join(f"{n}:{p}" for n, p in poison.items())
    )
    rolled: list[Process] = []

    def keep() -> None:
        alive = stage.workers()
        while len(alive) < 2:
            alive.append(stage.worker(**settings))
        if len(rolled) < 3 and stage.random.random() < 0.005:
            rolled.append(alive[0])
            alive[0].signal(signal.SIGTERM)

    await stage.over(client, within=90, keep=keep)
    tasted = {line["poison"] for line in ledger.read(stage.folder / "starts")}
    stage.seen += tasted >= set(POISONS)
    await stage.drain()


async def power_cut(stage: Stage) -> None:
    """All lose their power at once, again and again, and the disk holds any part of what was not synced."""
    power = PowerLoss(stage.folder)
    stage.environment = power.environment
    for cut in range(5):
        for _ in range(2):
            stage.worker(moves=40_000)
        client = stage.client("ann", 0, 24, notes=4)
        calls = stage.calls()
        await stage.until(lambda calls=calls, client=client: stage.calls() > calls or not client.alive, 15, "work")
        if cut == 4:
            break
        await stage.pause(0.0, 0.3)
        stage.end()
        stage.seen += power.cut(stage.random.randrange(2**32)) > 0
    await stage.over(client)
    await stage.drain()


async def file_damaged(stage: Stage) -> None:
    """A file is damaged while nothing runs: refused with a remedy, or what is read is what was appended. Then the files
    come back from their backup."""
    for _ in range(2):
        stage.worker(moves=100_000)
    await stage.over(stage.client("ann", 0, 12, spread=0.2))
    stage.end()
    backup = Backup(stage.folder)
    for _ in range(6):
        how = stage.random.choice(DAMAGES)(backup.path, stage.random)
        what = await backup.judged()
        stage.seen += what == "refused"
        worker, wal, began = stage.worker(agents="taster"), stage.folder / "log.db-wal", time.time_ns()

        def at_work(worker: Process = worker, wal: Path = wal, began: int = began) -> bool:
            with contextlib.suppress(FileNotFoundError):  # who leaves last removes it
                seen = wal.stat()
                return not worker.alive or (seen.st_size > 0 and seen.st_mtime_ns > began)
            return not worker.alive

        await stage.until(at_work, 10, f"{how}, {what}: a worker is refused, or at work")
        await stage.drain()
        well = worker.child.returncode in (0, -signal.SIGTERM)  # told to end while it was starting, or ending already
        crashed = not well and not has_remedy(stage.last_words(worker))
        if crashed or what not in ALLOWED:
            raise NoProgress(f"{how}: {what}; worker: {worker.child.returncode} {stage.last_words(worker)}")
        backup.restore()
    stage.worker()
    await stage.over(stage.client("bob", 12, 24, spread=0.2))
    await stage.drain()


EVERYWHERE = ("sqlite", "nats", "kafka")
SCENARIOS: dict[str, Scenario] = {
    **{f.__name__: Scenario(f, EVERYWHERE) for f in (worker_killed, client_killed, worker_stopped, two_race)},
    **{f.__name__: Scenario(f) for f in (checkpointer_killed, disk_full, poisoned, power_cut, file_damaged)},
    **{s.play.__name__: s for s in server_faults.SCENARIOS},
}
