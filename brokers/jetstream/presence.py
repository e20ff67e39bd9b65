"""Who is alive, by their own word: messages of the control stream, whose age the servers' own clock tells."""

from __future__ import annotations

import socket

import msgspec
import psutil
from nats.aio.msg import Msg

from ...bus.broker import Member, Presence
from ...bus.errors import BrokerUnavailable
from .connection import Link, Refused, accepted
from .leases import is_gone
from .names import Names
from .reading import TIME, Reader, seconds

REMEMBERED = "168h"
"""After which a member that is gone is forgotten."""


class Told(msgspec.Struct):
    """What a member has told, and for how long it holds (seconds; below 0: withdrawn)."""

    presence: Presence
    ttl: float


async def tell(link: Link, names: Names, presence: Presence, ttl: float) -> None:
    """Replace what the member told before."""
    value = msgspec.json.encode(Told(presence, ttl))
    try:
        accepted(await link.request(names.presence(presence.member), value, {"Nats-TTL": REMEMBERED}))
    except Refused as error:
        raise BrokerUnavailable(f"{names.control}: {error}") from error


async def withdraw(link: Link, names: Names, reader: Reader, member: str) -> None:
    """The member is gone."""
    for msg in await reader.latest(names.presence(member)):
        told = _told(msg)
        if told is not None:
            await tell(link, names, told.presence, -1.0)


def _told(msg: Msg) -> Told | None:
    """Return what a member has told; None where that is gone, or was none of ours."""
    try:
        return None if is_gone(msg) else msgspec.json.decode(msg.data, type=Told)
    except msgspec.MsgspecError:
        return None


async def read(names: Names, reader: Reader, group: str | None, gone: bool) -> list[Member]:
    """Return who is alive: told within its ttl, and not a process of this host that has ended."""
    found = await reader.latest(f"{names.root}.control.presence.*")
    now = seconds((await reader.state(names.control))["ts"])
    out, host = [], socket.gethostname()
    for msg in found:
        told = _told(msg)
        if told is None:
            continue
        presence = told.presence
        age = max(0.0, now - seconds((msg.headers or {})[TIME]))
        alive = age <= told.ttl and not (presence.host == host and presence.pid and not psutil.pid_exists(presence.pid))
        if (group is None or presence.group == group) and (alive or gone):
            out.append(Member(presence, age, alive))
    return out
