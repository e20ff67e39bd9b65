"""The pretend provider, as a real process: what it answers, and what it charges."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from refold.demo.provider import Provider, opinion_of, read_invoice

Go = Callable[[Any], Any]


@contextlib.asynccontextmanager
async def provider(invoice: Path) -> AsyncIterator[tuple[Provider, asyncio.subprocess.Process]]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "refold.demo.provider", str(invoice), "--tied", "--latency", "0.02",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield Provider((await process.stdout.readline()).decode().strip()), process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0


def test_a_call_is_answered_by_content_and_charged_once_per_key(tmp_path: Path, go: Go) -> None:
    async def scenario() -> None:
        async with provider(tmp_path / "invoice.jsonl") as (client, _):
            first = await client.call("k1", "a.py", "0f", 10, 9)
            again = await client.call("k1", "a.py", "0f", 10, 9)
            other = await client.call("k2", "b.py", "0e", 20, 9)
            status = await client.status()
        assert first == again == opinion_of("0f", 10)
        assert (status.calls, status.repeated, status.billed) == (3, 1, first.price + other.price)
        assert status.by_pid == {os.getpid(): 3}
        lines = read_invoice(tmp_path / "invoice.jsonl")
        assert [(x.key, x.price, x.repeated) for x in lines] == [
            ("k1", first.price, False), ("k1", 0, True), ("k2", other.price, False)
        ]  # fmt: skip

    go(scenario())


def test_a_restarted_provider_still_honours_the_keys_of_its_invoice(tmp_path: Path, go: Go) -> None:
    async def scenario() -> None:
        for _ in range(2):
            async with provider(tmp_path / "invoice.jsonl") as (client, _):
                await client.call("k1", "a.py", "0f", 10, 9)
        assert [x.repeated for x in read_invoice(tmp_path / "invoice.jsonl")] == [False, True]

    go(scenario())


def test_one_call_is_held_back_billed_and_never_answered(tmp_path: Path, go: Go) -> None:
    async def scenario() -> None:
        async with provider(tmp_path / "invoice.jsonl") as (client, _), asyncio.TaskGroup() as tasks:
            await client.hold_one(after=0.1)
            await client.call("k1", "a.py", "0f", 10, 9)
            waiting = tasks.create_task(client.call("k2", "b.py", "0e", 20, 9))
            held = await client.held()
            assert (held.key, held.module, held.pid) == ("k2", "b.py", os.getpid())
            await client.call("k3", "c.py", "0e", 20, 9)
            assert not waiting.done()
            assert (await client.status()).open_by_pid == {os.getpid(): 1}
            waiting.cancel()
            assert (await client.call("k2", "b.py", "0e", 20, 9)) == opinion_of("0e", 20)
        assert [(x.key, x.repeated) for x in read_invoice(tmp_path / "invoice.jsonl")] == [
            ("k1", False), ("k2", False), ("k3", False), ("k2", True)
        ]  # fmt: skip

    go(scenario())


@pytest.mark.parametrize("of", [1, 3])
def test_the_answer_about_the_last_module_is_held_where_no_earlier_one_was(
    tmp_path: Path, go: Go, until: Callable[..., Any], of: int
) -> None:
    async def scenario() -> None:
        async with provider(tmp_path / "invoice.jsonl") as (client, _), asyncio.TaskGroup() as tasks:
            await client.hold_one(after=0.0, own=2.0)
            calls = [tasks.create_task(client.call(f"k{i}", "a.py", "0f", 10, of)) for i in range(of)]
            held = await client.held()
            await until(lambda: sum(call.done() for call in calls) == of - 1)
            (waiting,) = (i for i, call in enumerate(calls) if not call.done())
            assert held.key == f"k{waiting}"
            calls[waiting].cancel()

    go(scenario())


def test_the_caller_with_the_most_answers_is_held_once_it_has_its_share(tmp_path: Path, go: Go) -> None:
    async def scenario() -> None:
        async with provider(tmp_path / "invoice.jsonl") as (client, _), asyncio.TaskGroup() as tasks:
            await client.hold_one(after=0.2, own=0.3)
            for i in range(3):
                await client.call(f"k{i}", "a.py", "0f", 10, 10)
            waiting = tasks.create_task(client.call("k3", "a.py", "0f", 10, 10))
            assert (await client.held()).key == "k3"
            waiting.cancel()

    go(scenario())


def test_a_provider_that_is_gone_is_a_connection_error(tmp_path: Path, go: Go) -> None:
    async def scenario() -> None:
        async with provider(tmp_path / "invoice.jsonl") as (client, process):
            assert process.stdin is not None
            process.stdin.close()
            await process.wait()
        with pytest.raises(ConnectionError):
            await client.status()

    go(scenario())
