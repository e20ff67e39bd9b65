"""Payloads on the command line: JSON, `@file`, or `-` for standard input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ..bus.errors import InvalidMessage
from ..bus.rules import parse
from ..bus.values import printable

EXAMPLE = """'{"topic": "tides"}'"""


def read_payload(text: str | None) -> Any:
    """Return the value. Raises InvalidMessage with the place of the mistake."""
    if text is None:
        return None
    source, where = text, "the payload"
    try:
        if text == "-":
            source, where = sys.stdin.read(), "standard input"
        elif text.startswith("@"):
            where = text[1:]
            source = Path(where).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:  # no such file, a name that no file can have, no UTF-8
        raise InvalidMessage(f"cannot be read: {error}", path=printable(where)) from error
    try:
        json.loads(source)
    except RecursionError:
        pass  # `parse` says how deep is too deep
    except ValueError as error:
        raise InvalidMessage(f"not JSON: {error}", path=printable(where), remedy=_remedy(text)) from error
    return parse(source.encode(errors="surrogatepass"))


def _remedy(text: str) -> str:
    if text == "-" or text.startswith("@"):
        return "correct it there"
    if text.lstrip()[:1] in ("{", "["):
        return f"names and texts need double quotes, and the whole single ones for the shell: {EXAMPLE}"
    return f"a plain text is written as '{json.dumps(text)}'"
