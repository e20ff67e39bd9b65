"""Payloads on the command line: JSON, `@file`, or `-` for standard input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from ..bus.errors import InvalidMessage


def read_payload(text: str | None) -> Any:
    """Return the value. Raises InvalidMessage with the place of the mistake."""
    if text is None:
        return None
    source, where = text, "the payload"
    if text == "-":
        source, where = sys.stdin.read(), "standard input"
    elif text.startswith("@"):
        try:
            source, where = Path(text[1:]).read_text(encoding="utf-8"), text[1:]
        except (OSError, UnicodeDecodeError) as error:
            raise InvalidMessage(f"{text[1:]} cannot be read: {error}", path="payload") from error
    try:
        return json.loads(source)
    except ValueError as error:
        quoted = json.dumps(source) if source == text else "JSON"
        raise InvalidMessage(
            f"{where} is not JSON: {error}", path="payload", remedy=f"a plain text is written as '{quoted}'"
        ) from error
