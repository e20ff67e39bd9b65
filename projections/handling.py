"""What is kept of the records on a path: handlings with their steps, requests, messages that wait for somebody."""

from __future__ import annotations

from msgspec import Struct, field

from ..bus.kinds import TASK_REQUEST
from ..bus.message import Envelope, Origin

Key = tuple[str, str]
"""(agent, id of the message that it handles)."""
Place = tuple[str, str, str]
"""(agent, id of the message that it handles, path of the step)."""
Ref = tuple[int, int]
"""Where a record's bytes are: (position, index of the correction inside a `rolled_back`, or -1)."""
NOWHERE: Ref = (0, -1)
Due = tuple[float, str, str]
"""(unix seconds, id of the message that is handled, path of the step or "")."""


class Step(Struct, gc=False, omit_defaults=True):
    """One call of a handler, as far as it is recorded.

    `kind`, `name` and `digest` say what was called; `settled` is the version at which its value (`value`, of kind
    `value_kind`) was known, 0 if it is not; `since` is when a `receive` began to wait, `took` the message it got.
    """

    kind: str
    name: str = ""
    digest: str = ""
    child: bool = False
    effect: str = ""
    intent: str = ""
    request: str = ""
    timer: bool = False
    receives: str = ""
    since: int = 0
    took: str = ""
    due: float | None = None
    tries: int = 0
    settled: int = 0
    value: Ref = NOWHERE
    value_kind: str = ""
    failed: bool = False
    effect_failed: bool = False
    own_closing: bool = False

    @property
    def waits(self) -> bool:
        """It waits for a record that its own run does not write."""
        return not self.settled and bool(self.request or self.timer)


class Handling(Struct, gc=False, omit_defaults=True):
    """The work of one agent on one message. `version` is the place of the message on the path.

    `pending` are the paths of the steps that are not settled; `cursors` how far a `receive` has looked, by kind.
    """

    agent: str
    message: str
    version: int
    ref: Ref = NOWHERE
    kind: str = ""
    priority: int = 5
    inside: bool = False
    expires: float | None = None
    round: int = 0
    steps: dict[str, Step] = field(default_factory=dict)
    pending: dict[str, None] = field(default_factory=dict)
    taken: dict[str, None] = field(default_factory=dict)
    cursors: dict[str, int] = field(default_factory=dict)
    begun: bool = False
    tries: int = 0
    due: float | None = None
    parked: str = ""
    starts: int = 0
    lone_starts: int = 0
    dead: str = ""
    discarded: bool = False
    closed: int = 0
    end: str = ""
    causes: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """What it is found by."""
        return self.agent, self.message

    @property
    def is_call(self) -> bool:
        """Its message is a request that was made inside the workflow."""
        return self.inside and self.kind == TASK_REQUEST

    @property
    def waits(self) -> bool:
        """One of its steps waits for a record that its own run does not write."""
        return any(self.steps[path].waits for path in self.pending)


class Request(Struct, gc=False, omit_defaults=True):
    """A `task_request` on the path. `root` is the request whose answer it shares (itself, if it was not forwarded).

    `again`: another workflow sent it before; the first copy is the one that is handled.
    """

    id: str
    agent: str
    sender: str
    version: int
    ref: Ref = NOWHERE
    asked: bool = False
    root: str = ""
    again: bool = False
    sharers: list[str] = field(default_factory=list)
    asker: Key | None = None
    step: str = ""
    to: str | None = None
    origin: Origin | None = None
    deadline: float | None = None
    answered: int = 0
    answer: Ref = NOWHERE
    answer_id: str = ""
    answer_kind: str = ""


class Input(Struct, gc=False, array_like=True):
    """A message from outside that a `receive` may take, or one whose receiver nobody has hosted yet."""

    id: str
    version: int
    kind: str
    receiver: str
    ref: Ref
    priority: int = 5
    inside: bool = False
    expires: float | None = None


class Entry(Struct, gc=False, array_like=True, omit_defaults=True):
    """A record on the path. `envelope` is None where the state came from a checkpoint.

    `obliges` are the agents that listened when it came, None until it is known whom it obliges.
    """

    id: str
    ref: Ref
    obliges: tuple[str, ...] | None = None
    envelope: Envelope | None = None


def precedes(step: str, other: str) -> bool:
    """Program order: odd places of a path number steps, even ones name branches of a gather (concurrent)."""
    for i, (a, b) in enumerate(zip(step.split("."), other.split("."), strict=False)):
        if a != b:
            return i % 2 == 0 and _number(a) < _number(b)
    return False


def _number(part: str) -> int:
    return int(part) if part.isdecimal() and len(part) < 10 else 0


def input_of(r: Envelope, version: int, ref: Ref) -> Input:
    """Return what is kept of a message that waits."""
    expires = None if r.ttl is None else r.timestamp + r.ttl
    return Input(r.id, version, r.message_type, r.receiver_id, ref, r.priority, r.work is not None, expires)
