"""Exit codes: what a script can branch on."""

from __future__ import annotations

from ..bus import errors

OK = 0
FAILED = 1
USAGE = 2
NOT_FOUND = 3
NO_LOG = 4
TIMEOUT = 5
UNAVAILABLE = 6
REFUSED = 7
CONFIG = 8
USER_CODE = 9
INTERNAL = 70
INTERRUPTED = 130

MEANING = {
    OK: "done",
    FAILED: "what was asked for failed (an agent answered with an error, a proof did not hold)",
    USAGE: "the command line is wrong",
    NOT_FOUND: "no such workflow or agent",
    NO_LOG: "there is no log here",
    TIMEOUT: "no answer in time, the request stays in the log",
    UNAVAILABLE: "the log is locked, full or cannot be reached: try again",
    REFUSED: "the workflow's rules, or those of messages, refuse it",
    CONFIG: "settings that cannot work",
    USER_CODE: "your module cannot be loaded",
    INTERNAL: "a worker that was stalled, or something unexpected",
    INTERRUPTED: "Ctrl-C (a worker that ends its work first: 0)",
}

_BY_ERROR: tuple[tuple[type[Exception], int], ...] = (
    (errors.NoSuchAgent, NOT_FOUND),
    (errors.NoSuchWorkflow, NOT_FOUND),
    (errors.RequestTimeout, TIMEOUT),
    (errors.LogMissing, NO_LOG),
    (errors.ConfigError, CONFIG),
    (errors.TryAgain, UNAVAILABLE),
    (errors.Failure, FAILED),
    (errors.Never, REFUSED),
    (errors.YourBug, USER_CODE),
)


def code_of(error: Exception) -> int:
    """Return the exit code of an error."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), INTERNAL)


def epilog() -> str:
    """Return the codes as text for `--help`."""
    codes = "; ".join(f"[bold]{code}[/] {text}" for code, text in MEANING.items())
    return f"Exit codes: {codes}.\n\nWith --json, an error is one line of JSON on standard error."
