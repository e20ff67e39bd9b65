"""`Agent`: a named set of handlers. Declares; runs nothing."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar, get_type_hints, overload

from msgspec import Struct

from ..bus import kinds
from ..bus.errors import ConfigError, HandlerError, Refuse
from .retry import HANDLER_RETRY, RetryPolicy

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
R = TypeVar("R")
AsyncHandler = Callable[[Any, T], Coroutine[Any, Any, R]] | Callable[[T], Coroutine[Any, Any, R]]
"""An `async def` handler whose payload is a T and whose answer is an R, with or without a context."""
PlainHandler = Callable[[Any, T], R] | Callable[[T], R]
"""The same as a `def`."""
NAME = re.compile(r"[!-~]{1,128}")
DEFAULT_TIMEOUT = 600.0


class Handler(Struct, frozen=True):
    """What is known of one handler: its function, the type of its payload and of its result (Any where untyped)."""

    agent: str
    kind: str
    function: Callable[..., Any]
    is_async: bool
    takes_context: bool
    payload_type: Any
    result_type: Any
    timeout: float
    retry: RetryPolicy


class Agent:
    """A named consumer with handlers.

    `capabilities` are skills by topic, for routing. `concurrency` is how many messages of one workflow it handles at
    once (1: in order). `timeout` is the running time of a handler in seconds, `retry` how often it is tried.
    """

    def __init__(
        self,
        name: str,
        *,
        capabilities: Mapping[str, Sequence[str]] | None = None,
        concurrency: int = 1,
        timeout: float = DEFAULT_TIMEOUT,
        retry: RetryPolicy = HANDLER_RETRY,
    ) -> None:
        if not isinstance(name, str) or not NAME.fullmatch(name) or name == "*":
            raise HandlerError(f"agent name {name!r}: use 1 to 128 printable ASCII characters without spaces, not '*'")
        if concurrency < 1:
            raise HandlerError(f"agent {name!r}: concurrency is {concurrency}, must be at least 1")
        self.name = name
        self.capabilities = {topic: tuple(skills) for topic, skills in (capabilities or {}).items()}
        self.concurrency = concurrency
        self.timeout = timeout
        self.retry = retry
        self.handlers: dict[str, Handler] = {}

    @overload
    def on_task(self, function: F) -> F: ...
    @overload
    def on_task(
        self, *, timeout: float | None = None, retry: RetryPolicy | None = None
    ) -> Callable[[F], F]: ...
    def on_task(
        self, function: F | None = None, *, timeout: float | None = None, retry: RetryPolicy | None = None
    ) -> F | Callable[[F], F]:
        """Register the handler of this agent's requests. What it returns is the answer."""

        def register(function: F) -> F:
            return self._register(kinds.TASK_REQUEST, function, timeout, retry)

        return register(function) if function is not None else register

    def on(
        self, kind: str, *, timeout: float | None = None, retry: RetryPolicy | None = None
    ) -> Callable[[F], F]:
        """Register the handler of one kind of notification (`status_update` or a kind of your own)."""
        if kind == kinds.TASK_REQUEST:
            raise HandlerError(f"agent {self.name!r}: requests are handled by @agent.on_task")
        if kind in kinds.ENGINE:
            raise HandlerError(f"agent {self.name!r}: {kind!r} is a kind that refold keeps for itself; choose another")
        if not NAME.fullmatch(kind):
            raise HandlerError(f"kind {kind!r}: use 1 to 128 printable ASCII characters without spaces")
        return lambda function: self._register(kind, function, timeout, retry)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of notifications that this agent listens to."""
        return tuple(sorted(k for k in self.handlers if k != kinds.TASK_REQUEST))

    def _register(self, kind: str, function: F, timeout: float | None, retry: RetryPolicy | None) -> F:
        if kind in self.handlers:
            other = self.handlers[kind].function
            raise HandlerError(f"agent {self.name!r} handles {kind!r} already, in {other.__qualname__}")
        self.handlers[kind] = inspect_handler(
            self.name, kind, function, self.timeout if timeout is None else timeout, retry or self.retry
        )
        try:
            if kind == kinds.TASK_REQUEST or handler_of(function) is None:  # one for both is a target by its requests
                function.__refold__ = self.handlers[kind]  # type: ignore[attr-defined]
        except AttributeError:
            raise HandlerError(f"{function!r} cannot be a handler: decorate a plain function") from None
        return function

    def __repr__(self) -> str:
        return f"Agent({self.name!r})"


def inspect_handler(
    agent: str, kind: str, function: Callable[..., Any], timeout: float, retry: RetryPolicy
) -> Handler:
    """Read a handler's signature: `(payload)` or `(ctx, payload)`, types by annotation. Raises HandlerError."""
    where = f"handler {getattr(function, '__qualname__', function)!r} of agent {agent!r}"
    if not callable(function):
        raise HandlerError(f"{where} is not a function")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise HandlerError(f"{where} is a generator; a handler returns its one answer")
    ps = [
        p for p in inspect.signature(function).parameters.values()
        if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.default is p.empty
    ]  # fmt: skip
    if len(ps) not in (1, 2):
        raise HandlerError(f"{where} takes {len(ps)} parameters; write (ctx, payload), or (payload)")
    try:
        hints = get_type_hints(function)
    except NameError as e:
        raise HandlerError(f"{where}: its annotation names what is not defined where it is: {e}") from e
    return Handler(
        agent, kind, function, inspect.iscoroutinefunction(function), len(ps) == 2,
        hints.get(ps[-1].name, Any), hints.get("return", Any), timeout, retry,
    )  # fmt: skip


def missing_handler(agent: Agent, kind: str) -> Handler:
    """Return what stands in for a handler that the agent does not have: it refuses."""

    def refuse(payload: Any) -> None:
        raise Refuse(f"agent {agent.name!r} has no handler of {kind!r}; add @{agent.name}.on({kind!r})")

    return Handler(agent.name, kind, refuse, False, False, Any, Any, agent.timeout, agent.retry)


def handler_of(target: object) -> Handler | None:
    """Return what a decorated handler is registered as."""
    found = getattr(target, "__refold__", None)
    return found if isinstance(found, Handler) else None


def name_of(target: object) -> str:
    """Return the agent that a target means: a handler, an `Agent`, or a name. Raises HandlerError."""
    if isinstance(target, str):
        return target
    if isinstance(target, Agent):
        return target.name
    handler = handler_of(target)
    if handler is None:
        raise HandlerError(f"{target!r} is no target: pass an agent's name, an Agent, or a handler of one")
    return handler.agent


def asked_of(target: object) -> str:
    """Return the agent that the target of a request means. Raises HandlerError where it handles no requests."""
    handler = handler_of(target)
    if handler is not None and handler.kind != kinds.TASK_REQUEST:
        raise HandlerError(
            f"{handler.function.__qualname__} handles {handler.kind!r} and no requests: send it a message with "
            f"kind={handler.kind!r}, or ask a handler under on_task"
        )
    return name_of(target)


def by_name(agents: Sequence[object]) -> dict[str, Agent]:
    """Return the agents that a worker is to host, by name. Raises ConfigError for anything else, and for none."""
    wrong = [a for a in agents if not isinstance(a, Agent)]
    if wrong:
        what = f"a {type(wrong[0]).__name__}"
        handler = handler_of(wrong[0])
        if handler is not None:
            what = f"a handler of {handler.agent!r}: give its Agent"
        elif isinstance(wrong[0], Sequence) and not isinstance(wrong[0], str):
            what += ": write run(*agents)"
        raise ConfigError(f"a worker hosts Agents, not {what}")
    found = {a.name: a for a in agents if isinstance(a, Agent)}
    if not found or len(found) < len(agents):
        names = ", ".join(a.name for a in agents if isinstance(a, Agent)) or "none"
        raise ConfigError(f"a worker hosts one or more agents with different names, not: {names}")
    return found
