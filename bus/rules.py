"""What may enter the log: one set of rules for Python messages before encoding and foreign bytes before decoding."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from operator import attrgetter
from typing import Any, NoReturn, TypeVar

import msgspec

from . import codec, kinds
from .broker import LogMeta
from .errors import InvalidMessage, TooLarge, UndecodableRecord
from .message import AgentMessage, Envelope, Origin, Work
from .values import MAX_DEPTH, check_value, is_plain, printable, to_json

T = TypeVar("T")

ID = re.compile(r"[!-~]{1,128}")
_IDS = re.compile(r"[!-~]{1,128}(?:\n[!-~]{1,128})*")
ID_FIELDS = ("id", "sender_id", "receiver_id", "message_type", "correlation_id", "causation_id", "in_reply_to",
             "answers", "to")  # fmt: skip
TIMES = ("timestamp", "ttl", "deadline")
_id_fields, _times = attrgetter(*ID_FIELDS), attrgetter(*TIMES)
_ANYTHING = LogMeta(log_id="", partitions=1)


def check(message: AgentMessage, meta: LogMeta = _ANYTHING) -> bytes:
    """Return the bytes of a message that may enter the log. Raises InvalidMessage, TooLarge."""
    kept = vars(message)
    if codec.RAW in kept:
        return codec.encode(check_bytes(kept[codec.RAW], meta))
    check_headers(message.headers)
    if not is_plain(message.payload):
        message = codec.with_changes(message, payload=to_json(message.payload))
    try:
        raw = codec.encode(message)
    except (TypeError, ValueError, RecursionError) as error:
        raise _unencodable(message, error) from error
    check_fields(message)
    if message.fact is not None or codec.UNKNOWN in kept:  # what nobody has looked at yet
        check_bytes(raw, meta)
    else:
        _decoded(raw, codec.envelope if message.schema is None else codec.decode)
    check_size(raw, meta)
    return raw


def _unencodable(message: AgentMessage, error: Exception) -> InvalidMessage:
    """Find the field that cannot be encoded."""
    for name in message.__struct_fields__:
        try:
            msgspec.json.encode(getattr(message, name))
        except (TypeError, ValueError, RecursionError):
            remedy = "see AgentMessage for the types of its fields"
            if isinstance(error, UnicodeEncodeError):
                return InvalidMessage("a lone surrogate, which UTF-8 cannot carry", path=f"$.{name}", remedy=remedy)
            return InvalidMessage(str(error), path=f"$.{name}", remedy=remedy)
    return InvalidMessage(str(error), remedy="see AgentMessage for the types of its fields")


def _decoded(raw: bytes, decode: Callable[[bytes], T]) -> T:
    try:
        return decode(raw)
    except UndecodableRecord as error:
        problem, _, path = str(error.__cause__).partition(" - at `")
        raise InvalidMessage(problem, path=path.rstrip("`") or "$", remedy="see AgentMessage for its fields") from error


def check_headers(headers: Any) -> None:
    """Headers are str -> str. Raises InvalidMessage."""
    if not isinstance(headers, dict):
        raise InvalidMessage(f"expected a dict, got {type(headers).__name__}", path="$.headers", remedy="str -> str")
    if not headers:
        return
    for name, text in headers.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise InvalidMessage(
                f"expected str -> str, got {type(name).__name__} -> {type(text).__name__}", path=f"$.headers.{name}",
                remedy="convert it with str()",
            )  # fmt: skip
    check_value(headers, "$.headers")


def check_fields(r: Envelope) -> None:
    """Judge the envelope's values, where their types are right. Raises InvalidMessage."""
    if r.work is not None or r.origin is not None or not _are_ids([v for v in _id_fields(r) if v is not None]):
        _check_ids(r)
    for name, number in zip(TIMES, _times(r), strict=True):
        if number is not None and isinstance(number, float) and not math.isfinite(number):
            raise InvalidMessage(f"{number} is not finite", path=f"$.{name}", remedy="give seconds as a number")
    if isinstance(r.ttl, float | int) and r.ttl < 0:
        raise InvalidMessage(f"{r.ttl} is negative", path="$.ttl", remedy="give the seconds that it may wait")
    if isinstance(r.priority, int) and not 0 <= r.priority <= 9:
        raise InvalidMessage(f"{r.priority} is not within 0..9", path="$.priority", remedy="9 is most urgent")


def _are_ids(values: list[Any]) -> bool:
    """All are ids, as nearly always: in one look."""
    try:
        text = "\n".join(values)
    except TypeError:
        return False
    return _IDS.fullmatch(text) is not None and text.count("\n") == len(values) - 1


def _check_ids(r: Envelope) -> None:
    for path, value in _ids(r):
        if not isinstance(value, str) or ID.fullmatch(value):
            continue
        if path == "correlation_id" and not value and _of_partition(r):
            continue
        raise InvalidMessage(
            f"{value[:40]!r} is no id", path=f"$.{path}", remedy="use 1 to 128 printable ASCII characters, no spaces"
        )


def _ids(r: Envelope) -> Iterator[tuple[str, object]]:
    for name in ID_FIELDS:
        yield name, getattr(r, name)
    if isinstance(r.work, Work):
        yield "work.message", r.work.message
    if isinstance(r.origin, Origin):
        yield "origin.workflow", r.origin.workflow
        yield "origin.id", r.origin.id


def _of_partition(r: Envelope) -> bool:
    return r.message_type in kinds.PARTITION


def check_size(raw: bytes, meta: LogMeta) -> None:
    """Raises TooLarge."""
    if len(raw) > meta.max_record:
        raise TooLarge(
            f"the record has {len(raw)} bytes, this log takes {meta.max_record}", path="$.payload",
            remedy="store the value elsewhere (a file, an object store) and send a reference",
        )  # fmt: skip


def check_outside(message: AgentMessage) -> None:
    """Refuse what only refold itself may write. Raises InvalidMessage."""
    if message.message_type in kinds.ENGINE:
        raise InvalidMessage(
            f"{message.message_type!r} is a kind that refold keeps for itself", path="$.message_type",
            remedy="use one of MessageType, or a kind of your own; control verbs have their own calls",
        )  # fmt: skip
    if message.generation is None and message.work is None and message.fact is None and message.origin is None:
        return
    for name in ("generation", "work", "fact", "origin"):
        if getattr(message, name) is not None:
            raise InvalidMessage(
                "only refold writes this field", path=f"$.{name}", remedy="leave it out of a message from outside"
            )


# ---- foreign bytes ---------------------------------------------------------------------------------------------------
class _Pairs(list[tuple[str, Any]]):
    """A JSON object as it was written, with the keys that come twice."""


def check_bytes(raw: bytes, meta: LogMeta = _ANYTHING) -> AgentMessage:
    """Return the message of bytes that somebody else wrote. Raises InvalidMessage, TooLarge."""
    check_size(raw, meta)
    if not isinstance(parse(raw, "$", -1), dict):
        raise InvalidMessage("expected an object", remedy="send one JSON object")
    message = _decoded(raw, codec.decode)
    check_fields(message)
    return message


def parse(raw: bytes, path: str = "$.payload", depth: int = 0) -> Any:
    """Return the value of JSON that somebody else wrote; `depth` is how deep it will stand in a payload.

    Raises InvalidMessage: what is no JSON, and what readers of JSON understand differently.
    """
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        raise InvalidMessage(
            f"byte {error.start} is not UTF-8", path=path, remedy="encode it as UTF-8 JSON"
        ) from error
    try:
        tree = json.loads(text, object_pairs_hook=_Pairs, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise InvalidMessage(f"nested more than {MAX_DEPTH} deep", path=path, remedy="flatten it") from error
    except ValueError as error:
        raise InvalidMessage(f"not JSON: {error}", path=path, remedy="send one JSON value") from error
    value = _unique(tree, path, depth + 1)
    check_value(value, path, depth)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _unique(value: Any, path: str, depth: int) -> Any:
    if depth > MAX_DEPTH + 1:
        raise InvalidMessage(f"nested more than {MAX_DEPTH} deep", path=path, remedy="flatten it")
    if isinstance(value, _Pairs):
        out: dict[str, Any] = {}
        for k, v in value:
            if k in out:
                raise InvalidMessage(
                    f"the key {k!r} comes twice", path=printable(f"{path}.{k}"), remedy="send it once"
                )
            out[k] = _unique(v, f"{path}.{k}", depth + 1)
        return out
    if isinstance(value, list):
        return [_unique(v, f"{path}[{i}]", depth + 1) for i, v in enumerate(value)]
    return value
