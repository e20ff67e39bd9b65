"""What an administrator has to do where refold may not: the topics of a log, and the rights to work on it. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import NamedTuple

from ...bus.broker import ANY_LOG, DEFAULT_MAX_APPEND, LogSpec
from .address import Address
from .topics import DEFAULT_PARTITIONS, Topic, names_of, wanted

DEFAULT_REPLICATION = 3


class Right(NamedTuple):
    """Operations on a resource; `prefixed`: on all whose names begin so."""

    kind: str
    name: str
    operations: tuple[str, ...]
    prefixed: bool = False


def topics(address: Address, spec: LogSpec) -> list[Topic]:
    """Return the topics of the log that a URL names."""
    partitions = spec.partitions or address.number("partitions") or DEFAULT_PARTITIONS
    replication = address.number("replication") or DEFAULT_REPLICATION
    names = names_of(address.namespace)
    return wanted(names, partitions, replication, spec.max_append or DEFAULT_MAX_APPEND)


def rights(address: Address) -> list[Right]:
    """Return what a worker or a client must be allowed to do: to read and write, not to make or change a topic."""
    work = ("Read", "Write", "Describe", "DescribeConfigs")
    out = [Right("topic", name, work) for name in names_of(address.namespace)]
    out.append(Right("transactional-id", f"{address.namespace}.", ("Write", "Describe"), prefixed=True))
    if address.settings.get("offsets") == "true":
        out.append(Right("group", f"{address.namespace}.", ("Read",), prefixed=True))
    return out


def commands(address: Address, spec: LogSpec = ANY_LOG, *, principal: str = "User:refold") -> list[list[str]]:
    """Return the commands, word by word, for Kafka's own tools. The second half is for clusters that check rights."""
    servers = ["--bootstrap-server", ",".join(address.servers)]
    return [
        *(["kafka-topics", *servers, *_creation(topic)] for topic in topics(address, spec)),
        *(["kafka-acls", *servers, *_permission(right, principal)] for right in rights(address)),
    ]


def text(address: Address, spec: LogSpec = ANY_LOG, *, principal: str = "User:refold") -> str:
    """Return the commands as lines for a shell."""
    return "\n".join(shlex.join(words) for words in commands(address, spec, principal=principal))


def _creation(topic: Topic) -> Sequence[str]:
    count = ["--partitions", str(topic.partitions), "--replication-factor", str(topic.replication)]
    settings = [word for name, value in topic.settings.items() for word in ("--config", f"{name}={value}")]
    return ["--create", "--topic", topic.name, *count, *settings]


def _permission(right: Right, principal: str) -> Sequence[str]:
    operations = [word for operation in right.operations for word in ("--operation", operation)]
    pattern = ["--resource-pattern-type", "prefixed"] if right.prefixed else []
    return ["--add", "--allow-principal", principal, *operations, f"--{right.kind}", right.name, *pattern]
