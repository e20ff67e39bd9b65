"""What the fold reads of a record besides its envelope: one Struct per kind, carried in `AgentMessage.fact`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import Meta, Raw, Struct

from . import kinds

LAST = 253_402_300_799.0
"""The last second of the year 9999: what is later is no time (milliseconds, more likely)."""

Id = Annotated[str, Meta(min_length=1, max_length=128)]
Correlation = Annotated[str, Meta(max_length=128)]
Writer = Annotated[str, Meta(max_length=192)]
StepPath = Annotated[str, Meta(max_length=1024)]
Count = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
Priority = Annotated[int, Meta(ge=0, le=9)]
Time = Annotated[float, Meta(ge=-LAST, le=LAST)]
Seconds = Annotated[float, Meta(ge=0, le=LAST)]
Amount = Annotated[float, Meta(ge=-1e15, le=1e15)]
"""What every reader can keep, whoever wrote the record: bytes beyond these are no record."""


class Fact(Struct, frozen=True, kw_only=True, omit_defaults=True, gc=False):
    """Base of all facts. A fact is never sealed: whoever can read the log can fold it."""


class Call(Fact, frozen=True):
    """Of a message: which call of a handler wrote it (`digest` of its arguments), and why its handling failed.

    `causes` are the paths of the steps whose failures escaped; `error` is the error's class name.
    """

    name: str = ""
    digest: str = ""
    causes: tuple[StepPath, ...] = ()
    error: str = ""


class EffectIntended(Fact, frozen=True):
    """`effect_intended`: `effect` is the idempotency key; `policy` one of compensate, retain, irreversible."""

    effect: str
    name: str = ""
    digest: str = ""
    policy: str = "idempotent"
    compensate: str = ""


class EffectCompleted(Fact, frozen=True):
    """`effect_completed`: the payload is the value; `cost` is what the user metered (unit -> amount)."""

    effect: str
    name: str = ""
    digest: str = ""
    policy: str = "idempotent"
    cost: dict[str, Amount] = msgspec.field(default_factory=dict)


class EffectFailed(Fact, frozen=True):
    """`effect_failed`: the payload is the error's text; `due` (unix seconds) is when the next try may start."""

    effect: str
    name: str = ""
    digest: str = ""
    policy: str = "idempotent"
    final: bool = False
    error: str = ""
    due: Time | None = None


class EffectUnknown(Fact, frozen=True):
    """`effect_unknown`: `intent` is the id of the intent whose outcome nobody knows."""

    intent: str


class AttemptStarted(Fact, frozen=True):
    """`attempt_started`: written after a death; `alone` when nothing else ran in the worker beside it."""

    alone: bool = False


class AttemptFailed(Fact, frozen=True):
    """`attempt_failed`: `due` is when the next attempt may start; `parked` (a reason) when none will by itself."""

    error: str = ""
    due: Time | None = None
    parked: str = ""


class TimerSet(Fact, frozen=True):
    """`timer_set`: a `sleep` (no kind) or a `receive` of `kind`; `due` in unix seconds, None = no deadline."""

    due: Time | None = None
    kind: str = ""
    name: str = ""
    digest: str = ""


class TimerFired(Fact, frozen=True):
    """`timer_fired`: the step `work.step` reached its deadline."""


class Handled(Fact, frozen=True):
    """`handled`: a completion that has nothing to say."""


class StateChanged(Fact, frozen=True):
    """`state_changed`: the payload is a JSON merge patch (RFC 7396) of the workflow's state."""

    name: str = ""
    digest: str = ""


class Delivered(Fact, frozen=True):
    """`delivered`: `subject` (a record's id) reached the other workflow, for the n-th time; or its cancel did."""

    subject: str
    n: Count = 0
    cancel: bool = False


class Compensation(Fact, frozen=True):
    """`compensation_*`: the effect's key; `final` of a failure; `actor` and `reason` of a waiver."""

    effect: str
    final: bool = False
    actor: str = ""
    reason: str = ""


class RolledBack(Fact, frozen=True):
    """`rolled_back`: the path is cut to `to_version`; `with_inputs` are whole messages, applied after `reapply`."""

    to_version: Count
    op_id: str
    reason: str = ""
    actor: str = ""
    reapply: tuple[str, ...] = ()
    with_inputs: tuple[Raw, ...] = ()
    force: bool = False


class Forked(Fact, frozen=True):
    """`forked`: the first record of a fork."""

    parent: str
    parent_generation: Count
    parent_version: Count
    prefix_digest: str = ""


class Cancelled(Fact, frozen=True):
    """`cancelled`: closes what is open."""

    actor: str = ""
    reason: str = ""


class Expired(Fact, frozen=True):
    """`expired`: the message's time to live passed before its handling began."""


class DeadLettered(Fact, frozen=True):
    """`dead_lettered`: the payload is the error's text; `causes` the steps whose failures escaped."""

    causes: tuple[StepPath, ...] = ()
    error: str = ""
    reason: str = ""


class Redriven(Fact, frozen=True):
    """`redriven`: the handling (agent, message) opens again, round + 1; `keep` is "" or "none"."""

    agent: str
    message: str
    keep: str = ""
    actor: str = ""
    reason: str = ""
    force: bool = False


class Discarded(Fact, frozen=True):
    """`discarded`: a dead letter gives up its place."""

    agent: str
    message: str
    actor: str = ""
    reason: str = ""


class Owner(Fact, frozen=True):
    """`owner`: `group` owns the partition from here on under `epoch`; `agents` maps agent -> kinds it listens to."""

    group: str
    epoch: Count
    agents: dict[str, tuple[str, ...]] = msgspec.field(default_factory=dict)
    member: str = ""
    pid: Count = 0
    host: str = ""


class OwnerReleased(Fact, frozen=True):
    """`owner_released`: the owner gave the partition up alive."""

    group: str
    epoch: Count
    member: str = ""


class Retired(Fact, frozen=True):
    """`retired`: the agent listens no more."""

    agent: str
    actor: str = ""


class Forwarded(Fact, frozen=True):
    """`forwarded`: the record at `position` was in the wrong partition and has been appended where it belongs."""

    position: Count
    correlation_id: str = ""


FACTS: dict[str, type[Fact]] = {
    kinds.EFFECT_INTENDED: EffectIntended,
    kinds.EFFECT_COMPLETED: EffectCompleted,
    kinds.EFFECT_FAILED: EffectFailed,
    kinds.EFFECT_UNKNOWN: EffectUnknown,
    kinds.ATTEMPT_STARTED: AttemptStarted,
    kinds.ATTEMPT_FAILED: AttemptFailed,
    kinds.TIMER_SET: TimerSet,
    kinds.TIMER_FIRED: TimerFired,
    kinds.HANDLED: Handled,
    kinds.STATE_CHANGED: StateChanged,
    kinds.DELIVERED: Delivered,
    kinds.COMPENSATION_STARTED: Compensation,
    kinds.COMPENSATION_COMPLETED: Compensation,
    kinds.COMPENSATION_FAILED: Compensation,
    kinds.COMPENSATION_WAIVED: Compensation,
    kinds.ROLLED_BACK: RolledBack,
    kinds.FORKED: Forked,
    kinds.CANCELLED: Cancelled,
    kinds.EXPIRED: Expired,
    kinds.DEAD_LETTERED: DeadLettered,
    kinds.REDRIVEN: Redriven,
    kinds.DISCARDED: Discarded,
    kinds.OWNER: Owner,
    kinds.OWNER_RELEASED: OwnerReleased,
    kinds.RETIRED: Retired,
    kinds.FORWARDED: Forwarded,
}
"""Kind -> its fact. A kind that is not here is a message, whose fact (if any) is a `Call`."""

DECODERS: dict[str, msgspec.json.Decoder[Any]] = {kind: msgspec.json.Decoder(fact) for kind, fact in FACTS.items()}
CALL_DECODER: msgspec.json.Decoder[Any] = msgspec.json.Decoder(Call)

REQUIRED = frozenset(kind for kind, fact in FACTS.items() if any(f.required for f in msgspec.structs.fields(fact)))
"""Kinds that mean nothing without their fact."""
