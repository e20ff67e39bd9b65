"""The stage of a fault run: a folder, the processes that play in it, and how they are ended, stopped and looked at."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import psutil

from . import ledger
from .logs import Log

TESTS = Path(__file__).parent.parent
PROGRESS = 15.0
"""Seconds after healing within which everything must be over (the promise of the guarantees page)."""

START = 60.0
"""Seconds for what is no promise: until processes have started and are at work."""


class Broken(Exception):
    """A promise was broken; the text says which."""


class NoProgress(Broken):
    """After the fault was healed the work did not end in time."""


class Process:
    """A child of the run, and whether the run ended it."""

    def __init__(self, name: str, child: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.child = child
        self.killed = False

    @property
    def alive(self) -> bool:
        return self.child.poll() is None

    def kill(self) -> None:
        """kill -9, also of what is stopped; waits until it is gone."""
        self.killed = True
        self.child.kill()
        self.child.wait()

    def signal(self, number: int) -> None:
        self.child.send_signal(number)

    def limit_files(self, size: int) -> None:
        """Let no file of the process grow beyond this (bytes): its disk is full."""
        resource.prlimit(self.child.pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


class Stage:
    """One run. `seen` counts the faults that were seen; a run without any does not count. With `late_counts` a write of
    an owner that had a successor, refused or an outcome, is a fault that was seen too. `healed`: seconds from each
    healing until everything was seen through. Without `judged` the log is gone: the scenario has judged the run.
    """

    def __init__(self, folder: Path, seed: int, log: Log) -> None:
        self.folder = folder
        self.log = log
        self.random = random.Random(seed)
        self.seed = seed
        self.processes: list[Process] = []
        self.environment: dict[str, str] = {}
        self.seen = 0
        self.failed: frozenset[str] = frozenset()
        self.late_counts = False
        self.healed: list[float] = []
        self.judged = True

    # ---- processes -------------------------------------------------------------------------------------------------
    def _start(self, name: str, module: str, *words: str) -> Process:
        number = len(self.processes)
        with (self.folder / f"{name}-{number}.log").open("wb") as log:
            child = subprocess.Popen(
                [sys.executable, "-m", module, str(self.folder), *words], cwd=TESTS, stdout=log, stderr=log,
                env={**os.environ, **self.environment},
            )  # fmt: skip
        self.processes.append(Process(name, child))
        return self.processes[-1]

    def worker(self, **settings: Any) -> Process:
        """Start a worker."""
        settings = {"lease": self.log.lease, "stall_limit": self.log.stall_limit, **settings}
        return self._start("worker", "faults.team", *(f"{k}={v}" for k, v in settings.items()))

    def client(self, name: str, first: int, last: int, **settings: Any) -> Process:
        """Start a client that sees workflows `first` to `last` - 1 through."""
        words = (str(first), str(last), str(self.random.randrange(10**6)), *(f"{k}={v}" for k, v in settings.items()))
        return self._start(name, "faults.client", name, *words)

    def workers(self) -> list[Process]:
        return [p for p in self.processes if p.name == "worker" and p.alive]

    def is_ready(self, worker: Process) -> bool:
        """It runs, and heeds SIGTERM."""
        return any(line["pid"] == worker.child.pid for line in ledger.read(self.folder / "ready"))

    def end(self) -> None:
        """End everything that still runs."""
        for process in self.processes:
            if process.alive:
                process.kill()

    async def drain(self) -> None:
        """Let the workers end well, so that they leave their numbers behind."""
        for process in self.workers():
            process.signal(signal.SIGCONT)
            process.signal(signal.SIGTERM)
        try:
            await self.until(lambda: not self.workers(), PROGRESS, "workers end after SIGTERM")
        except NoProgress:
            for process in self.workers():
                process.signal(signal.SIGUSR1)  # it writes the stacks of its threads into its log
                process.signal(signal.SIGUSR2)  # and those of its tasks
            await asyncio.sleep(1.0)
            raise

    # ---- waiting ---------------------------------------------------------------------------------------------------
    async def pause(self, low: float, high: float) -> None:
        """Let the run go on for a random time: the fault falls anywhere."""
        await asyncio.sleep(self.random.uniform(low, high))

    async def until(self, condition: Callable[[], Any], within: float, what: str) -> None:
        """Wait for a condition. Raises NoProgress."""
        until = time.monotonic() + within
        while not condition():
            if time.monotonic() > until:
                raise NoProgress(f"not within {within:g} s: {what}")
            await asyncio.sleep(0.01)

    async def over(
        self, *clients: Process, within: float | None = None, keep: Callable[[], Any] = lambda: None
    ) -> None:
        """Healed: the clients must have seen everything through in time. `keep` is called meanwhile."""
        began, within = time.monotonic(), PROGRESS + self.log.healing if within is None else within

        def ended() -> bool:
            keep()
            return not any(c.alive for c in clients)

        await self.until(ended, within, f"{', '.join(c.name for c in clients)} done")
        self.healed.append(time.monotonic() - began)
        for c in clients:
            if c.child.returncode:
                raise NoProgress(f"{c.name} ended with {c.child.returncode}: {self.last_words(c)}")

    def said(self, process: Process) -> list[str]:
        """Return the lines of a process's log."""
        number = self.processes.index(process)
        return (self.folder / f"{process.name}-{number}.log").read_text(errors="replace").splitlines()

    def last_words(self, process: Process) -> str:
        """Return what a process said last, or the last error that it named."""
        lines = [line.strip(" |") for line in self.said(process) if line.strip(" |+-")]
        errors = [line for line in lines if re.match(r"[\w.]+: ", line)]
        return (errors or lines or [""])[-1]

    def errors(self, process: Process) -> list[str]:
        """Return what a process has said as an error."""
        return [line for line in self.said(process) if " ERROR " in line or " CRITICAL " in line]

    async def stop(self, process: Process) -> None:
        """SIGSTOP; returns when the process stands still."""
        process.signal(signal.SIGSTOP)
        seen = psutil.Process(process.child.pid)
        await self.until(lambda: seen.status() == psutil.STATUS_STOPPED, 10, "it stands still")

    # ---- what was seen ---------------------------------------------------------------------------------------------
    def history(self) -> list[dict[str, Any]]:
        return ledger.read(self.folder / "history")

    def acknowledged(self, op: str = "append") -> int:
        return sum(line["op"] == op and line["outcome"] == "ok" for line in self.history())

    def size(self) -> int:
        """Return the bytes of the log's larger file."""
        files = (self.folder / "log.db", self.folder / "log.db-wal")
        return max((path.stat().st_size for path in files if path.exists()), default=0)

    def calls(self) -> int:
        return len(ledger.read(self.folder / "ledger"))

    def refused_space(self) -> int:
        """Return how often somebody was told that nothing can be written: no space, or (a limit) an I/O error."""
        told = sum(line.get("error") in ("LogFull", "BrokerUnavailable") for line in self.history())
        return told + self.logged("no space") + self.logged("disk I/O error")

    def refused(self) -> int:
        """Return how often a client was told that nothing was written, or that nobody knows."""
        return sum(line.get("error") in ("LogFull", "BrokerUnavailable") for line in self.history())

    def fenced(self) -> int:
        """Return how many appends the workers that ended well had refused, since another one owned the partition."""
        return sum(line["fenced"] for line in ledger.read(self.folder / "workers"))

    def logged(self, text: str) -> int:
        """Return how often the processes said something."""
        return sum(p.read_text(errors="replace").count(text) for p in self.folder.glob("*.log"))


@contextlib.asynccontextmanager
async def staged(folder: Path, seed: int, log: Log) -> AsyncIterator[Stage]:
    """Open a stage; whatever happens, no process is left behind."""
    stage = Stage(folder, seed, log)
    try:
        yield stage
    finally:
        stage.end()


class Scenario(NamedTuple):
    """What is played, on which brokers, with how many nodes of a server, on a disk of how many MiB (0: everybody's), on
    a network that can be cut."""

    play: Callable[[Stage], Awaitable[None]]
    brokers: tuple[str, ...] = ("sqlite",)
    nodes: int = 1
    disk: int = 0
    network: bool = False
