"""The words of Kafka's control topic: one order, one fold, and snapshots that are true whoever writes them."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import pytest
from hypothesis import given, strategies as st

from refold.brokers.kafka.address import parse
from refold.brokers.kafka.control import (
    Beat,
    Claim,
    Left,
    Made,
    Release,
    Snapshot,
    State,
    Told,
    Withdrawn,
    Word,
    decode,
    encode,
    fold,
)
from refold.brokers.kafka.keeper import Keeper, Membership
from refold.brokers.kafka.topics import names_of
from refold.brokers.shares import Lease
from refold.bus.broker import LogMeta, Presence

TOKENS = st.sampled_from(["t1", "t2", "t3"])
PARTITIONS = st.integers(0, 1)
NUMBERS = st.integers(0, 3)
WORDS = st.one_of(
    st.builds(Beat, st.just("g"), st.sampled_from(["a", "b"]), TOKENS, st.integers(1, 3), st.just([0, 1])),
    st.builds(Left, st.just("g"), TOKENS, st.one_of(st.none(), NUMBERS)),
    st.builds(
        lambda token, wish: Claim("g", token, [wish]), TOKENS,
        st.tuples(PARTITIONS, st.integers(1, 4), st.sampled_from(["", "t1", "t2", "t3"]), NUMBERS),
    ),
    st.builds(Release, st.just("g"), TOKENS, PARTITIONS, NUMBERS),
    st.builds(lambda m, n: Told(Presence(member=m, group="g", running=n), 8.0), TOKENS, NUMBERS),
    st.builds(Withdrawn, TOKENS),
    st.builds(lambda i: Made(LogMeta(log_id=i, partitions=2)), TOKENS),
)  # fmt: skip


def folded(words: list[Word], start: State | None = None, first: int = 0) -> State:
    state = start or State()
    for n, word in enumerate(words):
        fold(state, word, 1000.0 + first + n)
    return state


def data(state: State) -> Any:
    return msgspec.to_builtins(state)


@given(st.lists(WORDS, max_size=40), st.integers(0, 40))
def test_a_snapshot_and_the_words_after_it_are_the_words_from_the_start(words, at):
    at = min(at, len(words))
    snapshot = decode(encode(Snapshot(at, folded(words[:at]))))
    assert isinstance(snapshot, Snapshot)
    assert data(folded(words[at:], snapshot.state, at)) == data(folded(words))


@given(st.lists(WORDS, max_size=40))
def test_epochs_only_grow_and_one_member_owns_a_partition_under_an_epoch(words):
    state, owners, epochs = State(), dict[tuple[int, int], str](), dict[int, int]()
    for n, word in enumerate(words):
        fold(state, word, 1000.0 + n)
        for partition, lease in state.groups["g"].leases.items() if "g" in state.groups else ():
            assert lease.epoch >= epochs.get(partition, 0)
            epochs[partition] = lease.epoch
            if not lease.released:
                assert owners.setdefault((partition, lease.epoch), lease.owner) == lease.owner


def beat(token: str, counter: int, member: str = "") -> Beat:
    return Beat("g", member or token, token, counter)


def owner(words: list[Word]) -> Lease | None:
    return folded(words).groups["g"].leases.get(0)


def test_of_two_that_claim_the_same_the_first_one_has_it():
    words = [beat("t1", 1), beat("t2", 1), Claim("g", "t1", [(0, 1, "", 0)]), Claim("g", "t2", [(0, 1, "", 0)])]
    assert owner(words) == Lease(0, 1, "t1", False)


def test_an_owner_that_beats_before_the_claim_arrives_keeps_the_partition():
    words = [beat("t1", 1), beat("t2", 1), Claim("g", "t1", [(0, 1, "", 0)])]
    claim = Claim("g", "t2", [(0, 2, "t1", 1)])
    assert owner([*words, claim]) == Lease(0, 2, "t2", False)
    assert owner([*words, beat("t1", 2), claim]) == Lease(0, 1, "t1", False)


def test_who_was_buried_too_early_is_back_with_its_next_beat_and_who_leaves_gives_everything_up():
    words = [beat("t1", 1), beat("t2", 1), Claim("g", "t1", [(0, 1, "", 0)])]
    assert set(folded([*words, Left("g", "t1", 0)]).groups["g"].peers) == {"t1", "t2"}
    assert set(folded([*words, Left("g", "t1", 1)]).groups["g"].peers) == {"t2"}
    assert set(folded([*words, Left("g", "t1", 1), beat("t1", 2)]).groups["g"].peers) == {"t1", "t2"}
    assert owner([*words, Left("g", "t1", 1)]) == Lease(0, 1, "t1", False)
    assert owner([*words, Left("g", "t1")]) == Lease(0, 1, "", True)


def test_a_member_that_starts_again_takes_the_place_of_its_name_and_the_old_one_does_not_take_it_back():
    words: list[Word] = [beat("t1", 1, "a"), beat("t2", 1, "a")]
    assert set(folded(words).groups["g"].peers) == {"t2"}
    assert set(folded([*words, beat("t1", 2, "a")]).groups["g"].peers) == {"t1", "t2"}


def test_a_member_that_is_not_there_claims_nothing():
    assert owner([beat("t2", 1), Claim("g", "t1", [(0, 1, "", 0)])]) is None


@given(st.binary(max_size=50))
def test_what_is_no_word_is_skipped(junk):
    assert decode(junk) is None
    assert decode(None) is None


class Words:
    """Stands for the control topic: what others write arrives before what the keeper writes."""

    def __init__(self, words: list[Word], others: list[Word]) -> None:
        self.state, self.others, self.written = folded(words), others, list[Word]()

    async def write(self, word: Word) -> State:
        self.written.append(word)
        folded([*self.others, word], self.state)
        return self.state


@pytest.mark.parametrize("other", [Left("g", "dead2", 1), Beat("g", "dead2", "dead2", 2)])
def test_who_was_buried_by_others_or_is_back_meanwhile_is_not_buried(go, other):
    who = Membership(parse("kafka://localhost/n"), names_of("n"), "", "g", "me", 1, None, 1.0, 30.0)
    keeper = Keeper(who, lambda event: None, lambda: None)
    present = [beat(t, 1) for t in (keeper.token, "dead1", "dead2")]
    keeper.control = Words([*present, Claim("g", keeper.token, [(0, 1, "", 0)])], [other])  # type: ignore[assignment]
    keeper.held = {0: 1}
    keeper._seen = {"dead1": (1, -math.inf), "dead2": (1, -math.inf)}
    go(keeper._look())
    assert keeper.control.written == [Left("g", "dead1", 1), Left("g", "dead2", 1)]  # type: ignore[attr-defined]
    back = {"dead2"} if isinstance(other, Beat) else set()
    assert set(keeper.control.state.groups["g"].peers) == {keeper.token} | back
