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
        self._stubs[key] = (first, last, self._number)
        self._changed.add(self._number // CHUNK)
        self._number += 1
        if len(self._stubs) > STUBS:
            _, (_, _, number) = self._stubs.popitem(last=False)
            self._changed.add(number // CHUNK)
            self.forgot = True

    def discard(self, key: bytes) -> None:
        """A workflow goes on."""
        stub = self._stubs.pop(key, None)
        if stub is not None:
            self._changed.add(stub[2] // CHUNK)

    def take_changed(self, *, everything: bool = False) -> dict[int, list[Stub]]:
        """Return the chunks that changed since the last call (an empty one is to be removed)."""
        changed = set(range(self._number // CHUNK + 1)) if everything else self._changed
        chunks: dict[int, list[Stub]] = {n: [] for n in changed}
        if changed:
            for key, (first, last, number) in self._stubs.items():
                chunk = chunks.get(number // CHUNK)
                if chunk is not None:
                    chunk.append((key, first, last, number))
        self._changed = set()
        return chunks

    def load(self, stubs: Iterable[Stub], number: int, forgot: bool) -> None:
        """Take over what a checkpoint kept."""
        for key, first, last, n in sorted(stubs, key=lambda s: s[3]):
            self._stubs[key] = (first, last, n)
        self._number, self.forgot = number, forgot

    @property
    def number(self) -> int:
        """The number of the next stub."""
        return self._number
