"""What an append may be: one rule for every broker."""

from __future__ import annotations

from collections.abc import Sequence

from ..bus.broker import LogMeta
from ..bus.errors import TooLarge


def check(meta: LogMeta, partition: int, values: Sequence[bytes]) -> int:
    """Return the size of an append. Raises TooLarge; ValueError where the log has no such partition; TypeError."""
    if not 0 <= partition < meta.partitions:
        raise ValueError(f"partition {partition}: the log has {meta.partitions}, counted from 0")
    whole = 0
    for value in values:
        if type(value) is not bytes:
            raise TypeError(f"a record is bytes, not {type(value).__name__}")
        size = len(value)
        if size > meta.max_record:
            raise TooLarge(f"a record of {size} bytes, the log takes {meta.max_record}", remedy="send less")
        whole += size
    if whole > meta.max_append:
        raise TooLarge(f"an append of {whole} bytes, the log takes {meta.max_append}", remedy="send less")
    return whole
