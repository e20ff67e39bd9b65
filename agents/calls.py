"""The calls of a context: what each asks for, which record it makes, and what its recorded value is in Python."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import lru_cache
from types import FunctionType
from typing import Any, get_type_hints

from ..bus import codec, kinds
from ..bus.errors import (
    AgentError,
    EffectFailed,
    Failure,
    HandlerError,
    InvalidMessage,
    NoKeyYet,
    RequestExpired,
    WaitExpired,
)
from .limits import check_effect_name, check_id, check_priority, check_seconds
from .retry import EFFECT_RETRY, RetryPolicy
from .threads import Late


class IdempotencyKey:
    """Stands for the key of the effect whose arguments it is among; the call gets the key itself (a str)."""

    def __repr__(self) -> str:
        return "idempotency_key"

    def __str__(self) -> str:
        raise NoKeyYet(
            "ctx.idempotency_key is known when the effect is called: pass it as an argument of ctx.effect by itself, "
            "or read it inside the effect's function"
        )


KEY = IdempotencyKey()


@dataclass(frozen=True, slots=True)
class Call:
    """One call, as it is compared with what is recorded: kind of its first record, name, digest of its arguments."""

    kind: str
    name: str
    digest: str
    child: bool = False

    def same(self, kind: str, name: str, digest: str, child: bool) -> bool:
        """It is the call that was recorded. An effect's first record may be any of its kinds."""
        ours, theirs = _family(self.kind), _family(kind)
        return ours == theirs and self.name == name and self.digest == digest and self.child == child

    def __str__(self) -> str:
        return describe(self.kind, self.name, self.digest, self.child)


def _family(kind: str) -> str:
    return "effect" if kind.startswith("effect_") else kind


def describe(kind: str, name: str, digest: str, child: bool) -> str:
    """Say what a call is, for people."""
    verbs = {kinds.TASK_REQUEST: "request", kinds.TIMER_SET: "wait", kinds.STATE_CHANGED: "update"}
    verb = "spawn" if child else verbs.get(kind, _family(kind))
    return f"{verb} {name!r} (arguments {digest[:8]})"


@dataclass(frozen=True, slots=True)
class EffectCall(Call):
    """A call of the outside world."""

    function: Callable[..., Any] = print
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    retry: RetryPolicy = EFFECT_RETRY
    timeout: float | None = None
    returns: Any = Any

    def __post_init__(self) -> None:
        check_effect_name(self.name)
        if self.timeout is not None:
            check_seconds(self.timeout, f"the timeout of effect {self.name!r}")

    def arguments(self, key: str) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments with the idempotency key in its places."""
        args = tuple(key if a is KEY else a for a in self.args)
        return args, {k: key if v is KEY else v for k, v in self.kwargs.items()}


@dataclass(frozen=True, slots=True)
class RequestCall(Call):
    """A question to another agent; `child`: in a workflow of its own."""

    receiver: str = ""
    payload: Any = None
    timeout: float | None = None
    priority: int | None = None
    returns: Any = Any

    def __post_init__(self) -> None:
        check_id(self.receiver, "$.receiver_id")
        if self.receiver == "*":
            raise HandlerError("a request needs one agent to answer it; '*' is for ctx.send")
        if self.priority is not None:
            check_priority(self.priority)
        if self.timeout is not None:
            check_seconds(self.timeout, f"the timeout of a request to {self.receiver!r}")


@dataclass(frozen=True, slots=True)
class TimerCall(Call):
    """A sleep of `seconds`, or a wait for a message of the kind `receives` (`seconds`: at most, None: for ever)."""

    seconds: float | None = None
    receives: str = ""
    returns: Any = Any

    def __post_init__(self) -> None:
        if self.receives:
            check_id(self.receives, "$.message_type")
        if self.seconds is not None:
            check_seconds(self.seconds, f"ctx.{self.name.partition(' ')[0]}")


@dataclass(frozen=True, slots=True)
class OutputCall(Call):
    """A plain call that appends a record and goes on."""

    receiver: str = "*"
    payload: Any = None
    headers: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_id(self.receiver, "$.receiver_id")
        check_id(self.kind, "$.message_type")


def digest_of(*values: Any) -> str:
    """Return the digest of a call's arguments; what JSON cannot carry counts by its type (a client, a session)."""
    return codec.digest([_plain(v) for v in values])


def _plain(value: Any) -> Any:
    if value is KEY:
        return "idempotency_key"
    try:
        return codec.to_json(value)
    except InvalidMessage:
        if isinstance(value, dict):
            return {str(k): _plain(v) for k, v in value.items()}
        if isinstance(value, set | frozenset):
            return sorted(map(_plain, value), key=codec.canonical)
        if isinstance(value, list | tuple):
            return [_plain(v) for v in value]
        return getattr(value, "__qualname__", type(value).__qualname__)


def effect_call(
    name: str, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any],
    retry: RetryPolicy | None, timeout: float | None, returns: Any,
) -> EffectCall:  # fmt: skip
    """Build an effect's call; the type of its value is `returns`, else the function's own annotation."""
    if returns is None:
        returns = _return_type(function)
    return EffectCall(
        kinds.EFFECT_COMPLETED, name, digest_of(list(args), kwargs), False,
        function, args, kwargs, retry or EFFECT_RETRY, timeout, returns,
    )  # fmt: skip


def _return_type(function: Callable[..., Any]) -> Any:
    plain = getattr(function, "__func__", function)
    return _annotated(plain) if isinstance(plain, FunctionType) else _annotation(plain)


def _annotation(function: Callable[..., Any]) -> Any:
    try:
        return get_type_hints(inspect.unwrap(function)).get("return", Any)
    except (NameError, TypeError, AttributeError):
        return Any


_annotated = lru_cache(maxsize=1024)(_annotation)


InThread = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any], float | None], Awaitable[Any]]


async def invoke(call: EffectCall, key: str, in_thread: InThread) -> Any:
    """Call the function: a coroutine on this loop, a plain function in a thread of the bounded pool.

    Raises TimeoutError when its time limit has passed.
    """
    args, kwargs = call.arguments(key)
    if inspect.iscoroutinefunction(inspect.unwrap(call.function)):
        return await _bounded(call.function(*args, **kwargs), call)
    try:
        result = await in_thread(call.function, args, kwargs, call.timeout)
    except Late as late:
        raise TimeoutError(str(late)) from None
    return await _bounded(result, call) if inspect.isawaitable(result) else result


async def _bounded(work: Awaitable[Any], call: EffectCall) -> Any:
    if call.timeout is None:
        return await work
    scope = asyncio.timeout(call.timeout)
    try:
        async with scope:
            return await work
    except TimeoutError:
        if not scope.expired():
            raise
        raise TimeoutError(f"no result within {call.timeout} s") from None


# ---- recorded values -----------------------------------------------------------------------------------------------
def value_of(call: Call, kind: str, raw: bytes) -> Any:
    """Return a settled step's value, decoded from its record; raise what the record says went wrong."""
    returns = getattr(call, "returns", Any)
    if isinstance(call, EffectCall):
        if kind == kinds.EFFECT_FAILED:
            record = codec.decode(raw)
            error = getattr(record.fact, "error", "")
            raise EffectFailed(f"effect {call.name!r} failed: {record.payload}", name=call.name, error=error)
        return typed(raw, returns)
    if isinstance(call, RequestCall):
        if kind == kinds.TASK_RESPONSE:
            return typed(raw, returns)
        raise _failed_request(call, kind, raw)
    if isinstance(call, TimerCall) and call.receives:
        if kind == kinds.TIMER_FIRED:
            raise WaitExpired(f"no {call.receives!r} came within {call.seconds} s")
        return typed(raw, returns)
    return None


def _failed_request(call: RequestCall, kind: str, raw: bytes) -> Failure:
    record = codec.decode(raw)
    if kind == kinds.TIMER_FIRED:
        late = "before the deadline" if call.timeout is None else f"within {call.timeout} s"
        return RequestExpired(f"{call.receiver!r} did not answer {late}", agent=call.receiver, kind=kind)
    error = getattr(record.fact, "error", "")
    if kind in (kinds.CANCELLED, kinds.DISCARDED):
        by, why = getattr(record.fact, "actor", ""), getattr(record.fact, "reason", "")
        text = f"the request to {call.receiver!r} was {kind}{by and f' by {by}'}{why and f': {why}'}"
        return AgentError(text, agent=call.receiver, error=error, kind=kind)
    said = record.payload if isinstance(record.payload, str) else codec.canonical(record.payload).decode()
    what = {kinds.ERROR_REPORT: "answered with an error", kinds.EXPIRED: "let the request expire"}.get(kind, kind)
    return AgentError(f"{call.receiver!r} {what}: {said}", agent=call.receiver, error=error, kind=kind)


def typed(raw: bytes, wanted: Any) -> Any:
    """Return a record's payload as the wanted type; raises SchemaError."""
    if wanted is Any or wanted is inspect.Parameter.empty:
        return codec.payload(raw)
    try:
        return codec.payload_as(raw, wanted)
    except TypeError:
        return codec.payload(raw)


def check_kind(kind: str, verb: str) -> None:
    """Refuse kinds that a handler may not write or wait for. Raises InvalidMessage."""
    if kind in kinds.ENGINE or kind in kinds.ANSWERS:
        raise InvalidMessage(
            f"{verb} cannot use the kind {kind!r}", path="$.message_type", remedy="use status_update or one of your own"
        )

