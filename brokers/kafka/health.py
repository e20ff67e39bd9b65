"""What `doctor` wants to know of a log on Kafka. Changes nothing."""

from __future__ import annotations

from ...bus.broker import Health
from ...bus.errors import RefoldError
from . import topics, wire
from .address import Address
from .link import Link
from .topics import Check, Facts, Names


async def look(link: Link, address: Address, names: Names, max_append: int) -> Health:
    """Return the health of a log; what cannot be asked is a check that fails."""
    try:
        version = await _version(link)
        facts = await topics.facts(link, names)
    except RefoldError as error:
        remedy = "start the cluster, or name another with --broker"
        return Health(ok=False, durability="D1", why="the cluster cannot be asked", checks=[("cluster", False, str(error), remedy)])
    if names.log not in facts.topics:
        return Health(ok=False, durability="D1", why="there is no log", version=version,
                      checks=[("topic", False, f"topic {names.log} is not there", "see `refold broker plan`")])  # fmt: skip
    durability, why = durability_of(facts)
    checks = [*topics.checks(facts, address, max_append), _in_sync(facts), _hints(facts)]
    fatal = any(not ok for name, ok, _, _ in checks if name not in ("replicas in sync", "hints"))
    return Health(ok=not fatal, durability=durability, why=why, version=version, checks=checks)


def durability_of(facts: Facts) -> tuple[str, str]:
    """Return the durability class and the setting it follows from. Kafka acknowledges before its disk does."""
    replicas, least = facts.replication, facts.setting(facts.names.log, "min.insync.replicas")
    flush = facts.setting(facts.names.log, "flush.messages") == "1"
    if replicas < 2:
        return ("D2", "one replica, flush.messages=1") if flush else ("D1", "one replica, written without waiting for the disk")
    if least is None or int(least) < 2:
        return "D1", f"{replicas} replicas, but min.insync.replicas is {least or 'not to be seen'}"
    why = f"{replicas} replicas, of which {least} have a record before it is acknowledged"
    return ("D4", f"{why}, flush.messages=1") if flush else ("D1+D3", why)


def _in_sync(facts: Facts) -> Check:
    behind = [p for p, (_, replicas, isr) in facts.topics[facts.names.log].partitions.items() if len(isr) < len(replicas)]
    detail = f"partitions {behind} miss some" if behind else "all"
    return ("replicas in sync", not behind, detail, "look for a broker that is down or behind")


def _hints(facts: Facts) -> Check:
    here = facts.names.hints in facts.topics
    return ("hints", here, "there" if here else f"topic {facts.names.hints} is not there: answers are noticed later",
            "see `refold broker plan`")  # fmt: skip


async def _version(link: Link) -> str:
    """Return what can be told of the release: brokers do not say it, but which requests they know."""
    return await wire.release(link.client)
