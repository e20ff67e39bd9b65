"""Log lines of `refold run`: each one that is written inside a handler says for whom."""

from __future__ import annotations

import logging
import sys
import time

import orjson

from ..agents.execution import doing
from ..agents.worker import Handling


class AboutHandling(logging.Filter):
    """Adds workflow, agent, message and attempt to every record, the user's own too."""

    def filter(self, record: logging.LogRecord) -> bool:
        now = doing.get()
        record.refold = now
        record.about = ""
        if now is not None:
            record.about = f"[{now.agent} {now.workflow} message {now.message} attempt {now.attempt}] "
        return True


class JsonLines(logging.Formatter):
    """One JSON object per line."""

    def format(self, record: logging.LogRecord) -> str:
        now = getattr(record, "refold", None)
        line = {
            "time": record.created, "level": record.levelname.lower(), "logger": record.name,
            "message": record.getMessage(),
        }  # fmt: skip
        if now is not None:
            line |= {"workflow": now.workflow, "agent": now.agent, "message_id": now.message, "attempt": now.attempt}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def configure(form: str, level: str = "INFO") -> None:
    """Send log lines to standard error, in the form asked for."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(AboutHandling())
    text = logging.Formatter("%(asctime)s %(levelname)-7s %(about)s%(message)s", "%H:%M:%S")
    handler.setFormatter(JsonLines() if form == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for noisy in ("aiosqlite", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def handled_line(h: Handling, form: str) -> str:
    """Return the line of one handling that ended."""
    if form == "json":
        line = {
            "time": time.time(), "level": "info", "logger": "refold.handled", "message": h.outcome,
            "workflow": h.workflow, "agent": h.agent, "message_id": h.message, "kind": h.kind, "attempt": h.attempt,
            "seconds": round(h.seconds, 6), "steps": h.steps,
        }  # fmt: skip
        return orjson.dumps(line).decode()
    again = f"  attempt {h.attempt}" if h.attempt > 1 else ""
    steps = f"  {h.steps} step{'s' * (h.steps != 1)}" if h.steps else ""
    spent = f"{h.seconds * 1000:.0f} ms" if h.seconds < 1 else f"{h.seconds:.1f} s"
    return f"{time.strftime('%H:%M:%S')} {h.agent}  {h.workflow}  {h.kind} -> {h.outcome}  {spent}{steps}{again}"
