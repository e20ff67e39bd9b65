"""What a message between agents is called in the headers of a broker, for tools that read no JSON: CloudEvents 1.0
(https://github.com/cloudevents/spec, binary mode) and W3C trace context. The record's bytes are what they were."""

from __future__ import annotations

import re
from datetime import UTC, datetime

import msgspec
from msgspec import Struct, field

from ..bus.kinds import ENGINE

TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
"""https://www.w3.org/TR/trace-context/#traceparent-header"""


class _Addressed(Struct):
    id: str
    sender_id: str
    receiver_id: str
    message_type: str
    correlation_id: str
    timestamp: float
    causation_id: str | None = None
    headers: dict[str, str] = field(default_factory=dict)


_decoder = msgspec.json.Decoder(_Addressed)


def attributes(value: bytes, prefix: str, content_type: str) -> dict[str, str]:
    """Return the headers of a record, of none but a message between agents. A binding says how they are named: on Kafka
    "ce_" and "content-type", on NATS "ce-" and "ce-datacontenttype"."""
    try:
        message = _decoder.decode(value)
    except msgspec.DecodeError:
        return {}
    if message.message_type in ENGINE:
        return {}
    named = {
        "specversion": "1.0",
        "id": message.id,
        "type": message.message_type,
        "source": message.sender_id,
        "subject": message.receiver_id,
        "time": _time(message.timestamp),
        "correlationid": message.correlation_id,
        "causationid": message.causation_id,
    }
    out = {prefix + name: text for name, text in named.items() if text}
    out[content_type] = "application/json"
    traceparent = message.headers.get("traceparent", "")
    if TRACEPARENT.fullmatch(traceparent):
        out["traceparent"] = traceparent
    return out


def _time(timestamp: float) -> str | None:
    """RFC 3339; None for a year that it cannot write."""
    try:
        return datetime.fromtimestamp(timestamp, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return None
