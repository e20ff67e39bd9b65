"""What a step may ask for: refused at the call, before it is recorded and no reader can make sense of it."""

from __future__ import annotations

import math

from ..bus.errors import HandlerError, InvalidMessage
from ..bus.rules import ID
from ..bus.values import check_text

MAX_NAME = 256
"""Characters of an effect's name."""


def check_id(text: object, path: str) -> None:
    """Refuse what cannot be the name of an agent or a kind. Raises InvalidMessage."""
    if not isinstance(text, str) or not ID.fullmatch(text):
        raise InvalidMessage(
            f"{text!r:.60} is no name", path=path, remedy="use 1 to 128 printable ASCII characters, no spaces"
        )


def check_effect_name(name: object) -> None:
    """An effect's name is text for people, and part of what a rerun is compared with. Raises HandlerError."""
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME:
        raise HandlerError(f"ctx.effect({name!r:.60}, ...): the name is a text of 1 to {MAX_NAME} characters")
    check_text(name, "$.fact.name")


def check_seconds(seconds: object, what: str) -> None:
    """A time is a finite number of seconds. Raises HandlerError."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
        raise HandlerError(f"{what}: {seconds!r:.60} is no finite number of seconds")


def check_priority(priority: object) -> None:
    """A priority is an int from 0 to 9. Raises InvalidMessage."""
    if isinstance(priority, bool) or not isinstance(priority, int) or not 0 <= priority <= 9:
        raise InvalidMessage(f"{priority!r:.60} is not within 0..9", path="$.priority", remedy="9 is most urgent")
