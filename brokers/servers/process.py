"""One node: a child process with its log in a file, that answers before anybody uses it and dies with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from ...bus.errors import BrokerUnavailable

HOST = "127.0.0.1"
PORTS = range(20000, 32000)
"""Below what systems give to outgoing connections: the port of a node that is down is not taken meanwhile."""
STARTS = 90.0
"""Seconds within which a node must answer."""
ENDS = 10.0
"""Seconds that a node has for an end in good order."""
_LOOK = 0.02
_TAIL = 2000
_DIE_WITH_PARENT = (
    "import ctypes, os, sys\n"
    "ctypes.CDLL(None).prctl(1, 9)\n"  # PR_SET_PDEATHSIG, SIGKILL: kept by exec
    "os.getppid() == int(sys.argv[1]) or sys.exit('the parent died')\n"
    "os.execv(sys.argv[2], sys.argv[2:])\n"
)


class Node:
    """One process of a server. `kill`, `stop` and `cont` act at once; `restart` keeps the store and the ports.

    It belongs to the thread that started it: on Linux it is killed when that thread ends, or its process dies.
    """

    def __init__(
        self, name: str, command: Sequence[str], log: Path, answers: Callable[[], Awaitable[bool]], ports: Sequence[int]
    ) -> None:
        self.name = name
        self.command = tuple(command)
        self.log = log
        self.ports = tuple(ports)
        self._answers = answers
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id. Raises ProcessLookupError where the node does not run."""
        if self._process is None or self._process.poll() is not None:
            raise ProcessLookupError(f"{self.name} does not run")
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the process is there (a stopped one is)."""
        return self._process is not None and self._process.poll() is None

    def begin(self) -> None:
        """Start the process, and do not wait until it answers."""
        if self.alive:
            raise RuntimeError(f"{self.name} runs already")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - a server of ours
                _bound_to_parent(self.command), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.log.parent,
                process_group=0,  # a Ctrl-C is for the parent, which ends it in good order
            )  # fmt: skip

    async def ready(self, within: float = STARTS) -> None:
        """Wait until the node answers. Raises BrokerUnavailable, with the end of its log, where it does not."""
        try:
            async with asyncio.timeout(within):
                while self.alive:
                    with contextlib.suppress(OSError, EOFError, ValueError):
                        if await self._answers():
                            return
                    await asyncio.sleep(_LOOK)
        except TimeoutError:
            raise BrokerUnavailable(f"{self.name} does not answer within {within:g} s; {self.last_words()}") from None
        raise BrokerUnavailable(f"{self.name} ended while it started; {self.last_words()}")

    def kill(self) -> None:
        """Kill it (SIGKILL) and wait until it is gone. No error where it is gone already."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Stop it where it is (SIGSTOP), until `cont`."""
        self._signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Let it go on after `stop`."""
        self._signal(signal.SIGCONT)

    async def restart(self) -> None:
        """Start it again on its store and its ports, killed first where it runs; return when it answers."""
        self.kill()
        self.begin()
        await self.ready()

    async def end(self, within: float = ENDS) -> None:
        """End it in good order (SIGTERM), or kill it after `within` seconds."""
        if not self.alive:
            return
        self._signal(signal.SIGTERM)
        self._signal(signal.SIGCONT)
        try:
            async with asyncio.timeout(within):
                while self.alive:  # noqa: ASYNC110 - nothing tells of the end of a process
                    await asyncio.sleep(_LOOK)
        except TimeoutError:
            pass
        finally:
            self.kill()

    def _signal(self, number: int) -> None:
        if self._process is None:
            raise ProcessLookupError(f"{self.name} does not run")
        self._process.send_signal(number)

    def last_words(self) -> str:
        """Return the end of its log, as a text for people."""
        with contextlib.suppress(OSError):
            said = self.log.read_bytes()[-_TAIL:].decode(errors="replace").strip()
            return f"the end of {self.log}:\n{said}"
        return f"it has no log at {self.log}"


def _bound_to_parent(command: Sequence[str]) -> list[str]:
    if sys.platform != "linux":
        return list(command)
    import os

    return [sys.executable, "-I", "-S", "-c", _DIE_WITH_PARENT, str(os.getpid()), *command]


def free_ports(count: int) -> list[int]:
    """Return ports of loopback that nobody listens on now."""
    found: list[int] = []
    for port in random.SystemRandom().sample(PORTS, len(PORTS)):
        if len(found) == count:
            break
        if _free(port):
            found.append(port)
    return found


def are_free(ports: Iterable[int]) -> bool:
    """Return whether nobody listens on any of these ports of loopback now."""
    return all(_free(port) for port in ports)


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True
