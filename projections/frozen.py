"""A workflow as bytes: what a checkpoint keeps, and what a workflow that waits costs in memory."""

from __future__ import annotations

import msgspec
from msgspec import Struct

from .handling import Entry
from .status import next_due
from .verdict import Verdict
from .workflow import Workflow

ENTRY_FORMAT = 2


class Frozen(Struct, array_like=True, frozen=True):
    """One checkpoint entry. `due` and `idle` can be read without decoding the state.

    `idle`: when it was written its runs only waited, with no call in flight; nothing has to run until a record or
    `due` comes.
    """

    format: int
    correlation: str
    due: float | None
    idle: bool
    state: bytes


_state = msgspec.msgpack.Decoder(Workflow)
_frozen = msgspec.msgpack.Decoder(Frozen)


def freeze(w: Workflow, *, idle: bool) -> bytes:
    """Return the workflow without payloads and envelopes, nor what its path says once more."""
    at = w.view.at
    path = [Entry(e.id, e.ref, e.obliges) for e in w.view.path]
    view = msgspec.structs.replace(w.view, path=path, at={}, news=[], touched=[], released=[])
    verdicts = {id: verdict for id, verdict in w.verdicts.items() if id not in at}
    bare = msgspec.structs.replace(w, view=view, verdicts=verdicts, whole=False, closed={})
    return msgspec.msgpack.encode(
        Frozen(ENTRY_FORMAT, w.correlation, next_due(w), idle, msgspec.msgpack.encode(bare))
    )


def peek(entry: bytes) -> Frozen:
    """Return the entry's head; its state stays bytes."""
    return _frozen.decode(entry)


def thaw(entry: bytes) -> Workflow:
    """Return the workflow of an entry. It folds on; what needs its history says so (`NeedsHistory`)."""
    w = _state.decode(_frozen.decode(entry).state)
    for version, kept in enumerate(w.view.path, 1):
        w.view.at[kept.id] = version
        w.verdicts[kept.id] = Verdict.ADMITTED
    return w
