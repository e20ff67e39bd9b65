"""A large entry of a checkpoint in segments, so that only what changed of it is written again.

A segment is a run of bytes of the state, kept under the workflow's key and its own digest. Where it ends depends on
what is in it: a record that joins or leaves a collection changes the segment around it; the others stay as they are.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, NamedTuple

import msgspec

from ..bus.ids import record_key
from .frozen import END, ENTRY_FORMAT, Frozen, Kept, encoded, frozen, pack, pack_piece, peek, state_of
from .workflow import Workflow

LIMIT = 64 * 1024
"""Bytes of a state, not packed, that is written in one piece."""
RATIO = 16
"""A state is not packed better than this, or is small enough to be written whole."""
CUT_FORMAT = -3
"""`Frozen.format` of an entry whose state is in segments: its `state` says what joins them, and their digests."""
KEY_SIZE = 32
"""Bytes of a segment's key; a workflow's has half of them."""
LEAST = 8 * 1024
MOST = 32 * 1024
RATE = 32
SMALL = 256
"""A segment ends after MOST bytes, or after LEAST behind one item in RATE; below SMALL bytes it stays in the head."""
NONE: frozenset[bytes] = frozenset()

_encode = msgspec.msgpack.Encoder().encode
_joints = msgspec.msgpack.Decoder(list[bytes])


class Split(NamedTuple):
    """What a checkpoint has of an entry: `head` under the workflow's key, and segments by `keys`, of which it lacks
    `new`."""

    head: bytes
    keys: frozenset[bytes]
    new: Mapping[bytes, bytes]


def split(w: Workflow, stored: frozenset[bytes] = NONE, *, idle: bool) -> Split:
    """Split the entry of a workflow. `stored` are the keys of the segments that are there already."""
    state = encoded(w)
    if len(state) <= LIMIT:
        return Split(_encode(frozen(w, pack(state), idle=idle)), NONE, {})
    return _split(frozen(w, b"", idle=idle), state, stored)


def split_entry(entry: bytes, stored: frozenset[bytes] = NONE) -> Split:
    """Split the entry of a workflow that is kept as bytes."""
    state = state_of(entry) if len(entry) > LIMIT // RATIO else b""
    return _split(peek(entry), state, stored) if len(state) > LIMIT else Split(entry, NONE, {})


def _split(entry: Frozen, state: bytes, stored: frozenset[bytes]) -> Split:
    key, joints, keys, new = record_key(entry.correlation), list[bytes](), set[bytes](), dict[bytes, bytes]()
    for i, piece in enumerate(cut(state)):
        if i % 2:
            digest = blake2b(piece, digest_size=16).digest()
            joints.append(digest)
            keys.add(key + digest)
            if key + digest not in stored:
                new[key + digest] = pack_piece(piece)
        else:
            joints.append(pack_piece(piece) if piece else b"")
    head = msgspec.structs.replace(entry, format=CUT_FORMAT, state=_encode(joints))
    return Split(_encode(head), frozenset(keys), new)


def join(head: bytes, segments: Mapping[bytes, bytes]) -> Kept | None:
    """Return the entry that was split, and the keys of its segments; None where one is missing."""
    entry = peek(head)
    if entry.format != CUT_FORMAT:
        return head, NONE
    key, joints = record_key(entry.correlation), _joints.decode(entry.state)
    keys = [key + digest for digest in joints[1::2]]
    if not segments.keys() >= set(keys):
        return None
    joints[1::2] = [segments[k] for k in keys]
    whole = msgspec.structs.replace(entry, format=ENTRY_FORMAT, state=b"".join([*joints, END]))
    return _encode(whole), frozenset(keys)


def cut(state: bytes) -> list[bytes]:
    """Return the value of MessagePack in pieces, which together encode it as well (not always in the same bytes): those
    at odd places are to be segments, those between them are small."""
    cutter = _Cutter()
    cutter.walk(msgspec.msgpack.decode(state), state)
    return [bytes(piece) for piece in cutter.pieces]


class _Cutter:
    def __init__(self) -> None:
        self.pieces = [bytearray()]

    def walk(self, value: Any, raw: bytes) -> None:
        """Cut a value (`raw` is what it is encoded as): a large collection between its items, what is larger than a
        segment inside an item."""
        if not isinstance(value, dict | list):
            self._add(raw)
            return
        self.pieces[-1] += _header(value)
        run = bytearray()
        for name, item in value.items() if isinstance(value, dict) else ((None, item) for item in value):
            mark = b"" if name is None else _encode(name)
            body = _encode(item)
            run += mark
            if len(body) > MOST:
                self._add(run)
                run = bytearray()
                self.walk(item, body)
                continue
            run += body
            if len(run) >= MOST or (len(run) >= LEAST and zlib.crc32(mark or body) % RATE == 0):
                self._add(run)
                run = bytearray()
        self._add(run)

    def _add(self, run: bytes | bytearray) -> None:
        if len(run) < SMALL:
            self.pieces[-1] += run
        else:
            self.pieces += [bytearray(run), bytearray()]


def _header(value: dict[Any, Any] | list[Any]) -> bytes:
    few, many = (0x80, 0xDE) if isinstance(value, dict) else (0x90, 0xDC)
    n = len(value)
    if n < 16:
        return bytes([few | n])
    return bytes([many]) + n.to_bytes(2, "big") if n < 1 << 16 else bytes([many + 1]) + n.to_bytes(4, "big")
