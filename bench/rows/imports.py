"""How long it takes until refold is imported, and until the command line says what it can do."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from measure import Figure, Row

TIMES = 15
REFOLD = str(Path(sys.executable).with_name("refold"))
CODE = {"package": "import refold", "names": "from refold import Agent, MessageBus"}


def took(*arguments: str) -> float:
    """Run the interpreter; milliseconds."""
    before = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return (time.perf_counter() - before) * 1000


def refold(folder: Path) -> dict[str, float]:
    """Each beyond the bare interpreter, in turn; medians."""
    seen: dict[str, list[float]] = {"package": [], "names": [], "help": []}
    for _ in range(TIMES):
        bare = took("-c", "pass")
        for name, code in CODE.items():
            seen[name].append(took("-c", code) - bare)
        seen["help"].append(took(REFOLD, "--help") - bare)
    return {name: statistics.median(times) for name, times in seen.items()}


ROW = Row(
    "beyond the bare interpreter",
    [
        Figure("package", "`import refold`", "ms", "refold <= 50", better="less"),
        Figure("names", "`from refold import Agent, MessageBus`", "ms", "refold <= 150", better="less"),
        Figure("help", "`refold --help`", "ms", "refold <= 250", better="less"),
    ],
    {"refold": refold},
    turns=3,
)
