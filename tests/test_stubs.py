"""The table of completed workflows, against a plain dict."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Iterable
from hashlib import blake2b

import pytest

from refold.projections import stubs as module
from refold.projections.stubs import Stub, Stubs


def key(n: int, *, crowded: bool = False) -> bytes:
    """Return a key; crowded ones all belong into a few slots at the end of the table."""
    digest = blake2b(str(n).encode(), digest_size=16).digest()
    return bytes([0xFC + n % 4, 0xFF]) + digest[2:] if crowded else digest


def short(found: Iterable[Stub]) -> list[Stub]:
    return sorted((k[:8], first, last, n) for k, first, last, n in found)


def everything(stubs: Stubs) -> list[Stub]:
    return short(s for chunk in stubs.take_changed(everything=True).values() for s in chunk)


@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize("completed_before", [0, 10_000])
def test_the_packed_stubs_are_a_dict_of_the_newest(
    monkeypatch: pytest.MonkeyPatch, crowded: bool, completed_before: int
) -> None:
    monkeypatch.setattr(module, "STUBS", 100)
    monkeypatch.setattr(module, "CHUNK", 16)
    monkeypatch.setattr(module, "LIMIT", 1023)  # numbers begin anew often
    dice, stubs, plain, number = random.Random(1), Stubs(), dict[bytes, tuple[int, int, int]](), completed_before
    stubs.load([], number, forgot=False)
    stored: dict[int, list[Stub]] = {}
    for step in range(4000):
        k = key(dice.randrange(220), crowded=crowded)
        if dice.random() < 0.7:
            stubs.add(k, step + 1, step + 2)
            plain.pop(k, None)
            plain[k] = step + 1, step + 2, number
            number += 1
            if len(plain) > 100:
                del plain[next(iter(plain))]
        else:
            stubs.discard(k)
            plain.pop(k, None)
        assert len(stubs) == len(plain)
        assert (k in stubs) == (k in plain)
        if step % 97 == 0:
            stored |= stubs.take_changed()
            assert short(s for chunk in stored.values() for s in chunk) == short((k, *v) for k, v in plain.items())
            again = Stubs()
            again.load((s for chunk in stored.values() for s in chunk), stubs.number, stubs.forgot)
            assert everything(again) == everything(stubs)
            assert all(k in again for k in plain)
    assert stubs.forgot
    assert stubs.number == number


def test_a_stub_takes_less_than_seventy_bytes() -> None:
    tracemalloc.start()
    try:
        stubs = Stubs()
        for n in range(20_000):
            stubs.add(key(n), n + 1, n + 1)
        assert len(stubs) == 20_000
        assert tracemalloc.get_traced_memory()[0] < 70 * 20_000
    finally:
        tracemalloc.stop()
