"""The client: ask, start, send, attach. Owns no partition; what it waits for is in the log."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import TracebackType
from typing import Any, Generic, NamedTuple, Self, TypeVar, cast, overload

from ..brokers import open_broker
from ..bus import codec, kinds
from ..bus.broker import ANY_LOG, Broker, LogSpec
from ..bus.clock import Clock, Source
from ..bus.errors import BrokerUnavailable, LogTruncated, NoSuchWorkflow, UndecodableRecord, WorkflowExists
from ..bus.message import AgentMessage, Expected
from ..bus.partition import partition_of
from ..bus.sender import Authorise, Position, Seal, Sender, allow, unsealed
from ..projections.follow import Follower
from ..projections.history import raw_of
from ..projections.status import Report, report
from ..projections.verdict import Verdict
from .agent import Agent, AsyncHandler, PlainHandler, asked_of, handler_of, name_of
from .calls import RequestCall, check_kind, value_of
from .hints import Hint, Hints, Told
from .patience import why_no_answer
from .records import Records

log = logging.getLogger("refold.client")

T = TypeVar("T")
R = TypeVar("R")
Target = str | Agent | Callable[..., Any]

DEFAULT_BROKER = "sqlite:///refold.db"
DEFAULT_TIMEOUT = 30.0
LOOK_AGAIN = 2.0
"""Seconds after which the log is read again when no hint came."""


class Event(NamedTuple):
    """A record of a workflow, as `Handle.events` yields it."""

    position: int
    time: float
    verdict: Verdict
    message: AgentMessage


class MessageBus(Sender):
    """A client's connection to the log. Use `MessageBus.open(url)`."""

    def __init__(
        self, broker: Broker, *, sender: str = "client", authorise: Authorise = allow, seal: Seal = unsealed,
        clock: Clock | None = None, source: Source | None = None, records: Records | None = None,
    ) -> None:  # fmt: skip
        super().__init__(broker, authorise=authorise, seal=seal, clock=clock, source=source)
        self.sender = sender
        self.records = records or Records(broker, 0)
        self._hints = Hints(broker)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, broker: str | Broker = DEFAULT_BROKER, *, create: bool = True, spec: LogSpec = ANY_LOG, **settings: Any
    ) -> AsyncIterator[Self]:
        """Open a log by its URL (or take a broker that is open). `create=False` refuses to make a new one.

        Raises UnknownBroker, LogMissing, LogMismatch, LogCorrupt, BrokerUnavailable.
        """
        async with contextlib.AsyncExitStack() as stack:
            if isinstance(broker, str):
                broker = await stack.enter_async_context(open_broker(broker))
                await broker.ensure_log(spec, create=create)
            async with cls(broker, **settings) as bus:
                yield bus

    async def __aenter__(self) -> Self:
        await self._hints.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
    ) -> None:
        await self._hints.__aexit__(kind, error, trace)

    # ---- asking ------------------------------------------------------------------------------------------------------
    @overload
    async def request(
        self, target: AsyncHandler[T, R], payload: T = ..., *, timeout: float = DEFAULT_TIMEOUT, id: str | None = None,
        priority: int = 5, ttl: float | None = None, returns: None = None,
    ) -> R: ...  # fmt: skip
    @overload
    async def request(
        self, target: PlainHandler[T, R], payload: T = ..., *, timeout: float = DEFAULT_TIMEOUT, id: str | None = None,
        priority: int = 5, ttl: float | None = None, returns: None = None,
    ) -> R: ...  # fmt: skip
    @overload
    async def request(
        self, target: Target, payload: Any = None, *, timeout: float = DEFAULT_TIMEOUT, id: str | None = None,
        priority: int = 5, ttl: float | None = None, returns: type[R],
    ) -> R: ...  # fmt: skip
    @overload
    async def request(
        self, target: str | Agent, payload: Any = None, *, timeout: float = DEFAULT_TIMEOUT, id: str | None = None,
        priority: int = 5, ttl: float | None = None, returns: Any = None,
    ) -> Any: ...  # fmt: skip
    async def request(
        self, target: Any, payload: Any = None, *, timeout: float = DEFAULT_TIMEOUT, id: str | None = None,
        priority: int = 5, ttl: float | None = None, returns: Any = None,
    ) -> Any:  # fmt: skip
        """Start a workflow and return its answer; `timeout` (seconds) bounds only this wait.

        Raises AgentError where the agent answers with an error or the request was given up; RequestTimeout,
        AgentUnavailable or NoSuchAgent where no answer came in time: the request stays in the log.
        """
        handle = await self.start(target, payload, id=id, priority=priority, ttl=ttl, returns=returns)
        return await handle._wait(timeout, asked_now=id is None)

    @overload
    async def start(
        self, target: AsyncHandler[T, R], payload: T = ..., *, id: str | None = None, priority: int = 5,
        ttl: float | None = None, returns: None = None,
    ) -> Handle[R]: ...  # fmt: skip
    @overload
    async def start(
        self, target: PlainHandler[T, R], payload: T = ..., *, id: str | None = None, priority: int = 5,
        ttl: float | None = None, returns: None = None,
    ) -> Handle[R]: ...  # fmt: skip
    @overload
    async def start(
        self, target: Target, payload: Any = None, *, id: str | None = None, priority: int = 5,
        ttl: float | None = None, returns: type[R],
    ) -> Handle[R]: ...  # fmt: skip
    @overload
    async def start(
        self, target: str | Agent, payload: Any = None, *, id: str | None = None, priority: int = 5,
        ttl: float | None = None, returns: Any = None,
    ) -> Handle[Any]: ...  # fmt: skip
    async def start(
        self, target: Any, payload: Any = None, *, id: str | None = None, priority: int = 5,
        ttl: float | None = None, returns: Any = None,
    ) -> Handle[Any]:  # fmt: skip
        """Start a workflow under a name of your own. The same start again returns the running workflow's handle.

        Raises WorkflowExists where the id belongs to a workflow that was started otherwise.
        """
        message = AgentMessage.request(
            asked_of(target), payload, sender=self.sender, correlation_id=self.source.new_id() if id is None else id,
            id=self.source.new_id(), timestamp=self.clock.now(), priority=priority, ttl=ttl,
            expected=Expected(version=0) if id is not None else None, headers=self._hints.headers(),
        )  # fmt: skip
        returns = _returns(target, returns)
        if id is not None:
            known = Follower(self.broker, id)
            await known.catch_up()
            if known.workflow.version:
                return await self._known(known, message, returns)
        position = await self.send_message(message)
        if id is not None:
            known = Follower(self.broker, id)
            await known.catch_up()
            if known.workflow.verdicts.get(message.id) is Verdict.CONFLICT:
                return await self._known(known, message, returns)
            return Handle(self, id, message.id, returns, message.receiver_id, follower=known)
        return Handle(
            self, message.correlation_id, message.id, returns, message.receiver_id, after=position.position - 1,
            hinted=bool(message.headers),
        )  # fmt: skip

    async def _known(self, follower: Follower, wanted: AgentMessage, returns: Any) -> Handle[Any]:
        """The workflow is there: it must have been started by the same call."""
        (stored,) = await self.broker.read_at(follower.partition, [follower.workflow.view.path[0].ref[0]])
        first = codec.decode(stored.value)
        payload = codec.to_json(wanted.payload)
        same = (first.message_type, first.receiver_id, codec.digest(first.payload)) == (
            wanted.message_type, wanted.receiver_id, codec.digest(payload)
        )  # fmt: skip
        if not same:
            raise WorkflowExists(
                f"workflow {follower.correlation!r} was started with {first.message_type} to {first.receiver_id!r} and "
                "another payload: choose another id, or `attach` to it"
            )
        return Handle(self, follower.correlation, first.id, returns, first.receiver_id, follower=follower)

    async def send(
        self, target: Target, payload: Any = None, *, kind: str = kinds.STATUS_UPDATE, id: str | None = None,
        priority: int = 5, ttl: float | None = None,
    ) -> AgentMessage:  # fmt: skip
        """Append a message that nobody answers, in workflow `id` (default: one of its own). `target` "*" is everybody
        who listens to `kind`. Returns the message."""
        check_kind(kind, "send")
        message = AgentMessage(
            id=self.source.new_id(), sender_id=self.sender, receiver_id=name_of(target), message_type=kind,
            payload=payload, correlation_id=self.source.new_id() if id is None else id, timestamp=self.clock.now(),
            priority=priority, ttl=ttl,
        )  # fmt: skip
        await self.send_message(message)
        return message

    @overload
    async def attach(self, id: str, *, returns: type[R]) -> Handle[R]: ...
    @overload
    async def attach(self, id: str, *, returns: Any = Any) -> Handle[Any]: ...
    async def attach(self, id: str, *, returns: Any = Any) -> Handle[Any]:
        """Return the handle of a workflow that anybody started. Raises NoSuchWorkflow."""
        follower = Follower(self.broker, id)
        await follower.catch_up()
        w = follower.workflow
        if not w.verdicts:
            raise NoSuchWorkflow(f"the log holds no workflow {id!r}; `refold ps` lists those that are open")
        asked = (q for q in w.view.requests.values() if q.asked and q.to is None and q.asker is None)
        first = next(asked, None)
        return Handle(self, id, first.id if first else "", returns, first.agent if first else "", follower=follower)

    def told(self, correlation: str) -> AbstractAsyncContextManager[Told]:
        """Open an event that is set when a hint about the workflow comes."""
        return self._hints.about(correlation)


def _returns(target: Any, returns: Any) -> Any:
    handler = handler_of(target)
    if returns is not None:
        return returns
    return handler.result_type if handler is not None else Any


class Answer(NamedTuple):
    """The record that answers a request: its kind, and its bytes."""

    kind: str
    raw: bytes


class Handle(Generic[R]):
    """One workflow, and (where it was asked one) the request whose answer is its result."""

    def __init__(
        self, bus: MessageBus, correlation_id: str, request_id: str, returns: Any, agent: str, *,
        follower: Follower | None = None, after: int = 0, hinted: bool = False,
    ) -> None:  # fmt: skip
        """`follower`: what was folded of the workflow, else it begins behind the position `after`. `hinted`: the
        request has just been made with an address, so no look is needed before a hint comes."""
        self.bus = bus
        self.correlation_id = correlation_id
        self.request_id = request_id
        self.returns = returns
        self.agent = agent
        self._follower = follower
        self._after = after
        self._hinted = hinted

    @property
    def follower(self) -> Follower:
        """The workflow's fold in this process, as far as somebody has looked."""
        if self._follower is None:
            self._follower = Follower(self.bus.broker, self.correlation_id, self._after)
        return self._follower

    @property
    def _partition(self) -> int:
        return partition_of(self.correlation_id, self.bus.broker.meta.partitions)

    async def result(self, timeout: float | None = None) -> R:
        """Wait for the answer (`timeout` seconds, None: for ever) and return it. Raises as `MessageBus.request`.

        A log that cannot be reached is tried again, until the time is up: then BrokerUnavailable.
        """
        return await self._wait(timeout, asked_now=False)

    async def _wait(self, timeout: float | None, *, asked_now: bool) -> R:
        """See `result`. `asked_now`: the request was made by the same call, so what is hinted of its answer was true
        since. Else a hint may be of an answer that a redrive has taken back before anybody waited."""
        clock = self.bus.clock
        until = math.inf if timeout is None else clock.monotonic() + timeout
        async with self.bus.told(self.correlation_id) as told:
            while True:
                left = until - clock.monotonic()
                wait, self._hinted = self._hinted and left > 0 and not told.is_set(), False
                told.clear()
                try:
                    answer = None if wait else await self._look(told if asked_now else None)
                    if answer is not None:
                        call = RequestCall(kinds.TASK_REQUEST, self.agent, "", False, self.agent, returns=self.returns)
                        return cast("R", value_of(call, answer.kind, answer.raw))
                except BrokerUnavailable as error:
                    if left <= 0:
                        raise
                    log.warning("waiting for the answer of %s: %s; trying again", self.correlation_id, error)
                if left <= 0:
                    now, waited = self.bus.clock.now(), cast("float", timeout)
                    raise await why_no_answer(self.bus.broker, self.follower, self.request_id, waited, now)
                await told.within(min(left, LOOK_AGAIN))

    async def _look(self, told: Told | None) -> Answer | None:
        """Return the answer if the log holds it: where a worker says that it is, else by the workflow's fold."""
        position = told.answers.pop(self.request_id, None) if told is not None else None
        if position is not None:
            answer = await self._answer_at(position)
            if answer is not None:
                return answer
        await self.follower.catch_up()
        requests = self.follower.workflow.view.requests
        q = requests.get(self.request_id)
        if q is None or not requests[q.root].answered:
            return None
        root = requests[q.root]
        raw = self.follower.answers.get(root.answer[0])
        if raw is None:
            return Answer(root.answer_kind, await self.bus.records.read(self._partition, root.answer))
        return Answer(root.answer_kind, raw_of(raw, root.answer[1]))

    async def _answer_at(self, position: int) -> Answer | None:
        """Return the record there if it answers this request. That it counts was judged by the worker who hinted."""
        try:
            raw = await self.bus.records.read(self._partition, (position, -1))
            r = codec.envelope(raw)
        except (LogTruncated, UndecodableRecord):
            return None
        if r.in_reply_to != self.request_id or r.correlation_id != self.correlation_id:
            return None
        return Answer(r.message_type, raw)

    async def status(self) -> Report:
        """Return the workflow's state now, with what it waits for and why it is blocked."""
        if not self.follower.whole:
            self._follower = Follower(self.bus.broker, self.correlation_id)
        await self.follower.catch_up()
        members = await self.bus.broker.members()
        hosted = {agent for m in members for agent in m.presence.agents}
        return report(self.follower.workflow, hosted)

    async def events(self, after: int = 0) -> AsyncIterator[Event]:
        """Yield the workflow's records after that position, then new ones as they come, until it is complete."""
        follower = Follower(self.bus.broker, self.correlation_id)
        async with self.bus.told(self.correlation_id) as told:
            while True:
                told.clear()
                async for j in follower.read():
                    if j.position > after:
                        yield Event(j.position, j.time, j.verdict, codec.readable(j.value))
                if follower.workflow.verdicts and follower.workflow.is_complete():
                    return
                await told.within(LOOK_AGAIN / 8)

    async def send(self, payload: Any = None, *, kind: str = kinds.STATUS_UPDATE, to: Target | None = None) -> Position:
        """Append a message to this workflow; `to` defaults to the agent that was asked."""
        return await self.bus.send_message(self._message(kind, payload, to))

    @overload
    async def request(self, payload: Any = None, *, timeout: float | None = DEFAULT_TIMEOUT) -> R: ...
    @overload
    async def request(
        self, payload: Any = None, *, to: Target | None = None, timeout: float | None = DEFAULT_TIMEOUT,
        returns: type[T],
    ) -> T: ...  # fmt: skip
    @overload
    async def request(
        self, payload: Any = None, *, to: Target | None = None, timeout: float | None = DEFAULT_TIMEOUT,
        returns: Any = None,
    ) -> Any: ...  # fmt: skip
    async def request(
        self, payload: Any = None, *, to: Target | None = None, timeout: float | None = DEFAULT_TIMEOUT,
        returns: Any = None,
    ) -> Any:  # fmt: skip
        """Ask again in the same workflow (the next turn of a conversation) and return the answer."""
        message = self._message(kinds.TASK_REQUEST, payload, to, asked=True, headers=self.bus._hints.headers())
        await self.bus.send_message(message)
        wanted = self.returns if returns is None and to is None else _returns(to, returns)
        asked = Handle[Any](
            self.bus, self.correlation_id, message.id, wanted, message.receiver_id, follower=self.follower,
            hinted=bool(message.headers),
        )  # fmt: skip
        return await asked._wait(timeout, asked_now=True)

    def _message(self, kind: str, payload: Any, to: Target | None, **fields: Any) -> AgentMessage:
        bus = self.bus
        receiver = name_of(to) if to is not None else self.agent or "*"
        return AgentMessage(
            id=bus.source.new_id(), sender_id=bus.sender, receiver_id=receiver, message_type=kind, payload=payload,
            correlation_id=self.correlation_id, timestamp=bus.clock.now(), causation_id=self.request_id or None,
            **fields,
        )  # fmt: skip

    async def cancel(self, reason: str = "") -> None:
        """Close all that is open in the workflow; its children are cancelled too."""
        from .control import cancel

        await cancel(self.bus, self.correlation_id, actor=self.bus.sender, reason=reason)
        self.bus._hints.take(Hint(self.correlation_id))

