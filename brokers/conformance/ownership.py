"""Who owns a partition: one member of a group at a time, under epochs that grow."""

from __future__ import annotations

import asyncio
import math

from ...bus.broker import Broker, LogSpec, Lost, Revoked
from .case import Cases
from .stage import LONG, Member, Stage, appended, check, equal, item, monotonic, value, values

CASES = Cases()
FOUR = LogSpec(partitions=4)


def _shared(*members: Member, partitions: int = 4) -> bool:
    """The members own every partition, each some."""
    owned = [p for m in members for p in m.epochs]
    return sorted(owned) == list(range(partitions)) and all(m.epochs for m in members)


@CASES.add("Broker.subscribe", "Subscription.fetch", "Subscription.owned")
async def a_lone_member_is_given_every_partition_once(stage: Stage) -> None:
    broker = await stage.open(FOUR)
    member = await stage.lone(broker)
    equal(len(member.assigned()), 4, "how often a partition was assigned")
    check(not any(e.resumed or e.after_death for e in member.assigned()), f"a first owner: {member.assigned()}")
    check(min(member.epochs.values()) >= 1, f"epochs: {member.epochs}")
    equal(dict(member.sub.owned()), member.epochs, "what the member owns")


@CASES.add("Subscription.deadline", "Subscription.turned")
async def an_owner_is_sure_of_what_it_owns_for_some_time_and_of_nothing_else(stage: Stage) -> None:
    broker = await stage.open()
    member = await stage.join(broker, "a", partitions=[0])
    equal(member.sub.deadline(1), -math.inf, "the deadline of a partition that the member does not own")
    await stage.until(lambda: 0 in member.epochs, member)
    member.sub.turned()
    until = member.sub.deadline(0)
    check(monotonic() < until, "the deadline of an owner has passed")
    check(until == math.inf or until <= monotonic() + LONG, "a deadline that is later than the end of the lease")
    await member.release(0)
    check(member.sub.deadline(0) == -math.inf or 0 in member.sub.owned(), "a deadline for what was released")


@CASES.add("Broker.subscribe", "Subscription.fetch", "Subscription.release")
async def a_member_that_joins_gets_a_share_and_the_owner_is_asked_for_it(stage: Stage) -> None:
    broker, other = await stage.pair(FOUR)
    first = await stage.lone(broker, "a")
    second = await stage.join(other, "b")
    await stage.until(lambda: _shared(first, second), first, second)
    check(first.told(Revoked) and not first.told(Lost), "a living owner was not asked for what it gave up")
    check(not any(e.after_death for e in second.assigned()), "a partition that was given up is taken for a death")
    both = {**first.sub.owned(), **second.sub.owned()}
    equal(both, {**first.epochs, **second.epochs}, "what both own")


@CASES.add("Broker.subscribe", "Subscription.release")
async def an_owner_that_does_not_release_keeps_what_was_revoked_while_it_lives(stage: Stage) -> None:
    broker, other = await stage.pair(FOUR)
    lease = stage.subject.lease
    first = await stage.lone(broker, "a", lease=lease)
    first.obliging = False
    second = await stage.join(other, "b", lease=lease)
    await stage.until(lambda: first.told(Revoked), first, second)
    revoked, asked = first.told(Revoked)[0], monotonic()
    await stage.until(lambda: monotonic() > asked + 2 * lease, first, second)
    equal(first.told(Lost), [], "what a living owner has lost that did not release")
    first.seek(revoked.partition)
    await appended(broker, item(revoked.partition, None, "a"))
    equal(values(await first.take(revoked.partition, 1)), [value("a")], "records of a partition that was revoked")
    check(revoked.partition not in second.epochs, "a partition has two owners")
    await first.release(revoked.partition)
    first.obliging = True
    for event in first.told(Revoked)[1:]:
        await first.release(event.partition)
    await stage.until(lambda: _shared(first, second), first, second)


@CASES.add("Broker.subscribe")
async def a_member_that_leaves_hands_over_at_once(stage: Stage) -> None:
    broker, other = await stage.pair(FOUR)
    first = await stage.lone(broker, "a")
    second = await stage.join(other, "b")
    await stage.until(lambda: _shared(first, second), first, second)
    await first.leave()
    await stage.until(lambda: len(second.epochs) == 4, second)
    check(not any(e.after_death for e in second.assigned()), "a member that has left is taken for dead")


@CASES.add("Broker.subscribe")
async def a_member_that_leaves_by_an_error_has_left(stage: Stage) -> None:
    broker, other = await stage.pair()
    try:
        async with broker.subscribe("g", "a", lease=LONG) as sub:
            while len(sub.owned()) < 2:
                sub.turned()
                await sub.fetch(max_wait=0.02)
            raise LookupError("an error of the one who subscribed")
    except LookupError:
        pass
    heir = await stage.lone(other, "b")
    check(not any(e.after_death for e in heir.assigned()), "a member that has left is taken for dead")


@CASES.add("Broker.subscribe")
async def a_member_that_is_cancelled_while_it_joins_leaves_nothing_behind(stage: Stage) -> None:
    broker = await stage.open()

    async def join() -> None:
        async with broker.subscribe("g", "a", lease=LONG) as sub:
            while True:
                sub.turned()
                await sub.fetch(max_wait=0.02)

    for turns in (0, 1, 2, 3, 5, 8):
        joining = asyncio.ensure_future(join())
        for _ in range(turns):
            await asyncio.sleep(0)
        joining.cancel()
        await asyncio.gather(joining, return_exceptions=True)
    member = await stage.lone(broker, "a")
    check(not any(e.after_death for e in member.assigned()), "a member that was cancelled is taken for dead")


@CASES.add("Broker.subscribe", "Subscription.fetch")
async def the_epochs_of_a_partition_grow_with_each_change_of_owner(stage: Stage) -> None:
    highest = {0: 0, 1: 0}
    for n, broker in enumerate(await stage.pair() * 2):
        member = await stage.lone(broker, f"m{n}")
        for partition, epoch in member.epochs.items():
            check(epoch > highest[partition], f"epoch {epoch} follows on {highest[partition]}")
        highest = dict(member.epochs)
        await member.leave()


@CASES.add("Subscription.release")
async def what_is_released_may_be_had_by_another_at_once(stage: Stage) -> None:
    broker, other = await stage.pair()
    first = await stage.join(broker, "a", partitions=[0])
    await stage.until(lambda: 0 in first.epochs, first)
    second = await stage.join(other, "b")
    await stage.until(lambda: 1 in second.epochs, second)
    if 0 not in second.epochs:
        await first.release(0)
        await stage.until(lambda: 0 in {**first.epochs, **second.epochs}, first, second)
    check(not any(e.after_death for e in [*first.assigned(), *second.assigned()]), "a release is taken for a death")


@CASES.add("Subscription.release")
async def releasing_what_has_ended_already_does_nothing(stage: Stage) -> None:
    broker = await stage.open()
    member = await stage.lone(broker)
    await member.sub.release(0, member.epochs[0] - 1)
    await member.sub.release(0, member.epochs[0] + 1)
    await member.turn()
    equal(dict(member.sub.owned()), member.epochs, "what the member owns after releases of other epochs")
    old = member.epochs[0]
    await member.release(0)
    await stage.until(lambda: 0 in member.epochs, member)
    await member.sub.release(0, old)
    equal(dict(member.sub.owned()), member.epochs, "what the member owns after a second release")
    await member.leave()
    await member.sub.release(0, old)


@CASES.add("Broker.subscribe")
async def members_own_only_partitions_that_they_claim(stage: Stage) -> None:
    broker, other = await stage.pair(FOUR)
    some = await stage.join(broker, "a", partitions=[1, 3])
    await stage.until(lambda: len(some.epochs) == 2, some)
    equal(sorted(some.epochs), [1, 3], "what a member owns that claims 1 and 3")
    rest = await stage.join(other, "b", partitions=[0])
    await stage.until(lambda: len(rest.epochs) == 1, some, rest)
    for _ in range(3):
        await some.turn()
        await rest.turn()
    equal((sorted(some.epochs), sorted(rest.epochs)), ([1, 3], [0]), "what both own")
    await some.leave()
    anybody = await stage.join(other, "c")
    await stage.until(lambda: sorted([*anybody.epochs, *rest.epochs]) == [0, 1, 2, 3], rest, anybody)


@CASES.add("Broker.subscribe")
async def groups_know_nothing_of_each_other(stage: Stage) -> None:
    broker, other = await stage.pair()
    one, two = await stage.join(broker, "a", "g"), await stage.join(other, "a", "h")
    await stage.until(lambda: len(one.epochs) == len(two.epochs) == 2, one, two)
    await appended(broker, item(0, "k", "a"))
    for member in (one, two):
        member.seek(0)
        equal(values(await member.take(0, 1)), [value("a")], "what a group reads")
    await one.leave()
    await two.turn()
    equal(sorted(two.epochs), [0, 1], "what a group owns when a member of another one has left")
    equal(len(two.assigned()), 2, "how often partitions were assigned in a group in which nothing happened")


# ---- death ---------------------------------------------------------------------------------------------------------
async def _owner_and_heir(stage: Stage) -> tuple[Broker, Member, Member]:
    """Return a broker, its member that owns everything, and a member of another broker that has just joined."""
    broker, other = await stage.pair()
    owner = await stage.join(broker, "owner", lease=stage.subject.lease)
    await stage.until(lambda: len(owner.epochs) == 2, owner)
    heir = await stage.join(other, "heir", lease=stage.subject.lease)
    return broker, owner, heir


@CASES.add("Broker.subscribe", "Subscription.fetch", hooks=("kill",))
async def what_a_dead_member_owned_goes_to_others_who_hear_of_the_death(stage: Stage) -> None:
    broker, dead, heir = await _owner_and_heir(stage)
    await appended(broker, item(0, "k", "a"))
    assert stage.subject.kill is not None
    stage.subject.kill(broker)
    await stage.until(lambda: len(heir.epochs) == 2, heir)
    for partition in (0, 1):
        check(heir.epochs[partition] > dead.epochs[partition], "an epoch that does not grow by a death")
    check(all(e.after_death for e in heir.assigned()), f"a death that nobody hears of: {heir.assigned()}")
    heir.seek(0)
    equal(values(await heir.take(0, 1)), [value("a")], "what the heir reads")
    await heir.leave()
    third = await stage.lone(broker, "third") if stage.subject.stall is None else None
    check(third is None or not any(e.after_death for e in third.assigned()), "a death is told twice")


@CASES.add("Broker.subscribe", "Subscription.fetch", "Subscription.deadline", hooks=("stall",))
async def an_owner_that_was_away_beyond_its_lease_hears_that_it_has_lost(stage: Stage) -> None:
    broker, away, heir = await _owner_and_heir(stage)
    away.seek(0)
    old = dict(away.epochs)
    assert stage.subject.stall is not None
    with stage.subject.stall(broker):
        until = away.sub.deadline(0)
        while len(heir.epochs) < 2:
            await heir.turn()
        check(until == math.inf or monotonic() >= until, "a partition was taken before its owner's deadline")
        await appended(broker, item(0, "k", "a"))
    away.obliging = False  # it was away when it was asked
    await stage.until(lambda: len(away.told(Lost)) >= 2, away, heir)
    away.obliging = True
    check({(e.partition, e.epoch) for e in away.told(Lost)} >= set(old.items()), "an epoch ended without a word")
    check(all(e.after_death for e in heir.assigned()), f"a death that nobody hears of: {heir.assigned()}")
    for partition, epoch in old.items():
        check(away.sub.owned().get(partition) != epoch, "an epoch that is lost is owned")
        check(partition in away.sub.owned() or away.sub.deadline(partition) == -math.inf, "a deadline of what is lost")
        check(not await away.sub.save_checkpoint(partition, epoch, 1, b"", {}, []), "a checkpoint under a lost epoch")
        await away.sub.release(partition, epoch)
    await stage.until(lambda: sorted([*away.epochs, *heir.epochs]) == [0, 1], away, heir)
