"""The garbage collector in a process of refold's own (`serve`, `refold rebuild`)."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator

YOUNG = 10_000
"""New objects after which the collector looks for cycles; Python's own figure is 700. refold makes none
(tests/test_garbage.py), and what handlers leave is found as well: the looks took a tenth of a worker's time."""


@contextlib.contextmanager
def rarely() -> Iterator[None]:
    """Let the collector look more rarely, until the `with` ends."""
    before = gc.get_threshold()
    gc.set_threshold(max(YOUNG, before[0]) if before[0] else 0, *before[1:])
    try:
        yield
    finally:
        gc.set_threshold(*before)
