"""Where a play's log is: a file in its folder, or a namespace of its own on the server that CRASH_POINTS_ON names."""

from __future__ import annotations

import os
import shutil
import uuid
from pathlib import Path

SERVER = os.environ.get("CRASH_POINTS_ON", "")
"""As nats://127.0.0.1:4222; empty: the embedded log."""
NAMESPACE = "namespace"


def fresh(folder: Path) -> Path:
    """Make the folder anew, for a log that nobody has written to."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / NAMESPACE).write_text(f"c-{uuid.uuid4().hex[:12]}")
    return folder


def url_of(folder: Path) -> str:
    """Return the URL of a play's log."""
    if SERVER:
        return f"{SERVER}/{(folder / NAMESPACE).read_text()}"
    return f"sqlite:///{folder}/log.db?synchronous=normal"
