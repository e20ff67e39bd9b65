"""Questions that are on their way to the servers: each has a token of the inbox, and gets its answer or an error."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from itertools import takewhile

from msgspec import Struct
from nats.aio.msg import Msg

from ...bus.errors import BrokerUnavailable

ANSWER = 5.0
"""Seconds to wait for the answer to one question."""


class Question(Struct, frozen=True, gc=False):
    """Asked at `subject`; it is given up at `due` (the loop's time)."""

    subject: str
    due: float
    answer: asyncio.Future[Msg]


class Questions:
    """What waits for an answer, in the order in which it was asked; `silent` is called for each that has none.

    Nobody need wait for an answer: one who was cancelled leaves his question here until it is answered or given up.
    """

    def __init__(self, silent: Callable[[], None]) -> None:
        self._silent = silent
        self._count = 0
        self._open: dict[str, Question] = {}
        self._collecting: dict[str, tuple[str, asyncio.Queue[Msg | Exception]]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def ask(self, subject: str) -> tuple[str, asyncio.Future[Msg]]:
        """Return the token of a new question, and the future of its answer: BrokerUnavailable after `ANSWER`."""
        loop = asyncio.get_running_loop()
        token, due = self._token(), loop.time() + ANSWER
        answer: asyncio.Future[Msg] = loop.create_future()
        self._open[token] = Question(subject, due, answer)
        if self._timer is None:  # one for all, since each message on its way would need one
            self._timer = loop.call_at(due, self._expire, loop)
        return token, answer

    def collect(self, subject: str) -> tuple[str, asyncio.Queue[Msg | Exception]]:
        """Return the token of a question that has several answers, and the queue of these."""
        token, queue = self._token(), asyncio.Queue[Msg | Exception]()
        self._collecting[token] = (subject, queue)
        return token, queue

    def drop(self, token: str) -> None:
        """The question was not asked after all, or its answers are no longer wanted."""
        self._open.pop(token, None)
        self._collecting.pop(token, None)

    def take(self, token: str, msg: Msg) -> str:
        """Give an answer to who waits for it. Return where the question was asked, "" where nobody did."""
        asked = self._open.pop(token, None)
        if asked is not None:
            if not asked.answer.done():
                asked.answer.set_result(msg)
            return asked.subject
        subject, queue = self._collecting.get(token, ("", None))
        if queue is not None:
            queue.put_nowait(msg)
        return subject

    def fail(self, error: Callable[[], Exception], subject: str | None = None) -> None:
        """There is no answer to what was asked at this subject (case does not count), or to anything."""
        at = None if subject is None else subject.lower()
        for asked in list(self._open.values()):
            if at is None or asked.subject.lower() == at:
                _fail(asked.answer, error())
        for where, queue in list(self._collecting.values()):
            if at is None or where.lower() == at:
                queue.put_nowait(error())

    def close(self) -> None:
        """Give nothing up any more."""
        if self._timer is not None:
            self._timer.cancel()

    def _token(self) -> str:
        self._count += 1
        return f"{self._count:x}"

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        now, self._timer = loop.time(), None
        for token, asked in list(takewhile(lambda one: one[1].due <= now, self._open.items())):
            del self._open[token]
            if not asked.answer.done():
                _fail(asked.answer, BrokerUnavailable(f"no answer within {ANSWER:g} s"))
                self._silent()
        oldest = next(iter(self._open.values()), None)
        if oldest is not None:
            self._timer = loop.call_at(max(oldest.due, now + 0.1), self._expire, loop)


def _fail(answer: asyncio.Future[Msg], error: Exception) -> None:
    if not answer.done():
        answer.set_exception(error)
        answer.exception()  # nobody may be waiting any more
