"""An item as one message of a stream: one record as it is; several one after the other, with their sizes in a header.

One message is stored or not, on any server and in any number of replicas, and costs one write: the server's own atomic
batches stage each batch in a file store of its own (3 to 7 ms on one node).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ...bus.broker import Stored
from .names import SPAN

SIZES = "Refold-Sizes"
MSG_ID = "Nats-Msg-Id"
EXPECTED = "Nats-Expected-Last-Subject-Sequence"
OVERHEAD = 64 * 1024
"""Bytes by which a message may exceed its records: headers count in the server's `max_payload`."""


def packed(values: Sequence[bytes]) -> tuple[bytes, dict[str, str]]:
    """Return payload and headers of the message for these records (at least one)."""
    if len(values) == 1:
        return values[0], {}
    return b"".join(values), {SIZES: ",".join(str(len(value)) for value in values)}


def unpacked(
    sequence: int, key: str | None, payload: bytes, headers: Mapping[str, str] | None, time: float
) -> list[Stored]:
    """Return the records of a message. One whose sizes make no sense is a record as it is: it was not ours."""
    sizes = _sizes(headers.get(SIZES), len(payload)) if headers else None
    if sizes is None:
        return [Stored(sequence * SPAN, key, payload, time)]
    out, start = [], 0
    for position, size in enumerate(sizes, sequence * SPAN - len(sizes) + 1):
        out.append(Stored(position, key, payload[start : start + size], time))
        start += size
    return out


def _sizes(text: str | None, whole: int) -> list[int] | None:
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) > SPAN or not all(part.isascii() and part.isdigit() and len(part) < 9 for part in parts):
        return None
    sizes = [int(part) for part in parts]
    return sizes if sum(sizes) == whole else None


def size_of(payload: bytes, headers: Mapping[str, str]) -> int:
    """Return what the server counts: headers too. More than its `max_payload` closes the connection."""
    return len(payload) + 12 + sum(len(name) + len(value) + 4 for name, value in headers.items())
