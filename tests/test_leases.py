"""Who owns which partition of a SQLite log: what a member does about the rows, and what a transaction does to them."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
from collections.abc import Iterator

import pytest

from refold.brokers import pids, shares
from refold.brokers.shares import Lease, Peer, Plan, View
from refold.brokers.sqlite import leases
from refold.brokers.sqlite.connection import translate
from refold.brokers.sqlite.schema import TABLES
from refold.bus.errors import LogCorrupt


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        for statement in TABLES:
            db.execute(statement)
        yield db


def peer(member: str, counter: int = 1, wanted: frozenset[int] | None = None) -> Peer:
    return Peer(member, f"token of {member}", counter, 7, 1.5, "here", wanted)


def rows(db: sqlite3.Connection, group: str = "g") -> dict[int, Lease]:
    return leases.read(db, group).leases


# ---- rows ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE members SET counter = 'many'", "UPDATE members SET token = x'00'", "UPDATE members SET wanted = 'a b'",
        "UPDATE members SET wanted = 7.5", "UPDATE members SET started = 'noon'", "UPDATE leases SET epoch = 'last'",
        "UPDATE leases SET owner = x'80'", "UPDATE leases SET epoch = 1.5",
        "UPDATE leases SET released = 'x'", "UPDATE leases SET released = 7", "UPDATE members SET wanted = x'3031'",
    ],
)  # fmt: skip
def test_damage_that_changes_what_a_row_is_made_of_is_told_as_damage(db, damage):
    leases.write_peer(db, "g", peer("a", wanted=frozenset({1, 2})))
    leases.claim(db, "g", "me", View({}, []), [0])
    leases.read(db, "g")
    db.execute(damage)
    with pytest.raises(sqlite3.DatabaseError) as told:
        leases.read(db, "g")
    assert isinstance(translate(told.value, "log.db"), LogCorrupt)


def test_a_member_is_read_as_it_was_written_and_replaced_under_its_name(db):
    known = [peer("a"), peer("b", 3, frozenset({2, 0})), peer("c", wanted=frozenset())]
    for one in known:
        leases.write_peer(db, "g", one)
    leases.write_peer(db, "other", peer("a"))
    assert sorted(leases.read(db, "g").peers) == sorted(known)
    again = peer("a", 9)._replace(token="another", pid=8, started=2.5, place="there")
    leases.write_peer(db, "g", again)
    assert sorted(leases.read(db, "g").peers) == sorted([again, *known[1:]])
    assert leases.read(db, "other").peers == [peer("a")]


def test_a_renewal_counts_and_says_where_the_member_was_removed(db):
    leases.write_peer(db, "g", peer("a"))
    leases.write_peer(db, "g", peer("b"))
    assert leases.renew(db, "g", "token of a")
    assert {p.member: p.counter for p in leases.read(db, "g").peers} == {"a": 2, "b": 1}
    assert not leases.renew(db, "g", "nobody's")
    assert not leases.renew(db, "other", "token of a")


def test_a_member_that_has_renewed_since_it_was_taken_for_dead_stays(db):
    leases.write_peer(db, "g", peer("a", 5))
    leases.remove_peer(db, "g", "token of a", 4)
    leases.remove_peer(db, "other", "token of a")
    assert leases.read(db, "g").peers == [peer("a", 5)]
    leases.remove_peer(db, "g", "token of a", 5)
    assert leases.read(db, "g").peers == []
    leases.write_peer(db, "g", peer("a", 5))
    leases.remove_peer(db, "g", "token of a")
    assert leases.read(db, "g").peers == []


# ---- claiming and releasing ------------------------------------------------------------------------------------------
def test_each_claim_begins_an_epoch_and_says_how_the_one_before_ended(db):
    first = leases.claim(db, "g", "me", View({}, []), [0, 2])
    assert first == [Lease(0, 1, "me", True), Lease(2, 1, "me", True)]
    assert rows(db) == {0: Lease(0, 1, "me", False), 2: Lease(2, 1, "me", False)}
    leases.release(db, "g", "me", 0, 1)
    assert rows(db)[0] == Lease(0, 1, "", True)
    assert leases.claim(db, "g", "you", leases.read(db, "g"), [0, 2]) == [
        Lease(0, 2, "you", True), Lease(2, 2, "you", False),
    ]  # fmt: skip
    assert rows(db, "other") == {}
    assert [leases.current_epoch(db, "g", p) for p in (0, 1, 2)] == [2, None, 2]


def test_what_another_has_taken_meanwhile_is_left_and_the_rest_is_claimed(db):
    leases.claim(db, "g", "me", View({}, []), [0, 1])
    seen = leases.read(db, "g")
    leases.claim(db, "g", "faster", seen, [0])
    assert leases.claim(db, "g", "slower", seen, [0, 1, 2]) == [
        Lease(1, 2, "slower", False), Lease(2, 1, "slower", True),
    ]  # fmt: skip
    assert rows(db)[0] == Lease(0, 2, "faster", False)


def test_what_its_owner_has_renewed_meanwhile_is_left_and_the_rest_is_claimed(db):
    for name in ("slow", "dead"):
        leases.write_peer(db, "g", peer(name))
    leases.claim(db, "g", "token of slow", View({}, []), [0])
    leases.claim(db, "g", "token of dead", View({}, []), [1])
    seen = leases.read(db, "g")
    assert leases.renew(db, "g", "token of slow")
    assert leases.claim(db, "g", "me", seen, [0, 1]) == [Lease(1, 2, "me", False)]
    assert rows(db)[0] == Lease(0, 1, "token of slow", False)


def test_an_owner_that_has_come_back_since_it_was_seen_to_be_gone_keeps_what_it_has(db):
    leases.claim(db, "g", "token of a", View({}, []), [0])
    seen = leases.read(db, "g")
    leases.write_peer(db, "g", peer("a"))
    assert leases.claim(db, "g", "me", seen, [0]) == []


def test_a_release_is_of_one_epoch_of_one_owner_and_of_no_other(db):
    leases.claim(db, "g", "me", View({}, []), [0, 1])
    leases.claim(db, "g", "me", leases.read(db, "g"), [0])
    leases.claim(db, "other", "me", View({}, []), [0])
    for group, owner, partition, epoch in (("g", "me", 0, 1), ("g", "you", 0, 2), ("h", "me", 0, 2), ("g", "me", 2, 2)):
        leases.release(db, group, owner, partition, epoch)
    assert rows(db) == {0: Lease(0, 2, "me", False), 1: Lease(1, 1, "me", False)}
    leases.release(db, "g", "me", 0, 2)
    assert rows(db) == {0: Lease(0, 2, "", True), 1: Lease(1, 1, "me", False)}
    assert rows(db, "other") == {0: Lease(0, 1, "me", False)}
    assert leases.current_epoch(db, "g", 0) is None


@pytest.mark.parametrize(
    "lease",
    [None, Lease(0, 2, "me", True), Lease(0, 2, "you", False), Lease(0, 1, "me", False), Lease(0, 3, "me", False)],
)
def test_a_lease_is_mine_under_my_name_in_my_epoch_and_not_released(lease):
    assert shares.is_mine(Lease(0, 2, "me", False), "me", 2)
    assert not shares.is_mine(lease, "me", 2)


# ---- plans -----------------------------------------------------------------------------------------------------------
def held(**owners: str) -> dict[int, Lease]:
    """Rows by the partitions' numbers, all of epoch 1: held(p0="me")."""
    return {int(p[1:]): Lease(int(p[1:]), 1, owner, not owner) for p, owner in owners.items()}


def test_who_is_not_among_the_living_claims_and_gives_up_nothing_and_says_what_is_lost():
    known = held(p0="me", p1="you", p2="me")
    plan = shares.plan("me", 4, None, known, {0: 1, 1: 1}, set(), {"you": None})
    assert plan == Plan(claim=[], revoke=[], lost=[1], forgotten=[known[2]])


def test_what_only_the_rows_say_is_mine_is_forgotten_and_what_they_say_is_anothers_is_lost():
    known = held(p0="me", p1="me", p2="you")
    plan = shares.plan("me", 3, None, known, {0: 1, 1: 7, 2: 1}, set(), {"me": None, "you": None})
    assert plan.lost == [1, 2]
    assert plan.forgotten == [known[1]]


def test_two_members_share_and_the_one_that_has_too_much_gives_up_the_surplus():
    known = held(p0="me", p1="me", p2="me", p3="me")
    live = {"me": None, "you": None}
    mine = dict.fromkeys(range(4), 1)
    assert shares.plan("me", 4, None, known, mine, set(), live).revoke == [2, 3]
    assert shares.plan("me", 4, None, known, mine, {3}, live).revoke == [2]
    assert shares.plan("me", 4, None, known, mine, {2, 3}, live).revoke == []
    assert shares.plan("you", 4, None, known, {}, set(), live).claim == []


def test_what_is_free_is_claimed_up_to_the_share_and_the_dead_own_nothing():
    live = {"me": None, "you": None}
    known = held(p0="dead", p1="", p2="you", p3="you")
    assert sorted(shares.plan("me", 4, None, known, {}, set(), live).claim) == [0, 1]
    known = held(p0="dead", p1="", p2="dead", p3="dead")
    assert len(shares.plan("me", 4, None, known, {}, set(), live).claim) == 2
    mine, yours = (set(shares.plan(name, 4, None, known, {}, set(), live).claim) for name in live)
    assert mine | yours == {0, 1, 2, 3}


def test_nobody_claims_or_is_given_what_it_does_not_want():
    live = {"me": frozenset({0, 1}), "you": None}
    assert shares.quotas(6, live) == {"me": 2, "you": 4}
    assert sorted(shares.plan("me", 6, live["me"], {}, {}, set(), live).claim) == [0, 1]
    assert sorted(shares.plan("you", 6, None, {}, {}, set(), live).claim) == [2, 3, 4, 5]
    all_mine = {p: Lease(p, 1, "you", False) for p in range(6)}
    assert shares.plan("you", 6, None, all_mine, dict.fromkeys(range(6), 1), set(), live).revoke == [0, 1]


def test_what_no_needy_member_takes_is_claimed_beyond_the_share():
    live = {"me": None, "you": frozenset({0})}
    known = held(p0="you")
    assert sorted(shares.plan("me", 4, None, known, {}, set(), live).claim) == [1, 2, 3]


# ---- processes -------------------------------------------------------------------------------------------------------
def test_a_process_is_known_by_its_pid_and_when_it_began(monkeypatch):
    mine = pids.started(os.getpid())
    assert mine is not None
    assert pids.is_running(os.getpid(), mine)
    assert not pids.is_running(os.getpid(), mine + 1)
    assert pids.place() == pids.place()
    if sys.platform == "linux":
        assert pids.place().endswith(f"/{os.stat('/proc/self/ns/pid').st_ino}")
    monkeypatch.setattr(pids.Path, "read_text", lambda *_, **__: "nonsense")  # where there is no such file
    other = pids.started(os.getpid())
    assert other is not None
    assert pids.is_running(os.getpid(), other)
    assert pids.started(2**22 + 1) is None


def test_a_process_that_may_not_be_looked_at_counts_as_running(monkeypatch):
    def refuses(pid):
        raise pids.psutil.AccessDenied(pid)

    monkeypatch.setattr(pids, "started", refuses)
    assert pids.is_running(1, 0.0)
