"""What is kept of completed workflows: a hash, the first and the last position, for the newest of each partition."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

STUBS = 100_000
CHUNK = 4096

Stub = tuple[bytes, int, int, int]
"""(hash of the correlation id, first position, last position, number of the stub)."""


class Stubs:
    """The newest `STUBS` completed workflows in log order, stored in chunks of which only those that changed are
    written again. `forgot`: there were more."""

    def __init__(self) -> None:
        self._stubs: OrderedDict[bytes, tuple[int, int, int]] = OrderedDict()
        self._chunks: dict[int, dict[bytes, None]] = {}
        self._number = 0
        self._changed: set[int] = set()
        self.forgot = False

    def __len__(self) -> int:
        return len(self._stubs)

    def __contains__(self, key: bytes) -> bool:
        return key in self._stubs

    def add(self, key: bytes, first: int, last: int) -> None:
        """A workflow is complete."""
        self.discard(key)
        self._put(key, (first, last, self._number))
        self._changed.add(self._number // CHUNK)
        self._number += 1
        if len(self._stubs) > STUBS:
            self.discard(next(iter(self._stubs)))
            self.forgot = True

    def _put(self, key: bytes, stub: tuple[int, int, int]) -> None:
        self._stubs[key] = stub
        self._chunks.setdefault(stub[2] // CHUNK, {})[key] = None

    def discard(self, key: bytes) -> None:
        """A workflow goes on."""
        stub = self._stubs.pop(key, None)
        if stub is None:
            return
        chunk = stub[2] // CHUNK
        self._changed.add(chunk)
        del self._chunks[chunk][key]
        if not self._chunks[chunk]:
            del self._chunks[chunk]

    def take_changed(self, *, everything: bool = False) -> dict[int, list[Stub]]:
        """Return the chunks that changed since the last call (an empty one is to be removed)."""
        changed = set(range(self._number // CHUNK + 1)) if everything else self._changed
        self._changed = set()
        return {n: [(key, *self._stubs[key]) for key in self._chunks.get(n, ())] for n in changed}

    def load(self, stubs: Iterable[Stub], number: int, forgot: bool) -> None:
        """Take over what a checkpoint kept."""
        for key, first, last, n in sorted(stubs, key=lambda s: s[3]):
            self._put(key, (first, last, n))
        self._number, self.forgot = number, forgot

    @property
    def number(self) -> int:
        """The number of the next stub."""
        return self._number
