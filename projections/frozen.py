"""A workflow as bytes: what a checkpoint keeps, and what a workflow that waits costs in memory."""

from __future__ import annotations

import zlib

import msgspec
from msgspec import Struct

from .handling import Entry
from .status import next_due
from .verdict import Verdict
from .workflow import Workflow

ENTRY_FORMAT = 3
WINDOW = -12
"""Deflate without a header, in a window of 4 KiB: little memory for each call."""
WORDS = (
    "effects effect idempotent completed issued sent pending answered effect_completed effect_intended dead_lettered"
    " task_response state_changed status_update error_report taken tries causes closed end patches unclaimed consumed"
    " inbox origins revoked correlation view path requests id agent sender version ref asked root sharers asker step to"
    " origin deadline answered answer answer_id answer_kind handlings agent message version ref kind task_request"
    " priority inside expires steps 1 kind name digest timer_set timer receives since request due settled value"
    " value_kind waits pending 1 cursors begun open agenda receiving clients client inputs ledger attempts first last"
    " whole counts admitted"
)
"""What states are full of, for the compressor to refer to. Part of the entry's format: it never changes in a format."""


Kept = tuple[bytes, frozenset[bytes]]
"""An entry, and the keys of the segments that a checkpoint has of it (none where it is small)."""


class Frozen(Struct, array_like=True, frozen=True):
    """One checkpoint entry. All but the state can be read without decoding that.

    `idle`: when it was written its runs only waited, with no call in flight; nothing has to run until a record or
    `due` comes. `waits`: so it looks in the log, which does not tell of calls in flight: it must run again, but nothing
    is lost by that being late.
    """

    format: int
    correlation: str
    due: float | None
    idle: bool
    state: bytes
    waits: bool = False


END = zlib.compressobj(1, zlib.DEFLATED, WINDOW).flush()
"""Ends a packed state that was put together from pieces."""
DICTIONARY = b"".join(bytes([0xA0 + len(word)]) + word.encode() for word in WORDS.split())

_encode = msgspec.msgpack.Encoder().encode
_state = msgspec.msgpack.Decoder(Workflow)
_frozen = msgspec.msgpack.Decoder(Frozen)


def freeze(w: Workflow, *, idle: bool) -> bytes:
    """Return the entry of a workflow."""
    return _encode(frozen(w, pack(encoded(w)), idle=idle))


def frozen(w: Workflow, state: bytes, *, idle: bool) -> Frozen:
    """Return what an entry says of a workflow, around its state."""
    return Frozen(ENTRY_FORMAT, w.correlation, next_due(w), idle, state, _only_waits(w))


def encoded(w: Workflow) -> bytes:
    """Return the state, as MessagePack: no payloads and envelopes, nor what the path says once more."""
    at = w.view.at
    path = [Entry(e.id, e.ref, e.obliges) for e in w.view.path]
    view = msgspec.structs.replace(w.view, path=path, at={}, news=[], touched=[], released=[])
    verdicts = {id: verdict for id, verdict in w.verdicts.items() if id not in at}
    return _encode(msgspec.structs.replace(w, view=view, verdicts=verdicts, whole=False, closed={}))


def pack(state: bytes) -> bytes:
    """Return a state as it stands in an entry."""
    packing = zlib.compressobj(1, zlib.DEFLATED, WINDOW, 5, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    return packing.compress(state) + packing.flush()


def pack_piece(piece: bytes) -> bytes:
    """Return a piece of a state as it may stand in a packed one: the pieces in order and END are one, too."""
    packing = zlib.compressobj(1, zlib.DEFLATED, WINDOW, 5)
    return packing.compress(piece) + packing.flush(zlib.Z_SYNC_FLUSH)


def state_of(entry: bytes) -> bytes:
    """Return the state in an entry, as MessagePack."""
    return zlib.decompressobj(WINDOW, DICTIONARY).decompress(_frozen.decode(entry).state)


def _only_waits(w: Workflow) -> bool:
    return not w.duties() and all(h.begun and not h.starts and h.waits for h in w.open_handlings())


def peek(entry: bytes) -> Frozen:
    """Return the entry's head; its state stays bytes."""
    return _frozen.decode(entry)


def thaw(entry: bytes) -> Workflow:
    """Return the workflow of an entry. It folds on; what needs its history says so (`NeedsHistory`)."""
    return revive(state_of(entry))


def revive(state: bytes) -> Workflow:
    """Return the workflow of a state (see `encoded`)."""
    w = _state.decode(state)
    for version, kept in enumerate(w.view.path, 1):
        w.view.at[kept.id] = version
        w.verdicts[kept.id] = Verdict.ADMITTED
    return w
