"""Which partition a workflow lives in: murmur2 of its id, as Kafka's Java client does it, on every broker."""

from __future__ import annotations

import struct
from functools import lru_cache

_M = 0x5BD1E995
_MASK = 0xFFFFFFFF


def murmur2(data: bytes) -> int:
    """Return Kafka's 32-bit murmur2 of `data` (seed 0x9747b28c), unsigned.

    Source: org.apache.kafka.common.utils.Utils.murmur2.
    """
    length = len(data)
    h = 0x9747B28C ^ length
    whole = length & ~3
    for (k,) in struct.iter_unpack("<I", data[:whole]):
        k = k * _M & _MASK
        k = (k ^ (k >> 24)) * _M & _MASK
        h = (h * _M & _MASK) ^ k
    tail = data[whole:]
    if tail:
        h = (h ^ int.from_bytes(tail, "little")) * _M & _MASK
    h = (h ^ (h >> 13)) * _M & _MASK
    return h ^ (h >> 15)


@lru_cache(maxsize=16384)
def partition_of(correlation_id: str, partitions: int) -> int:
    """Return the partition of a workflow in a log of `partitions` partitions: 0 <= result < partitions."""
    return (murmur2(correlation_id.encode()) & 0x7FFFFFFF) % partitions
