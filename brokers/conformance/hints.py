"""Hints: small, lossy, beside the log. What arrives is what was sent, where it was sent."""

from __future__ import annotations

import asyncio
import contextlib

from ...bus.broker import MAX_HINT, Broker, Listener
from .case import Cases
from .promise import PromiseBroken
from .stage import Stage, equal, raising

CASES = Cases()
TRIES = 50


async def _arrives(sender: Broker, listener: Listener, hint: bytes, every: float) -> list[bytes]:
    """Send until it has come, and return what came: each time it may be lost, but not for ever."""
    heard: list[bytes] = []
    for _ in range(TRIES):
        await sender.notify(listener.address, hint)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(every):
                while hint not in heard:
                    heard.append(await listener.get())
                return heard
    raise PromiseBroken(f"a hint that was sent {TRIES} times has not arrived: {hint!r}")


@CASES.add("Broker.notify", "Broker.listen", "Listener.get")
async def a_hint_arrives_verbatim_from_every_broker_on_the_log(stage: Stage) -> None:
    broker, other = await stage.pair()
    async with broker.listen() as here, other.listen() as there:
        for hint in (b"answer", b"", bytes(range(256)), b"x" * MAX_HINT):
            for sender in (broker, other):
                for listener in (here, there):
                    await _arrives(sender, listener, hint, stage.subject.patience / TRIES / 4)


@CASES.add("Broker.listen", "Broker.notify")
async def a_hint_goes_to_its_address_alone_and_every_listener_has_another(stage: Stage) -> None:
    broker, other = await stage.pair()
    async with broker.listen() as one, broker.listen() as two, other.listen() as three:
        equal(len({one.address, two.address, three.address}), 3, "how many addresses three listeners have")
        for n in range(10):
            await _arrives(other, one, b"%d" % n, stage.subject.patience / TRIES / 20)
        for listener in (two, three):
            others = await _arrives(other, listener, b"yours", stage.subject.patience / TRIES / 20)
            equal(set(others) - {b"yours"}, set(), "what a listener has heard that was sent to another")


@CASES.add("Broker.notify")
async def a_hint_to_nobody_is_no_error(stage: Stage) -> None:
    broker, other = await stage.pair()
    async with broker.listen() as listener:
        address = listener.address
    for sender in (broker, other):
        for nobody in (address, "", "nobody", "../../etc/passwd", "x" * 300, "\x00", "\ud800"):
            await sender.notify(nobody, b"hint")


@CASES.add("Broker.notify")
async def a_hint_that_is_too_large_is_refused(stage: Stage) -> None:
    broker = await stage.open()
    async with broker.listen() as listener:
        for address in (listener.address, "nobody"):
            with raising(ValueError, what=f"a hint of {MAX_HINT + 1} bytes"):
                await broker.notify(address, b"x" * (MAX_HINT + 1))


@CASES.add("Broker.notify", "Broker.listen")
async def hints_are_not_in_the_log(stage: Stage) -> None:
    broker = await stage.open()
    before = await broker.positions("end")
    async with broker.listen() as listener:
        await broker.notify(listener.address, b"hint")
    equal(await broker.positions("end"), before, "the ends of the log after a hint")
