"""The pretend model provider: a process of its own that answers slowly and writes down what each call costs.

It speaks lines of JSON over loopback TCP. It honours idempotency keys: a second call under a key is answered from
memory, and stands in the invoice as repeated, at no charge. `python -m refold.demo.provider FILE` keeps its invoice
in FILE and prints its address; `--latency` is the mean time of a call.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from msgspec import Struct, field

from .lifeline import lifeline
from .messages import Opinion

T = TypeVar("T")

TONES = ("Calm", "Dense", "Terse", "Patient", "Brisk", "Careful", "Eager", "Plain")
SHAPES = ("a toolbox", "a ledger", "a short story", "a state machine", "a clockwork", "a checklist", "a map", "a relay")
ADVICE = (
    "name the odd cases", "split the longest function", "say why, not what", "test the unhappy path",
    "keep the types honest", "leave it as it is", "move the edges outward", "write the example first",
)  # fmt: skip


LATENCY = 0.5
"""Seconds that a call takes in the mean, where nothing else is asked for."""


class Ask(Struct, tag="opinion"):
    """A metered call: an opinion about the module with this content. `of`: so many modules are asked about in all."""

    key: str
    module: str
    digest: str
    lines: int
    of: int
    pid: int


class AskStatus(Struct, tag="status"):
    """How many calls so far, and whose?"""


class HoldOne(Struct, tag="hold"):
    """Keep back one answer; it is billed, and its caller waits for ever.

    It is that of a call by the caller with the most answers so far, once `after` of all modules (a share) are answered
    and `own` of them to that caller; at the latest it is the answer about the last module. `Accepted` at once.
    """

    after: float
    own: float = 0.0


class Accepted(Struct, tag="accepted"):
    """One answer will be kept back."""


class AskHeld(Struct, tag="held"):
    """Which one is kept back? Answered when it is, with its call."""


Asked = Ask | AskStatus | HoldOne | AskHeld


class Invoiced(Struct, frozen=True):
    """A line of the invoice: one call. `price` in millionths of a dollar, 0 where it is `repeated`."""

    time: float
    key: str
    module: str
    pid: int
    price: int
    repeated: bool


class Status(Struct, frozen=True):
    """All calls, those that were repeated, the sum billed, and calls and unanswered calls by the caller's pid."""

    calls: int = 0
    repeated: int = 0
    billed: int = 0
    by_pid: dict[int, int] = field(default_factory=dict)
    open_by_pid: dict[int, int] = field(default_factory=dict)


def opinion_of(digest: str, lines: int) -> Opinion:
    """Think: the same content gives the same opinion."""
    n = int(digest, 16)
    text = f"{TONES[n % 8]}; reads like {SHAPES[n // 8 % 8]}: {ADVICE[n // 64 % 8]}."
    return Opinion(40 + n // 512 % 60, text, 500 + 3 * lines)


def latency_of(digest: str, mean: float) -> float:
    """Return the seconds that a call takes: 0.5 to 1.5 times the mean, by content."""
    return mean * (0.5 + int(digest, 16) % 101 / 100)


class Books:
    """Who called for what, and at which price: in memory, and line by line in the invoice's file."""

    def __init__(self, invoice: Path) -> None:
        self.lines = read_invoice(invoice)
        self.answered: dict[str, int] = {}
        self.open: dict[int, int] = {}
        self._keys = {line.key for line in self.lines}
        self._file = invoice.open("ab", buffering=0)

    def enter(self, ask: Ask) -> Opinion:
        """Bill a call before it is answered: a caller that dies meanwhile has been served."""
        opinion = opinion_of(ask.digest, ask.lines)
        repeated = ask.key in self._keys
        line = Invoiced(time.time(), ask.key, ask.module, ask.pid, 0 if repeated else opinion.price, repeated)
        self._file.write(msgspec.json.encode(line) + b"\n")
        self._keys.add(ask.key)
        self.lines.append(line)
        return opinion

    def calls_of(self) -> dict[int, int]:
        """Return the number of calls by the caller's pid."""
        calls: dict[int, int] = {}
        for line in self.lines:
            calls[line.pid] = calls.get(line.pid, 0) + 1
        return calls

    def answers_of(self) -> Counter[int]:
        """Return how many keys were answered first to each caller, by its pid."""
        return Counter(self.answered.values())

    def status(self) -> Status:
        """Sum up."""
        repeated = sum(line.repeated for line in self.lines)
        billed = sum(line.price for line in self.lines)
        return Status(len(self.lines), repeated, billed, self.calls_of(), self.open)


def dollars(millionths: int) -> str:
    """Return an amount for people."""
    return f"${millionths / 1e6:.4f}"


def counted(n: int, word: str) -> str:
    """Return a number of things for people."""
    return f"{n} {word}" if n == 1 else f"{n} {word}s"


def read_invoice(invoice: Path) -> list[Invoiced]:
    """Read an invoice's file; [] where there is none."""
    if not invoice.exists():
        return []
    return [msgspec.json.decode(line, type=Invoiced) for line in invoice.read_bytes().splitlines()]


class Server:
    """Answers the calls; at most one answer is held back."""

    def __init__(self, books: Books, latency: float = LATENCY) -> None:
        self.books = books
        self._latency = latency
        self._wanted: HoldOne | None = None
        self._held: asyncio.Future[Ask] = asyncio.get_running_loop().create_future()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the lines of one connection until its end."""
        with contextlib.suppress(ConnectionError, ValueError):
            while line := await reader.readline():
                asked: Asked = msgspec.json.decode(line, type=Asked)
                answer = await self._answer(asked, reader)
                if answer is None:
                    break
                writer.write(msgspec.json.encode(answer) + b"\n")
                await writer.drain()

    async def _answer(self, asked: Asked, reader: asyncio.StreamReader) -> Struct | None:
        if isinstance(asked, AskStatus):
            return self.books.status()
        if isinstance(asked, HoldOne):
            self._wanted, self._held = asked, asyncio.get_running_loop().create_future()
            return Accepted()
        if isinstance(asked, AskHeld):
            return await asyncio.shield(self._held)
        open_ = self.books.open
        open_[asked.pid] = open_.get(asked.pid, 0) + 1
        try:
            return await self._opinion(asked, reader)
        finally:
            open_[asked.pid] -= 1

    async def _opinion(self, ask: Ask, reader: asyncio.StreamReader) -> Opinion | None:
        opinion = self.books.enter(ask)
        await asyncio.sleep(latency_of(ask.digest, self._latency))
        if self._wanted is not None and self._is_wanted(self._wanted, ask):
            self._wanted = None
            self._held.set_result(ask)
            await reader.read()
            return None
        if not reader.at_eof():
            self.books.answered.setdefault(ask.key, ask.pid)
        return opinion

    def _is_wanted(self, wanted: HoldOne, ask: Ask) -> bool:
        answered = self.books.answered
        if ask.key in answered:
            return False
        if len(answered) + 1 >= ask.of:
            return True
        answers = self.books.answers_of()
        own = answers[ask.pid]
        return len(answered) >= wanted.after * ask.of and own >= wanted.own * ask.of and own == max(answers.values())


class Provider:
    """The client's side: each call is a connection to the provider at `address` ("127.0.0.1:port")."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)

    async def call(self, key: str, module: str, digest: str, lines: int, of: int) -> Opinion:
        """Ask for an opinion on one `of` so many modules; charged once per `key`. Raises ConnectionError."""
        return await self._exchange(Ask(key, module, digest, lines, of, os.getpid()), Opinion)

    async def status(self) -> Status:
        """Ask how many calls there were."""
        return await self._exchange(AskStatus(), Status)

    async def hold_one(self, after: float, own: float = 0.0) -> None:
        """Have one answer kept back (see `HoldOne`)."""
        await self._exchange(HoldOne(after, own), Accepted)

    async def held(self) -> Ask:
        """Return the call whose answer is kept back, once it is."""
        return await self._exchange(AskHeld(), Ask)

    async def _exchange(self, asked: Struct, wanted: type[T]) -> T:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            writer.write(msgspec.json.encode(asked) + b"\n")
            line = await reader.readline()
        finally:
            writer.close()
        if not line:
            raise ConnectionResetError("the provider hung up")
        return msgspec.json.decode(line, type=wanted)


async def provide(invoice: Path, *, latency: float = LATENCY, tied: bool = False) -> None:
    """Serve on a free port until SIGTERM; `tied`: also until stdin is closed. Prints the address."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    server = Server(Books(invoice), latency)
    with lifeline() if tied else contextlib.nullcontext():
        async with asyncio.TaskGroup() as tasks:
            connections: set[asyncio.Task[None]] = set()

            def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                task = tasks.create_task(_talk(server, reader, writer))
                connections.add(task)
                task.add_done_callback(connections.discard)

            listening = await asyncio.start_server(connected, "127.0.0.1", 0)
            host, port = listening.sockets[0].getsockname()
            sys.stdout.write(f"{host}:{port}\n")
            sys.stdout.flush()
            await stop.wait()
            listening.close()
            for task in connections:
                task.cancel()


async def _talk(server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        await server.serve(reader, writer)
    finally:
        writer.close()


def main(arguments: Any = None) -> None:
    """`python -m refold.demo.provider INVOICE`."""
    parser = argparse.ArgumentParser(description="The pretend model provider of the demo.")
    parser.add_argument("invoice", type=Path, help="the file that the invoice is kept in")
    parser.add_argument("--latency", type=float, default=LATENCY, help="mean seconds of a call (default: %(default)s)")
    parser.add_argument("--tied", action="store_true", help="end when stdin is closed")
    options = parser.parse_args(arguments)
    asyncio.run(provide(options.invoice, latency=options.latency, tied=options.tied))


if __name__ == "__main__":
    main()
