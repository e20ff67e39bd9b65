"""The four topics of a log: their names and settings, making them, and verifying them. Nothing is ever changed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from ...bus.errors import ConfigError, LogMismatch
from . import wire
from .address import Address
from .link import Again, Link, together

DEFAULT_PARTITIONS = 24
ROOM = 1_048_588
"""Kafka's own default of `max.message.bytes`."""
MIB = 1 << 20

Check = tuple[str, bool, str, str]


class Names(NamedTuple):
    """`log`: the records, key = workflow. `checkpoints`: what groups keep, compacted. `control`: what the log is, and
    who owns what. `hints`: soon forgotten; may be missing."""

    log: str
    checkpoints: str
    control: str
    hints: str


def names_of(namespace: str) -> Names:
    """Return the topics of a namespace."""
    return Names(namespace, f"{namespace}.checkpoints", f"{namespace}.control", f"{namespace}.hints")


class Topic(NamedTuple):
    """A topic to be made."""

    name: str
    partitions: int
    replication: int
    settings: dict[str, str]


def wanted(names: Names, partitions: int, replication: int, max_append: int) -> list[Topic]:
    """Return the topics of a log, with the settings that keep it."""
    safe = {"min.insync.replicas": "2" if replication > 1 else "1", "unclean.leader.election.enable": "false"}
    stamped = {"message.timestamp.type": "LogAppendTime"}
    large = {"max.message.bytes": str(max(ROOM, max_append + max_append // 4))}
    endless = {"retention.ms": "-1"}
    return [
        Topic(names.log, partitions, replication, {
            "cleanup.policy": "delete", "retention.bytes": "-1", **endless, **safe, **stamped, **large}),
        Topic(names.checkpoints, partitions, replication, {
            "cleanup.policy": "compact", "segment.bytes": str(16 * MIB), "min.cleanable.dirty.ratio": "0.2",
            **safe, **large}),
        Topic(names.control, 1, replication, {
            "cleanup.policy": "delete", "retention.bytes": str(64 * MIB), "segment.bytes": str(8 * MIB),
            **endless, **safe, **stamped, **large}),
        Topic(names.hints, 1, replication, {
            "cleanup.policy": "delete", "retention.ms": "600000", "segment.ms": "600000",
            "retention.bytes": str(64 * MIB)}),
    ]  # fmt: skip


async def make(link: Link, topics: list[Topic]) -> None:
    """Make topics; those that somebody else has made meanwhile stay as they are. Raises ConfigError."""

    async def once() -> None:
        answer = await link.ask(None, wire.create_request(topics, 10_000))
        for name, code, why in answer.topic_errors:
            if code in wire.NO_RIGHT:
                raise ConfigError(
                    f"topic {name} is not there, and Kafka gives no right to make it: let an administrator do what "
                    "`refold broker plan` prints"
                )
            if code not in (wire.OK, wire.TOPIC_EXISTS):
                if code in wire.AGAIN:
                    raise Again(f"topic {name}: {why or wire.named(code)}")
                raise ConfigError(f"topic {name} cannot be made: {why or wire.named(code)}")

    await link.patiently(once)


async def known(link: Link, names: Names) -> dict[str, wire.Topic]:
    """Return those of the topics that are there. Raises ConfigError without the right to see them."""

    async def once() -> dict[str, wire.Topic]:
        found = await link.topics(names)
        for name, topic in found.items():
            if topic.error != wire.UNKNOWN_TOPIC:
                link.judge(topic.error, name)
        return {name: topic for name, topic in found.items() if not topic.error}

    return await link.patiently(once)


async def led(link: Link, topics: list[str]) -> None:
    """Wait until each partition has a leader."""

    async def once() -> None:
        found = await link.topics(topics)
        for name in topics:
            link.judge(found[name].error, name)
            if not found[name].partitions or any(leader < 0 for leader, _, _ in found[name].partitions.values()):
                raise Again(f"topic {name} has no leader yet")

    await link.patiently(once)


async def settings(link: Link, name: str) -> dict[str, str] | None:
    """Return the settings of a topic; None without the right to see them."""

    async def once() -> dict[str, str] | None:
        answer = await link.ask(None, wire.config_request(2, name))
        code, why, _, _, entries = answer.resources[0][:5]
        if code in wire.NO_RIGHT:
            return None
        link.judge(code, f"the settings of {name} {why or ''}".strip())
        return {entry[0]: entry[1] or "" for entry in entries}

    return await link.patiently(once)


class Facts(NamedTuple):
    """What the cluster says of the log's topics; settings are None where they may not be seen."""

    names: Names
    topics: Mapping[str, wire.Topic]
    settings: Mapping[str, dict[str, str] | None]

    @property
    def replication(self) -> int:
        """The fewest replicas that a partition of the log has."""
        return min(len(replicas) for _, replicas, _ in self.topics[self.names.log].partitions.values())

    def setting(self, topic: str, name: str) -> str | None:
        """Return a setting, or None where it is not known."""
        return (self.settings.get(topic) or {}).get(name)


async def facts(link: Link, names: Names) -> Facts:
    """Look at the topics that are there."""
    found = await known(link, names)
    seen = await together(settings(link, name) for name in found)
    return Facts(names, found, dict(zip(found, seen, strict=True)))


def verify(facts: Facts, address: Address, max_append: int) -> None:
    """Raise LogMismatch, which names everything that would lose records."""
    wrong = [f"{detail} ({remedy})" for name, ok, detail, remedy in checks(facts, address, max_append) if not ok]
    if wrong:
        raise LogMismatch(f"the topics of {address.namespace} do not keep a log: {'; '.join(wrong)}")


def checks(facts: Facts, address: Address, max_append: int) -> list[Check]:
    """Return what a log needs of its topics, whether it has it, and the command that gives it."""
    names, out = facts.names, list[Check]()
    replicas = facts.replication
    counts = {name: len(facts.topics[name].partitions) for name in facts.topics}
    if (asked := address.number("replication")) is not None:
        out.append(("replication", replicas == asked, f"replication is {replicas}, asked for {asked}",
                    "kafka-reassign-partitions, or another URL"))  # fmt: skip
    out.append(("partitions of checkpoints", counts.get(names.checkpoints, 0) == counts[names.log],
                f"{names.checkpoints} has {counts.get(names.checkpoints, 0)} partitions, {names.log} has "
                f"{counts[names.log]}", "make it again"))  # fmt: skip
    out.append(("partitions of control", counts.get(names.control) == 1,
                f"{names.control} has {counts.get(names.control)} partitions, one is needed",
                "make it again"))  # fmt: skip
    for topic in names[:3]:
        if topic in facts.topics:
            out += _setting_checks(facts, topic, address, replicas, max_append)
    return out


def _setting_checks(facts: Facts, topic: str, address: Address, replicas: int, max_append: int) -> list[Check]:
    compacted = topic == facts.names.checkpoints
    archived = topic == facts.names.log and address.settings.get("retention") == "archived"
    least = max_append + max_append // 20
    rules: list[tuple[str, Callable[[str], bool], str]] = [
        ("cleanup.policy", lambda v: ("compact" in v) == compacted, "compact" if compacted else "delete"),
        ("unclean.leader.election.enable", lambda v: v == "false", "false"),
        ("min.insync.replicas", lambda v: replicas == 1 or int(v) >= 2, "2"),
        ("max.message.bytes", lambda v: int(v) >= least, str(max(ROOM, max_append + max_append // 4))),
    ]
    if not compacted and not archived:
        rules.append(("retention.ms", lambda v: v == "-1", "-1"))
    if topic == facts.names.log and not archived:
        rules.append(("retention.bytes", lambda v: v == "-1", "-1"))
    if topic == facts.names.control:
        rules.append(("retention.bytes", lambda v: v == "-1" or int(v) >= 32 * MIB, str(64 * MIB)))
    out = list[Check]()
    for name, good, needed in rules:
        value = facts.setting(topic, name)
        command = f"kafka-configs --alter --entity-type topics --entity-name {topic} --add-config {name}={needed}"
        ok = value is None or good(value)
        out.append((f"{topic} {name}", ok, f"{name} of topic {topic} is {value or 'not to be seen'}", command))
    return out
