"""How a log's streams and subjects are called, and how a position is made of a stream's sequence."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote

SPAN = 10_000
"""Positions per message of a stream: an item is one message, however many records (up to this) it has."""
OWN, EMPTY = "%own", "%"
"""Tokens of a partition's own records and of the empty key. No other key has them: its % are followed by two digits."""
MAX_TOKEN = 1024
NAMESPACE = re.compile(r"[A-Za-z0-9_-]{1,64}")


@lru_cache(maxsize=16384)
def token_of(key: str | None) -> str:
    """Return a subject token for any text, another one for each. Raises ValueError where it would be too long."""
    if not key:
        return OWN if key is None else EMPTY
    token = quote(key, safe="").replace(".", "%2E")
    if len(token) > MAX_TOKEN:
        raise ValueError(f"a key of {len(key)} characters is too long for a subject of NATS")
    return token


@lru_cache(maxsize=16384)
def key_of(token: str) -> str | None:
    """Return what `token_of` was given."""
    if token in (OWN, EMPTY):
        return None if token == OWN else ""
    return unquote(token, errors="replace")


def last_position(sequence: int) -> int:
    """Return the position of the last record of a message. Those before it in the message are just below."""
    return sequence * SPAN


def sequence_of(position: int) -> int:
    """Return the sequence of the message that holds a position, or would hold it."""
    return max(0, -(-position // SPAN))


class Names(NamedTuple):
    """What belongs to one log. Subjects hold a part of its id: whoever writes to a log that is gone reaches nobody."""

    namespace: str
    log_id: str

    @property
    def root(self) -> str:
        """What all subjects begin with."""
        return f"{self.namespace}.{self.log_id.replace('-', '')[-12:]}"

    @property
    def control(self) -> str:
        """The stream of what is true now: who owns what, which checkpoint counts, who is alive."""
        return f"{self.namespace}_control"

    @property
    def checkpoints(self) -> str:
        """The stream of the checkpoints' entries."""
        return f"{self.namespace}_checkpoints"

    def stream(self, partition: int) -> str:
        """Return the stream of a partition."""
        return f"{self.namespace}_{partition}"

    def subject(self, partition: int, key: str | None) -> str:
        """Return the subject of a workflow, or of a partition's own records."""
        return f"{self.root}.{partition}.{token_of(key)}"

    def group(self, group: str) -> str:
        """Return what the subjects begin with that say who is in a group and what its members own."""
        return f"{self.root}.control.group.{token_of(group)}"

    def lease(self, group: str, partition: int) -> str:
        """Return the subject of a group's hold of a partition."""
        return f"{self.group(group)}.lease.{partition}"

    def peer(self, group: str, token: str) -> str:
        """Return the subject of a member of a group."""
        return f"{self.group(group)}.peer.{token}"

    def presence(self, member: str) -> str:
        """Return the subject under which a process says that it is alive."""
        return f"{self.root}.control.presence.{token_of(member)}"

    def segment(self, group: str, partition: int, segment: str) -> str:
        """Return the subject of a part of a checkpoint."""
        return f"{self.root}.checkpoint.{token_of(group)}.{partition}.{segment}"

    def hint(self, address: str) -> str:
        """Return the subject at which a process listens. It is in no stream."""
        return f"{self.root}.hint.{address}"
