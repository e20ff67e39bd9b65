"""Ids that follow from what is in the log: every owner of a piece of work derives the same (semantics, section 2)."""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b, sha1
from uuid import UUID

from .values import canonical

NAMESPACE = UUID("5f0c6b1e-6d0b-5c52-9a6b-7d1c1f6f8a11")
"""Namespace of every derived id. Part of the rules: never changes."""


_VARIANT = dict(zip("0123456789abcdef", "89ab" * 4, strict=True))


def _uuid(*parts: object) -> str:
    """Return `str(uuid5(NAMESPACE, canonical JSON of the parts))`, without the detour through a UUID."""
    h = sha1(NAMESPACE.bytes + canonical(list(parts)), usedforsecurity=False).hexdigest()
    return f"{h[:8]}-{h[8:12]}-5{h[13:16]}-{_VARIANT[h[16]]}{h[17:20]}-{h[20:32]}"


def derived(
    correlation: str, generation: int, agent: str, message: str, round: int, step: str, attempt: int, kind: str
) -> str:
    """Return the id of a record that `agent` writes while it handles `message`."""
    return _uuid(correlation, generation, agent, message, round, step, attempt, kind)


def effect_key(correlation: str, agent: str, message: str, step: str, n: int) -> str:
    """Return an effect's idempotency key. `n` counts the effects of that step that were completed and are gone."""
    return _uuid("effect", correlation, agent, message, step, n)


def copy_id(correlation: str, id: str, n: int) -> str:
    """Return the id of the n-th copy of a record in another workflow."""
    return _uuid("copy", correlation, id, n)


def child_correlation(spawn: str) -> str:
    """Return the correlation id of the workflow that a spawn opens."""
    return _uuid("child", spawn)


def cancel_id(spawn: str) -> str:
    """Return the id of the `cancelled` that ends the child of a spawn."""
    return _uuid(spawn, "cancel")


def mark_id(correlation: str, subject: str, n: int, cancel: bool) -> str:
    """Return the id of a `delivered`."""
    return _uuid("delivered", correlation, subject, n, cancel)


def correction_id(rolled_back: str, index: int) -> str:
    """Return the id of a message that a rollback brings with it."""
    return _uuid(rolled_back, index)


def step_seed(agent: str, message: str, step: str) -> int:
    """Return the seed of a step's randomness: equal after a rollback, a redrive and in a fork."""
    return UUID(_uuid(agent, message, step)).int


@lru_cache(maxsize=16384)
def record_key(text: str) -> bytes:
    """Return 16 bytes that stand for an id: BLAKE2b of its text."""
    return blake2b(text.encode(), digest_size=16).digest()
