"""Who owns what, and who is in a group: messages of the control stream, each replaced only by one who has seen it."""

from __future__ import annotations

import base64
import contextlib
import os
from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import msgspec
from nats.aio.msg import Msg

from ...bus.errors import BrokerUnavailable, LogCorrupt
from ..shares import Lease, Peer, View
from .connection import LAST_UNAVAILABLE, WRONG_LAST, WRONG_LAST_BUSY, Link, Refused, accepted
from .frames import EXPECTED, MSG_ID
from .names import Names, key_of
from .questions import ANSWER
from .reading import SEQUENCE, SUBJECT, Reader

T = TypeVar("T")
GONE = {"KV-Operation": "DEL"}
GONE_FOR = {"Nats-TTL": "1h"}
"""Headers of a message that says that its subject holds nothing, and for how long it says so."""


class Segment(msgspec.Struct, array_like=True):
    """A part of a checkpoint: its name, how many messages and bytes it has."""

    name: str
    chunks: int
    size: int


class Head(msgspec.Struct, array_like=True):
    """What a checkpoint is: everything up to `position` is folded into what its segments hold, in order."""

    position: int
    anchor: bytes
    segments: list[Segment]


class Hold(msgspec.Struct, omit_defaults=True):
    """A group's hold of a partition. `owner` is a member's token, "" where it was released."""

    epoch: int = 0
    owner: str = ""
    released: bool = False
    head: Head | None = None


class Held(NamedTuple):
    """A hold, and the sequence of its message: whoever writes the next one must name it."""

    hold: Hold
    revision: int


class Row(msgspec.Struct):
    """A member of a group, as it says."""

    member: str
    token: str
    pid: int
    started: float
    place: str
    wanted: list[int] | None


def is_gone(msg: Msg) -> bool:
    """The message says that its subject holds nothing."""
    return "KV-Operation" in (msg.headers or {})


async def put(
    link: Link, subject: str, value: bytes, expected: int, headers: Mapping[str, str] | None = None,
    within: float = ANSWER,
) -> int | None:  # fmt: skip
    """Replace a message by CAS; return the new revision, None where another was faster. Raises BrokerUnavailable."""
    said = {**(headers or {}), EXPECTED: str(expected), MSG_ID: os.urandom(12).hex()}
    try:
        return accepted(await link.answer(await link.ask(subject, value, said), subject, within)).seq
    except Refused as error:
        if error.code in (WRONG_LAST, WRONG_LAST_BUSY):
            return None
        if error.code == LAST_UNAVAILABLE:
            raise BrokerUnavailable(f"{subject}: {error}") from error
        raise BrokerUnavailable(f"{subject} is refused: {error}") from error


async def read(reader: Reader, names: Names, group: str) -> tuple[View, dict[int, Held]]:
    """Return what is known of a group: its leases and members (the revision is a member's counter), and the holds."""
    leases, peers, holds = dict[int, Lease](), list[Peer](), dict[int, Held]()
    for msg in await reader.latest(f"{names.group(group)}.>"):
        headers = msg.headers or {}
        at, (kind, name) = int(headers[SEQUENCE]), headers[SUBJECT].split(".")[-2:]
        if is_gone(msg):
            continue
        if kind == "lease" and name.isdigit():
            held = holds[int(name)] = Held(decoded(msg.data, Hold), at)
            leases[int(name)] = Lease(int(name), held.hold.epoch, held.hold.owner, held.hold.released)
        elif kind == "peer":
            with contextlib.suppress(LogCorrupt):  # whoever wrote that, it is no member
                row = decoded(msg.data, Row)
                wanted = None if row.wanted is None else frozenset(row.wanted)
                peers.append(Peer(row.member, row.token, at, row.pid, row.started, row.place, wanted))
    return View(leases, peers), holds


def decoded(value: bytes, kind: type[T]) -> T:
    """Return what a message of the control stream says. Raises LogCorrupt."""
    try:
        return msgspec.msgpack.decode(value, type=kind)
    except msgspec.MsgspecError as error:
        raise LogCorrupt(f"a {kind.__name__} in the control stream is not what refold wrote: {error}") from error


async def hold_of(reader: Reader, names: Names, group: str, partition: int) -> Held:
    """Return a group's hold of a partition as the stream's leader has it; one of epoch 0 where there is none."""
    return await _hold(reader, names, names.lease(group, partition))


async def _hold(reader: Reader, names: Names, subject: str) -> Held:
    found = await reader.leaders(names.control, {"last_by_subj": subject})
    if found is None:
        return Held(Hold(), 0)
    return Held(decoded(base64.b64decode(found.get("data", "")), Hold), int(found["seq"]))


async def release(link: Link, reader: Reader, names: Names, group: str, token: str, partition: int, epoch: int) -> None:
    """Give a partition up; nothing happens where it is gone already."""
    while True:
        hold, revision = await hold_of(reader, names, group, partition)
        if hold.owner != token or hold.epoch != epoch:
            return
        free = msgspec.structs.replace(hold, owner="", released=True)
        if await put(link, names.lease(group, partition), msgspec.msgpack.encode(free), revision) is not None:
            return


async def holds_of_partition(reader: Reader, names: Names, partition: int) -> dict[str, Hold]:
    """Return every group's hold of a partition."""
    out = {}
    for msg in await reader.latest(f"{names.root}.control.group.*.lease.{partition}"):
        group = key_of((msg.headers or {})[SUBJECT].split(".")[-3])
        out[group or ""] = decoded(msg.data, Hold)
    return out
