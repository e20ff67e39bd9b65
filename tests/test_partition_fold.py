"""What a partition's own records say: who owns it, whether an owner died, what is left to move."""

from __future__ import annotations

from typing import Any

from msgspec.structs import replace

from refold.bus import codec, facts, kinds
from refold.bus.broker import Checkpoint, Stored
from refold.bus.message import AgentMessage, Expected, Work
from refold.bus.partition import partition_of
from refold.projections.checkpoint import changes, restore
from refold.projections.partition import PartitionFold


class Log:
    """Folds the partition's own records as they are written."""

    def __init__(self) -> None:
        self.fold = PartitionFold(0, 1)
        self.records: dict[int, Stored] = {}

    def put(self, kind: str, fact: facts.Fact, key: str | None = None) -> None:
        position = self.fold.position + 1
        message = AgentMessage(
            id=f"r{position}", sender_id="m", receiver_id="*", message_type=kind, correlation_id=key or "",
            timestamp=float(position), fact=fact,
        )  # fmt: skip
        stored = self.records[position] = Stored(position, key, codec.encode(message), float(position))
        r = self.fold.open_envelope(stored)
        assert r is not None
        self.fold.fold(stored, r)

    def owner(self, epoch: int, member: str = "m", group: str = "g") -> None:
        self.put(kinds.OWNER, facts.Owner(group=group, epoch=epoch, member=member, pid=7, host="h", agents={"a": ()}))

    def released(self, epoch: int, group: str = "g") -> None:
        self.put(kinds.OWNER_RELEASED, facts.OwnerReleased(group=group, epoch=epoch, member="m"))

    def retired(self, agent: str) -> None:
        self.put(kinds.RETIRED, facts.Retired(agent=agent, actor="t"))

    def again(self, position: int) -> None:
        """What is at that position comes once more."""
        stored = replace(self.records[position], position=self.fold.position + 1)
        r = self.fold.open_envelope(stored)
        assert r is not None
        self.fold.fold(stored, r)

    def died(self, group: str = "g") -> bool:
        return self.fold.groups[group].after_death


def test_an_owner_that_follows_a_release_follows_no_death_and_any_other_follows_one():
    log = Log()
    log.owner(1)
    assert not log.died()
    log.released(1)
    log.owner(2)
    assert not log.died()
    log.owner(3)
    assert log.died()
    log.released(3)
    log.owner(4)
    assert not log.died()


def test_what_comes_again_changes_nobody_who_listens():
    """Brokers that refuse no duplicates have such records."""
    log = Log()
    log.owner(1)  # at 1
    log.retired("a")  # at 2
    log.again(1)
    assert log.fold.listeners == {}
    log.owner(2)
    assert log.fold.listeners == {"a": ()}
    log.again(2)
    log.owner(1)
    assert log.fold.listeners == {"a": ()}
    changed, _ = changes(log.fold, lambda w: True)
    taken_over = PartitionFold(0, 1)
    assert restore(taken_over, Checkpoint(log.fold.position, log.fold.last_id.encode(), changed))
    log.fold = taken_over
    log.again(2)
    log.retired("a")
    log.again(1)
    assert log.fold.listeners == {}


def test_the_release_of_an_older_epoch_says_nothing_of_the_owner_who_came_after_it():
    log = Log()
    log.owner(1)
    log.owner(2)
    log.released(1)
    assert not log.fold.groups["g"].released
    log.owner(3)
    assert log.died()


def test_an_owner_record_of_an_older_epoch_replaces_no_newer_one():
    log = Log()
    log.owner(2, "new")
    log.owner(1, "late")
    assert (log.fold.groups["g"].epoch, log.fold.groups["g"].member) == (2, "new")
    log.owner(2, "again")
    assert log.fold.groups["g"].member == "new"


def test_groups_own_a_partition_beside_each_other():
    log = Log()
    log.owner(1)
    log.owner(5, group="other")
    log.released(5)
    assert not log.fold.groups["g"].released
    log.released(1)
    assert log.fold.groups["g"].released
    assert not log.fold.groups["other"].released
    log.owner(6, group="other")
    assert log.died("other")
    assert not log.died("g")


def test_a_partitions_own_record_counts_only_where_it_has_no_key():
    log = Log()
    log.put(kinds.OWNER, facts.Owner(group="g", epoch=1, member="m", agents={"a": ()}), key="w")
    assert log.fold.groups == {}
    assert log.fold.listeners == {}


def test_who_owns_outlasts_a_checkpoint():
    log, again = Log(), PartitionFold(0, 1)
    log.owner(1)
    log.owner(2)
    log.released(2)
    changed, _ = changes(log.fold, lambda w: True, whole=True)
    assert restore(again, Checkpoint(log.fold.position, log.fold.last_id.encode(), changed))
    assert again.groups == log.fold.groups
    assert again.listeners == log.fold.listeners == {"a": ()}


def test_a_partitions_own_record_and_a_stray_have_their_place_and_no_workflow():
    fold = PartitionFold(0, 2)
    stray = next(f"w{n}" for n in range(9) if partition_of(f"w{n}", 2) == 1)
    for position, key in ((3, None), (5, stray)):
        message = AgentMessage(
            id="r", sender_id="m", receiver_id="*", correlation_id=key or "", timestamp=1.0,
            message_type="note" if key else kinds.OWNER_RELEASED,
            fact=None if key else facts.OwnerReleased(group="g", epoch=1, member="m"),
        )  # fmt: skip
        stored = Stored(position, key, codec.encode(message), 1.0)
        r = fold.open_envelope(stored)
        assert r is not None
        assert list(fold.missing(r)) == []
        folded = fold.fold(stored, r)
        assert (folded.position, folded.envelope, folded.workflow, folded.value) == (position, r, None, stored.value)
        assert folded.verdict == ("misplaced" if key else "ledger")
        assert (fold.position, fold.last_id) == (position, "r")
    assert list(fold.strays) == [5]


def test_bytes_that_are_no_record_are_counted_and_no_anchor():
    log = Log()
    log.owner(1)
    assert log.fold.open_envelope(Stored(2, "w", b"nonsense", 1.0)) is None
    assert (log.fold.undecodable, log.fold.position, log.fold.last_id) == (1, 2, "")


def test_where_stubs_were_forgotten_a_record_that_goes_on_is_judged_with_its_history_and_a_start_without():
    fold = PartitionFold(0, 1)
    fold.stubs.forgot = True

    def missing(kind: str, **fields: Any) -> list[str]:
        message = AgentMessage(
            id="r", sender_id="m", receiver_id="a", correlation_id="w", timestamp=1.0, message_type=kind, **fields
        )
        r = fold.open_envelope(Stored(1, "w", codec.encode(message), 1.0))
        assert r is not None
        return list(fold.missing(r))

    work = Work(message="m", writer="x")
    assert missing("note") == missing(kinds.TASK_REQUEST, asked=True) == []
    assert missing(kinds.CANCELLED, fact=facts.Cancelled()) == ["w"]
    assert missing(kinds.DELIVERED, fact=facts.Delivered(subject="s")) == ["w"]
    assert missing("note", work=work, generation=0) == missing("note", generation=0) == ["w"]
    assert missing("note", expected=Expected(version=0)) == missing("note", expected=Expected(version=3)) == ["w"]
    assert missing("note", in_reply_to="q") == missing("note", causation_id="q") == ["w"]
