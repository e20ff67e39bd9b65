"""JSON values: which Python values a payload may be, their canonical bytes, their digest."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
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

    Structs, dataclasses, pydantic models, datetimes, UUIDs, enums, bytes (base64) and decimals are converted; the
    elements of a set come in the order of their canonical spelling, since its own is another one in each process.
    Raises InvalidMessage, which names the place by its JSON path.
    """
    if is_plain(value):
        return msgspec.to_builtins(value)
    try:
        plain = msgspec.to_builtins(value, str_keys=True, enc_hook=_convert)
    except (TypeError, ValueError, RecursionError) as error:
        raise _unsuitable(value, path, error) from error
    if _is_uneven(value):
        plain = _even(value, plain, path)
    check_value(plain, path)
    return plain


_SCALARS = frozenset({str, int, float, bool, type(None)})
_HARMLESS = frozenset({bool, type(None)})


def is_plain(value: Any, depth: int = 0) -> bool:
    """The value is made of what JSON has, and nothing of it would be converted or refused: what nearly every payload
    is. False where that takes a closer look."""
    kind = type(value)
    if kind is str:
        return bool(value.isascii())
    if kind is dict:
        for k in value:
            if type(k) is not str or not k.isascii():
                return False
        children = value.values()
    elif kind is list:
        children = value
    elif kind is int:
        return bool(MIN_INT <= value <= MAX_INT)
    else:
        return kind in _HARMLESS or (kind is float and bool(math.isfinite(value)))
    if depth >= MAX_DEPTH:
        return False
    for v in children:
        kind = type(v)
        if kind is str:
            if not v.isascii():
                return False
        elif not (kind in _HARMLESS or is_plain(v, depth + 1)):
            return False
    return True


def _is_uneven(value: Any) -> bool:
    """The value holds a set, or a key that is no text: msgspec does not tell what they become."""
    kind = type(value)
    if kind in _SCALARS:
        return False
    if kind is dict:
        for k, v in value.items():  # noqa: SIM110 - a generator costs twice as much, and every payload comes here
            if type(k) is not str or (type(v) not in _SCALARS and _is_uneven(v)):
                return True
        return False
    if kind is list or kind is tuple:
        for v in value:  # noqa: SIM110
            if type(v) not in _SCALARS and _is_uneven(v):
                return True
        return False
    return isinstance(value, set | frozenset) or any(_is_uneven(child) for _, child in _children(value))


def _even(value: Any, plain: Any, path: str) -> Any:
    """Return the plain value with its sets in order. Raises InvalidMessage where two keys became one."""
    if isinstance(value, set | frozenset):
        return sorted((to_json(v, path) for v in value), key=canonical)
    if isinstance(value, dict) and len(plain) < len(value):
        raise InvalidMessage("two keys become the same text", path=path, remedy="JSON has text keys only: use those")
    if isinstance(plain, dict):
        changed = ((k, _even(v, plain[k], f"{path}.{k}")) for k, v in _named(value, plain) if k in plain)
        return {**plain, **dict(changed)}
    children = [v for _, v in _children(value)]
    if isinstance(plain, list) and len(plain) == len(children):
        return [_even(v, p, f"{path}[{i}]") for i, (v, p) in enumerate(zip(children, plain, strict=True))]
    return plain


def _named(value: Any, plain: dict[str, Any]) -> Iterable[tuple[str, Any]]:
    """Return the children of a value under the names that they have in plain."""
    children = [v for _, v in _children(value)]
    if isinstance(value, msgspec.Struct):
        return zip(value.__struct_encode_fields__, children, strict=True)
    if dataclasses.is_dataclass(value):
        return zip((f.name for f in dataclasses.fields(value)), children, strict=True)
    return zip(plain, children, strict=False)


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
    else:
        names = getattr(type(value), "model_fields", ())  # pydantic
        yield from ((f".{name}", getattr(value, name)) for name in names)


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
