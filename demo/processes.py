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

from ..bus.broker import Broker
from ..bus.codec import envelope
from ..bus.errors import RefoldError
from ..bus.facts import Owner, OwnerReleased
from .provider import Provider
from .team import GROUPS, PROVIDER

PATIENCE = 60.0
"""Seconds that all processes together may take to start."""
DRAIN = 25.0
"""Seconds after SIGTERM until a process that is still there is killed."""
PYTHON = (sys.executable, "-P", "-W", "ignore", "-m")


class ProcessEnded(RefoldError):
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
        await self.end()

    async def start(self) -> Provider:
        """Start the provider, then the team; return the provider once it listens."""
        self._provider = process = await asyncio.create_subprocess_exec(
            *PYTHON, f"{__package__}.provider", str(self.folder / "invoice.jsonl"), "--tied",
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            address = (await process.stdout.readline()).decode().strip()
        if not address:
            raise ProcessEnded("the provider did not start")
        for group in GROUPS:
            names = [group] if group != "analyzers" else [f"analyzer-{i + 1}" for i in range(self.analyzers)]
            for member in names:
                self.children.append(Child(group, member, await self._spawn(group, member, address)))
        return Provider(address)

    async def _spawn(self, group: str, member: str, address: str) -> asyncio.subprocess.Process:
        with self.log_of(member).open("wb") as log:
            return await asyncio.create_subprocess_exec(
                *PYTHON, f"{__package__}.team", group, "--broker", self.url, "--member", member, "--tied",
                stdin=asyncio.subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, PROVIDER: address},
            )  # fmt: skip

    def log_of(self, member: str) -> Path:
        """Return where a process writes its log."""
        return self.folder / "logs" / f"{member}.log"

    async def ready(self, broker: Broker) -> None:
        """Wait until every group owns all partitions, and no analyzer more than its share."""
        async with asyncio.timeout(PATIENCE):
            while True:
                self.check()
                owners = await owners_of(broker)
                shares = Counter(member for (group, _), member in owners.items() if group == "analyzers")
                share = math.ceil(broker.meta.partitions / self.analyzers)
                if len(owners) == len(GROUPS) * broker.meta.partitions and max(shares.values()) <= share:
                    return
                await asyncio.sleep(0.1)

    def check(self) -> None:
        """Raise ProcessEnded where a process is gone that nobody ended."""
        for child in self.children:
            if child.process.returncode is not None and child.pid not in self.killed:
                lines = self.log_of(child.member).read_text(errors="replace").splitlines()
                raise ProcessEnded(
                    f"{child.member} (pid {child.pid}) ended with {child.process.returncode}: "
                    f"{lines[-1] if lines else 'it said nothing'} (see {self.log_of(child.member)})"
                )

    async def kill(self, pid: int) -> None:
        """End one process of the team by SIGKILL, and wait until it is gone."""
        child = next(c for c in self.children if c.pid == pid)
        self.killed.add(pid)
        child.process.kill()
        await child.process.wait()

    async def end(self) -> None:
        """SIGTERM to all that are left, the provider last; SIGKILL where that does not help."""
        await self._finish([c.process for c in self.children])
        if self._provider is not None:
            await self._finish([self._provider])

    async def _finish(self, processes: list[asyncio.subprocess.Process]) -> None:
        alive = [p for p in processes if p.returncode is None]
        for process in alive:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        try:
            async with asyncio.timeout(DRAIN):
                for process in alive:
                    await process.wait()
        except TimeoutError:
            for process in alive:
                if process.returncode is None:
                    process.kill()
                    await process.wait()


async def owners_of(broker: Broker) -> dict[tuple[str, int], str]:
    """Return who owns which partition in which group, as the log's own records say."""
    owners: dict[tuple[str, int], str] = {}
    for partition in range(broker.meta.partitions):
        for stored in (await broker.read(partition)).records:
            if stored.key is not None:
                continue
            fact = envelope(stored.value).fact
            if isinstance(fact, Owner):
                owners[fact.group, partition] = fact.member
            elif isinstance(fact, OwnerReleased) and owners.get((fact.group, partition)) == fact.member:
                del owners[fact.group, partition]
    return owners
