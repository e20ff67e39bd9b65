"""JSON values: which Python values a payload may be, their canonical bytes, their digest."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any

import msgspec
import orjson

from .errors import InvalidMessage

MAX_DEPTH = 64
MIN_INT, MAX_INT = -(2**63), 2**64 - 1


def canonical(value: Any) -> bytes:
    """Return the one spelling of a JSON value: keys sorted, no spaces, UTF-8."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # foreign bytes may hold integers beyond 64 bits, and nest deeper than orjson goes
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def digest(value: Any) -> str:
    """Return 32 hex digits: BLAKE2b (16 bytes) of the canonical spelling."""
    return blake2b(canonical(value), digest_size=16).hexdigest()


def to_json(value: Any, path: str = "$.payload") -> Any:
    """Return a value as plain JSON types (dict, list, str, int, float, bool, None).

    Structs, dataclasses, pydantic models, datetimes, UUIDs, enums, bytes (base64) and decimals are converted.
    Raises InvalidMessage, which names the place by its JSON path.
    """
    try:
        plain = msgspec.to_builtins(value, str_keys=True, enc_hook=_convert)
    except (TypeError, ValueError, RecursionError) as error:
        raise _unsuitable(value, path, error) from error
    check_value(plain, path)
    return plain


def _convert(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)  # pydantic
    if dump is not None:
        return dump(mode="json")
    if isinstance(value, int | float | str):  # their subclasses
        return next(base(value) for base in (int, float, str) if isinstance(value, base))
    raise TypeError(f"JSON cannot carry {type(value).__qualname__!r}")


def _unsuitable(value: Any, path: str, error: Exception) -> InvalidMessage:
    """Find the innermost place that cannot be converted."""
    if isinstance(error, RecursionError):
        return InvalidMessage(
            f"nested more than {MAX_DEPTH} deep", path=path, remedy="a payload cannot contain itself; flatten it"
        )
    for part, child in _children(value):
        try:
            msgspec.to_builtins(child, str_keys=True, enc_hook=_convert)
        except (TypeError, ValueError) as inner:
            return _unsuitable(child, path + part, inner)
    what = str(error) if isinstance(value, dict) else f"JSON cannot carry {type(value).__qualname__!r}"
    return InvalidMessage(what, path=path, remedy="send plain data: dicts, lists, strings, numbers, Structs")


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f".{k}", v) for k, v in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{i}]", v) for i, v in enumerate(value))
    elif isinstance(value, msgspec.Struct):
        yield from ((f".{f}", getattr(value, f)) for f in value.__struct_fields__)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        yield from ((f".{f.name}", getattr(value, f.name)) for f in dataclasses.fields(value))


def check_value(value: Any, path: str = "$.payload", depth: int = 0) -> None:
    """Refuse what JSON, or another reader of it, cannot carry. Raises InvalidMessage."""
    if value is None or value is True or value is False:
        return
    kind = type(value)
    if kind is str:
        check_text(value, path)
    elif kind is int:
        if not MIN_INT <= value <= MAX_INT:
            raise InvalidMessage("an integer beyond 64 bits", path=path, remedy="send it as a string")
    elif kind is float:
        if not math.isfinite(value):
            raise InvalidMessage(f"{value} is not a JSON number", path=path, remedy="send null or a string")
    elif depth >= MAX_DEPTH:
        raise InvalidMessage(f"nested more than {MAX_DEPTH} deep", path=path, remedy="flatten it")
    elif kind is dict:
        for k, v in value.items():
            check_text(k, path)
            check_value(v, f"{path}.{k}", depth + 1)
    else:
        for i, v in enumerate(value):
            check_value(v, f"{path}[{i}]", depth + 1)


def check_text(text: str, path: str) -> None:
    """Refuse lone surrogates, which UTF-8 cannot carry. Raises InvalidMessage."""
    if text.isascii():
        return
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidMessage(
            "a lone surrogate, which UTF-8 cannot carry", path=printable(path),
            remedy="decode the text with errors='replace'",
        ) from None  # fmt: skip


def printable(text: str) -> str:
    """Return the text with `?` for what UTF-8 cannot carry."""
    return text.encode(errors="replace").decode()
