"""Append: 100 senders at once, each waits until its record is durable."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path

import raw as hand
from measure import Figure, Row

SENDERS, EACH = 100, 300


def raw(folder: Path) -> dict[str, float]:
    """Encode, queue, commit together."""

    async def main() -> float:
        async with hand.opened(str(folder / "raw.db")) as log:

            async def sender(times: int) -> None:
                for _ in range(times):
                    correlation = str(uuid.uuid4())
                    await log.append(correlation, hand.encode(hand.new_start(correlation)))

            await asyncio.gather(*(sender(10) for _ in range(SENDERS)))
            started = time.perf_counter()
            await asyncio.gather(*(sender(EACH) for _ in range(SENDERS)))
            return SENDERS * EACH / (time.perf_counter() - started)

    return {"rate": asyncio.run(main())}


def refold(folder: Path) -> dict[str, float]:
    """`bus.send_message`: validated, authorised, encoded once, refused when its id is known."""
    return {"rate": asyncio.run(refold_at(f"sqlite:///{folder}/refold.db", SENDERS, EACH))}


async def refold_at(url: str, senders: int, each: int) -> float:
    """Measure refold on the log of that URL; records per second."""
    from refold import AgentMessage, MessageBus

    async with MessageBus.open(url) as bus:

        async def sender(times: int) -> None:
            for _ in range(times):
                await bus.send_message(AgentMessage.request("stage1", hand.PAYLOAD))

        await asyncio.gather(*(sender(10) for _ in range(senders)))
        started = time.perf_counter()
        await asyncio.gather(*(sender(each) for _ in range(senders)))
        return senders * each / (time.perf_counter() - started)


ROW = Row(
    "append, 100 concurrent senders", [Figure("rate", "", "records/s", "ratio >= 0.8")], {"raw": raw, "refold": refold}
)
