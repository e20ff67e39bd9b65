"""Who is alive, by their own word, beside the log."""

from __future__ import annotations

from ...bus.broker import Broker, Presence
from .case import Cases
from .stage import Stage, check, equal

CASES = Cases()


def _presence(member: str, group: str = "g", running: int = 0) -> Presence:
    """Return a presence with something in each field but pid and host: nobody may look for such a process."""
    return Presence(
        member=member, group=group, app="app \u2028", started=1.5, agents={"writer": ("task_request", "note")},
        capabilities={"writer": {"writing": ("technical", "\u00e9")}}, partitions=(0, 3), waiting=7, running=running,
    )  # fmt: skip


async def _alive(broker: Broker, group: str | None = None) -> list[str]:
    return sorted(m.presence.member for m in await broker.members(group))


@CASES.add("Broker.announce", "Broker.members")
async def who_is_announced_is_seen_by_all_as_it_was_told(stage: Stage) -> None:
    broker, other = await stage.pair()
    equal(await broker.members(gone=True), [], "who was ever there")
    await broker.announce(_presence("a"), ttl=60)
    for reader in (broker, other):
        members = await reader.members()
        equal([(m.presence, m.alive) for m in members], [(_presence("a"), True)], "the presence, and whether it holds")
        check(0 <= members[0].age < 60, f"it was told {members[0].age} s ago")


@CASES.add("Broker.announce")
async def what_a_member_tells_replaces_what_it_told_before(stage: Stage) -> None:
    broker, other = await stage.pair()
    await broker.announce(_presence("a", running=1), ttl=60)
    await other.announce(_presence("a", running=2), ttl=60)
    equal([m.presence.running for m in await broker.members(gone=True)], [2], "what is known of the member")
    await broker.withdraw("a")
    await broker.announce(_presence("a", running=3), ttl=60)
    equal(await _alive(other), ["a"], "who is alive after it came back")


@CASES.add("Broker.members")
async def members_are_asked_for_by_group_or_all(stage: Stage) -> None:
    broker = await stage.open()
    for member, group in (("a", "g"), ("b", "g"), ("c", "h")):
        await broker.announce(_presence(member, group), ttl=60)
    found = [await _alive(broker, group) for group in ("g", "h", "i", None)]
    equal(found, [["a", "b"], ["c"], [], ["a", "b", "c"]], "who is alive in g, in h, in i, anywhere")


@CASES.add("Broker.withdraw", "Broker.members")
async def who_withdraws_is_gone_and_remembered(stage: Stage) -> None:
    broker, other = await stage.pair()
    for member in ("a", "b"):
        await broker.announce(_presence(member), ttl=60)
    await other.withdraw("a")
    equal(await _alive(broker), ["b"], "who is alive")
    known = {m.presence.member: m.alive for m in await broker.members("g", gone=True)}
    equal(known, {"a": False, "b": True}, "who is remembered, and whether alive")
    await broker.withdraw("a")
    await broker.withdraw("nobody")


@CASES.add("Broker.announce", "Broker.members")
async def a_presence_holds_for_its_time_only(stage: Stage) -> None:
    broker, other = await stage.pair()
    await broker.announce(_presence("short"), ttl=0.2)
    await broker.announce(_presence("long"), ttl=60)

    async def over() -> bool:
        return await _alive(other) == ["long"]

    await stage.until_so(over)
    known = {m.presence.member: m.alive for m in await other.members(gone=True)}
    equal(known, {"short": False, "long": True}, "who is remembered, and whether alive")


@CASES.add("Broker.announce", "Broker.withdraw")
async def presence_is_not_in_the_log(stage: Stage) -> None:
    broker = await stage.open()
    before = await broker.positions("end")
    await broker.announce(_presence("a"))
    await broker.withdraw("a")
    equal(await broker.positions("end"), before, "the ends of the log after somebody came and went")
