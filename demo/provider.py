"""The pretend model provider: a process of its own that answers slowly and writes down what each call costs.

It speaks lines of JSON over loopback TCP. It honours idempotency keys: a second call under a key is answered from
memory, and stands in the invoice as repeated, at no charge. `python -m refold.demo.provider FILE` keeps its invoice
in FILE and prints its address.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import time
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


class Ask(Struct, tag="opinion"):
    """A metered call: an opinion about the module with this content."""

    key: str
    module: str
    digest: str
    lines: int
    pid: int


class AskStatus(Struct, tag="status"):
    """How many calls so far, and whose?"""


class HoldOne(Struct, tag="hold"):
    """Keep back one answer: of a call that comes after `after` others were answered, from the busiest caller, at the
    latest of the last of `total` modules. It is billed, and its caller waits for ever. Answered when that call is in.
    """

    after: int
    total: int


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


def latency_of(digest: str) -> float:
    """Return the seconds that a call takes: 0.02 to 0.06, by content."""
    return 0.02 + int(digest, 16) % 41 / 1000


class Books:
    """Who called for what, and at which price: in memory, and line by line in the invoice's file."""

    def __init__(self, invoice: Path) -> None:
        self.lines = read_invoice(invoice)
        self.answered = 0
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

    def status(self) -> Status:
        """Sum up."""
        repeated = sum(line.repeated for line in self.lines)
        billed = sum(line.price for line in self.lines)
        return Status(len(self.lines), repeated, billed, self.calls_of(), self.open)


def read_invoice(invoice: Path) -> list[Invoiced]:
    """Read an invoice's file; [] where there is none."""
    if not invoice.exists():
        return []
    return [msgspec.json.decode(line, type=Invoiced) for line in invoice.read_bytes().splitlines()]


class Server:
    """Answers the calls; at most one is held back."""

    def __init__(self, books: Books) -> None:
        self.books = books
        self._wanted: HoldOne | None = None
        self._held: asyncio.Future[Ask] | None = None

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the lines of one connection until its end."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                answer = await self._answer(msgspec.json.decode(line, type=Ask | AskStatus | HoldOne), reader)
                if answer is None:
                    break
                writer.write(msgspec.json.encode(answer) + b"\n")
                await writer.drain()
        writer.close()

    async def _answer(self, asked: Ask | AskStatus | HoldOne, reader: asyncio.StreamReader) -> Struct | None:
        if isinstance(asked, AskStatus):
            return self.books.status()
        if isinstance(asked, HoldOne):
            self._wanted, self._held = asked, asyncio.get_running_loop().create_future()
            return await self._held
        open_ = self.books.open
        open_[asked.pid] = open_.get(asked.pid, 0) + 1
        try:
            return await self._opinion(asked, reader)
        finally:
            open_[asked.pid] -= 1

    async def _opinion(self, ask: Ask, reader: asyncio.StreamReader) -> Opinion | None:
        opinion = self.books.enter(ask)
        if self._is_wanted(ask) and self._held is not None:
            self._wanted = None
            self._held.set_result(ask)
            await reader.read()
            return None
        await asyncio.sleep(latency_of(ask.digest))
        self.books.answered += 1
        return opinion

    def _is_wanted(self, ask: Ask) -> bool:
        if self._wanted is None or self.books.answered < self._wanted.after:
            return False
        calls = self.books.calls_of()
        return calls[ask.pid] == max(calls.values()) or sum(calls.values()) >= self._wanted.total


class Provider:
    """The client's side: each call is a connection to the provider at `address` ("127.0.0.1:port")."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)

    async def call(self, key: str, module: str, digest: str, lines: int) -> Opinion:
        """Ask for an opinion; it is charged, once per `key`. Raises ConnectionError."""
        return await self._exchange(Ask(key, module, digest, lines, os.getpid()), Opinion)

    async def status(self) -> Status:
        """Ask how many calls there were."""
        return await self._exchange(AskStatus(), Status)

    async def hold_one(self, after: int, total: int) -> Ask:
        """Have one answer kept back (see `HoldOne`) and return that call once it is in."""
        return await self._exchange(HoldOne(after, total), Ask)

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


async def provide(invoice: Path, *, tied: bool = False) -> None:
    """Serve on a free port until SIGTERM; `tied`: also until stdin is closed. Prints the address."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    connections: set[asyncio.StreamWriter] = set()
    server = Server(Books(invoice))

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(writer)
        try:
            await server.serve(reader, writer)
        finally:
            connections.discard(writer)

    with lifeline() if tied else contextlib.nullcontext():
        async with await asyncio.start_server(connected, "127.0.0.1", 0) as listening:
            host, port = listening.sockets[0].getsockname()
            sys.stdout.write(f"{host}:{port}\n")
            sys.stdout.flush()
            await stop.wait()
            for writer in connections:
                writer.close()


def main(arguments: Any = None) -> None:
    """`python -m refold.demo.provider INVOICE`."""
    parser = argparse.ArgumentParser(description="The pretend model provider of the demo.")
    parser.add_argument("invoice", type=Path, help="the file that the invoice is kept in")
    parser.add_argument("--tied", action="store_true", help="end when stdin is closed")
    options = parser.parse_args(arguments)
    asyncio.run(provide(options.invoice, tied=options.tied))


if __name__ == "__main__":
    main()
