"""What is kept of completed workflows: a hash, the first and the last position, for the newest of each partition."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable
from itertools import groupby
from operator import itemgetter

STUBS = 100_000
CHUNK = 1024

Stub = tuple[bytes, int, int, int]
"""(hash of the correlation id, first position, last position, number of the stub)."""

ROW = struct.Struct("<8sQQ")
"""Eight bytes of the hash: that a workflow is taken for one that is known costs a look into the log, no more."""
LIMIT = 2**32 - 1


class Stubs:
    """The newest `STUBS` completed workflows in log order, stored in chunks of which only those that changed are
    written again. `forgot`: there were more.

    Packed, some 40 bytes each: rows of a chunk lie in one bytearray, and an open hash table with linear probing leads
    from a key (which is a hash already) to the number of its row. As Python objects they took 400 bytes each.
    """

    def __init__(self) -> None:
        self._rows: dict[int, bytearray] = {}
        self._used: dict[int, int] = {}
        self._slots = array("I", bytes(4 * 64))
        self._count = 0
        self._number = 0
        self._oldest = 0
        self._changed: set[int] = set()
        self.forgot = False

    def __len__(self) -> int:
        return self._count

    def __contains__(self, key: bytes) -> bool:
        return self._slots[self._slot(key)] != 0

    def add(self, key: bytes, first: int, last: int) -> None:
        """A workflow is complete."""
        self.discard(key)
        self._put(key, first, last, self._number)
        self._changed.add(self._number // CHUNK)
        self._number += 1
        if self._count > STUBS:
            self._forget_oldest()

    def discard(self, key: bytes) -> None:
        """A workflow goes on."""
        slot = self._slot(key)
        if not self._slots[slot]:
            return
        number = self._number_of(self._slots[slot])
        self._close(slot)
        self._count -= 1
        chunk, at = divmod(number, CHUNK)
        self._changed.add(chunk)
        ROW.pack_into(self._rows[chunk], at * ROW.size, b"", 0, 0)
        self._used[chunk] -= 1
        if not self._used[chunk]:
            del self._rows[chunk], self._used[chunk]

    def take_changed(self, *, everything: bool = False) -> dict[int, list[Stub]]:
        """Return the chunks that changed since the last call (an empty one is to be removed)."""
        changed = set(range(self._number // CHUNK + 1)) if everything else self._changed
        self._changed = set()
        return {n: self._stubs_of(n) for n in changed}

    def load(self, stubs: Iterable[Stub], number: int, forgot: bool) -> None:
        """Take over what a checkpoint kept."""
        found = sorted(stubs, key=itemgetter(3))
        for chunk, some in groupby(found, lambda stub: stub[3] // CHUNK):
            rows = self._rows[chunk] = bytearray(CHUNK * ROW.size)
            for self._used[chunk], (key, first, last, n) in enumerate(some, 1):
                ROW.pack_into(rows, n % CHUNK * ROW.size, key, first, last)
        self._count, self._number, self.forgot = len(found), number, forgot
        self._fill(((n, key) for key, _, _, n in found), 64 << (len(found) // 32).bit_length())

    @property
    def number(self) -> int:
        """The number of the next stub."""
        return self._number

    # ---- rows --------------------------------------------------------------------------------------------------------
    def _put(self, key: bytes, first: int, last: int, number: int) -> None:
        if 2 * self._count >= len(self._slots):
            known = [self._number_of(taken) for taken in self._slots if taken]
            self._fill(((n, self._key(n)) for n in known), 2 * len(self._slots))
        chunk, at = divmod(number, CHUNK)
        rows = self._rows.get(chunk)
        if rows is None:
            rows = self._rows[chunk] = bytearray(CHUNK * ROW.size)  # whole: what grows bit by bit leaves holes behind
        ROW.pack_into(rows, at * ROW.size, key, first, last)
        self._used[chunk] = self._used.get(chunk, 0) + 1
        self._slots[self._slot(key)] = number % LIMIT + 1
        self._count += 1

    def _stubs_of(self, chunk: int) -> list[Stub]:
        rows = enumerate(ROW.iter_unpack(self._rows.get(chunk, b"")))
        return [(key, first, last, chunk * CHUNK + n) for n, (key, first, last) in rows if last]

    def _forget_oldest(self) -> None:
        self._oldest = max(self._oldest, next(iter(self._rows)) * CHUNK)
        while (key := self._key(self._oldest)) not in self:  # a row that is free
            self._oldest += 1
        self.discard(key)
        self.forgot = True

    # ---- the table: 0 is a free slot, else the number of a row (modulo LIMIT) + 1 ------------------------------------
    def _number_of(self, taken: int) -> int:
        oldest = next(iter(self._rows)) * CHUNK
        return oldest + (taken - 1 - oldest) % LIMIT

    def _key(self, number: int) -> bytes:
        chunk, at = divmod(number, CHUNK)
        return bytes(self._rows[chunk][at * ROW.size : at * ROW.size + 8])

    def _slot(self, key: bytes) -> int:
        """Return the slot that holds the key, or the free one where it belongs."""
        slots, key = self._slots, key[:8]
        mask = len(slots) - 1
        slot = int.from_bytes(key, "little") & mask
        while (taken := slots[slot]) and self._key(self._number_of(taken)) != key:
            slot = (slot + 1) & mask
        return slot

    def _close(self, slot: int) -> None:
        """Free a slot, and move up what stands behind it only because it was taken."""
        slots, hole = self._slots, slot
        mask = len(slots) - 1
        slots[hole] = 0
        while taken := slots[slot := (slot + 1) & mask]:
            home = int.from_bytes(self._key(self._number_of(taken)), "little") & mask
            if (slot - home) & mask >= (slot - hole) & mask:
                slots[hole], slots[slot], hole = taken, 0, slot

    def _fill(self, rows: Iterable[tuple[int, bytes]], size: int) -> None:
        """Make a new table of (number, key), no key twice."""
        slots, mask = array("I", bytes(4 * size)), size - 1
        for number, key in rows:
            slot = int.from_bytes(key[:8], "little") & mask
            while slots[slot]:
                slot = (slot + 1) & mask
            slots[slot] = number % LIMIT + 1
        self._slots = slots
