"""How the members of a group share its partitions where no coordinator does it: pure rules over what each of them sees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from typing import NamedTuple

Wanted = frozenset[int] | None
"""Partitions that a member takes; None: any."""


class Lease(NamedTuple):
    """A group's hold of a partition. `owner` is a member's token, "" where it was released."""

    partition: int
    epoch: int
    owner: str
    released: bool


class Peer(NamedTuple):
    """A member of a group, as its row says. `token` is another one each time it joins; `place` is that of its pid."""

    member: str
    token: str
    counter: int
    pid: int
    started: float
    place: str
    wanted: Wanted


class View(NamedTuple):
    """The rows of a group at one moment, the dead ones included."""

    leases: dict[int, Lease]
    peers: list[Peer]


class Plan(NamedTuple):
    """What a member should do now: claim these, give up those; `lost` are held by somebody else already, and of the
    `forgotten` only the rows say that they are its own."""

    claim: list[int]
    revoke: list[int]
    lost: list[int]
    forgotten: list[Lease] = []


def plan(
    me: str, partitions: int, wanted: Wanted, leases: Mapping[int, Lease], held: Mapping[int, int],
    revoking: Collection[int], live: Mapping[str, Wanted],
) -> Plan:  # fmt: skip
    """Decide from the rows. `held` is what `me` believes to own (partition -> epoch), `live` the members that are alive
    and what they want; members are meant by their tokens. Pure: the same rows give the same plan."""
    lost = [p for p, epoch in held.items() if not is_mine(leases.get(p), me, epoch)]
    forgotten = [x for p, x in leases.items() if is_mine(x, me, x.epoch) and held.get(p) != x.epoch]
    if me not in live:
        return Plan([], [], lost, forgotten)
    kept = {p for p in held if p not in lost}
    quota = quotas(partitions, live)
    has = Counter(lease.owner for lease in leases.values() if not lease.released)
    needy = [m for m in live if m != me and has[m] < quota[m]]
    free = [p for p in _order(me, partitions, live) if _takes(wanted, p) and _free(leases.get(p), live)]
    claim = free[: max(0, quota[me] - len(kept))]
    claim += [p for p in free if p not in claim and not any(_takes(live[m], p) for m in needy)]
    surplus = sorted(p for p in kept.difference(revoking) if any(_takes(live[m], p) for m in needy))
    excess = len(kept.difference(revoking)) - quota[me]
    return Plan(claim, surplus[-excess:] if excess > 0 else [], lost, forgotten)


def quotas(partitions: int, live: Mapping[str, Wanted]) -> dict[str, int]:
    """Return how many partitions each member should have: evenly, as far as what they want allows."""
    out = dict.fromkeys(sorted(live), 0)
    for p in sorted(range(partitions), key=lambda p: _wanters(p, live)):
        able = [m for m in out if _takes(live[m], p)]
        if able:
            out[min(able, key=lambda m: out[m])] += 1
    return out


def _order(me: str, partitions: int, live: Mapping[str, Wanted]) -> list[int]:
    """Return in which order to claim: what few want first; each member starts at another place."""
    start = sorted(live).index(me) * partitions // len(live)
    turned = [(p + start) % partitions for p in range(partitions)]
    return sorted(turned, key=lambda p: _wanters(p, live))


def _takes(wanted: Wanted, partition: int) -> bool:
    return wanted is None or partition in wanted


def _wanters(partition: int, live: Mapping[str, Wanted]) -> int:
    return sum(_takes(wanted, partition) for wanted in live.values())


def is_mine(lease: Lease | None, me: str, epoch: int) -> bool:
    """The row still gives the partition to this member under this epoch."""
    return lease is not None and lease.owner == me and lease.epoch == epoch and not lease.released


def _free(lease: Lease | None, live: Mapping[str, Wanted]) -> bool:
    return lease is None or lease.released or lease.owner not in live
