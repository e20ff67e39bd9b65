"""Bytes <-> message. One JSON object per record, kept verbatim: a decoded message encodes to the bytes it came from."""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import accumulate
from typing import Any

import msgspec
from msgspec import Raw, Struct

from .errors import SchemaError, UndecodableRecord
from .facts import CALL_DECODER, DECODERS, REQUIRED
from .kinds import PARTITION
from .message import AgentMessage, Envelope
from .values import canonical, digest, to_json

RAW = "raw"
UNKNOWN = "unknown"
DEEPEST = 500
"""What is nested deeper is no record: how much deeper a decoder can go depends on its caller's stack."""

_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_encoder = msgspec.json.Encoder()
_message = msgspec.json.Decoder(AgentMessage)
_envelope = msgspec.json.Decoder(Envelope)
_object = msgspec.json.Decoder(dict[str, Raw])
_FIELDS = frozenset(AgentMessage.__struct_fields__)
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEPS = {b: 1 if b in b"[{" else -1 for b in b"[]{}"}


class _Payload(Struct):
    payload: Any = None


class _Identity(Struct):
    """What a Python message makes up by default, and a record must have: every reader must see the same."""

    id: str
    timestamp: float


_payload = msgspec.json.Decoder(_Payload)
_identity = msgspec.json.Decoder(_Identity)


def encode(message: AgentMessage) -> bytes:
    """Return a message's bytes: those it was decoded from, else one JSON object without defaults."""
    kept = message.__dict__
    if RAW in kept:
        raw: bytes = kept[RAW]
        return raw
    raw = _encoder.encode(message)
    unknown: dict[str, Raw] | None = kept.get(UNKNOWN) if kept else None
    if unknown:
        raw = raw[:-1] + b"," + _encoder.encode(unknown)[1:]
    return raw


def keep(message: AgentMessage) -> bytes:
    """Return a message's bytes, and remember them: it is encoded once."""
    raw = vars(message)[RAW] = encode(message)
    return raw


def decode(raw: bytes) -> AgentMessage:
    """Return the message of a record. Raises UndecodableRecord."""
    try:
        _check_text(raw)
        _identity.decode(raw)
        return _open(raw)
    except _UNREADABLE as error:
        raise UndecodableRecord(f"not a record of refold: {error}") from error


def reopen(raw: bytes) -> AgentMessage:
    """Return the message of bytes whose envelope has been read before. Raises UndecodableRecord."""
    try:
        return _open(raw)
    except _UNREADABLE as error:
        raise UndecodableRecord(f"not a record of refold: {error}") from error


def _open(raw: bytes) -> AgentMessage:
    message = _message.decode(raw)
    _open_fact(message)
    vars(message)[RAW] = raw
    return message


def envelope(raw: bytes) -> Envelope:
    """Return what the fold reads of a record; its payload is skipped. Raises UndecodableRecord."""
    try:
        _check_text(raw)
        r = _envelope.decode(raw)
        _open_fact(r)
    except _UNREADABLE as error:
        raise UndecodableRecord(f"not a record of refold: {error}") from error
    return r


def bare(raw: bytes) -> AgentMessage:
    """Return the message without payload, schema and headers: of a record where those cannot be decoded.

    Raises UndecodableRecord.
    """
    r = envelope(raw)
    return AgentMessage(**{name: getattr(r, name) for name in Envelope.__struct_fields__})


def readable(raw: bytes) -> AgentMessage:
    """Return the message as far as it can be decoded: whole, else `bare`. Raises UndecodableRecord."""
    try:
        return decode(raw)
    except UndecodableRecord:
        return bare(raw)


def _check_text(raw: bytes) -> None:
    """What the decoder does not look at where it skips: encoding and depth."""
    if not raw.isascii():
        str(raw, "utf-8")
    if len(raw) > 2 * DEEPEST and raw.count(b"[") + raw.count(b"{") > DEEPEST and _depth(raw) > DEEPEST:
        raise msgspec.ValidationError(f"nested more than {DEEPEST} deep")


def _depth(raw: bytes) -> int:
    brackets = _STRING.sub(b"", raw).translate(None, _NO_BRACKETS)
    return max(accumulate(map(_STEPS.__getitem__, brackets)), default=0)


def _open_fact(r: Envelope) -> None:
    kind = r.message_type
    if not r.correlation_id and kind not in PARTITION:
        raise msgspec.ValidationError("no workflow - at `$.correlation_id`")
    if r.fact is not None:
        raw = bytes(r.fact)  # type: ignore[call-overload]
        fact = None if raw == b"null" else DECODERS.get(kind, CALL_DECODER).decode(raw)
        msgspec.structs.force_setattr(r, "fact", fact)
    if r.fact is None and kind in REQUIRED:
        raise msgspec.ValidationError(f"{kind} without its fact")


def with_changes(message: AgentMessage, **changes: Any) -> AgentMessage:
    """Return a changed copy; fields that this release does not know survive."""
    changed = msgspec.structs.replace(message, **changes)
    raw = message.__dict__.get(RAW)
    unknown = message.__dict__.get(UNKNOWN)
    if raw is not None:
        unknown = {k: v for k, v in _object.decode(raw).items() if k not in _FIELDS}
    if unknown:
        vars(changed)[UNKNOWN] = unknown
    return changed


def payload(raw: bytes) -> Any:
    """Return a record's payload as plain JSON types. Raises SchemaError where it cannot be decoded."""
    try:
        return _payload.decode(raw).payload
    except _UNREADABLE as error:
        raise SchemaError(f"the payload cannot be decoded: {error}") from error


def shown(raw: bytes) -> Any:
    """Return a record's payload for people: what cannot be decoded is a text that says so."""
    try:
        return payload(raw)
    except SchemaError as error:
        return f"({error})"


def payload_as(raw: bytes, wanted: Any) -> Any:
    """Return a record's payload as `wanted`: a Struct, dataclass, TypedDict, pydantic model, or a container of them.

    Raises SchemaError where it does not fit, TypeError where `wanted` is no type that JSON can be read as.
    """
    try:
        return _typed_payload(wanted).decode(raw).payload
    except _UnreadableError as error:
        raise TypeError(str(error)) from None
    except _UNREADABLE as error:
        raise SchemaError(f"the payload is no {getattr(wanted, '__name__', wanted)}: {error}") from error


class _UnreadableError(Exception):
    """msgspec turns a TypeError of a hook into a ValidationError; this one passes through."""


@lru_cache(maxsize=1024)
def _typed_payload(wanted: Any) -> msgspec.json.Decoder[Any]:
    holder = msgspec.defstruct("Payload", [("payload", wanted, msgspec.field(default=None))])
    return msgspec.json.Decoder(holder, dec_hook=_read)


def _read(wanted: Any, value: Any) -> Any:
    validate = getattr(wanted, "model_validate", None)  # pydantic
    if validate is None:
        if wanted is object:
            return value
        raise _UnreadableError(f"JSON cannot be read as {wanted!r}")
    try:
        return validate(value)
    except ValueError as error:
        raise ValueError(_findings(error)) from error


def _findings(error: ValueError) -> str:
    """Return what pydantic found, in one line: where in the payload, and what."""
    errors = getattr(error, "errors", None)
    if errors is None:
        return str(error)
    return "; ".join(": ".join(filter(None, (".".join(map(str, e["loc"])), e["msg"]))) for e in errors())


__all__ = [
    "bare", "canonical", "decode", "digest", "encode", "envelope", "payload", "payload_as", "readable", "shown",
    "to_json", "with_changes",
]  # fmt: skip
