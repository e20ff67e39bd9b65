"""`Projection`: a read model of your own. It is a fold too: throw it away, and fold again."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Protocol, runtime_checkable

from ..bus import codec
from ..bus.message import AgentMessage, Envelope
from .verdict import Verdict

SCOPES = ("workflow", "ledger")


class Record:
    """One record as a projection sees it. `payload` and `message` are decoded when they are looked at."""

    def __init__(self, partition: int, position: int, verdict: Verdict, envelope: Envelope, value: bytes) -> None:
        self.partition = partition
        self.position = position
        self.verdict = verdict
        self.envelope = envelope
        self.value = value

    @cached_property
    def payload(self) -> Any:
        """The user's value, as plain JSON types."""
        return codec.payload(self.value)

    @cached_property
    def message(self) -> AgentMessage:
        """The whole message."""
        return codec.decode(self.value)


@runtime_checkable
class Projection(Protocol):
    """A read model: named states, one per key, each a fold of records.

    `scope` workflow: the key is the correlation id, `apply` sees the path of the workflow (admitted records, in order),
    and a rollback folds that workflow's state anew. `scope` ledger: `apply` sees every record with its verdict, in log
    order, and nothing is ever taken back: for money, tokens, audit. Records of different partitions have no common
    order: a ledger whose key is met in several of them must not depend on it (sums, counts, sets).

    `version` is yours: a higher one means that the states must be built anew. States are JSON values (dicts with str
    keys, lists, str, ...; what JSON would change, as a tuple, is refused); None is as good as no state. `apply` returns
    the new state, leaves the old one as it was, and must be pure: no clock, no network, no randomness.
    """

    @property
    def name(self) -> str:
        """What its states are found by in a store."""
        ...

    @property
    def version(self) -> int:
        """A higher one: build the states anew."""
        ...

    @property
    def scope(self) -> str:
        """SCOPES: workflow or ledger."""
        ...

    def start(self) -> Any:
        """Return the state before the first record."""
        ...

    def key(self, record: Record) -> str | None:
        """Return whose state the record changes (None: nobody's). A workflow projection returns the correlation id."""
        ...

    def apply(self, state: Any, record: Record) -> Any:
        """Return the state after the record."""
        ...
