"""The outside world of a fault run: a file with a line for each call that was made, and one for what a client saw."""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any


def write(path: str | Path, **line: Any) -> None:
    """Append one JSON line, whole, whatever happens to the process afterwards."""
    text = json.dumps({"time": time.time(), "pid": os.getpid(), **line}) + "\n"
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def read(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines; the last one may have been cut off by a kill."""
    if not Path(path).exists():
        return []
    out = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            out.append(json.loads(line))
        except ValueError:
            continue
    return out


def pay(path: str, key: str) -> str:
    """Stand for a call that costs: it leaves a line, and returns what only this call can have returned."""
    receipt = uuid.uuid4().hex
    write(path, key=key, receipt=receipt)
    return receipt
