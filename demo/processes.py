"""The processes of the demo: started, watched, one killed, the rest ended in good order."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from ..bus.errors import Failure
from .provider import Provider
from .team import AT_ONCE, GROUPS, PROVIDER
from .watch import ANALYZERS, Watch

PATIENCE = 60.0
"""Seconds that all processes together may take to start."""
DRAIN = (3.0, 5.0)
"""Seconds after a first and a second SIGTERM; a process that is still there then is killed."""
HASTE = (0.5, 5.0)
"""The same, where a run is broken off: nobody waits for what is in flight."""
PYTHON = (sys.executable, "-P", "-W", "ignore", "-m")


class ProcessEnded(Failure):
    """A process of the demo ended by itself."""


class Child(NamedTuple):
    """A process of the team: its group and its name in it."""

    group: str
    member: str
    process: asyncio.subprocess.Process

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid


class Company:
    """All processes of a run, with their logs in `folder`. `async with` ends those that are left."""

    def __init__(self, folder: Path, url: str, analyzers: int) -> None:
        self.folder = folder
        self.url = url
        self.analyzers = analyzers
        self.children: list[Child] = []
        self.killed: set[int] = set()
        self._provider: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Company:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.end(HASTE)

    async def start(self, latency: float) -> Provider:
        """Start the provider, then the team; return the provider once it listens. `latency`: seconds of its calls."""
        with self.log_of("provider").open("wb") as log:
            self._provider = process = await asyncio.create_subprocess_exec(
                *PYTHON, f"{__package__}.provider", str(self.folder / "invoice.jsonl"), "--tied",
                "--latency", str(latency),
                stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log, start_new_session=True,
            )  # fmt: skip
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            address = (await process.stdout.readline()).decode().strip()
        if not address:
            raise ProcessEnded(f"the provider did not start (see {self.log_of('provider')})")
        for group in GROUPS:
            names = [group] if group != ANALYZERS else [f"analyzer-{i + 1}" for i in range(self.analyzers)]
            for member in names:
                self.children.append(Child(group, member, await self._spawn(group, member, address)))
        return Provider(address)

    async def _spawn(self, group: str, member: str, address: str) -> asyncio.subprocess.Process:
        with self.log_of(member).open("wb") as log:
            return await asyncio.create_subprocess_exec(
                *PYTHON, f"{__package__}.team", group, "--broker", self.url, "--member", member, "--tied",
                "--at-once", str(AT_ONCE[group]),
                stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, PROVIDER: address},
            )  # fmt: skip

    def log_of(self, member: str) -> Path:
        """Return where a process writes its log."""
        return self.folder / "logs" / f"{member}.log"

    async def ready(self, watch: Watch) -> None:
        """Wait until every group owns all partitions, and no analyzer more than its share."""
        partitions = watch.broker.meta.partitions
        async with asyncio.timeout(PATIENCE):
            while True:
                self.check()
                await watch.look()
                shares = Counter(owner.member for (group, _), owner in watch.owners.items() if group == ANALYZERS)
                share = math.ceil(partitions / self.analyzers)
                if len(watch.owners) == len(GROUPS) * partitions and max(shares.values()) <= share:
                    return
                await asyncio.sleep(0.1)

    def check(self) -> None:
        """Raise ProcessEnded where a process is gone that nobody ended."""
        named = [(c.member, c.process) for c in self.children if c.pid not in self.killed]
        if self._provider is not None:
            named.append(("provider", self._provider))
        for member, process in named:
            if process.returncode is not None:
                log = self.log_of(member)
                lines = log.read_text(errors="replace").splitlines() if log.exists() else []
                raise ProcessEnded(
                    f"{member} (pid {process.pid}) ended with {process.returncode}: "
                    f"{lines[-1] if lines else 'it said nothing'} (see {log})"
                )

    async def kill(self, pid: int) -> str:
        """End one process of the team by SIGKILL, wait until it is gone, and return its name."""
        child = next(c for c in self.children if c.pid == pid)
        self.killed.add(pid)
        child.process.kill()
        await child.process.wait()
        return child.member

    async def end(self, patience: tuple[float, ...] = DRAIN) -> None:
        """SIGTERM to all that are left, the provider last; SIGKILL where that does not help, or when cancelled."""
        team = [c.process for c in self.children]
        provider = [self._provider] if self._provider is not None else []
        try:
            await _finish(team, patience)
            await _finish(provider, patience)
        finally:
            for process in alive([*team, *provider]):
                process.kill()
                await process.wait()


async def _finish(processes: list[asyncio.subprocess.Process], patience: tuple[float, ...]) -> None:
    for seconds in patience:
        for process in alive(processes):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for process in alive(processes):
                    await process.wait()
                return


def alive(processes: list[asyncio.subprocess.Process]) -> list[asyncio.subprocess.Process]:
    """Return those that have not ended."""
    return [p for p in processes if p.returncode is None]
