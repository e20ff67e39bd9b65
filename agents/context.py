"""`Context`: what a handler sees. Everything impure goes through it and is recorded."""

from __future__ import annotations

import inspect
import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable
from typing import Any, Generic, TypeVar, cast, overload

from ..bus import codec, ids, kinds
from ..bus.errors import HandlerError, NeedsAsyncHandler, YourBug
from ..bus.message import AgentMessage
from .agent import Agent, AsyncHandler, Handler, PlainHandler, asked_of, handler_of, name_of
from .branches import discard
from .calls import KEY, Call, OutputCall, RequestCall, TimerCall, check_kind, digest_of, effect_call
from .retry import RetryPolicy
from .run import Run, current_effect

T = TypeVar("T")
R = TypeVar("R")
Target = str | Agent | Callable[..., Any]


class Once:
    """What can be awaited once, and must be."""

    __slots__ = ("run", "used")

    def __init__(self, run: Run) -> None:
        self.run = run
        self.used = False
        run.unawaited.add(self)

    def use(self) -> None:
        """It is awaited now. Raises YourBug where it was before."""
        if self.used:
            raise self.run.bug(YourBug(f"{self} was awaited already; call ctx again for another step"))
        self.close()

    def close(self) -> None:
        """It is awaited, or never will be."""
        self.used = True
        self.run.unawaited.discard(self)


class Pending(Once, Generic[T]):
    """A step that was made and not yet taken: await it, or give it to `ctx.gather`."""

    __slots__ = ("call",)

    def __init__(self, run: Run, call: Call) -> None:
        super().__init__(run)
        self.call = call

    def __await__(self) -> Generator[Any, None, T]:
        return cast("Generator[Any, None, T]", self.run.take(self.claim()).__await__())

    def __str__(self) -> str:
        return str(self.call)

    def claim(self) -> Call:
        """Return the call, which is taken now."""
        self.use()
        return self.call


class Gather(Once, Generic[T]):
    """Branches that were not yet started; await it."""

    __slots__ = ("arguments", "limit", "return_exceptions")

    def __init__(self, run: Run, arguments: tuple[Awaitable[T], ...], limit: int | None, return_exceptions: bool):
        super().__init__(run)
        self.arguments = arguments
        self.limit = limit
        self.return_exceptions = return_exceptions
        for argument in arguments:
            if isinstance(argument, Once):
                run.unawaited.discard(argument)

    def __await__(self) -> Generator[Any, None, list[T]]:
        self.use()
        return self.run.gather(self).__await__()

    def __str__(self) -> str:
        return f"gather of {len(self.arguments)}"

    def drop(self) -> None:
        """Drop it and its branches: none is started any more."""
        self.close()
        discard(*self.arguments)


class Forward:
    """What `return ctx.forward(...)` returns: the duty to answer passes on to another agent."""

    __slots__ = ("payload", "receiver")

    def __init__(self, receiver: str, payload: Any) -> None:
        self.receiver = receiver
        self.payload = payload


class Facts:
    """What a handler may know without a step: the message, the attempt, the workflow's state at the message's place."""

    def __init__(self, message: AgentMessage, agent: str, attempt: int, state: dict[str, Any]) -> None:
        self.message = message
        self.agent = agent
        self.attempt = attempt
        self.state = state

    @property
    def correlation_id(self) -> str:
        """The workflow."""
        return self.message.correlation_id

    @property
    def idempotency_key(self) -> str:
        """The key under which a repeated call is the same call. Inside an effect's function: a str; among the
        arguments of `ctx.effect`: a place that the key is put into."""
        return current_effect.get("") or cast("str", KEY)


class PlainFacts(Facts):
    """What a `def` handler gets: facts only. A step called on it raises NeedsAsyncHandler."""

    def __getattr__(self, name: str) -> Any:
        if name in STEPS:
            raise NeedsAsyncHandler(
                f"ctx.{name} needs an `async def` handler:\n"
                f"-    def handler(ctx, payload):  ...  ctx.{name}(...)\n"
                f"+    async def handler(ctx, payload):  ...  await ctx.{name}(...)"
            )
        raise AttributeError(name)


class Context(Facts):
    """The durable context of an `async def` handler. Each call is a step; a recorded step is never executed again."""

    def __init__(self, run: Run, message: AgentMessage, state: dict[str, Any]) -> None:
        super().__init__(message, run.agent, run.tries + 1, state)
        self._run = run

    # ---- awaited steps ---------------------------------------------------------------------------------------------
    @overload
    def effect(
        self, name: str, fn: Callable[..., Coroutine[Any, Any, R]], /, *args: Any,
        retry: RetryPolicy | None = None, timeout: float | None = None, returns: None = None, **kwargs: Any,
    ) -> Pending[R]: ...  # fmt: skip
    @overload
    def effect(
        self, name: str, fn: Callable[..., R], /, *args: Any,
        retry: RetryPolicy | None = None, timeout: float | None = None, returns: None = None, **kwargs: Any,
    ) -> Pending[R]: ...  # fmt: skip
    @overload
    def effect(
        self, name: str, fn: Callable[..., Any], /, *args: Any,
        retry: RetryPolicy | None = None, timeout: float | None = None, returns: type[T], **kwargs: Any,
    ) -> Pending[T]: ...  # fmt: skip
    def effect(
        self, name: str, fn: Callable[..., Any], /, *args: Any,
        retry: RetryPolicy | None = None, timeout: float | None = None, returns: Any = None, **kwargs: Any,
    ) -> Pending[Any]:  # fmt: skip
        """Call the world: `fn(*args, **kwargs)`. Its outcome is recorded and never paid for again.

        The value is decoded from the record, as `returns` or the annotation of `fn` says. `timeout` (seconds) bounds
        each try, `retry` says how often; then EffectFailed. A call that happened and was not recorded (a crash in
        between) is repeated with the same `ctx.idempotency_key`.
        """
        _check_function(name, fn)
        return Pending(self._run, effect_call(name, fn, args, kwargs, retry, timeout, returns))

    @overload
    def request(
        self, target: AsyncHandler[T, R], payload: T = ..., *,
        timeout: float | None = None, priority: int | None = None, returns: None = None,
    ) -> Pending[R]: ...  # fmt: skip
    @overload
    def request(
        self, target: PlainHandler[T, R], payload: T = ..., *,
        timeout: float | None = None, priority: int | None = None, returns: None = None,
    ) -> Pending[R]: ...  # fmt: skip
    @overload
    def request(
        self, target: Target, payload: Any = None, *,
        timeout: float | None = None, priority: int | None = None, returns: type[R],
    ) -> Pending[R]: ...  # fmt: skip
    @overload
    def request(
        self, target: str | Agent, payload: Any = None, *,
        timeout: float | None = None, priority: int | None = None, returns: Any = None,
    ) -> Pending[Any]: ...  # fmt: skip
    def request(
        self, target: Any, payload: Any = None, *,
        timeout: float | None = None, priority: int | None = None, returns: Any = None,
    ) -> Pending[Any]:  # fmt: skip
        """Ask another agent in this workflow and wait for its answer, however long it takes.

        `timeout` (seconds) is recorded as a deadline. AgentError where it answers with an error or is given up.
        """
        return Pending(self._run, self._ask(target, payload, timeout, priority, returns, child=False))

    @overload
    def spawn(
        self, target: AsyncHandler[T, R], payload: T = ..., *,
        timeout: float | None = None, priority: int | None = None, returns: None = None,
    ) -> Pending[R]: ...  # fmt: skip
    @overload
    def spawn(
        self, target: PlainHandler[T, R], payload: T = ..., *,
        timeout: float | None = None, priority: int | None = None, returns: None = None,
    ) -> Pending[R]: ...  # fmt: skip
    @overload
    def spawn(
        self, target: Target, payload: Any = None, *,
        timeout: float | None = None, priority: int | None = None, returns: type[R],
    ) -> Pending[R]: ...  # fmt: skip
    @overload
    def spawn(
        self, target: str | Agent, payload: Any = None, *,
        timeout: float | None = None, priority: int | None = None, returns: Any = None,
    ) -> Pending[Any]: ...  # fmt: skip
    def spawn(
        self, target: Any, payload: Any = None, *,
        timeout: float | None = None, priority: int | None = None, returns: Any = None,
    ) -> Pending[Any]:  # fmt: skip
        """Ask another agent in a child workflow of its own, hence in any process of its group; wait for the answer."""
        return Pending(self._run, self._ask(target, payload, timeout, priority, returns, child=True))

    def receive(self, kind: str, *, timeout: float | None = None, returns: Any = Any) -> Pending[Any]:
        """Wait for a message of `kind` from outside; its payload is the value. WaitExpired after `timeout` seconds."""
        check_kind(kind, "ctx.receive")
        if kind == kinds.TASK_REQUEST:
            raise HandlerError("ctx.receive cannot take a task_request: requests are handled by @agent.on_task")
        call = TimerCall(kinds.TIMER_SET, f"receive {kind}", digest_of(timeout), False, timeout, kind, returns)
        return Pending(self._run, call)

    def sleep(self, seconds: float) -> Pending[None]:
        """Wait this long, durably: across restarts, without a task."""
        return Pending(self._run, TimerCall(kinds.TIMER_SET, "sleep", digest_of(seconds), False, float(seconds)))

    def now(self) -> Pending[float]:
        """Return the time (unix seconds), recorded."""
        return Pending(self._run, effect_call("now", self._now, (), {}, None, None, float))

    async def _now(self) -> float:
        return self._run.host.now()

    def gather(
        self, *steps: Awaitable[Any], limit: int | None = None, return_exceptions: bool = False
    ) -> Gather[Any]:
        """Run steps or coroutines beside each other, at most `limit` at once; results in the order given.

        When one fails the others take no further step, and the failure is raised when all have ended; with
        `return_exceptions` a failure is a result like the others.
        """
        if limit is not None and limit < 1:
            raise HandlerError(f"ctx.gather(limit={limit}): at least one branch must be allowed to run")
        for step in steps:
            _check_branch(step)
        return Gather(self._run, steps, limit, return_exceptions)

    # ---- plain calls -----------------------------------------------------------------------------------------------
    def send(self, target: Target, payload: Any = None, *, kind: str = kinds.STATUS_UPDATE) -> None:
        """Send a message and wait for nothing. `target` "*" is everybody who listens to the kind."""
        check_kind(kind, "ctx.send")
        receiver = name_of(target)
        value = codec.to_json(payload)
        digest = digest_of(receiver, value)
        self._run.output(OutputCall(kind, f"send {receiver}", digest, False, receiver, value))

    def update(self, patch: dict[str, Any]) -> None:
        """Change the workflow's state by a JSON merge patch (RFC 7396): None removes a key."""
        value = codec.to_json(patch)
        if not isinstance(value, dict):
            raise HandlerError(f"ctx.update takes a dict of changes, not {type(patch).__name__}")
        self._run.output(OutputCall(kinds.STATE_CHANGED, "update", digest_of(value), False, "*", value))

    def progress(self, payload: Any = None) -> None:
        """Tell whoever asked how far this is: a `status_update` to the sender of the handled message."""
        self.send(self.message.sender_id, payload)

    def random(self) -> random.Random:
        """Return a source of random numbers that is the same on every run of this step."""
        path = self._run.next_number()
        return random.Random(ids.step_seed(self.agent, self.message.id, path))

    def uuid(self) -> uuid.UUID:
        """Return a UUID that is the same on every run of this step."""
        return uuid.UUID(int=self.random().getrandbits(128), version=4)

    def forward(self, target: Target, payload: Any = None) -> Forward:
        """`return ctx.forward(target, payload)`: the target answers in this handler's place."""
        return Forward(asked_of(target), codec.to_json(payload))

    def _ask(
        self, target: Any, payload: Any, timeout: float | None, priority: int | None, returns: Any, *, child: bool
    ) -> RequestCall:
        handler: Handler | None = handler_of(target)
        if returns is None:
            returns = handler.result_type if handler is not None else Any
        receiver, value = asked_of(target), codec.to_json(payload)
        if receiver == "*":
            raise HandlerError("a request needs one agent to answer it; '*' is for ctx.send")
        digest = digest_of(receiver, value)
        return RequestCall(
            kinds.TASK_REQUEST, receiver, digest, child, receiver, value, timeout, priority, returns
        )


def _check_function(name: object, fn: object) -> None:
    """Refuse the result of a call where the function itself belongs. Raises HandlerError."""
    if callable(fn) or not isinstance(name, str):
        return
    if inspect.iscoroutine(fn):
        fn.close()
    raise HandlerError(
        f"ctx.effect({name!r}, ...) got a {type(fn).__name__}: pass the function and its arguments, not the result of "
        f"a call: ctx.effect({name!r}, fn, *args)"
    )


def _check_branch(step: object) -> None:
    """Refuse what cannot be awaited. Raises HandlerError."""
    if inspect.isawaitable(step):
        return
    hint = "; write ctx.gather(*steps)" if isinstance(step, Iterable) else ""
    raise HandlerError(f"ctx.gather takes steps and coroutines, not a {type(step).__name__}{hint}")


STEPS = frozenset(
    {
        "effect", "request", "spawn", "receive", "sleep", "now", "gather", "send", "update", "progress", "random",
        "uuid", "forward",
    }
)  # fmt: skip
"""What a handler can call on its context."""
