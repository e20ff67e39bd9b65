"""Several that ask for the same kind of thing at once are answered by one request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

from ...bus.errors import BrokerUnavailable

Key = TypeVar("Key")
Asked = TypeVar("Asked")
Answer = TypeVar("Answer")


class Rounds(Generic[Key, Asked, Answer]):
    """One request at a time: whoever asks meanwhile has the next one, which is made after they asked."""

    def __init__(self, work: Callable[[Mapping[Key, Asked]], Awaitable[Mapping[Key, Answer]]]) -> None:
        self._work = work
        self._asked: dict[Key, Asked] = {}
        self._next: asyncio.Future[Mapping[Key, Answer]] | None = None
        self._running: asyncio.Task[None] | None = None

    async def ask(self, key: Key, asked: Asked) -> Answer:
        """Return the answer to this. Raises what the request raised."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        answers, self._asked[key] = self._next, asked
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._run())
        return (await asyncio.shield(answers))[key]

    async def _run(self) -> None:
        while self._next is not None:
            asked, answers = self._asked, self._next
            self._asked, self._next = {}, None
            try:
                answers.set_result(await self._work(asked))
            except Exception as error:  # noqa: BLE001 - for those that asked
                answers.set_exception(error)
                answers.exception()  # they may be gone
            except asyncio.CancelledError:
                answers.set_exception(BrokerUnavailable("the connection to Kafka is closed"))
                answers.exception()
                raise

    async def aclose(self) -> None:
        """End the request that is under way."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
