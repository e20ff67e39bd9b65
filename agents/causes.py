"""Errors of a handler's code: which are its own, what is said of them, and which steps they came from."""

from __future__ import annotations

import asyncio

from ..bus.errors import StepCancelled

MAX_TEXT = 2000
"""Characters of an error's text that are recorded."""


def is_own(error: BaseException) -> bool:
    """The code that was called raised it, so it is an outcome. Else the task is being ended, or the process is."""
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        return task is not None and not task.cancelling()
    return not isinstance(error, KeyboardInterrupt | GeneratorExit)


def as_failure(error: BaseException, what: str) -> BaseException:
    """Return what to report of an error of `what`; a CancelledError that nobody asked for says nothing by itself."""
    if not isinstance(error, asyncio.CancelledError):
        return error
    failure = StepCancelled(
        f"{what} raised CancelledError, and refold did not cancel it: it awaited a task or future that was cancelled"
    )
    failure.__cause__ = error
    return failure


def text_of(error: BaseException) -> str:
    """Return an error's text, whatever its `__str__` does, such that a record and a log line can carry it."""
    try:
        return str(error).encode(errors="backslashreplace").decode()
    except Exception as inner:  # noqa: BLE001 - it is the user's code too
        return f"(its text cannot be had: {type(inner).__name__})"


def describe_error(error: BaseException) -> str:
    """Return an error's class and text, at most MAX_TEXT characters, always such that a record can carry it."""
    text = text_of(error)
    if isinstance(error, BaseExceptionGroup) and len(error.exceptions) <= 8:
        text += ": " + "; ".join(describe_error(e) for e in error.exceptions)
    return f"{type(error).__name__}: {text}"[:MAX_TEXT] if text else type(error).__name__


def causes_of(error: BaseException) -> tuple[str, ...]:
    """Return the paths of the step failures that escaped with this error, or are in its context."""
    found: dict[str, None] = {}
    todo: list[BaseException | None] = [error]
    seen: set[int] = set()
    while todo:
        e = todo.pop()
        if e is None or id(e) in seen:
            continue
        seen.add(id(e))
        if getattr(e, "step", ""):
            found[e.step] = None  # type: ignore[attr-defined]
        todo += [e.__cause__, e.__context__, *getattr(e, "also", ()), *getattr(e, "exceptions", ())]
    return tuple(sorted(found, key=lambda p: [int(x) for x in p.split(".")]))
