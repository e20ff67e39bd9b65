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
        await link.open([])
        version = wire.release(await link.ask(None, wire.versions_request()))
        facts = await topics.facts(link, names)
    except RefoldError as error:
        return _nothing("the cluster cannot be asked", ("cluster", False, str(error), "start it, or name another"))
    if names.log not in facts.topics:
        return _nothing("there is no log", ("topic", False, f"{names.log} is not there", "see `refold broker plan`"))
    durability, why = durability_of(facts)
    checks = [*topics.checks(facts, address, max_append), _in_sync(facts), _hints(facts)]
    fatal = any(not ok for name, ok, _, _ in checks if name not in ("replicas in sync", "hints"))
    return Health(ok=not fatal, durability=durability, why=why, version=version, checks=checks)


def _nothing(why: str, check: Check) -> Health:
    return Health(ok=False, durability="D1", why=why, checks=[check])


def durability_of(facts: Facts) -> tuple[str, str]:
    """Return the durability class and the setting it follows from. Kafka acknowledges before its disk does."""
    replicas, least = facts.replication, facts.setting(facts.names.log, "min.insync.replicas")
    flush = facts.setting(facts.names.log, "flush.messages") == "1"
    if replicas < 2:
        why = "one replica, " + ("flush.messages=1" if flush else "acknowledged before it is on the disk")
        return ("D2" if flush else "D1"), why
    if least is None or int(least) < 2:
        return "D1", f"{replicas} replicas, but min.insync.replicas is {least or 'not to be seen'}"
    why = f"{replicas} replicas, of which {least} have a record before it is acknowledged"
    return ("D4", f"{why}, flush.messages=1") if flush else ("D1+D3", why)


def _in_sync(facts: Facts) -> Check:
    partitions = facts.topics[facts.names.log].partitions
    behind = [p for p, (_, replicas, in_sync) in partitions.items() if len(in_sync) < len(replicas)]
    detail = f"partitions {behind} miss some" if behind else "all"
    return ("replicas in sync", not behind, detail, "look for a broker that is down or behind")


def _hints(facts: Facts) -> Check:
    here = facts.names.hints in facts.topics
    return ("hints", here, "there" if here else f"topic {facts.names.hints} is not there: answers are noticed later",
            "see `refold broker plan`")  # fmt: skip
